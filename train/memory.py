"""What a run needs of memory, told from shapes before anything of that size is made."""

from __future__ import annotations

import math
import os

import jax

from zoo.core import PyTree, UserError


def check(state: PyTree) -> None:
    """Raises UserError if the state alone, without a single activation, is larger than a device's memory.

    Args:
      state: shapes, dtypes and places, as ``Pmap.abstract`` gives them.
    """
    leaves = jax.tree.leaves(state)
    needed = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    device = next(iter(leaves[0].sharding.addressable_devices))
    available = bytes_of(device)
    if available and needed > available:
        raise UserError(
            f"the parameters and the optimizer's state take {needed / 2**30:,.1f} GiB a device, and {device.device_kind} has "
            f"{available / 2**30:,.1f}: choose a smaller model, or share it among more devices with parallel.kind mesh and "
            "parallel.fsdp"
        )


def bytes_of(device: jax.Device) -> int:
    """The memory of a device; of a CPU's, its share of the machine's. 0 where it is not known."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    if device.platform != "cpu" or not hasattr(os, "sysconf"):
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
