"""A few batch shapes for texts of all lengths: what the limits of a batch are, and which shapes suit a training set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from zoo.core import UserError

Shape = tuple[int, int, int]  # rows B of the global batch, source length S, target length T


@dataclasses.dataclass(frozen=True)
class Batching:
    """How examples become batches. Lengths are in tokens, the end token included."""

    tokens: int = 4096
    """Size of a batch over all devices: rows times the longer of source and target length, padding included."""
    max_source_len: int = 256
    """Longer sources are left out of training and truncated in evaluation; 0 if none has any token, as of plain text."""
    max_target_len: int = 256
    """Longer targets are left out of training and truncated in evaluation."""
    buckets: int = 4
    """At most this many batch shapes; each is compiled once."""
    window: int = 64
    """About this many batches are sorted by length together: more means less padding, fewer more randomness."""
    pack: bool = False
    """Put several short pairs into a row, told apart by segment ids, in training batches of one shape; for models that attend
    by segment."""

    def admits(self, lengths_N2: np.ndarray) -> np.ndarray:
        """(N,) bool: which (source, target) lengths are within the limits."""
        return (lengths_N2 <= (self.max_source_len, self.max_target_len)).all(axis=1)

    def covered_by(self, shape: Shape) -> bool:
        """Whether whatever is within the limits fits into this shape."""
        return self.max_source_len <= shape[1] and self.max_target_len <= shape[2]

    def check(self, lengths_N2: np.ndarray) -> None:
        """Raise UserError if there are no examples or none is within the limits."""
        if not len(lengths_N2):
            raise UserError("the training set holds no examples: check the data fields of the experiment")
        if not self.admits(lengths_N2).any():
            source_len, target_len = lengths_N2.min(axis=0)
            raise UserError(
                f"no training example is within max_source_len {self.max_source_len} and max_target_len {self.max_target_len} "
                f"(the shortest source has {source_len} tokens, the shortest target {target_len}): raise these limits"
            )


def bucket_shapes(batching: Batching, multiple_of: int, lengths_N2: np.ndarray) -> tuple[Shape, ...]:
    """The batch shapes of a training set, shortest first, at most ``batching.buckets`` of them.

    The last one, at the limits, takes what the sample did not show. The others are quantiles of the sample, chosen one by
    one so that each saves the most padding. Packed rows have no use for the others.

    Args:
      batching: the limits.
      multiple_of: devices over which rows are divided; every B is a multiple of it, even if that exceeds ``tokens``.
      lengths_N2: (N, 2) token counts of source and target, such as ``Tokenized.sample_lengths`` gives.

    Raises:
      UserError: no lengths, or none within the limits.
    """
    batching.check(lengths_N2)
    admitted_N2 = lengths_N2[batching.admits(lengths_N2)]
    quantiles_Q2 = np.quantile(admitted_N2, np.linspace(0.02, 1, 50), axis=0, method="higher")
    candidates = [tuple(map(_round_up, quantile)) for quantile in quantiles_Q2]
    bounds = [(_round_up(batching.max_source_len), _round_up(batching.max_target_len))]
    for _ in range(0 if batching.pack else batching.buckets - 1):
        bounds = min((sorted({*bounds, new}) for new in candidates), key=lambda bounds: _padded_size(admitted_N2, bounds))
    return tuple(shape_of(bound, batching, multiple_of) for bound in bounds)


def shape_of(bound: tuple[int, int], batching: Batching, multiple_of: int) -> Shape:
    """As many rows of these lengths as ``batching.tokens`` allows, one a device at least."""
    return max(1, batching.tokens // max(bound) // multiple_of) * multiple_of, *bound


def _padded_size(lengths_N2: np.ndarray, bounds: list[tuple[int, int]]) -> int:
    return int(np.max(bounds, axis=1)[bucket_of(lengths_N2, bounds)].sum())


def bucket_of(lengths_N2: np.ndarray, bounds: Sequence[tuple[int, int]]) -> np.ndarray:
    """(N,) index of the first (S, T) that both lengths of an example are within."""
    return np.stack([(lengths_N2 <= bound).all(axis=1) for bound in bounds], axis=1).argmax(axis=1)


def first_fit(lengths_N2: np.ndarray, room: tuple[int, int]) -> np.ndarray:
    """(N,) the row that each example goes into, so that no row holds more than ``room`` of source and target tokens.

    Each goes into the first row that has room for it, in the order given: longest first would fill rows a little better, but
    with pairs of one length.

    >>> first_fit(np.array([[2, 2], [5, 4], [3, 3]]), (6, 6)).tolist()
    [0, 1, 0]
    """
    row_N, room_R2 = np.zeros(len(lengths_N2), np.int64), np.tile(room, (len(lengths_N2), 1))
    rows = 0
    for example, length_2 in enumerate(lengths_N2):
        row = (room_R2[: rows + 1] >= length_2).all(axis=1).argmax()  # the last of these is empty
        room_R2[row] -= length_2
        row_N[example], rows = row, max(rows, row + 1)
    return row_N


def _round_up(length: int) -> int:
    """The next multiple of 8 (of 4 up to 64, of 2 up to 16): few shapes, little padding. A label alone stays so.

    >>> [_round_up(n) for n in (1, 7, 17, 65)]
    [1, 8, 20, 72]
    """
    step = 1 if length <= 1 else 2 if length <= 16 else 4 if length <= 64 else 8
    return -(-int(length) // step) * step
