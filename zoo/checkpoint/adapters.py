"""Low-rank adapters (LoRA; Hu et al. 2021): a few numbers that are trained in place of the matrices they are added to.

A matrix W (in, out), which stays as it is, becomes

    W + alpha / rank * A B        A (in, rank), B (rank, out)                    (equation 3, in our order of factors)

The parameters of any model are merged so before they are used: no model knows of adapters. A tree of adapters is like the
model's parameters, with ``{"lora_a": A, "lora_b": B}`` in the place of each adapted matrix and nothing in the others'.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from zoo.core import PyTree, UserError, flatten_params, unflatten_params

A, B = "lora_a", "lora_b"


def merge(base: PyTree, adapters: PyTree, alpha: float) -> PyTree:
    """The parameters that a model reads.

    Args:
      base: its own, which the adapters are added to.
      adapters: those of some of its matrices.
      alpha: the scale, divided by the rank.

    >>> base = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    >>> adapters = {"kernel": {"lora_a": jnp.ones((2, 4)), "lora_b": jnp.ones((4, 3))}}
    >>> float(merge(base, adapters, alpha=2.0)["kernel"][0, 0])
    3.0
    """
    flat, found = flatten_params(base), flatten_params(adapters)
    for path in {path.rpartition("/")[0] for path in found}:
        a, b = found[f"{path}/{A}"], found[f"{path}/{B}"]
        change = jnp.matmul(a, b, preferred_element_type=jnp.float32) * (alpha / a.shape[1])
        flat[path] = (flat[path] + change).astype(flat[path].dtype)
    return unflatten_params(flat)


def shapes(base: PyTree, targets: list[str], rank: int) -> PyTree:
    """The shapes of the adapters of these matrices; float32.

    Raises:
      UserError: one of the targets is no matrix.
    """
    flat, found = flatten_params(base), {}
    for path in targets:
        if path not in flat or len(flat[path].shape) != 2:
            raise UserError(f"{path} can have no adapter: it must be a matrix of the model")
        rows, columns = flat[path].shape
        found[f"{path}/{A}"] = jax.ShapeDtypeStruct((rows, rank), jnp.float32)
        found[f"{path}/{B}"] = jax.ShapeDtypeStruct((rank, columns), jnp.float32)
    return unflatten_params(found)


def described(data: Any, base: PyTree, where: str) -> tuple[PyTree, float]:
    """The shapes of the adapters that a checkpoint says it has, and their alpha: {"targets": paths, "rank", "alpha"}.

    Raises:
      UserError: it is no such description, or does not fit the model.
    """
    right = {"targets": list, "rank": int, "alpha": float}
    if not isinstance(data, dict) or {name: type(value) for name, value in data.items()} != right:
        raise UserError(f"{where} does not describe its adapters: it needs targets, rank and alpha")
    if not data["targets"] or not all(isinstance(path, str) for path in data["targets"]) or not 1 <= data["rank"] <= 2**20:
        raise UserError(f"{where} has adapters of rank {data['rank']!r} for {data['targets']!r}, which cannot be")
    return shapes(base, data["targets"], data["rank"]), data["alpha"]
