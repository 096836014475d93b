"""Corruption: what a model is pre-trained to undo. A text's ids become what is read and what is wanted, anew each time.

A corruption is ``corrupt(ids_N, rng) -> (source ids, target ids)``, of any lengths; no loss counts an ``IGNORED`` target.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from train.data.spans import corrupt_spans, infill, permute_sentences
from zoo.core import Tokens, UserError, pad_tokens

Corrupt = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]
IGNORED = -1
# What ends a sentence, and what may follow in the same token.
ENDING, CLOSING = (".", "?", "!", "\u3002", "\uff1f", "\uff01"), "\"')]»”\u2019」"


def masking(tokenizer: Any, share: float = 0.15) -> Corrupt:
    """Masked tokens (Devlin et al. 2019, section 3.1): of those chosen, 80 % are masked, 10 % any token, 10 % left.

    Args:
      tokenizer: its ``mask_id`` stands for a missing token; those that stand around every text are not chosen.
      share: of the tokens that are chosen, each by itself.
    """
    kept = sorted(tokenizer.wrapping)

    def corrupt(ids_N: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        chosen_N = (rng.random(len(ids_N)) < share) & ~np.isin(ids_N, kept)
        how_N, any_N = rng.random(len(ids_N)), rng.integers(tokenizer.vocab_size, size=len(ids_N))
        read_N = np.where(how_N < 0.8, tokenizer.mask_id, np.where(how_N < 0.9, any_N, ids_N))
        return np.where(chosen_N, read_N, ids_N), np.where(chosen_N, ids_N, IGNORED)

    return corrupt


def spans(tokenizer: Any) -> Corrupt:
    """Spans become sentinels in the source, and the target has each sentinel and what stood there (``spans.corrupt_spans``).

    Raises UserError for a tokenizer without sentinels.
    """
    sentinels = tokenizer.sentinels
    if not sentinels:
        raise UserError(
            'corruption is "spans", but the tokenizer has no <extra_id_0>: start from a T5 with init_from, or set '
            "tokenizers.sentinels, such as 100, where one is learned"
        )

    def corrupt(ids_N: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        text_N, end_N = without_end(ids_N, tokenizer)
        source, target = corrupt_spans(text_N, rng, sentinels)
        return np.array([*source, *end_N], np.int32), np.array([*target, *end_N], np.int32)

    return corrupt


def infilling(tokenizer: Any) -> Corrupt:
    """BART's: the source's sentences in another order, spans of it one mask each; the target is the whole text as it was."""
    ends = sentence_ends(tokenizer)

    def corrupt(ids_N: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        text_N, end_N = without_end(ids_N, tokenizer)
        before = sum(1 for i in itertools.takewhile(lambda i: i in tokenizer.wrapping, text_N.tolist()))
        read = infill(permute_sentences(text_N[before:].tolist(), rng, ends), rng, tokenizer.mask_id)
        return np.array([*text_N[:before], *read, *end_N], np.int32), ids_N

    return corrupt


def sentence_ends(tokenizer: Any) -> frozenset[int]:
    """The tokens that end a sentence: with a full stop, question or exclamation mark last, or before a closing quote."""
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    return frozenset(number for number, piece in enumerate(pieces) if piece.rstrip(CLOSING).endswith(ENDING))


def without_end(ids_N: np.ndarray, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """A text's tokens, and those that stand after every text."""
    end = len(ids_N)
    while end and int(ids_N[end - 1]) in tokenizer.wrapping:
        end -= 1
    return ids_N[:end], ids_N[end:]


# Name -> what makes the corruption of a tokenizer.
CORRUPTIONS: dict[str, Callable[[Any], Corrupt | None]] = {
    "none": lambda tokenizer: None,
    "mask": masking,
    "spans": spans,
    "infill": infilling,
}


def corrupted(target: Tokens, corrupt: Corrupt, seeds: Sequence[tuple[int, ...]]) -> tuple[Tokens, Tokens]:
    """Source and target of a batch of texts, as long as these.

    Args:
      target: the texts (B, T).
      corrupt: what is done to each.
      seeds: of each row's random numbers.
    """
    length = target.ids.shape[1]
    pairs = [
        corrupt(ids_T[mask_T], np.random.default_rng(seed))
        for ids_T, mask_T, seed in zip(target.ids, target.mask, seeds, strict=True)
    ]
    source, wanted = (pad_tokens([pair[side] for pair in pairs], length) for side in (0, 1))
    learned = wanted.mask & (wanted.ids != IGNORED)
    return source, Tokens(np.where(learned, wanted.ids, 0), learned)
