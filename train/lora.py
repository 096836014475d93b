"""Low-rank adapters (Hu et al. 2021): a model of any variant learns by a few small matrices, and its own parameters stay."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from train.optim import matches
from zoo.checkpoint import adapters
from zoo.core import PyTree, UserError, flatten_params, unflatten_params


@dataclasses.dataclass(frozen=True)
class Lora:
    """Adapters A B of rank r are trained, and each matrix W that they belong to is read as W + alpha / r x A B.

    At the start B is zero, so that the model is the one it starts from. ``optimizer.rate_rules`` and the like speak of the
    model's parameters; an adapter has the value of its matrix. The adapters' input has no dropout of its own: they are merged
    before the model reads them, so that no model knows of them.

    Attributes:
      rank: r; 0: no adapters, all parameters are trained.
      alpha: the scale of the adapters.
      targets: regex that matches the whole path of each matrix with an adapter; by default the paper's, of query and value.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: str = r".*(query|value)/kernel"

    def paths(self, params: PyTree) -> list[str]:
        """The matrices that have an adapter.

        Raises:
          UserError: there is none.
        """
        matrices = [path for path, leaf in flatten_params(params).items() if len(leaf.shape) == 2]
        found = [path for path in matrices if matches(self.targets, path, "lora.targets")]
        if not found:
            raise UserError(f"lora.targets is {self.targets!r}, which matches no matrix of the model: such as {matrices[0]}")
        return found

    def shapes(self, params: PyTree) -> PyTree:
        """Those of the adapters of a model with these parameters."""
        return adapters.shapes(params, self.paths(params), self.rank)

    def init(self, params: PyTree, key: jax.Array) -> PyTree:
        """New adapters: A of variance 1 / its rows, B zero."""
        flat = flatten_params(self.shapes(params))
        keys = dict(zip(flat, jax.random.split(key, len(flat)), strict=True))
        scale = {path: leaf.shape[0] ** -0.5 if path.endswith(adapters.A) else 0.0 for path, leaf in flat.items()}
        return unflatten_params({p: scale[p] * jax.random.normal(keys[p], leaf.shape) for p, leaf in flat.items()})

    def described(self, params: PyTree) -> dict[str, Any]:
        """What a checkpoint says of its adapters."""
        return {"targets": self.paths(params), "rank": self.rank, "alpha": self.alpha}
