"""What a Transformer's layers are made of beside attention: the residual connection and the feed-forward network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
from flax.linen.initializers import xavier_uniform

from zoo.nn.dropout import Dropout
from zoo.nn.linear import Dense
from zoo.nn.norm import LayerNorm
from zoo.nn.sharding import BATCH, MODEL, constrain


class FeedForward(nn.Module):
    """Position-wise feed-forward network: activation(x W1 + b1) W2 + b2 (Vaswani et al. 2017, equation 2, with relu).

    Attributes:
      D: width of input and output; F: width in between.
      activation: the same for every number.
    """

    D: int
    F: int
    activation: Callable[[jax.Array], jax.Array] = nn.relu

    @nn.compact
    def __call__(self, x_BND: jax.Array) -> jax.Array:
        x_BNF = Dense(self.F, kernel_init=xavier_uniform(), name="inner")(x_BND)
        x_BNF = constrain(self.activation(x_BNF), BATCH, None, MODEL)
        return Dense(self.D, kernel_init=xavier_uniform(), name="outer")(x_BNF)


class Residual(nn.Module):
    """x + dropout(sublayer(x)), normalised after the sum ("post") or before the sublayer ("pre").

    After the sum is Vaswani et al. 2017, section 3.1, with the dropout of section 5.4.

    Attributes:
      order: where the norm stands.
      dropout: rate.
    """

    order: Literal["post", "pre"]
    dropout: float

    def setup(self):
        self.norm = LayerNorm(epsilon=1e-5)
        self.drop = Dropout(self.dropout)

    def __call__(self, x_BND: jax.Array, sublayer: Callable[[jax.Array], jax.Array], train: bool) -> jax.Array:
        if self.order == "pre":
            return constrain(x_BND + self.drop(sublayer(self.norm(x_BND)), deterministic=not train), BATCH)
        return constrain(self.norm(x_BND + self.drop(sublayer(x_BND), deterministic=not train)), BATCH)
