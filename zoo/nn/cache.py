"""Keys and values: which of them may be looked at, and the cache that a decoder keeps of those it has read.

As in ``zoo.nn.attention``, R rows may be W beams of each of B sentences.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zoo.core import AppendOnly


class KeyValue(NamedTuple):
    """Keys and values of one layer: a decoder's cache, or what it reads of the source.

    Keys lie transposed, as their product with a few queries reads them: several times faster on a CPU when those are beams.

    Attributes:
      key: (B, H, K, S); value: (B, H, S, K).
    """

    key: jax.Array
    value: jax.Array


class Visible(NamedTuple):
    """Where queries may look.

    Attributes:
      mask: bool of rank 4, broadcastable to (B, H, W*T, S), True where one may look; None for everywhere.
      length_B: (B,) int32 where the mask says no more than this: the first so many keys; else None.
    """

    mask: jax.Array | None
    length_B: jax.Array | None = None

    @classmethod
    def real(cls, mask_BS: jax.Array, right_padded: bool = False) -> Visible:
        """The real tokens of a padded batch; ``right_padded`` promises on which side the padding stands."""
        return cls(mask_BS[:, None, None, :], mask_BS.sum(axis=1, dtype=jnp.int32) if right_padded else None)


def causal_mask(T: int, S: int, start: jax.Array | int = 0) -> jax.Array:
    """(1, 1, T, S) bool: the query at position start + t may look at the keys 0 ... start + t.

    >>> causal_mask(2, 3)[0, 0].astype(int).tolist()
    [[1, 0, 0], [1, 1, 0]]
    """
    return (jnp.arange(S)[None, :] <= jnp.arange(T)[:, None] + start)[None, None]


class DecoderCache(NamedTuple):
    """What a decoder of self-attention layers has read so far, N positions at most of W beams a sentence.

    Attributes:
      layers: each layer's KeyValue, with B and H as one axis; position n of beam w stands at n * W + w, where it was written.
      beam_RN: (R, N) int32, the beam that holds each position of a row's past; None with one beam a sentence.
      index: () int32, how many positions are filled.
    """

    layers: AppendOnly
    beam_RN: jax.Array | None
    index: jax.Array

    @classmethod
    def zeros(cls, layers: int, batch: int, beams: int, heads: int, length: int, width: int, dtype) -> DecoderCache:
        """An empty cache for ``layers`` layers of ``heads`` heads of ``width``, and at most ``length`` positions."""
        key_GKS = jnp.zeros((batch, heads, width, length * beams), dtype).reshape(batch * heads, width, length * beams)
        buffers = tuple(KeyValue(key_GKS, key_GKS.swapaxes(1, 2)) for _ in range(layers))
        beam_RN = jnp.tile(jnp.arange(beams)[:, None], (batch, length)) if beams > 1 else None
        return cls(AppendOnly(buffers), beam_RN, jnp.zeros((), jnp.int32))

    def read(self, T: int) -> tuple[jax.Array | None, jax.Array]:
        """``beam_RN`` once T more tokens are written, and the mask (B, 1, W*T, N*W) with which they look at the past."""
        slots = self.layers.buffers[0].value.shape[1]
        if self.beam_RN is None:
            return None, causal_mask(T, slots, self.index)
        (R, N), W = self.beam_RN.shape, slots // self.beam_RN.shape[1]
        own_R1 = jnp.arange(R)[:, None] % W
        beam_RN = jnp.where(jnp.arange(N)[None] >= self.index, own_R1, self.beam_RN)
        holds_RNW = beam_RN[:, :, None] == jnp.arange(W)[None, None]
        mask_RTNW = causal_mask(T, N, self.index)[0, :, :, :, None] & holds_RNW[:, None]
        return beam_RN, mask_RTNW.reshape(R // W, 1, W * T, N * W)


def write(cache: KeyValue, new: KeyValue, index: jax.Array) -> KeyValue:
    """A layer's cache with ``new``, (R, H, ...) of T tokens, at positions index ... index + T-1: one slice, in place."""
    R, H, T, K = new.value.shape
    B = cache.value.shape[0] // H
    W = R // B
    key_GKS = new.key.reshape(B, W, H, K, T).transpose(0, 2, 3, 4, 1).reshape(B * H, K, T * W)
    value_GSK = new.value.reshape(B, W, H, T, K).transpose(0, 2, 3, 1, 4).reshape(B * H, T * W, K)
    put = lambda old, x, axis: jax.lax.dynamic_update_slice_in_dim(old, x.astype(old.dtype), index * W, axis)  # noqa: E731
    return KeyValue(put(cache.key, key_GKS, 2), put(cache.value, value_GSK, 1))


def by_position(weights_RHTS: jax.Array, beams: int) -> jax.Array:
    """Weights over a cache of several beams, summed over the slots of each position: (R, H, T, N)."""
    R, H, T, _ = weights_RHTS.shape
    return weights_RHTS if beams == 1 else weights_RHTS.reshape(R, H, T, -1, beams).sum(axis=-1)
