"""When each word was said: cross-attention, smoothed, and the cheapest monotonic path through it (dynamic time warping)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

MEDIAN = 7  # positions of the median filter
UNSPACED = ("zh", "ja", "th", "lo", "my", "yue")  # languages whose words no space divides


def median_filter(x: np.ndarray, width: int) -> np.ndarray:
    """The median of each ``width`` neighbours along the last axis, reflected at its ends; too short an axis stays as it is.

    >>> median_filter(np.array([0.0, 9.0, 1.0, 2.0]), 3).tolist()
    [9.0, 1.0, 2.0, 1.0]
    """
    half = width // 2
    if x.shape[-1] <= half:
        return x
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(half, half)], mode="reflect")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width, axis=-1), axis=-1)


def dynamic_time_warping(cost_TS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The path of least cost from one corner to the other in steps of one row, one column or both: its rows and columns.

    Of steps that cost the same, one along a row goes first, as in the reference.

    >>> [x.tolist() for x in dynamic_time_warping(np.array([[0.0, 0.0, 9.0], [9.0, 9.0, 0.0]]))]
    [[0, 0, 1], [0, 1, 2]]
    """
    T, S = cost_TS.shape
    total, came = np.full((T + 1, S + 1), np.inf), np.full((T + 1, S + 1), 2, np.int8)
    total[0, 0] = 0
    for diagonal in range(2, T + S + 1):  # all cells of one depend on the two before it alone
        i = np.arange(max(1, diagonal - S), min(T, diagonal - 1) + 1)
        j = diagonal - i
        both, down, along = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
        step = np.where((both < down) & (both < along), 0, np.where((down < both) & (down < along), 1, 2))
        came[i, j] = step
        total[i, j] = cost_TS[i - 1, j - 1] + np.choose(step, (both, down, along))
    came[0, :], came[:, 0] = 2, 1
    i, j, path = T, S, []
    while i > 0 or j > 0:
        path.append((i - 1, j - 1))
        i, j = i - (came[i, j] != 2), j - (came[i, j] != 1)
    rows, columns = np.array(path[::-1]).T
    return rows, columns


def token_ends(weights_ATS: np.ndarray) -> np.ndarray:
    """Where each token ends, (T,) as an index into the sound: where the attention of the step that reads it begins.

    Args:
      weights_ATS: attention of some heads, that of the step which reads token t in row t.
    """
    weights_ATS = weights_ATS.astype(np.float64)
    spread = weights_ATS.std(axis=1, keepdims=True)
    normal_ATS = (weights_ATS - weights_ATS.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)
    rows, columns = dynamic_time_warping(-median_filter(normal_ATS, MEDIAN).mean(axis=0))
    return columns[np.diff(rows, prepend=-1).astype(bool)]


def words_of(tokens: Sequence[int], text: Callable[[list[int]], str], language: str) -> list[tuple[str, int, int]]:
    """Tokens as words: (text, first token, one after the last). A character that several tokens spell is never cut.

    Args:
      tokens: of text alone.
      text: decodes some of them.
      language: decides whether words begin with a space, or are as short as they can be.
    """
    words, first = [], 0
    for last in range(1, len(tokens) + 1):
        piece = text(list(tokens[first:last]))
        if "\ufffd" in piece and last < len(tokens):
            continue
        begins = piece.startswith(" ") or (language in UNSPACED and any(c.isalnum() for c in piece))
        if words and not begins:
            before, start, _ = words[-1]
            words[-1] = (before + piece, start, last)
        else:
            words.append((piece, first, last))
        first = last
    return words
