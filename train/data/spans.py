"""Span corruption: spans of a text become sentinels, and the model writes what stood there (Raffel et al. 2020, 3.1.4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DENSITY, MEAN_LENGTH = 0.15, 3.0  # share of the tokens that are taken away, and of a span


def span_mask(length: int, rng: np.random.Generator, density: float = DENSITY, mean_length: float = MEAN_LENGTH) -> np.ndarray:
    """Which tokens are taken away, (length,) bool, as the released code's ``random_spans_noise_mask`` draws them.

    The number of tokens and of spans follow from the length alone; how they are cut is random. A text begins with
    what is kept and ends with what is taken.

    >>> span_mask(20, np.random.default_rng(0)).sum()
    np.int64(3)
    """
    if length < 2:
        return np.zeros(length, bool)
    taken = min(max(int(np.round(length * density)), 1), length - 1)
    spans = min(max(int(np.round(taken / mean_length)), 1), length - taken)

    def cut(items: int) -> np.ndarray:
        """(spans,) lengths, none of them 0, that add up to ``items``; every such cut is as likely."""
        first = np.zeros(items, bool)
        first[1 + rng.permutation(items - 1)[: spans - 1]] = True
        return np.bincount(first.cumsum(), minlength=spans)

    lengths = np.stack([cut(length - taken), cut(taken)], axis=1).reshape(-1)
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)


def corrupt_spans(
    ids: Sequence[int],
    rng: np.random.Generator,
    first_sentinel: int,
    density: float = DENSITY,
    mean_length: float = MEAN_LENGTH,
) -> tuple[list[int], list[int]]:
    """Source and target of one text, without end tokens.

    Args:
      ids: the tokens of a text, none of them a sentinel.
      rng: what is drawn depends on it and on the number of tokens alone.
      first_sentinel: the id of the first span's; each further span has the next lower one.

    Returns:
      The text with a sentinel in the place of each span; and each sentinel with what stood there.

    >>> source, target = corrupt_spans(range(10, 20), np.random.default_rng(1), first_sentinel=99)
    >>> len(source), len(target), target[0]
    (9, 3, 99)
    """
    ids, mask_N = np.asarray(ids), span_mask(len(ids), rng, density, mean_length)

    def side(gone_N: np.ndarray) -> list[int]:
        """The text with a sentinel in the place of each run of ``gone_N``."""
        starts_N = gone_N & ~np.concatenate([[False], gone_N[:-1]])
        marked_N = np.where(starts_N, first_sentinel + 1 - starts_N.cumsum(), ids)
        return marked_N[starts_N | ~gone_N].tolist()

    return side(mask_N), side(~mask_N)


def lengths_before(source: int, density: float = DENSITY, mean_length: float = MEAN_LENGTH) -> tuple[int, int]:
    """How many tokens to corrupt so that a source with its end token has ``source`` of them at most; and the target's then.

    The most such tokens: rows cut to this length need no padding (the released code's ``random_spans_helper``).

    >>> lengths_before(512)
    (568, 114)
    """

    def after(length: int) -> tuple[int, int]:
        taken = min(max(int(np.round(length * density)), 1), length - 1)
        spans = min(max(int(np.round(taken / mean_length)), 1), length - taken)
        return length - taken + spans + 1, taken + spans + 1

    length = 2
    while after(length + 1)[0] <= source:
        length += 1
    return length, after(length)[1]
