"""How well labels are told: accuracy, F1, area under the ROC curve and the confusion matrix, from probabilities.

Four formulas in NumPy, tested against counting by hand, rather than scikit-learn, a hundred megabytes with what it needs.
"""

from __future__ import annotations

import numpy as np


def scores(probabilities_NC: np.ndarray, truth_N: np.ndarray) -> dict[str, float]:
    """All scores, from 0 to 1.

    Args:
      probabilities_NC: of each of the C labels, float.
      truth_N: the right labels, int.

    Returns:
      accuracy, auc and macro_f1 (the mean over the labels); of two labels also f1, that of the second one.
    """
    matrix_CC = confusion(probabilities_NC.argmax(axis=1), truth_N, probabilities_NC.shape[1])
    f1_C = f1(matrix_CC)
    binary = {"f1": float(f1_C[1])} if len(f1_C) == 2 else {}
    accuracy = float(np.trace(matrix_CC) / max(matrix_CC.sum(), 1))
    return {"accuracy": accuracy, **binary, "macro_f1": float(f1_C.mean()), "auc": mean_auc(probabilities_NC, truth_N)}


def confusion(predicted_N: np.ndarray, truth_N: np.ndarray, labels: int) -> np.ndarray:
    """(C, C) int: how often the label of a row was taken for that of a column.

    >>> confusion(np.array([1, 1, 0]), np.array([1, 0, 0]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    matrix_CC = np.zeros((labels, labels), np.int64)
    np.add.at(matrix_CC, (truth_N, predicted_N), 1)
    return matrix_CC


def f1(matrix_CC: np.ndarray) -> np.ndarray:
    """(C,) the harmonic mean of precision and recall of each label; 0 for one that was neither there nor predicted."""
    right_C, both_C = np.diag(matrix_CC), matrix_CC.sum(axis=0) + matrix_CC.sum(axis=1)
    return 2 * right_C / np.maximum(both_C, 1)


def auc(score_N: np.ndarray, positive_N: np.ndarray) -> float:
    """The area under the ROC curve: how often a positive example scores above a negative one, a tie counting half
    (Hanley & McNeil 1982); nan without examples of both kinds.

    >>> auc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True]))
    0.875
    """
    positive_N = positive_N.astype(bool)
    _, place_N, count = np.unique(score_N, return_inverse=True, return_counts=True)
    rank_N = (np.cumsum(count) - (count - 1) / 2)[place_N]  # equal scores share the mean of their ranks
    P, N = positive_N.sum(), (~positive_N).sum()
    return float((rank_N[positive_N].sum() - P * (P + 1) / 2) / (P * N)) if P and N else float("nan")


def mean_auc(probabilities_NC: np.ndarray, truth_N: np.ndarray) -> float:
    """The second label's area where there are two; else the mean over the labels that are there, each against all others."""
    labels = [1] if probabilities_NC.shape[1] == 2 else range(probabilities_NC.shape[1])
    areas = [auc(probabilities_NC[:, label], truth_N == label) for label in labels]
    known = [area for area in areas if not np.isnan(area)]
    return float(np.mean(known)) if known else float("nan")
