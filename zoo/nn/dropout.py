"""Dropout that draws half the random numbers of Flax's."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

STEPS = 2**16  # 16 random bits for each number


class Dropout(nn.Module):
    """Each number becomes zero with probability ``rate``, else it is divided by 1 - rate (Srivastava et al. 2014, section 10).

    Two numbers share a random word of 32 bits: on a CPU, drawing these is most of what dropout costs. The rate is rounded to a
    multiple of 2^-16, and so is what divides: the expectation stays that of the input.

    Attributes:
      rate: from 0 to below 1.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """``x`` itself where ``deterministic`` or the rate is 0; else needs the rng "dropout"."""
        dropped = min(round(self.rate * STEPS), STEPS - 1)
        if deterministic or dropped == 0:
            return x
        *lead, D = x.shape
        words = jax.random.bits(self.make_rng("dropout"), (*lead, (D + 1) // 2), jnp.uint32)
        bits = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*lead, -1)[..., :D]
        return jnp.where(bits >= jnp.uint16(dropped), x * (STEPS / (STEPS - dropped)), 0)
