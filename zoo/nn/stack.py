"""Running through a stack of layers: one after the other, or one compiled layer in a loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def scan_layers(
    call: Callable[[nn.Module, jax.Array, Any], jax.Array],
    layers: Sequence[nn.Module],
    x: jax.Array,
    inputs: Sequence[Any],
    key: jax.Array | None,
    remat: bool,
) -> jax.Array:
    """``for layer, one in zip(layers, inputs): x = call(layer, x, one)``, of which the compiler sees one layer.

    The layers keep their own parameters, which are stacked at each call: compile time no longer grows with the depth, at the
    price of a copy of the parameters.

    Args:
      call: applies a layer.
      layers: bound modules that differ in their parameters alone.
      x: what the first layer reads; each layer's output is like its input.
      inputs: one pytree a layer, of equal structure and shapes.
      key: dropout's; each layer draws from its own share. None if nothing is dropped.
      remat: compute a layer again for the gradient instead of keeping its activations.
    """
    params, inputs = (
        jax.tree.map(lambda *x: jnp.stack(x), *each) for each in ([layer.variables["params"] for layer in layers], inputs)
    )
    layer = layers[0].clone(parent=None, name=None)

    def body(x, one):
        params, inputs, key = one
        rngs = {} if key is None else {"dropout": key}
        return layer.apply({"params": params}, x, inputs, rngs=rngs, method=call), None

    body = jax.checkpoint(body, prevent_cse=False) if remat else body
    keys = None if key is None else jax.random.split(key, len(layers))
    return jax.lax.scan(body, x, (params, inputs, keys))[0]
