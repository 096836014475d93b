"""Attention: masked softmax, the dot-product and additive cores, and the multi-head module with its key/value cache.

Everywhere below, R rows of queries may be W times the B rows of keys: rows b*W ... b*W + W-1 are the beams of sentence b, which
share its keys and values without a copy.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import xavier_uniform

from zoo.core import AppendOnly


def masked_softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax over the last axis among the positions where ``mask`` is True; all zeros where none is.

    In float32 whatever the dtype of the scores. Masked positions get exactly zero, and no gradient.

    >>> masked_softmax(jnp.zeros((2, 2)), jnp.array([[True, False], [False, False]])).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    scores = jnp.where(mask, scores.astype(jnp.float32), -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=-1e30))
    weights = jnp.exp(scores - top)
    return weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)


def dot_product_attention(
    q_RHTK: jax.Array, k_BHKS: jax.Array, v_BHSK: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1).

    Args:
      q_RHTK: queries; R = B, or W beams for each of the B sentences.
      k_BHKS, v_BHSK: keys, transposed, and values; B and H may be one axis already, as in a cache.
      mask: bool of rank 4, broadcastable to (B, H, W*T, S) with the queries of a beam side by side; True where one may look.

    Returns:
      The mixed values (R, H, T, K) and the weights (R, H, T, S), which are zero for a query that may look nowhere.
    """
    (R, H, T, K), S = q_RHTK.shape, k_BHKS.shape[-1]
    G = math.prod(k_BHKS.shape[:-2])  # B * H; a source may be of no length
    k_GKS, v_GSK = k_BHKS.reshape(G, K, S), v_BHSK.reshape(G, S, K)
    B = G // H
    # The beams of a sentence stand side by side on the query axis: (G, W*T, K) against (G, K, S).
    W = R // B
    if W != 1 and mask.shape[2] not in (1, W * T):
        raise ValueError(f"{W} beams of {T} queries share keys: the mask's axis 2 must be 1 or {W * T}, not {mask.shape[2]}")
    q_GQK = q_RHTK.reshape(B, W, H, T, K).swapaxes(1, 2).reshape(B * H, W * T, K)
    scores_GQS = jnp.einsum("gqk,gks->gqs", q_GQK, k_GKS, preferred_element_type=jnp.float32)
    weights_BHQS = masked_softmax(scores_GQS.reshape(B, H, W * T, S) * K**-0.5, mask)
    mixed_GQK = jnp.einsum("gqs,gsk->gqk", weights_BHQS.astype(v_GSK.dtype).reshape(B * H, W * T, S), v_GSK)

    def unfold(x, last):
        return x.reshape(B, H, W, T, last).swapaxes(1, 2).reshape(R, H, T, last)

    return unfold(mixed_GQK, K), unfold(weights_BHQS, S)


def additive_scores(query_RA: jax.Array, key_BSA: jax.Array, v_A: jax.Array) -> jax.Array:
    """Additive attention's energies (Bahdanau et al. 2015, appendix A.1.2): v . tanh(query + key), (R, S)."""
    (R, A), (B, S, _) = query_RA.shape, key_BSA.shape
    query_BW1A = query_RA.reshape(B, R // B, 1, A)
    return (jnp.tanh(query_BW1A + key_BSA[:, None]) @ v_A).reshape(R, S)


def dot_scores(query_RD: jax.Array, key_BSD: jax.Array) -> jax.Array:
    """Dot-product energies without scaling (Luong et al. 2015, section 3.1): (R, S)."""
    (R, D), (B, S, _) = query_RD.shape, key_BSD.shape
    return jnp.einsum("bwd,bsd->bws", query_RD.reshape(B, R // B, D), key_BSD).reshape(R, S)


def mix(weights_RS: jax.Array, value_BSD: jax.Array) -> jax.Array:
    """The context vectors: each row's weighted sum of its sentence's values, (R, D)."""
    R, (B, S, D) = weights_RS.shape[0], value_BSD.shape
    return jnp.einsum("bws,bsd->bwd", weights_RS.reshape(B, R // B, S), value_BSD).reshape(R, D)


def causal_mask(T: int, S: int, start: jax.Array | int = 0) -> jax.Array:
    """(1, 1, T, S) bool: the query at position start + t may look at the keys 0 ... start + t.

    >>> causal_mask(2, 3)[0, 0].astype(int).tolist()
    [[1, 0, 0], [1, 1, 0]]
    """
    return (jnp.arange(S)[None, :] <= jnp.arange(T)[:, None] + start)[None, None]


class KeyValue(NamedTuple):
    """Keys and values of one layer: a decoder's cache, or what it reads of the source.

    Keys lie transposed, as their product with a few queries reads them: several times faster on a CPU when those are beams.

    Attributes:
      key: (B, H, K, S); value: (B, H, S, K).
    """

    key: jax.Array
    value: jax.Array


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
        key_GKS = jnp.zeros((batch * heads, width, length * beams), dtype)
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


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2).

    Attributes:
      D: model width; H: heads, each of width D / H.
    """

    D: int
    H: int

    def setup(self):
        dense = lambda: nn.Dense(self.D, kernel_init=xavier_uniform())  # noqa: E731
        self.query, self.key, self.value, self.out = dense(), dense(), dense(), dense()

    def split(self, x_BND: jax.Array) -> jax.Array:
        """(B, N, D) to (B, N, H, K)."""
        return x_BND.reshape(*x_BND.shape[:2], self.H, self.D // self.H)

    def project(self, x_BSD: jax.Array) -> KeyValue:
        """The keys and values of x: for the source, computed once and kept in the memory."""
        return KeyValue(self.split(self.key(x_BSD)).transpose(0, 2, 3, 1), self.split(self.value(x_BSD)).swapaxes(1, 2))

    def __call__(self, x_RTD: jax.Array, keys: KeyValue, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Attend from x (R, T, D) over ``keys``: the output (R, T, D) and the weights (R, H, T, S)."""
        mixed_RHTK, weights_RHTS = dot_product_attention(self.split(self.query(x_RTD)).swapaxes(1, 2), *keys, mask)
        return self.out(mixed_RHTK.swapaxes(1, 2).reshape(x_RTD.shape)), weights_RHTS
