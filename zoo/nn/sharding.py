"""Where arrays lie on a mesh of devices with the axes ``data``, ``fsdp`` and ``model``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

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
    sizes = splittable()
    return jax.lax.with_sharding_constraint(x, fit(axes, x.shape, sizes)) if sizes else x


def by_rows(call: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """``call(x)``, which treats each row by itself: every device of the mesh in context its own rows.

    For what XLA does not split: it would gather the whole batch on every device for an FFT.

    >>> by_rows(lambda x: 2 * x, jax.numpy.ones((2, 3))).sum()
    Array(12., dtype=float32)
    """
    if not (sizes := splittable()):
        return call(x)
    split = fit((BATCH,), x.shape, sizes)
    return jax.shard_map(call, in_specs=split, out_specs=split, check_vma=False)(x)


def splittable() -> dict[str, int]:
    """Axis -> devices, of the mesh in context; none where there is no mesh, or one whose axes a pmap has split already."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name: mesh.shape[name] for name, kind in kinds if kind == AxisType.Auto}


def fit(axes: Iterable[str | tuple[str, ...] | None], shape: tuple[int, ...], sizes: Mapping[str, int]) -> P:
    """The axes without those that the mesh lacks, or that do not divide a dimension; P() for an array of lower rank.

    Args:
      axes: for each dimension the mesh axes that share it, or None.
      shape: the array's.
      sizes: mesh axis -> devices.

    >>> tuple(fit(("fsdp", "model"), (6, 3), {"fsdp": 2, "model": 2}))
    ('fsdp', None)
    """

    def one(size: int, names: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        names = tuple(name for name in ([names] if isinstance(names, str) else names or ()) if name in sizes)
        divides = names and size % math.prod(sizes[name] for name in names) == 0
        return (names if len(names) > 1 else names[0]) if divides else None

    axes = tuple(axes)
    return P() if len(axes) > len(shape) else P(*map(one, shape, axes))
