"""Words and the words around them, from plain text: what word vectors are learned from (Mikolov et al. 2013).

    lines -> Tokenized -> WindowBatches.train_batches -> prefetch_to_device
                                       .eval_batches

Frequent words are left out by chance before anything else, each word reaches a random number of places to both sides, and each
word to predict comes with words of noise. All of that is drawn from the seed and the place in the data, so that a run that is
resumed, or shared among other devices, sees the same words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import grain
import numpy as np

from train.data.buckets import Batching, Shape
from train.data.pipeline import CHUNK, Batch, Shuffled, Tokenized, TrainBatches
from train.data.sources import Example, Files, Split
from zoo.core import PAD, SPECIAL_TOKENS, Tokens, UserError

POWER = 0.75  # of a word's count in the distribution of the noise (arXiv:1310.4546, section 2.2)
MOST = {"window": (1, 1000), "negatives": (1, 1000), "subsample": (0, 1)}


@dataclasses.dataclass(frozen=True)
class Windows:
    """Plain text, each line by itself, of which words are predicted by their neighbours.

    A line is the least that is held at once: break a corpus that is one endless line by ``fold -s``.
    """

    train: str = ""
    """Text file to train on, also as .gz."""
    validation: str = ""
    """File to evaluate on during training; empty: 5 % of the training file (at most 2,000 lines), chosen by their hash."""
    test: str = ""
    """File for the final score; empty: another 5 % of the training file, chosen alike."""
    predict: Literal["neighbours", "centre"] = "neighbours"
    """What is told from the other: "neighbours" is skip-gram, "centre" is CBOW."""
    window: int = 5
    """Most places between a word and its neighbours; each word draws its own from 1 to this."""
    negatives: int = 5
    """Words of noise for each word to predict."""
    subsample: float = 1e-5
    """The t of the paper: a word of frequency f is kept with probability sqrt(t / f); 0 keeps all, which suits small texts."""

    def load(self, split: Split) -> Sequence[Example]:
        """The lines of a split, as targets. Raises UserError for a file that cannot be read, or a number that cannot be."""
        for name, (low, high) in MOST.items():
            if not low <= getattr(self, name) <= high:
                raise UserError(f"data.{name} is {getattr(self, name)}: it must be {low} to {high}")
        if not self.train:
            raise UserError("no training file is given: set the field train to a text file")
        return Files(self.train, self.validation, self.test, format="text").load(split)


class _Plan(NamedTuple):
    """A batch to be: of each of its n rows the centre, the C places around it and the line; and the seed of the noise."""

    centre_n: np.ndarray
    around_nC: np.ndarray
    mask_nC: np.ndarray
    line_n: np.ndarray
    seed: tuple[int, ...]


class WindowBatches:
    """Batches of a training set, and of others by the same counts.

    Attributes:
      shape: (rows, source length, target length) of every batch.
    """

    def __init__(
        self, data: Tokenized, how: Windows, batching: Batching, multiple_of: int, seed: int, host: tuple[int, int] = (0, 1)
    ):
        """Args: those of ``train_batches`` and ``bucket_shapes``; ``batching.tokens`` counts all places of a window.

        Raises:
          UserError: the text has no pair of known words in a line.
        """
        self.data, self.how, self.seed, self.host = data, how, seed, host
        around = 2 * how.window
        rows = max(1, batching.tokens // around // multiple_of) * multiple_of
        self.shape: Shape = (rows, *((1, around) if how.predict == "neighbours" else (around, 1)))
        counts_V = count(data)
        if np.count_nonzero(counts_V) < 2:
            raise UserError("the training text has fewer than two different words of the vocabulary: check data.train")
        self.keep_V, self.noise_V = keep(counts_V, how.subsample), np.cumsum(counts_V**POWER)
        words = max((counts_V * self.keep_V).sum() / len(data), 1e-9)  # of a line, that are kept
        self.lines = int(np.clip(batching.window * rows / words, 1, len(data)))

    def train_batches(self) -> TrainBatches:
        """Batches for ever: each epoch the lines in a new order, with windows and noise of their own."""
        cutter = _Cutter(self, self.data, self.host)
        chunks = grain.MapDataset.source(Shuffled(len(self.data), self.lines, self.seed))
        in_this_thread = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        plans = grain.experimental.FlatMapIterDataset(chunks.to_iter_dataset(in_this_thread), cutter)
        return TrainBatches(plans.map(cutter.build), cutter)

    def eval_batches(self, data: Tokenized) -> EvalWindows:
        """The batches of all lines of another set, the same ones each time."""
        return EvalWindows(_Cutter(self, data, self.host), len(data), self.lines)


class EvalWindows:
    def __init__(self, cutter: _Cutter, lines: int, at_once: int):
        self._cutter, self._lines, self._at_once = cutter, lines, at_once

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self._lines, self._at_once):
            lines_N = np.arange(start, min(start + self._at_once, self._lines))
            yield from map(self._cutter.build, self._cutter.flat_map((lines_N, (0, start))))


class _Cutter(grain.experimental.FlatMapTransform):
    """Cuts a number of lines into the plans of their batches; ``build`` turns a plan into a Batch."""

    max_fan_out = 2**31
    too_long_N = np.zeros(0, bool)  # no line is

    def __init__(self, of: WindowBatches, data: Tokenized, host: tuple[int, int]):
        self._of, self._data, self._host = of, data, host

    def flat_map(self, chunk: tuple[np.ndarray, tuple[int, int]]) -> list[_Plan]:
        indices_L, seed = chunk
        rng = np.random.default_rng(seed)
        ids_N, length_L = self._data.targets(indices_L)
        line_N = np.repeat(indices_L, length_L)
        kept_N = rng.random(len(ids_N)) < self._of.keep_V[ids_N]
        ids_N, line_N = ids_N[kept_N], line_N[kept_N]
        around_NC, mask_NC = windows(ids_N, line_N, self._of.how.window, rng)
        order_M = rng.permutation(np.flatnonzero(mask_NC.any(axis=1)))
        rows = self._of.shape[0]
        parts = [order_M[start : start + rows] for start in range(0, len(order_M), rows)]
        return [_Plan(ids_N[n], around_NC[n], mask_NC[n], line_N[n], (*seed, number)) for number, n in enumerate(parts)]

    def build(self, plan: _Plan) -> Batch:
        (index, count), how = self._host, self._of.how
        rows, _, T = self._of.shape
        noise_BTK = draw(self._of.noise_V, (rows, T, how.negatives), np.random.default_rng(plan.seed))
        short = rows - len(plan.line_n)
        mine = slice(index * rows // count, (index + 1) * rows // count)

        def fill(x_n: np.ndarray, value: int) -> np.ndarray:
            return np.pad(x_n, [(0, short)] + [(0, 0)] * (x_n.ndim - 1), constant_values=value)[mine]

        real_B1 = fill(np.ones((len(plan.line_n), 1), bool), False)
        centre = Tokens(fill(plan.centre_n[:, None], PAD).astype(np.int32), real_B1)
        around = Tokens(fill(plan.around_nC, PAD).astype(np.int32), fill(plan.mask_nC, False))
        source, target = (centre, around) if how.predict == "neighbours" else (around, centre)
        return Batch(source, target._replace(noise=noise_BTK[mine]), fill(plan.line_n, -1).astype(np.int32))


def count(data: Tokenized) -> np.ndarray:
    """(V,) how often each word stands in the text; no special token is a word."""
    counts_V = np.zeros(data.target_vocab_size, np.int64)
    for start in range(0, len(data), CHUNK):
        ids_N, _ = data.targets(np.arange(start, min(start + CHUNK, len(data))))
        counts_V += np.bincount(ids_N, minlength=len(counts_V))
    counts_V[: len(SPECIAL_TOKENS)] = 0
    return counts_V


def keep(counts_V: np.ndarray, t: float) -> np.ndarray:
    """The probability with which an occurrence of each word is kept: 1 - equation 5 of arXiv:1310.4546; 0 for what is no word.

    >>> keep(np.array([0, 4, 96]), 0.01).round(3).tolist()
    [0.0, 0.5, 0.102]
    """
    frequency_V = counts_V / max(counts_V.sum(), 1)
    kept_V = np.sqrt(t / np.maximum(frequency_V, 1e-300)) if t else np.ones(len(counts_V))
    return np.where(counts_V > 0, np.minimum(kept_V, 1), 0)


def windows(ids_N: np.ndarray, line_N: np.ndarray, window: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The words around each: (N, 2 window) ids, from the left to the right, and bool, True where there is one in reach.

    Args:
      ids_N: words, line after line.
      line_N: the line of each.
      window: the reach of each word is drawn from 1 to this.
      rng: draws it.
    """
    reach_N1 = rng.integers(1, window + 1, (len(ids_N), 1))
    offset_C = np.concatenate([np.arange(-window, 0), np.arange(1, window + 1)])
    at_NC = np.arange(len(ids_N))[:, None] + offset_C
    inside_NC = (at_NC >= 0) & (at_NC < len(ids_N))
    at_NC = np.where(inside_NC, at_NC, 0)
    mask_NC = inside_NC & (line_N[at_NC] == line_N[:, None]) & (np.abs(offset_C) <= reach_N1)
    return np.where(mask_NC, ids_N[at_NC], PAD), mask_NC


def draw(cumulative_V: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Words, int32, each with a probability in proportion to its share of the cumulative sums."""
    found = np.searchsorted(cumulative_V, rng.random(shape) * cumulative_V[-1], side="right")
    return np.minimum(found, len(cumulative_V) - 1).astype(np.int32)
