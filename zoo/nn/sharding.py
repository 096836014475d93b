"""Where activations lie on a mesh of devices with the axes ``data``, ``fsdp`` and ``model``."""

from __future__ import annotations

import math

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

BATCH = ("data", "fsdp")  # rows are split over both
MODEL = "model"  # heads, feed-forward units and the vocabulary


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """``x`` with each dimension split over the named mesh axes; ``x`` itself where no mesh is in context.

    Without it the partitioner guesses from the parameters, and now and then gathers a whole batch on every device.

    Args:
      x: any array.
      axes: for each dimension the mesh axes that share it, or None. Axes that do not divide the dimension are left out.

    >>> constrain(jax.numpy.ones((2, 3)), BATCH, MODEL).shape
    (2, 3)
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}
    if not free:  # no mesh, or one whose axes a pmap has split already
        return x

    def fit(size: int, names: str | tuple[str, ...] | None) -> tuple[str, ...] | None:
        names = tuple(name for name in ([names] if isinstance(names, str) else names or ()) if name in free)
        return names if names and size % math.prod(mesh.shape[name] for name in names) == 0 else None

    return jax.lax.with_sharding_constraint(x, P(*map(fit, x.shape, axes)))
