"""Normalisation over the last axis, in float32 whatever the dtype of what is normalised."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp


@jax.checkpoint
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: jax.Array) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis (Ba et al. 2016, equation 4), in float32.

    Scale and bias have as many axes as x. The variance is the mean of squared differences, which loses no digits where the mean
    is large. The gradient computes all but x again: kept, the root times the scale would be a second array of the size of x.
    """
    x = x.astype(jnp.float32)
    x = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(x).mean(axis=-1, keepdims=True)
    return x * (jax.lax.rsqrt(variance + epsilon) * scale) + bias


class LayerNorm(nn.Module):
    """``layer_norm`` with a scale and a bias that are learned; its dtype is that of x and them.

    Flax's module, rematerialised as a whole, takes BERT's training step on a CPU a tenth longer.

    Attributes:
      epsilon: added to the variance.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale_D = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias_D = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        scale, bias = (jnp.expand_dims(weight_D, range(x.ndim - 1)) for weight_D in (scale_D, bias_D))
        return layer_norm(x, scale, bias, self.epsilon).astype(jnp.result_type(x, scale_D))


class RMSNorm(nn.Module):
    """Root mean square normalisation (Zhang and Sennrich 2019): x / sqrt(mean(x^2) + epsilon) * scale, without mean and bias.

    What is multiplied by ``scale`` has the scale's dtype, as in T5.

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
