"""Gaussian error linear units (Hendrycks and Gimpel 2016, arXiv:1606.08415).

In float32 whatever the dtype of x, and rounded once: step by step in bfloat16, Whisper's logits would be half as far again
from their true values. Only x is kept for the gradient: a CPU computes the rest again sooner than it reads it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.checkpoint
def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x), Phi being the distribution function of the normal distribution.

    >>> [round(float(y), 4) for y in gelu(jnp.array([-1.0, 0.0, 1.0]))]
    [-0.1587, 0.0, 0.8413]
    """
    return jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype)


@jax.checkpoint
def gelu_tanh(x: jax.Array) -> jax.Array:
    """The paper's approximation by a hyperbolic tangent, which GPT-2 and T5 v1.1 were trained with.

    >>> [round(float(y), 4) for y in gelu_tanh(jnp.array([-1.0, 0.0, 1.0]))]
    [-0.1588, 0.0, 0.8412]
    """
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)
