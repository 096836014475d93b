"""Choosing from a row of logits, exactly: the largest first, the lowest id among equals, NaN never.

XLA on a CPU runs ``argmax`` as a scalar loop and ``lax.top_k`` as an ordered search of the whole row; over a vocabulary of
60,000 they cost as much as a small decoder. The k best lie in the k blocks of the highest maxima: whatever stands in another
block has k numbers before it. So one pass finds the maximum of each block, and only k blocks are searched.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

BLOCK = 128

Banned = tuple[tuple[jax.Array | int, jax.Array | bool], ...]
"""Pairs of a token id and (R,) or () bool, whether a row may not have it."""


def clean(logits: jax.Array) -> jax.Array:
    """Logits that can be compared and normalised: NaN becomes -inf, +inf the largest finite number, -0 becomes 0.

    >>> clean(jnp.array([[jnp.nan, -0.0, -jnp.inf]])).tolist()
    [[-inf, 0.0, -inf]]
    """
    # ``top_k`` orders floats totally: to it NaN is above everything and -0 below 0, which would decide ties.
    finite = jnp.minimum(logits, jnp.finfo(logits.dtype).max)
    return jnp.where(jnp.isnan(logits), -jnp.inf, jnp.where(logits == 0, 0, finite))


def mask_tokens(logits_RV: jax.Array, banned: Banned) -> jax.Array:
    """Set to -inf what may not be generated; ids outside the vocabulary are ignored."""
    R, V = logits_RV.shape
    for token, where in banned:
        column_R1 = lax.dynamic_slice_in_dim(logits_RV, token, 1, axis=1)
        inside = jnp.asarray((token >= 0) & (token < V))
        where_R1 = jnp.broadcast_to(jnp.asarray(where), (R,))[:, None] & inside
        logits_RV = lax.dynamic_update_slice_in_dim(logits_RV, jnp.where(where_R1, -jnp.inf, column_R1), token, axis=1)
    return logits_RV


def log_sum_exp(logits_RV: jax.Array) -> jax.Array:
    """The number that turns a row of clean logits into log-probabilities, (R,) float32; -inf where the whole row is -inf."""
    x_RV = logits_RV.astype(jnp.float32)
    top_R = jnp.max(_block_maxima(x_RV), axis=1)
    top_R = jnp.where(top_R == -jnp.inf, 0.0, top_R)
    exp_RV = jnp.exp(x_RV - top_R[:, None])
    # No sum of positive numbers is below one of them. But what is used twice is not fused with the sum, in which XLA on a CPU
    # would compute it number by number.
    return top_R + jnp.log(jnp.maximum(jnp.sum(exp_RV, axis=1), exp_RV[:, 0]))


def log_prob(logit: jax.Array, normaliser: jax.Array) -> jax.Array:
    """The float32 log-probability of clean logits, given their rows' ``log_sum_exp`` in the same shape.

    Never above 0, which the stopping rule of beam search rests on, and -inf for a row without any possible token.
    """
    logit = logit.astype(jnp.float32)
    return jnp.where(logit == -jnp.inf, -jnp.inf, jnp.minimum(logit - normaliser, 0.0))


def argmax(x_RV: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest value of each row, (R,), and the lowest index where it stands, (R,) int32. Takes no NaN.

    >>> values, indices = argmax(jnp.array([[1.0, 3.0, 3.0]]))
    >>> values.tolist(), indices.tolist()
    ([3.0], [1])
    """
    values_R1, indices_R1 = top_k(x_RV, 1)
    return values_R1[:, 0], indices_R1[:, 0]


def top_k(x_RV: jax.Array, k: int, banned: Banned = ()) -> tuple[jax.Array, jax.Array]:
    """The k largest values of each row, best first and lowest index first among equals: (R, k) each. Takes no NaN and no -0.

    What is banned counts as -inf, without a row written anew: as many blocks more are searched as tokens may be banned.

    >>> values, indices = top_k(jnp.array([[1.0, 3.0, 3.0, 2.0]]), 3)
    >>> values.tolist(), indices.tolist()
    ([[3.0, 3.0, 2.0]], [[1, 2, 3]])
    """
    (R, V), chosen = x_RV.shape, k + len(banned)
    blocks = -(-V // BLOCK)
    if blocks < 4 * chosen:
        return lax.top_k(mask_tokens(x_RV, banned), k)
    _, block_RC = _first_largest(_block_maxima(x_RV), chosen)
    block_RC = jnp.sort(block_RC, axis=1)  # in order of index again, so that the second choice breaks ties by it
    index_RN = (block_RC[:, :, None] * BLOCK + jnp.arange(BLOCK)[None, None]).reshape(R, chosen * BLOCK)
    possible_RN = index_RN < V
    for token, where in banned:
        possible_RN &= (index_RN != token) | ~jnp.broadcast_to(jnp.asarray(where), (R,))[:, None]
    block_values_RN = jnp.take_along_axis(x_RV, jnp.minimum(index_RN, V - 1), axis=1)
    values_RK, place_RK = _first_largest(jnp.where(possible_RN, block_values_RN, -jnp.inf), k)
    return values_RK, jnp.take_along_axis(index_RN, place_RK, axis=1)


def _first_largest(x_RN: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    if k > 1:
        return lax.top_k(x_RN, k)
    top_R1 = jnp.max(x_RN, axis=1, keepdims=True)
    ids_N = lax.iota(jnp.int32, x_RN.shape[1])
    return top_R1, jnp.min(jnp.where(x_RN == top_R1, ids_N[None], x_RN.shape[1] - 1), axis=1, keepdims=True)


def _block_maxima(x_RV: jax.Array) -> jax.Array:
    """The maximum of each BLOCK neighbouring values, (R, blocks); the last block may be shorter."""
    # A window reads the row where it stands: a reshape into blocks would copy it to pad the last one.
    overhang = ((0, 0), (0, -x_RV.shape[1] % BLOCK))
    return lax.reduce_window(x_RV, np.array(-np.inf, x_RV.dtype), lax.max, (1, BLOCK), (1, BLOCK), overhang)
