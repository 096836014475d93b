"""Distributions to sample from: temperature and the filters that cut a distribution's tail, and draws from explicit keys.

The filters find their threshold by bisection over the 32 bits of an ordered float: 32 passes over a row instead of a sort,
exact, with k and p as values that the compiled program reads. Tokens that tie with the last one kept are kept.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def temper(logits_RV: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """Logits over the temperature: below 1 the distribution is sharper, above 1 flatter."""
    return logits_RV / temperature


def top_k(logits_RV: jax.Array, k: jax.Array | int) -> jax.Array:
    """Keep the k most probable tokens (Fan et al. 2018, arXiv:1805.04833); the others become -inf.

    >>> top_k(jnp.array([[1.0, 3.0, 2.0]]), 2).tolist()
    [[-inf, 3.0, 2.0]]
    """
    order_RV = _ordered(logits_RV)
    return _keep(logits_RV, order_RV, _threshold(order_RV, jnp.ones(logits_RV.shape, jnp.float32), jnp.float32(k)))


def top_p(logits_RV: jax.Array, p: jax.Array | float) -> jax.Array:
    """Keep the smallest set of most probable tokens that holds at least the mass p (Holtzman et al. 2020, arXiv:1904.09751).

    >>> jnp.isfinite(top_p(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), 0.6)).tolist()
    [[True, True, False]]
    """
    order_RV = _ordered(logits_RV)
    return _keep(logits_RV, order_RV, _mass_threshold(order_RV, jax.nn.softmax(logits_RV, axis=1), p))


def min_p(logits_RV: jax.Array, p: jax.Array | float) -> jax.Array:
    """Keep what is at least p times as probable as the most probable token (Nguyen et al. 2024, arXiv:2407.01082)."""
    return jnp.where(logits_RV >= jnp.max(logits_RV, axis=1, keepdims=True) + jnp.log(p), logits_RV, -jnp.inf)


def typical(logits_RV: jax.Array, p: jax.Array | float) -> jax.Array:
    """Keep the tokens whose surprise is nearest to the entropy, up to the mass p (Meister et al. 2023, arXiv:2202.00666)."""
    log_prob_RV = jax.nn.log_softmax(logits_RV, axis=1)
    prob_RV = jnp.exp(log_prob_RV)
    entropy_R1 = -jnp.sum(jnp.where(prob_RV > 0, prob_RV * log_prob_RV, 0), axis=1, keepdims=True)
    order_RV = _ordered(-jnp.abs(log_prob_RV + entropy_R1))
    return _keep(logits_RV, order_RV, _mass_threshold(order_RV, prob_RV, p))


def gumbel(key_R: jax.Array, step: jax.Array, vocab: int) -> jax.Array:
    """Standard Gumbel noise, (R, V) float32, that depends on each row's key, the step and the token alone.

    The largest of logits + noise is a draw from their softmax (Gumbel 1954): one token a row, whoever else is in the batch.
    """
    return jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, step), (vocab,)))(key_R)


def row_keys(key: jax.Array, batch: int, samples: int) -> jax.Array:
    """A key for each sample of each sentence, (batch * samples,), that depends on neither number.

    Args:
      key: () one key, which sentence b is given as ``fold_in(key, b)``; or (B,) the sentences' own.
    """
    if key.ndim == 0:
        key = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    return fold(key, jnp.arange(samples)).reshape(-1)


def _ordered(x_RV: jax.Array) -> jax.Array:
    """Floats as uint32 in the same order, so that their bits can be searched; takes no NaN."""
    bits_RV = lax.bitcast_convert_type(x_RV.astype(jnp.float32) + 0.0, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits_RV >= sign, ~bits_RV, bits_RV | sign)


def _threshold(order_RV: jax.Array, weight_RV: jax.Array, need: jax.Array | float) -> jax.Array:
    """The largest value at or above which a row's weights sum to at least ``need``, (R, 1) uint32; 0 where all fall short."""

    def try_bit(i, found_R1):
        higher_R1 = found_R1 | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        enough_R1 = jnp.sum(jnp.where(order_RV >= higher_R1, weight_RV, 0), axis=1, keepdims=True) >= need
        return jnp.where(enough_R1, higher_R1, found_R1)

    return lax.fori_loop(0, 32, try_bit, jnp.zeros((order_RV.shape[0], 1), jnp.uint32))


def _mass_threshold(order_RV: jax.Array, prob_RV: jax.Array, p: jax.Array | float) -> jax.Array:
    """The same for a mass p of probability, all of it being every token: rounded sums reach 1 before the tail."""
    return jnp.where(p >= 1, jnp.uint32(0), _threshold(order_RV, prob_RV, p))


def _keep(logits_RV: jax.Array, order_RV: jax.Array, threshold_R1: jax.Array) -> jax.Array:
    return jnp.where(order_RV >= threshold_R1, logits_RV, -jnp.inf)
