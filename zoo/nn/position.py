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


def sines_then_cosines(position_BN: jax.Array, D: int, last: int) -> jax.Array:
    """Sinusoids whose first half is all sines, the second all cosines, as Marian and fairseq have them: (B, N, D) float32.

    Args:
      position_BN: int32 positions.
      D: even model width.
      last: the i at which the wavelength would be 10000 times the first: D / 2 in transformers' Marian, D / 2 - 1 in fairseq.
    """
    rate_D = jnp.expand_dims(10_000.0 ** (-jnp.arange(D // 2) / last), (0, 1))
    angle_BND = position_BN[..., None].astype(jnp.float32) * rate_D
    return jnp.concatenate([jnp.sin(angle_BND), jnp.cos(angle_BND)], axis=-1)
