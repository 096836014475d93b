"""What T5 (Raffel et al. 2020, section 3.1.4) and BART (Lewis et al. 2020, section 2.2) take away from a text, or move."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np

DENSITY, MEAN_LENGTH = 0.15, 3.0  # share of the tokens that T5 takes away, and tokens of a span
INFILLED = 0.3  # share that BART does


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
    sentinels: Sequence[int],
    density: float = DENSITY,
    mean_length: float = MEAN_LENGTH,
) -> tuple[list[int], list[int]]:
    """Source and target of one text, without end tokens.

    Args:
      ids: the tokens of a text, none of them a sentinel.
      rng: what is drawn depends on it and on the number of tokens alone.
      sentinels: the ids that stand for the spans, in their order; with too few of them spans are longer.

    Returns:
      The text with a sentinel in the place of each span; and each sentinel with what stood there.

    >>> source, target = corrupt_spans(range(10, 20), np.random.default_rng(1), sentinels=[99, 98])
    >>> len(source), len(target), target[0]
    (9, 3, 99)
    """
    ids, sentinels = np.asarray(ids), np.asarray(sentinels)
    mean_length = max(mean_length, len(ids) * density / (len(sentinels) - 0.5)) if len(sentinels) > 1 else len(ids)
    mask_N = span_mask(len(ids), rng, density, mean_length)

    def side(gone_N: np.ndarray) -> list[int]:
        """The text with a sentinel in the place of each run of ``gone_N``."""
        starts_N = gone_N & ~np.concatenate([[False], gone_N[:-1]])
        marked_N = np.where(starts_N, sentinels[starts_N.cumsum() - 1], ids)
        return marked_N[starts_N | ~gone_N].tolist()

    return side(mask_N), side(~mask_N)


def infill(
    ids: Sequence[int], rng: np.random.Generator, mask_id: int, density: float = INFILLED, mean_length: float = MEAN_LENGTH
) -> list[int]:
    """Text infilling (Lewis et al. 2020, section 2.2): each span becomes one mask, and a span of no tokens inserts one.

    Span lengths are drawn from a Poisson distribution until ``density`` of the tokens are in spans; the text grows by none.

    Args:
      ids: the tokens of a text.
      mask_id: what stands for a span, of whatever length.
      mean_length: the mean of the distribution.

    >>> infill(range(10, 20), np.random.default_rng(0), mask_id=1)
    [10, 11, 12, 13, 1, 14, 15, 1, 18, 1]
    """
    left, lengths = round(len(ids) * density), []
    while left > 0:
        lengths.append(min(int(rng.poisson(mean_length)), left))
        left -= lengths[-1]
    spans = [length for length in lengths if length]
    lengths = spans + [0] * min(len(lengths) - len(spans), sum(spans) - len(spans))  # no more masks than they replace
    # A span stands before one of the tokens that are kept, or after all: spans never touch.
    kept = len(ids) - sum(lengths)
    places = sorted(rng.permutation(kept + 1)[: len(lengths)].tolist())
    gone = dict(zip(places, rng.permutation(lengths).tolist(), strict=True))
    found, at = [], 0
    for place in range(kept + 1):
        if place in gone:
            found.append(mask_id)
            at += gone[place]
        if place < kept:
            found.append(ids[at])
            at += 1
    return found


def permute_sentences(ids: Sequence[int], rng: np.random.Generator, ends: Collection[int]) -> list[int]:
    """Sentence permutation (Lewis et al. 2020, section 2.2): the same sentences in any order, each as likely.

    A sentence goes up to the last of the tokens in a row that end one; what follows the last of these is one more. The released
    code too cuts by tokens, after full stops, but after the first of several.

    Args:
      ids: the tokens of a text.
      ends: the tokens that end a sentence.

    >>> permute_sentences([5, 6, 1, 7, 1, 1, 8], np.random.default_rng(5), ends={1})
    [7, 1, 1, 8, 5, 6, 1]
    """
    is_end = [token in ends for token in ids]
    cuts = [at + 1 for at, (end, next_end) in enumerate(pairwise(is_end)) if end and not next_end]
    if not cuts:
        return list(ids)
    sentences = [list(ids[start:end]) for start, end in pairwise([0, *cuts, len(ids)])]
    return [token for number in rng.permutation(len(sentences)) for token in sentences[number]]
