"""Reading the Orbax checkpoints that training writes: ``checkpoints/<step>/`` with params, ema, base, model and metrics.

Nothing is read of a checkpoint whose manifest does not verify, and no array whose name, shape, dtype or size is not expected.
"""

from __future__ import annotations

import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from zoo.checkpoint import adapters, manifest
from zoo.core import PyTree, UserError, first_line

CHECKPOINTS, BEST = "checkpoints", "best"


def steps(directory: Path) -> list[Path]:
    """What claims to be a step of a run, oldest first: named like one, with a part of one. It need not verify."""
    named = [path for path in directory.glob("*/") if re.fullmatch("0|[1-9][0-9]*", path.name)]
    found = [path for path in named if (path / manifest.MANIFEST).exists() or (path / "params").is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def verified(found: list[Path], count: int = 1) -> tuple[list[Path], dict[Path, str]]:
    """The first ``count`` steps that verify, and what is wrong with each that had to be passed over."""
    whole: list[Path] = []
    damaged: dict[Path, str] = {}
    for step in found:
        if len(whole) == count:
            break
        try:
            manifest.verify(step, int(step.name))
            whole.append(step)
        except manifest.Damaged as error:
            damaged[step] = str(error)
    return whole, damaged


def all_damaged(directory: Path, damaged: dict[Path, str]) -> UserError:
    """For a run of which nothing is left."""
    listed = "; ".join(f"{step.name}: {reason}" for step, reason in damaged.items()) or "the first host names them"
    return UserError(
        f"every checkpoint in {directory} is damaged ({listed}): bring one back from a copy, or move all away to start again"
    )


def find_step(directory: Path) -> Path | None:
    """The checkpoint meant by a directory: itself, or the best of a run that verifies (the newest where none was measured).

    Raises:
      UserError: it does not verify, or none of the run's does.
    """
    if (directory / "params").is_dir():
        try:
            manifest.verify(directory)
        except manifest.Damaged as error:
            raise UserError(f"the checkpoint {directory} is damaged: {error}; load another one") from error
        return directory
    newest_first = steps(directory / CHECKPOINTS)[::-1]
    return first_verified(directory, sorted(newest_first, key=score))[0] if newest_first else None


def last_steps(directory: Path, count: int) -> list[Path]:
    """The newest ``count`` checkpoints of a run that verify, newest first. Raises UserError if there are fewer."""
    if count < 1:
        raise UserError(f"--average is {count}: it must be at least 1")
    found = first_verified(directory, steps(directory / CHECKPOINTS)[::-1], count)
    if len(found) < count:
        raise UserError(
            f"--average is {count}, but {directory} has {len(found)} whole checkpoints: ask for fewer, or train with a larger "
            "--training.keep-last"
        )
    return found


def first_verified(directory: Path, found: list[Path], count: int = 1) -> list[Path]:
    """As ``verified``, with a line of the log for each damaged step. Raises UserError if all are."""
    whole, damaged = verified(found, count)
    if damaged and not whole:
        raise all_damaged(directory / CHECKPOINTS, damaged)
    for step, reason in damaged.items():
        logging.getLogger(__name__).warning("the checkpoint %s is damaged and not used: %s", step, reason)
    return whole


def score(step: Path) -> float:
    """What the best checkpoint is chosen by, lower is better; infinite where it was not measured."""
    try:
        value = float(read_json(step, "metrics")[BEST])
    except (UserError, KeyError, TypeError, ValueError, OverflowError):
        return math.inf
    return math.inf if math.isnan(value) else value


def read_json(step: Path, item: str) -> Any:
    """A JSON item of a checkpoint."""
    path = step / item / "metadata"  # Orbax's name for the file
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"the checkpoint {step} is damaged: its {item} is not readable ({first_line(error)})") from error


def read_params(step: Path, template: PyTree, place: PyTree, lora: Any = None, item: str = "") -> PyTree:
    """The parameters of a checkpoint, each in its ``place``.

    Args:
      step: a checkpoint that verifies.
      template: the model's parameters.
      place: their shardings.
      lora: what the checkpoint says of its adapters, which are merged into the parameters under them; None: it has none.
      item: "params", or "ema" for their moving average; empty: the latter where there is one.
    """
    item = item or ("ema" if (step / "ema").is_dir() else "params")
    abstract = jax.tree.map(lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), template, place)
    if lora is None:
        return read_tree(step / item, abstract)
    found, alpha = adapters.described(lora, template, str(step))
    to = jax.tree.leaves(place)[0]
    whole = NamedSharding(to.mesh, PartitionSpec()) if isinstance(to, NamedSharding) else to
    found = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), found)
    base, found = read_tree(step / "base", abstract), read_tree(step / item, found)
    return jax.jit(adapters.merge, static_argnums=2, out_shardings=place)(base, found, alpha)


def on_one_device(template: PyTree) -> PyTree:
    """ShapeDtypeStructs with the default device as their place."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), template)


def average_params(found: list[Path], template: PyTree, lora: Any = None) -> PyTree:
    """The mean of several checkpoints' parameters, in float32 (Vaswani et al. 2017, section 6.1); ``lora`` as above."""
    total, place = None, jax.tree.map(lambda leaf: leaf.sharding, on_one_device(template))
    for step in found:
        params = jax.tree.map(lambda x: x.astype(jnp.float32), read_params(step, template, place, lora, "params"))
        total = params if total is None else jax.tree.map(jnp.add, total, params)
    return jax.tree.map(lambda x, like: (x / len(found)).astype(like.dtype), total, template)


def read_tree(path: Path, template: PyTree) -> PyTree:
    """An item's arrays, placed as the template's shardings say.

    Args:
      path: the item's directory, in a checkpoint that verifies.
      template: ShapeDtypeStructs with shardings.

    Raises:
      UserError: names, shapes, dtypes or sizes are others, or Orbax cannot read them.
    """
    import orbax.checkpoint as ocp

    path = path.resolve()
    check(item_metadata(path), by_name(template), path)
    places = ocp.checkpoint_utils.construct_restore_args(template)
    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            return checkpointer.restore(path, item=template, restore_args=places)
        except Exception as error:
            raise UserError(f"{path} cannot be read ({first_line(error)}): use another checkpoint") from error


def item_metadata(path: Path) -> dict[str, Any]:
    """Name -> shape, dtype and storage of an item's arrays, without reading them."""
    import orbax.checkpoint as ocp

    # Orbax warns that a single item has no metadata of its own: in our layout that stands beside it, for all items.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            return by_name(checkpointer.metadata(path.resolve()).item_metadata.tree)
        except Exception as error:  # whatever foreign metadata leads to, none of it is a fault of ours
            raise UserError(f"{path} is damaged or foreign: what it holds is not readable ({first_line(error)})") from error


def by_name(tree: PyTree) -> dict[str, Any]:
    """A tree's leaves by their path; that of a NamedTuple is what Orbax makes of it, a dict.

    >>> by_name({"a": [1, {"b": 2}]})
    {'a/0': 1, 'a/1/b': 2}
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def check(found: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    """Raises UserError unless what Orbax says of an item's arrays is what is wanted, and the files are large enough for it."""
    from zoo.checkpoint.directory import check_names

    check_names(set(found), set(wanted), path)
    for name, leaf in wanted.items():
        shape, dtype = (getattr(found[name], field, None) for field in ("shape", "dtype"))
        if shape != leaf.shape:
            raise UserError(f"{name} in {path} has the shape {shape}, but the model wants {leaf.shape}")
        if dtype != leaf.dtype:  # Orbax would cast it without a word
            raise UserError(f"{name} in {path} is of type {dtype}, but the model wants {leaf.dtype}")
        chunk = getattr(found[name].storage, "chunk_shape", None) or shape
        if len(chunk) != len(shape) or any(part > max(whole, 1) for part, whole in zip(chunk, shape, strict=True)):
            raise UserError(f"{name} in {path} is stored in parts of {chunk}, larger than itself: the file is foreign")
    size, needed = sum(manifest.files(path).values()), sum(leaf.size * leaf.dtype.itemsize for leaf in wanted.values())
    if size < needed:  # arrays are stored as they are: no compression makes a small file a large array
        raise UserError(f"{path} has {size:,} bytes, but the model wants {needed:,}: the checkpoint is foreign or damaged")
