"""Positional encodings."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sinusoidal(position_BN: jax.Array, D: int) -> jax.Array:
    """Sinusoids of geometrically growing wavelength (Vaswani et al. 2017, section 3.5): (B, N, D) float32.

    Dimension 2 i holds sin(position / 10000^(2 i / D)), dimension 2 i + 1 the cosine. Any position is defined, so that a
    model can read sequences longer than those it was trained on.

    Args:
      position_BN: int32 positions.
      D: even model width.
    """
    rate_D = jnp.expand_dims(10_000.0 ** (-jnp.arange(0, D, 2) / D), (0, 1))
    angle_BND = position_BN[..., None].astype(jnp.float32) * rate_D
    return jnp.stack([jnp.sin(angle_BND), jnp.cos(angle_BND)], axis=-1).reshape(*position_BN.shape, D)
