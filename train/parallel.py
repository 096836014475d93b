"""The same step on many devices, in two ways: ``pmap`` (data parallel) and ``mesh`` (data x fsdp x model by rules).

Both keep one un-stacked state, so that checkpoints, evaluation and generation do not know which was used. Both work on the
devices of all hosts: a state's arrays are global, and a host brings the rows of a batch that its own devices hold.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from train.step import State
from zoo.checkpoint.placing import place_of
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
    """The strategy for the devices of all hosts. Raises UserError if they cannot be shared so."""
    devices = choose(parallel.devices)
    if parallel.kind == "pmap":
        if parallel.fsdp != 1 or parallel.model != 1:
            raise UserError('parallel.fsdp and parallel.model need a mesh: set parallel.kind to "mesh"')
        return Pmap(devices)
    if parallel.fsdp < 1 or parallel.model < 1 or len(devices) % (parallel.fsdp * parallel.model):
        raise UserError(
            f"parallel.fsdp x parallel.model is {parallel.fsdp} x {parallel.model}, which does not divide {len(devices)} "
            "devices: choose factors of that number"
        )
    return MeshParallel(devices, parallel, rules)


def choose(count: int) -> list:
    """As many devices, the same number of each host, one host's after another's; 0 chooses all."""
    found = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    hosts = jax.process_count()
    if not 0 <= count <= len(found) or count % hosts:
        raise UserError(
            f"parallel.devices is {count}, but there are {len(found)}: choose {hosts} to {len(found)}, or 0 for all"
            + f", a multiple of the {hosts} hosts" * (hosts > 1)
        )
    each = (count or len(found)) // hosts
    return [device for host in range(hosts) for device in [d for d in found if d.process_index == host][:each]]


class Devices:
    """A mesh, and where a batch's rows lie on it.

    Attributes:
      devices: all of the mesh, of all hosts.
      rows: a batch's rows must be a multiple of this.
      host: (index, count), this host's share of a batch's rows: hosts that share the same rows have the same index.
    """

    def __init__(self, mesh: jax.sharding.Mesh, axes: tuple[str, ...]):
        self.mesh, self.devices = mesh, list(mesh.devices.flat)
        self.rows = math.prod(mesh.shape[axis] for axis in axes)
        self.replicated, self.split = NamedSharding(mesh, P()), NamedSharding(mesh, P(axes))
        self.host = self._share()

    def _share(self) -> tuple[int, int]:
        held: dict[int, set[int]] = {}
        for device, (rows,) in self.split.devices_indices_map((self.rows,)).items():
            held.setdefault(device.process_index, set()).add(rows.start or 0)
        shares = sorted({tuple(sorted(rows)) for rows in held.values()})
        if len({len(share) for share in shares}) > 1 or sum(map(len, shares)) != self.rows:
            raise UserError(
                f"parallel.model is {len(self.devices) // self.rows}, which does not fit the "
                f"{len(self.mesh.local_devices)} devices of a host: choose one that divides them or is a multiple of them"
            )
        return shares.index(tuple(sorted(held[jax.process_index()]))), len(shares)

    def sharding(self, path: tuple, leaf: Any) -> NamedSharding:
        """The place of a leaf of the state: on every device."""
        return self.replicated

    def abstract(self, init: Callable[[], State]) -> State:
        """The state's shapes, dtypes and places: what a checkpoint is restored to."""
        return jax.tree_util.tree_map_with_path(
            lambda path, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.sharding(path, x)), jax.eval_shape(init)
        )

    def init(self, init: Callable[..., State], *arguments: PyTree) -> State:
        """A new state, made in its places; what it is made from is consumed."""
        places = jax.tree.map(lambda x: x.sharding, self.abstract(functools.partial(init, *arguments)))
        return jax.jit(init, out_shardings=places, donate_argnums=tuple(range(len(arguments))))(*arguments)

    def put(self, batch: PyTree) -> PyTree:
        """A batch for ``step``, of this host's rows: together with those of the other hosts the global batch."""
        # No collective: a thread that reads ahead may call this while the main one computes.
        count = self.host[1]
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(self.split, x, (len(x) * count, *x.shape[1:])), batch
        )

    def put_rows(self, batch: PyTree) -> PyTree:
        """A whole batch that every host has, for a plain ``jit`` such as generation: its rows split over the devices."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.split, x, x.shape), batch)


class Pmap(Devices):
    """Data parallel: the state replicated, a batch's rows split, gradients summed.

    It is what ``jax.pmap`` does, over the devices of all hosts: ``jax.pmap`` itself is ``jit`` of ``shard_map`` today, but it
    hands out arrays of one host, which neither a checkpoint nor generation over all hosts can take.
    """

    def __init__(self, devices: list):
        super().__init__(jax.sharding.Mesh(np.array(devices), ("data",)), ("data",))

    def compile_train(self, train_step: Callable) -> Callable:
        """``step(state, batch) -> (state, metrics)``; the state passed in is consumed."""
        return jax.jit(self._per_device(train_step), donate_argnums=0)

    def compile_eval(self, eval_step: Callable) -> Callable:
        """``step(params, batch) -> metrics``."""
        return jax.jit(self._per_device(eval_step))

    def _per_device(self, step: Callable) -> Callable:
        # check_vma would make a sum of gradients over devices count them twice: the step sums them itself.
        step = functools.partial(step, axis="data")
        return jax.shard_map(step, mesh=self.mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=False)


class MeshParallel(Devices):
    """Sharded by rules: ``jit`` over a mesh with axes data, fsdp and model; XLA adds the communication."""

    def __init__(self, devices: list, parallel: Parallel, rules: tuple):
        shape = (len(devices) // (parallel.fsdp * parallel.model), parallel.fsdp, parallel.model)
        names = ("data", "fsdp", "model")
        super().__init__(jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * 3, devices=devices), ("data", "fsdp"))
        self.rules = rules

    def sharding(self, path: tuple, leaf: Any) -> NamedSharding:
        """The place of a leaf of the state: a parameter's rule, which its optimizer moments share; else replicated."""
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey) and isinstance(key.key, str)]
        candidates = ["/".join(keys[start:]) for start in range(len(keys))]
        return place_of(candidates, leaf.shape, self.rules, self.mesh)

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
