"""Products with a matrix of parameters, over any leading axes, that are as fast to differentiate as to compute.

XLA contracts two axes of both operands, as the gradient of a matrix multiplied by (B, N, D) does, by first copying the larger
one into another layout; on a CPU it then takes two to three times as long as the same product over one axis of B x N rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


def over_rows(x: jax.Array, w: jax.Array, axis: int = 0, precision: jax.lax.PrecisionLike = None) -> jax.Array:
    """``x @ w`` for x (..., D) and w (D, F), or w (F, D) if ``axis`` is 1, as one product of rows: (..., F).

    >>> over_rows(jnp.ones((2, 3, 4)), jnp.ones((4, 5))).shape
    (2, 3, 5)
    """
    rows_ND = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return jnp.tensordot(rows_ND, w, axes=(1, axis), precision=precision).reshape(*x.shape[:-1], w.shape[1 - axis])


def dot_general(x: jax.Array, w_DF: jax.Array, dimension_numbers, precision=None) -> jax.Array:
    """``over_rows`` as ``flax.linen.Dense`` calls it, which always multiplies the last axis of x by the first of w."""
    del dimension_numbers
    return over_rows(x, w_DF, precision=precision)


class Dense(nn.Dense):
    """``flax.linen.Dense`` by ``over_rows``."""

    dot_general: Callable = dot_general


class Embed(nn.Embed):
    """``flax.linen.Embed`` whose ``attend``, the product with all embeddings, goes by ``over_rows``."""

    def attend(self, query: jax.Array) -> jax.Array:
        """(..., D) -> (..., V)."""
        query, embedding = self.promote_dtype(query, self.embedding, dtype=self.dtype)
        # Not times the transpose, into whose product with one row XLA:CPU would fuse what made the row, for each word again.
        return over_rows(query, embedding, axis=1)
