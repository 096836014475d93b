"""Reading the Orbax checkpoints that training writes: ``checkpoints/<step>/`` with the items params, model and metrics."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import jax

from zoo.core import PyTree, UserError, flatten_params

CHECKPOINTS, BEST = "checkpoints", "best"


def steps(directory: Path) -> list[Path]:
    """The committed steps of a run, oldest first. A stray directory without the expected items is none."""
    found = [path for path in directory.glob("*/") if path.name.isdigit() and (path / "params").is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def find_step(directory: Path) -> Path | None:
    """The checkpoint meant by a directory: itself, or the best of a run (the newest where none was measured)."""
    if (directory / "params").is_dir():
        return directory
    found = steps(directory / CHECKPOINTS)
    measured = [(read_json(step, "metrics")[BEST], step) for step in found if (step / "metrics").is_dir()]
    return min(measured, key=lambda pair: pair[0])[1] if measured else (found[-1] if found else None)


def read_json(step: Path, item: str) -> Any:
    """A JSON item of a checkpoint."""
    path = step / item / "metadata" if item != "metrics" else step / item / "metrics"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"the checkpoint {step} is damaged: {path.name} of {item} is not readable ({error})") from error


def read_params(step: Path, template: PyTree, place: PyTree) -> PyTree:
    """The parameters of a checkpoint, each in its ``place``, if names and shapes are those of the template."""
    import orbax.checkpoint as ocp

    # Orbax warns that a single item has no metadata of its own: in our layout that stands beside it, for all items.
    logging.getLogger("absl").setLevel(logging.ERROR)
    with ocp.StandardCheckpointer() as checkpointer:
        path = (step / "params").resolve()
        try:
            found = flatten_params(checkpointer.metadata(path).item_metadata.tree)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"the checkpoint {step} is damaged: its parameters are not readable ({error})") from error
        check_shapes(found, template, step)
        abstract = jax.tree.map(lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), template, place)
        return checkpointer.restore(path, abstract)


def check_shapes(found: dict[str, Any], template: PyTree, where: Path | str) -> None:
    """Raises UserError unless the names and shapes in a checkpoint are those that the model wants."""
    from zoo.checkpoint.directory import check_names

    wanted = flatten_params(template)
    check_names(set(found), set(wanted), where)
    for name, leaf in wanted.items():
        if tuple(found[name].shape) != tuple(leaf.shape):
            raise UserError(f"{name} in {where} has the shape {tuple(found[name].shape)}, but the model wants {leaf.shape}")
