"""Attention: masked softmax, the dot-product and additive cores, and the multi-head module with its key/value cache.

Everywhere below, R rows of queries may be W times the B rows of keys: rows b*W ... b*W + W-1 are the beams of sentence b, which
share its keys and values without a copy.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import xavier_uniform


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
    q_RHTK: jax.Array, k_BHSK: jax.Array, v_BHSK: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1).

    Args:
      q_RHTK: queries; R = B, or W beams for each of the B sentences.
      k_BHSK, v_BHSK: keys and values.
      mask: bool of rank 4, broadcastable to (B, H, T, S); True where a query may look.

    Returns:
      The mixed values (R, H, T, K) and the weights (R, H, T, S), which are zero for a query that may look nowhere.
    """
    (R, H, T, K), (B, S) = q_RHTK.shape, (k_BHSK.shape[0], k_BHSK.shape[2])
    # The beams of a sentence stand side by side on the query axis: (B, H, W*T, K) against (B, H, S, K).
    W = R // B
    if W != 1 and mask.shape[2] != 1:
        raise ValueError("beams that share keys share the mask as well: its third axis must be 1")
    q_BHQK = q_RHTK.reshape(B, W, H, T, K).swapaxes(1, 2).reshape(B, H, W * T, K)
    scores_BHQS = jnp.einsum("bhqk,bhsk->bhqs", q_BHQK, k_BHSK, preferred_element_type=jnp.float32) * K**-0.5
    weights_BHQS = masked_softmax(scores_BHQS, mask)
    mixed_BHQK = jnp.einsum("bhqs,bhsk->bhqk", weights_BHQS.astype(v_BHSK.dtype), v_BHSK)

    def unfold(x, last):
        return x.reshape(B, H, W, T, last).swapaxes(1, 2).reshape(R, H, T, last)

    return unfold(mixed_BHQK, K), unfold(weights_BHQS, S)


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
    """Keys and values of one layer, (B, H, S, K) each: a decoder's cache, or what it reads of the source."""

    key: jax.Array
    value: jax.Array


def write(cache: KeyValue, new: KeyValue, index: jax.Array) -> KeyValue:
    """The cache with ``new`` (R, H, T, K) at positions index ... index + T-1: one slice, so that XLA updates in place."""
    return jax.tree.map(lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x.astype(old.dtype), index, axis=2), cache, new)


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
        """(B, N, D) to (B, H, N, K)."""
        return x_BND.reshape(*x_BND.shape[:2], self.H, self.D // self.H).swapaxes(1, 2)

    def project(self, x_BSD: jax.Array) -> KeyValue:
        """The keys and values of x: for the source, computed once and kept in the memory."""
        return KeyValue(self.split(self.key(x_BSD)), self.split(self.value(x_BSD)))

    def __call__(self, x_RTD: jax.Array, keys: KeyValue, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Attend from x (R, T, D) over ``keys``: the output (R, T, D) and the weights (R, H, T, S)."""
        mixed_RHTK, weights_RHTS = dot_product_attention(self.split(self.query(x_RTD)), *keys, mask)
        return self.out(mixed_RHTK.swapaxes(1, 2).reshape(x_RTD.shape)), weights_RHTS
