"""Normalisation that Flax has otherwise."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp


class RMSNorm(nn.Module):
    """Root mean square normalisation (Zhang and Sennrich 2019): x / sqrt(mean(x^2) + epsilon) * scale, without mean and bias.

    In float32 whatever the dtype of x; what is multiplied by ``scale`` has the scale's dtype, as in T5.

    Attributes:
      epsilon: added to the mean square.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x_BND: jax.Array) -> jax.Array:
        scale_D = self.param("scale", nn.initializers.ones, x_BND.shape[-1:])
        x_BND = x_BND.astype(jnp.float32)
        x_BND = x_BND * jax.lax.rsqrt(jnp.square(x_BND).mean(axis=-1, keepdims=True) + self.epsilon)
        return x_BND.astype(scale_D.dtype) * jnp.expand_dims(scale_D, (0, 1))
