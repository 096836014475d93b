"""A run's checkpoints: Orbax, with the experiment, the tokenizers and the place in the data beside the weights.

``checkpoints/<step>/`` holds the items params, optimizer, data (the iterator's state), model (what ``zoo.load`` needs beside
the weights), experiment, and metrics for the choice of the best one.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from train.step import State
from zoo.checkpoint.orbax import BEST, CHECKPOINTS, check_shapes
from zoo.checkpoint.orbax import read_json as read_item
from zoo.core import PyTree, UserError, flatten_params

NO_SPACE = os.strerror(errno.ENOSPC)  # Orbax raises a ValueError that ends in these words


MARGIN = 2**20  # bytes that a checkpoint takes beside its arrays, and that the run's other files may want


class Saved(NamedTuple):
    """What a checkpoint gives back to a run: its state, and the iterator's place with the seconds spent so far."""

    state: State
    progress: dict[str, Any]


class Checkpoints:
    """The newest ``keep_last`` checkpoints of a run and its best one."""

    def __init__(self, workdir: Path, keep_last: int = 2):
        # Of several failed writes Orbax raises one; absl and asyncio would print all with their tracebacks.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.directory = (workdir / CHECKPOINTS).resolve()
        policy = AnyPreservationPolicy([LatestN(keep_last), BestN(get_metric_fn=lambda m: m[BEST], reverse=True, n=1)])
        names = ("params", "optimizer")
        self.manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=lambda m: m[BEST],  # without it Orbax would not write the metrics that the policy reads
                best_mode="min",
                cleanup_tmp_directories=True,
                enable_async_checkpointing=False,
            ),
            item_handlers={name: ocp.StandardCheckpointHandler() for name in names}
            | {name: ocp.JsonCheckpointHandler() for name in ("data", "model", "experiment")},
        )

    def save(self, state: State, progress: dict, model: dict, experiment: dict, best: float) -> Path:
        """Write a checkpoint of this step and delete those that are no longer kept.

        Args:
          state: all that training changes.
          progress: the data iterator's state and the like, JSON.
          model: what ``zoo.load`` needs beside the weights, JSON.
          experiment: the whole experiment, JSON.
          best: lower is better.

        Raises:
          UserError: the disk is full; earlier checkpoints are intact.
        """
        step = int(state.step)
        needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + MARGIN, shutil.disk_usage(self.directory).free
        if free < needed:
            raise self.no_space(step, f": {needed / 2**20:,.1f} MiB are needed and {free / 2**20:,.1f} are free")
        items = {
            "params": ocp.args.StandardSave(state.params),
            "optimizer": ocp.args.StandardSave(rest(state)),
            "data": ocp.args.JsonSave(progress),
            "model": ocp.args.JsonSave(model),
            "experiment": ocp.args.JsonSave(experiment),
        }
        try:
            self.manager.save(step, args=ocp.args.Composite(**items), metrics={BEST: best}, force=True)
            self.manager.wait_until_finished()
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) == errno.ENOSPC or NO_SPACE in str(error):
                raise self.no_space(step) from error
            raise
        return self.directory / str(step)

    def no_space(self, step: int, detail: str = "") -> UserError:
        return UserError(
            f"no disk space is left for checkpoint {step} in {self.directory}{detail}; earlier checkpoints are intact, "
            "free some space and repeat the command to continue"
        )

    def latest(self) -> int | None:
        """The newest step on disk."""
        return self.manager.latest_step()

    def read_json(self, step: int, item: str) -> Any:
        """One of a checkpoint's JSON items."""
        return read_item(self.directory / str(step), item)

    def restore(self, step: int, abstract: State) -> Saved:
        """A checkpoint in the places that ``abstract`` names, whatever devices it was saved from."""
        path = self.directory / str(step)
        check_shapes(parameter_metadata(path), abstract.params, path)
        template = rest(abstract)
        items = {"params": ocp.args.StandardRestore(abstract.params), "optimizer": ocp.args.StandardRestore(template)}
        try:
            found = self.manager.restore(step, args=ocp.args.Composite(**items))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"the checkpoint {path} cannot be read ({first_line(error)}): move it away to go on from an earlier one"
            ) from error
        parts = {**found["optimizer"], "params": found["params"]}
        state = State(**parts | {"key": jax.random.wrap_key_data(parts["key"])})
        return Saved(state, self.read_json(step, "data"))

    def close(self) -> None:
        self.manager.close()


def rest(state: State) -> dict[str, PyTree]:
    """All of a state but its parameters, of arrays or of shapes; Orbax wants the key's bits instead of a typed key."""
    key = state.key
    if isinstance(key, jax.ShapeDtypeStruct):
        bits = jax.eval_shape(jax.random.key_data, key)
        key = jax.ShapeDtypeStruct(bits.shape, bits.dtype, sharding=key.sharding)
    else:
        key = jax.random.key_data(key)
    return {name: part for name, part in state._asdict().items() if name != "params"} | {"key": key}


def parameter_metadata(path: Path) -> dict[str, PyTree]:
    """Name -> shape and dtype of a checkpoint's parameters, without reading them."""
    with ocp.StandardCheckpointer() as checkpointer:
        return flatten_params(checkpointer.metadata(path / "params").item_metadata.tree)


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]
