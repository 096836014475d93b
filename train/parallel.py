"""The same step on many devices, in two ways: ``pmap`` (data parallel) and ``mesh`` (data x fsdp x model by rules).

Both keep one un-stacked state, so that checkpoints, evaluation and generation do not know which was used.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from train.step import State
from zoo.core import PyTree, UserError


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How the work is shared among devices.

    Attributes:
      kind: "pmap", one copy of the model a device; "mesh", parameters sharded by the model's rules.
      fsdp: mesh: devices that share the storage of each parameter; batches are split over them too.
      model: mesh: devices that share each matrix product.
      devices: use this many of the devices there are; 0 uses all.
    """

    kind: Literal["pmap", "mesh"] = "pmap"
    fsdp: int = 1
    model: int = 1
    devices: int = 0


def make(parallel: Parallel, rules: tuple = ()) -> Pmap | MeshParallel:
    """The strategy for the devices of this machine. Raises UserError if they cannot be shared so."""
    found = jax.devices()
    count = parallel.devices or len(found)
    if not 0 < count <= len(found):
        raise UserError(
            f"parallel.devices is {parallel.devices}, but there are {len(found)}: choose 1 to {len(found)}, or 0 for all"
        )
    if parallel.kind == "pmap":
        if parallel.fsdp != 1 or parallel.model != 1:
            raise UserError('parallel.fsdp and parallel.model need a mesh: set parallel.kind to "mesh"')
        return Pmap(found[:count])
    if parallel.fsdp < 1 or parallel.model < 1 or count % (parallel.fsdp * parallel.model):
        raise UserError(
            f"parallel.fsdp x parallel.model is {parallel.fsdp} x {parallel.model}, which does not divide {count} devices: "
            "choose factors of that number"
        )
    return MeshParallel(found[:count], parallel, rules)


class Pmap:
    """Data parallel: the state replicated, a batch's rows split, gradients summed.

    Attributes:
      rows: a batch's rows must be a multiple of this.
    """

    def __init__(self, devices: list):
        self.devices, self.rows = devices, len(devices)
        mesh = jax.sharding.Mesh(np.array(devices), ("data",))
        self._replicated, self._split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))

    def compile_train(self, train_step: Callable) -> Callable:
        """``step(state, batch) -> (state, metrics)``; the state passed in is consumed."""
        return jax.pmap(
            functools.partial(train_step, axis="data"),
            axis_name="data",
            in_axes=(None, 0),
            out_axes=(None, None),
            devices=self.devices,
            donate_argnums=0,
        )

    def compile_eval(self, eval_step: Callable) -> Callable:
        """``step(params, batch) -> metrics``."""
        step = functools.partial(eval_step, axis="data")
        return jax.pmap(step, axis_name="data", in_axes=(None, 0), out_axes=None, devices=self.devices)

    def init(self, init: Callable[[], State]) -> State:
        """A new state, placed."""
        return jax.jit(init, out_shardings=self._replicated)()

    def abstract(self, init: Callable[[], State]) -> State:
        """The state's shapes, dtypes and places: what a checkpoint is restored to."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._replicated), jax.eval_shape(init))

    def put(self, batch: PyTree) -> PyTree:
        """A batch for ``step``: rows (B, ...) become (devices, B / devices, ...)."""
        return jax.tree.map(
            lambda x: jax.device_put(x.reshape(self.rows, x.shape[0] // self.rows, *x.shape[1:]), self._split), batch
        )

    def put_rows(self, batch: PyTree) -> PyTree:
        """A batch for a plain ``jit``, such as generation: its rows split over the devices."""
        return jax.device_put(batch, self._split)


class MeshParallel:
    """Sharded by rules: ``jit`` over a mesh with axes data, fsdp and model; XLA adds the communication."""

    def __init__(self, devices: list, parallel: Parallel, rules: tuple):
        shape = (len(devices) // (parallel.fsdp * parallel.model), parallel.fsdp, parallel.model)
        self.devices, self.rows, self.rules = devices, shape[0] * shape[1], rules
        self.mesh = jax.make_mesh(shape, ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3, devices=devices)
        self._replicated = NamedSharding(self.mesh, P())
        self._split = NamedSharding(self.mesh, P(("data", "fsdp")))

    def sharding(self, path: tuple, leaf: Any) -> NamedSharding:
        """The place of a leaf of the state: a parameter's rule, which its optimizer moments share; else replicated."""
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey) and isinstance(key.key, str)]
        candidates = ["/".join(keys[start:]) for start in range(len(keys))]
        spec = next((spec for regex, spec in self.rules if any(re.fullmatch(regex, name) for name in candidates)), P())
        return NamedSharding(self.mesh, self.fit(spec, leaf.shape))

    def fit(self, spec: P, shape: tuple[int, ...]) -> P:
        """The spec with the axes left out that do not divide the array's; P() for an array of another rank."""
        if len(spec) > len(shape):
            return P()
        sizes = [self.mesh.shape[axis] if axis else 1 for axis in spec]
        return P(*(axis if shape[i] % sizes[i] == 0 else None for i, axis in enumerate(spec)))

    def abstract(self, init: Callable[[], State]) -> State:
        """The state's shapes, dtypes and places."""
        return jax.tree_util.tree_map_with_path(
            lambda path, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.sharding(path, x)), jax.eval_shape(init)
        )

    def init(self, init: Callable[[], State]) -> State:
        """A new state, made in its places."""
        return jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, self.abstract(init)))()

    def compile_train(self, train_step: Callable) -> Callable:
        """``step(state, batch) -> (state, metrics)``; the state passed in is consumed and keeps its places."""

        def step(state, batch):
            places = jax.tree_util.tree_map_with_path(self.sharding, state)
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):  # which the model's constraints look for
                state, metrics = train_step(state, batch)
            return jax.lax.with_sharding_constraint(state, places), metrics

        return jax.jit(step, donate_argnums=0)

    def compile_eval(self, eval_step: Callable) -> Callable:
        """``step(params, batch) -> metrics``."""

        def step(params, batch):
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return eval_step(params, batch)

        return jax.jit(step)

    def put(self, batch: PyTree) -> PyTree:
        """A batch for ``step``: its rows split over data and fsdp."""
        return jax.device_put(batch, self._split)

    put_rows = put
