"""Arrays of the host onto devices, one at a time: whole on one device, or each device's part of a mesh."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from zoo.nn.sharding import fit

ALIGNMENT = 64  # bytes


def placer(rules: tuple, dtype: Any = None, mesh: Mesh | None = None) -> Callable[[str, np.ndarray, Any], jax.Array]:
    """The function (path, array, anything) -> the array on its devices, as ``from_reference`` calls it.

    Args:
      rules: a model's ``SHARDING``.
      dtype: what numbers become; None keeps them. Integers stay.
      mesh: the devices that share the array by the rules, of which those of this process get their parts; None for one device.
    """

    def put(path: str, array: np.ndarray, leaf: Any = None) -> jax.Array:
        cast = dtype if dtype is not None and jnp.issubdtype(array.dtype, jnp.floating) else array.dtype
        place = sharding(path, array.shape, rules, mesh)
        parts = [
            jax.device_put(own(array[index], cast), device)
            for device, index in place.addressable_devices_indices_map(array.shape).items()
        ]
        # Ready before the next array is read: the host then holds one at a time.
        return jax.block_until_ready(jax.make_array_from_single_device_arrays(array.shape, place, parts))

    return put


def own(view: np.ndarray, dtype: Any) -> np.ndarray:
    """A copy that jax can take over on a CPU, where it uses a host array as it is if that lies at a multiple of 64 bytes.

    Were it given a view of a file, parameters would change with the file.
    """
    size = view.size * np.dtype(dtype).itemsize
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    copy = room[start : start + size].view(dtype).reshape(view.shape)
    np.copyto(copy, view, casting="unsafe")
    return copy


def sharding(path: str, shape: tuple[int, ...], rules: tuple, mesh: Mesh | None) -> Sharding:
    """Where a parameter belongs: on the first device, or on a mesh by its rule."""
    if mesh is None:
        return SingleDeviceSharding(jax.local_devices()[0])
    return place_of([path], shape, rules, mesh)


def place_of(names: Iterable[str], shape: tuple[int, ...], rules: tuple, mesh: Mesh) -> NamedSharding:
    """Where a parameter of any of these names belongs, by the first of a model's ``SHARDING`` that matches."""
    names = tuple(names)
    spec = next((spec for regex, spec in rules if any(re.fullmatch(regex, name) for name in names)), PartitionSpec())
    return NamedSharding(mesh, fit(spec, shape, mesh.shape))
