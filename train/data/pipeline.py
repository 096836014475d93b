"""From text pairs to fixed-shape batches of token ids.

    examples -> Tokenized -> bucket_shapes -> train_batches -> prefetch_to_device
                                           -> eval_batches

Every batch has one of a few shapes, so that a jitted step compiles a few times and no more. Training takes the examples of
an epoch in an order drawn from the seed, cuts the order into windows, sorts each window by length and cuts it into batches.
All of that depends on token lengths only, so every host cuts the same global batches and builds the rows that are its own.
With ``Batching.pack`` a window's examples are put into rows, several in one, and the rows shuffled before they are cut.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from train.data.buckets import Batching, Shape, bucket_of, bucket_shapes, first_fit
from train.data.corrupt import Corrupt, corrupted
from train.data.sources import Example
from zoo.core import PAD, Sound, Tokens
from zoo.text import Tokenizer

SAMPLE = 20_000  # examples whose lengths decide on the shapes
CHUNK = 4096  # examples encoded at once
REMEMBER = 2 * 2**30  # bytes of token ids that Tokenized keeps


class Batch(NamedTuple):
    """Fixed-shape host arrays.

    Attributes:
      source: ids (B, S) int32 and mask (B, S) bool; segments (B, S) int32 if rows are packed. Or sound.
      target: ids (B, T) int32 and mask (B, T) bool; segments (B, T) int32 if rows are packed.
      example_ids: (B,) int32 index of each row's example; -1 for a row of padding, whose masks are all False. If rows are
        packed, (B, n), of a row's examples in the order of their segments, then -1.
    """

    source: Tokens | Sound
    target: Tokens
    example_ids: np.ndarray


class Tokenized:
    """Token ids of text pairs, encoded when first asked for and then remembered, compactly, up to a number of bytes."""

    def __init__(
        self,
        examples: Sequence[Example],
        source: Tokenizer,
        target: Tokenizer,
        remember: int = REMEMBER,
        corrupt: Corrupt | None = None,
    ):
        """What the examples become.

        Args:
          examples: the text pairs.
          source, target: what encodes each side.
          remember: bytes of ids (with Python's overhead) to keep; beyond it examples are encoded again each time.
          corrupt: makes both sides of a batch of the targets alone.
        """
        self.examples, self.corrupt = examples, corrupt
        self._sides = [
            (tokenizer, np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32)) for tokenizer in (source, target)
        ]
        self._ids: list[tuple[bytes, bytes] | None] = [None] * len(examples)
        self._lengths_N2 = np.full((len(examples), 2), -1, np.int32)  # not known yet
        self._room = remember

    def __len__(self) -> int:
        return len(self.examples)

    def lengths(self, indices_N: np.ndarray) -> np.ndarray:
        """(N, 2) int32 token counts of source and target."""
        unknown = indices_N[self._lengths_N2[indices_N, 0] < 0]
        for start in range(0, len(unknown), CHUNK):
            self._packed(unknown[start : start + CHUNK].tolist())
        return self._lengths_N2[indices_N]

    def sample_lengths(self, size: int = SAMPLE) -> np.ndarray:
        """(N, 2) lengths of ``size`` examples spread evenly over the set; of all if there are no more."""
        return self.lengths(np.unique(np.linspace(0, len(self) - 1, min(size, len(self))).astype(int)))

    def shapes(self, batching: Batching, multiple_of: int) -> tuple[Shape, ...]:
        """``bucket_shapes`` of these examples."""
        return bucket_shapes(batching, multiple_of, self.sample_lengths())

    @property
    def target_vocab_size(self) -> int:
        return self._sides[1][0].vocab_size

    def targets(self, indices_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids (N,) of the targets of n examples, one after another, and (n,) int32 the length of each."""
        pairs = self._packed(indices_n.tolist())
        return np.frombuffer(b"".join(target for _, target in pairs), self._sides[1][1]), self._lengths_N2[indices_n, 1]

    def padded(self, indices_n: np.ndarray, row_n: np.ndarray, shape: Shape, segments: bool = False) -> tuple[Tokens, Tokens]:
        """Sources and targets of n examples as rows of a shape.

        Args:
          indices_n: the examples.
          row_n: the row of each, ascending; several in a row stand side by side.
          shape: (rows, source length, target length); of an example too long for it the last token, its end, is kept.
          segments: number a row's examples.
        """
        pairs, lengths_n2 = self._packed(indices_n.tolist()), self._lengths_N2[indices_n]
        columns = zip(zip(*pairs), lengths_n2.T) if pairs else [((), np.zeros(0, int))] * 2
        return tuple(
            _pad(packed, length_n, dtype, row_n, (shape[0], length), segments)
            for (packed, length_n), (_, dtype), length in zip(columns, self._sides, shape[1:])
        )

    def _packed(self, indices: list[int]) -> list[tuple[bytes, bytes]]:
        """The ids as bytes: a tenth of what a list takes, and quick to join."""
        missing = [i for i in indices if self._ids[i] is None]
        fresh = dict(zip(missing, self._encode(missing))) if missing else {}
        for i, pair in fresh.items():
            if self._room > 0:
                self._room -= sum(map(sys.getsizeof, (pair, *pair)))
                self._ids[i] = pair
        return [self._ids[i] or fresh[i] for i in indices]

    def _encode(self, indices: list[int]) -> list[tuple[bytes, bytes]]:
        many = getattr(self.examples, "__getitems__", None)
        examples = many(indices) if many else [self.examples[i] for i in indices]
        columns = []
        for side, (tokenizer, dtype) in enumerate(self._sides):
            ids = tokenizer.encode_batch([example[side] for example in examples])
            self._lengths_N2[indices, side] = list(map(len, ids))
            columns.append([np.array(sequence, dtype).tobytes() for sequence in ids])
        return list(zip(*columns))


def _pad(
    packed: Sequence[bytes], length_n: np.ndarray, dtype: np.dtype, row_n: np.ndarray, shape: tuple[int, int], segments: bool
) -> Tokens:
    """Unpack ids, each into its row of an array of this shape."""
    rows, length = shape
    if (length_n > length).any():
        kept, last = max(length - 1, 0) * dtype.itemsize, -dtype.itemsize if length else sys.maxsize
        packed = [ids if count <= length else ids[:kept] + ids[last:] for ids, count in zip(packed, length_n)]
        length_n = np.minimum(length_n, length)
    length_B = np.bincount(row_n, length_n, minlength=rows)
    mask = np.arange(length) < length_B[:, None]
    ids = np.full(shape, PAD, np.int32)
    ids[mask] = np.frombuffer(b"".join(packed), dtype)  # row by row, as the mask is read
    if not segments:
        return Tokens(ids, mask)
    segment_BN = np.zeros(shape, np.int32)
    segment_BN[mask] = np.repeat(_place(row_n) + 1, length_n)
    return Tokens(ids, mask, segment_BN)


def _place(row_n: np.ndarray) -> np.ndarray:
    """(n,) how many stand before each in its row.

    >>> _place(np.array([0, 0, 0, 2, 2])).tolist()
    [0, 1, 2, 0, 1]
    """
    return np.arange(len(row_n)) - np.searchsorted(row_n, row_n)


class TrainBatches:
    """An endless iterator over training batches, whose state can be saved and set."""

    def __init__(self, dataset: Any, cutter: _Cutter):
        """Args: dataset: a ``grain.IterDataset`` of batches; cutter: the transform in it that counts what it drops."""
        self._iterator, self._cutter = iter(dataset), cutter

    def __iter__(self) -> TrainBatches:
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict:
        """The place in the stream, as JSON-serialisable values."""
        return self._iterator.get_state()

    def set_state(self, state: dict) -> None:
        """Continue exactly where ``get_state`` was called, given the same data, tokenizers and settings."""
        self._iterator.set_state(state)

    @property
    def dropped(self) -> int:
        """Examples found too long so far; after the first epoch, all of them."""
        return int(self._cutter.too_long_N.sum())


def train_batches(
    data: Tokenized,
    batching: Batching,
    shapes: Sequence[Shape],
    seed: int,
    host: tuple[int, int] = (0, 1),
) -> TrainBatches:
    """Batches for ever: each epoch every example within the limits once, in a new order.

    Args:
      data: the training set.
      batching: limits and window.
      shapes: what ``bucket_shapes`` gave; the same on every host.
      seed: of the order of examples and batches.
      host: (index, number of hosts). A host gets its contiguous share of the rows of every global batch.

    Raises:
      UserError: no example, or none within the limits.
      ValueError: the last shape is smaller than the limits: the shapes were made for another ``batching``.
    """
    sample_N2 = data.sample_lengths()
    batching.check(sample_N2)
    bounds = [shape[1:] for shape in shapes]
    if not batching.covered_by(shapes[-1]):
        raise ValueError(f"the last of the shapes {shapes} is smaller than the limits of {batching}")
    admitted_N2 = sample_N2[batching.admits(sample_N2)]
    if batching.pack:
        share_N = (admitted_N2 / bounds[-1]).max(axis=1) / shapes[-1][0]
    else:
        share_N = 1 / np.array([rows for rows, _, _ in shapes])[bucket_of(admitted_N2, bounds)]
    window = max(1, int(batching.window / share_N.mean()))
    cutter = _Cutter(data, batching, shapes, host)
    windows = grain.MapDataset.source(Shuffled(len(data), window, seed))
    in_this_thread = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # prefetch_to_device adds the one that pays
    planned = grain.experimental.FlatMapIterDataset(windows.to_iter_dataset(in_this_thread), cutter)
    return TrainBatches(planned.map(cutter.build), cutter)


class Shuffled:
    """An endless sequence of windows (indices, seed) of an epoch's order; the last window of an epoch may be smaller.

    Grain's own shuffle walks every index by itself, 2 ms each in a set of 20 examples; a permutation is at hand at once.
    """

    def __init__(self, examples: int, window: int, seed: int):
        self._examples, self._window, self._seed = examples, window, seed
        self._per_epoch = -(-examples // window)
        self._epoch, self._order_N = -1, np.zeros(0, np.int64)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[np.ndarray, tuple[int, int]]:
        epoch, number = divmod(int(index), self._per_epoch)
        if epoch != self._epoch:
            order_N = np.random.default_rng((self._seed, epoch)).permutation(self._examples)
            self._epoch, self._order_N = epoch, order_N
        return self._order_N[number * self._window : (number + 1) * self._window], (self._seed, int(index))


class _Plan(NamedTuple):
    """A batch to be: its shape, its n examples, the row of each, ascending, and the seed of its random numbers."""

    shape: Shape
    indices_n: np.ndarray
    row_n: np.ndarray
    seed: tuple[int, ...] = (0,)


class _Cutter(grain.experimental.FlatMapTransform):
    """Cuts a window of examples into the plans of its batches; ``build`` turns a plan into a Batch."""

    max_fan_out = 2**31

    def __init__(self, data: Tokenized, batching: Batching, shapes: Sequence[Shape], host: tuple[int, int]):
        self._data, self._batching, self._shapes, self._host = data, batching, shapes, host
        self.too_long_N = np.zeros(len(data), bool)

    def flat_map(self, window: tuple[np.ndarray, tuple[int, int]]) -> list[_Plan]:
        indices_N, seed = window
        lengths_N2 = self._data.lengths(indices_N)
        admitted_N = self._batching.admits(lengths_N2)
        self.too_long_N[indices_N[~admitted_N]] = True
        rng = np.random.default_rng(seed)
        if self._batching.pack:
            return _pack(indices_N[admitted_N], lengths_N2[admitted_N], self._shapes[-1], rng)
        plans = _cut(indices_N[admitted_N], lengths_N2[admitted_N], self._shapes)
        return [plans[i]._replace(seed=seed) for i in rng.permutation(len(plans))]

    def build(self, plan: _Plan) -> Batch:
        (rows, *lengths), indices_n, row_n, seed = plan
        (index, count), pack = self._host, self._batching.pack
        rows //= count  # of this host
        mine_n = row_n // rows == index
        indices_n, row_n = indices_n[mine_n], row_n[mine_n] - index * rows
        # As every sequence has its end token, no row holds more pairs than tokens of the shorter side; a prompt may have none.
        example_ids = np.full((rows, max(min(lengths), 1)), -1, np.int32)
        example_ids[row_n, _place(row_n)] = indices_n
        tokens = self._data.padded(indices_n, row_n, (rows, *lengths), pack)
        if self._data.corrupt is not None:
            tokens = corrupted(tokens[1], self._data.corrupt, [(*seed, int(i) + 1) for i in example_ids[:, 0]])
        return Batch(*tokens, example_ids if pack else example_ids[:, 0].copy())


def _pack(indices_N: np.ndarray, lengths_N2: np.ndarray, shape: Shape, rng: np.random.Generator) -> list[_Plan]:
    """Batches of rows that hold as many pairs as fit, in a random order. Only the last may be short of rows."""
    row_N = first_fit(lengths_N2, shape[1:])
    row_N = rng.permutation(int(row_N.max(initial=-1)) + 1)[row_N]
    order_N = np.argsort(row_N, kind="stable")
    indices_N, row_N = indices_N[order_N], row_N[order_N]
    batch_N = row_N // shape[0]
    cuts = np.flatnonzero(np.diff(batch_N)) + 1
    return [
        _Plan(shape, indices_n, row_n % shape[0])
        for indices_n, row_n in zip(np.split(indices_N, cuts), np.split(row_N, cuts))
        if len(indices_n)
    ]


def _cut(indices_N: np.ndarray, lengths_N2: np.ndarray, shapes: Sequence[Shape]) -> list[_Plan]:
    """Greedily from the longest: a batch takes the shape that its longest example needs, and as many rows as that has.

    Only the last batch, of the shortest examples, may be short of rows.
    """
    bucket_N = bucket_of(lengths_N2, [shape[1:] for shape in shapes])
    order_N = np.lexsort((lengths_N2.sum(axis=1), bucket_N))[::-1]
    plans, start = [], 0
    while start < len(order_N):
        shape = shapes[bucket_N[order_N[start]]]
        indices_B = indices_N[order_N[start : start + shape[0]]]
        plans.append(_Plan(shape, indices_B, np.arange(len(indices_B))))
        start += shape[0]
    return plans


class EvalBatches:
    """Every example of a set once, in the same batches each time it is iterated; the longest come first.

    Nothing is left out: a source or target beyond the last shape is truncated, its last token kept.

    Attributes:
      truncated: number of examples whose source or target is cut.
    """

    def __init__(self, data: Tokenized, shapes: Sequence[Shape], host: tuple[int, int]):
        lengths_N2 = data.lengths(np.arange(len(data)))
        limits = np.array(shapes[-1][1:])
        self.truncated = int((lengths_N2 > limits).any(axis=1).sum())
        self._cutter = _Cutter(data, Batching(), shapes, host)
        self._plans = _cut(np.arange(len(data)), np.minimum(lengths_N2, limits), shapes)

    def __len__(self) -> int:
        return len(self._plans)

    def __iter__(self) -> Iterator[Batch]:
        return map(self._cutter.build, self._plans)


def eval_batches(data: Tokenized, shapes: Sequence[Shape], host: tuple[int, int] = (0, 1)) -> EvalBatches:
    """Batches of ``shapes`` (from ``bucket_shapes``) that hold every example once; ``example_ids`` says which row is which."""
    return EvalBatches(data, shapes, host)
