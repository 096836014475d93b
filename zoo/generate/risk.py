"""Minimum Bayes risk: of many outputs, the one that on average agrees most with the others. On the host, after a search.

Kumar & Byrne 2004 (HLT-NAACL, "Minimum Bayes-Risk Decoding for Statistical Machine Translation"); Eikema & Aziz 2020
(arXiv:2005.10283, equation 5) take the expectation over samples of the model: the candidate h of the greatest expected utility

    mean over references r, weighted, of utility(h, r)

where candidates and references may be the same samples. Unweighted samples of ``Sample`` are what the expectation asks for;
hypotheses of a beam want their probabilities as weights.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from zoo.core import UserError

Utility = Literal["chrf", "bleu"] | Callable[[Hashable, Hashable], float]


class MinimumRisk(NamedTuple):
    """What minimum Bayes risk decoding chose.

    Attributes:
      best: the candidate of the greatest expected utility, the first among equals.
      index: where it stands among the candidates.
      utilities: (N,) float64, the expected utility of each candidate.
    """

    best: Hashable
    index: int
    utilities: np.ndarray


def minimum_bayes_risk(
    candidates: Sequence[Hashable],
    utility: Utility = "chrf",
    weights: Sequence[float] | None = None,
    references: Sequence[Hashable] | None = None,
) -> MinimumRisk:
    """The candidate of the greatest expected utility; quadratic in the number of different ones.

    >>> minimum_bayes_risk([(5, 6), (5, 7), (8,)], lambda hypothesis, reference: len({*hypothesis} & {*reference})).best
    (5, 6)

    Args:
      candidates: N texts, or with a utility of your own anything hashable, such as tuples of token ids. Equal ones are compared
        once.
      utility: "chrf" or "bleu", sacrebleu's sentence scores of 0 to 100 (BLEU with effective order); or a function of a
        hypothesis and a reference, the greater the better.
      weights: how much each reference counts, such as its probability; any scale. None: all the same.
      references: what the candidates are compared with; None for the candidates themselves.

    Raises:
      UserError: no candidate, a bad weight or utility, or sacrebleu is wanted and missing.
    """
    references = candidates if references is None else references
    if not len(candidates) or not len(references):
        raise UserError(f"there are {len(candidates)} candidates and {len(references)} references: give at least 1 of each")
    weights = _checked(weights, len(references))
    hypotheses, which_N = _unique(candidates)
    compared, which_M = _unique(references)
    score = _utility(utility, (*hypotheses, *compared))
    share = np.bincount(which_M, weights / weights.sum(), len(compared))
    counted = np.flatnonzero(share)  # a reference without weight is not worth a comparison
    table = np.array([[score(h, compared[r]) for r in counted] for h in hypotheses], np.float64)
    if np.isnan(table).any():
        raise UserError("the utility is NaN for some candidate: it must be a number for every pair")
    utilities = (table @ share[counted])[which_N]
    index = int(np.argmax(utilities))
    return MinimumRisk(candidates[index], index, utilities)


def _checked(weights: Sequence[float] | None, count: int) -> np.ndarray:
    if weights is None:
        return np.ones(count)
    array = np.asarray(weights, np.float64)
    if array.shape != (count,):
        raise UserError(f"weights has the shape {array.shape}: give one weight for each of the {count} references")
    if not np.isfinite(array).all() or (array < 0).any():
        raise UserError(f"weights holds {array[~(array >= 0) | np.isinf(array)][0]}: a weight is a number from 0 on")
    if not array.any():
        raise UserError("weights are all 0: at least one reference must count")
    return array


def _unique(items: Sequence[Hashable]) -> tuple[list[Hashable], np.ndarray]:
    """The different items in order, and for each item which of them it is."""
    place: dict[Hashable, int] = {}
    try:
        which = [place.setdefault(item, len(place)) for item in items]
    except TypeError as error:
        raise UserError(f"a candidate cannot be compared: {error}; give texts or tuples of token ids") from error
    return list(place), np.array(which)


def _utility(utility: Utility, items: tuple[Hashable, ...]) -> Callable[[Hashable, Hashable], float]:
    if callable(utility):
        return utility
    if utility not in ("chrf", "bleu"):
        raise UserError(f'utility is {utility!r}: choose "chrf", "bleu" or a function of a hypothesis and a reference')
    if not all(isinstance(item, str) for item in items):
        raise UserError(f'utility "{utility}" compares texts: decode the token ids first, or give a function')
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError as error:
        raise UserError(f'utility "{utility}" needs sacrebleu: pip install sacrebleu') from error
    metric = CHRF() if utility == "chrf" else BLEU(effective_order=True)
    return lambda hypothesis, reference: metric.sentence_score(hypothesis, [reference]).score
