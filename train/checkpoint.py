"""A run's checkpoints: Orbax, with the experiment, the tokenizers and the place in the data beside the weights.

``checkpoints/<step>/`` holds the items params, ema (where there is one), base (the model's parameters, where params are
adapters), optimizer (all else of the state), data (the iterator's state), model (what ``zoo.load`` needs beside the weights),
experiment and metrics (for the choice of the best), and ``manifest.json``. Other names in ``checkpoints/``:

    <step>.saving...    a save that is going on, or was interrupted: removed at the next start
    <step>.deleting     a step that is no longer kept: the same
    damaged/            steps that did not verify, and what else stood in the way: never deleted
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from train.step import State
from zoo.checkpoint import manifest, orbax
from zoo.checkpoint.orbax import BEST, CHECKPOINTS
from zoo.checkpoint.rules import some
from zoo.core import PyTree, UserError, first_line

NO_SPACE = os.strerror(errno.ENOSPC)  # Orbax raises a ValueError that ends in these words
MARGIN = 2**20  # bytes that a checkpoint takes beside its arrays, and that the run's other files may want
ARRAYS, JSONS = ("params", "ema", "base", "optimizer"), ("data", "model", "experiment", "metrics")
NONE, ALL_DAMAGED = -1, -2


class SaveFailed(UserError):  # noqa: N818
    """A checkpoint could not be written. Earlier ones are intact, nothing is left of it, and a later one may succeed."""


class Saved(NamedTuple):
    """What a checkpoint gives back to a run: its state, and the iterator's place with the seconds spent so far."""

    state: State
    progress: dict[str, Any]


class Checkpoints:
    """The newest ``keep_last`` checkpoints of a run and its best one.

    ``save`` returns when the state has been copied, and training goes on while it is written; the next ``save``, ``finish`` or
    ``close`` waits for it and raises its failure. What Orbax has written is called ``<step>.saving`` until one thread of ours
    has hashed and synced every file and written the manifest, and only then ``<step>``: that thread alone may wait for Orbax
    and the disk while training goes on. So whatever is called ``<step>`` was once whole, and one that is not has been damaged.

    With several hosts each makes the same calls in the same order; the first one alone touches names and manifests, and all
    raise together.
    """

    def __init__(self, workdir: Path, keep_last: int = 2):
        """Clean up after an interrupted command, and find the newest step that verifies.

        Raises:
          UserError: the run has steps, and all are damaged.
          OSError: the directory cannot be written.
        """
        # Of several failed writes Orbax raises one; absl and asyncio would print all with their tracebacks.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.directory, self.keep_last = (workdir / CHECKPOINTS).resolve(), keep_last
        self.first = jax.process_index() == 0
        self.newest, damaged = NONE, {}
        if self.first:
            self.directory.mkdir(exist_ok=True)
            for path in self.directory.glob("*.saving"):  # complete but for its name
                if (path / manifest.MANIFEST).exists() and not os.path.lexists(path.with_suffix("")):
                    path.rename(path.with_suffix(""))
            self.clean()
            whole, damaged = orbax.verified(orbax.steps(self.directory)[::-1])
            self.newest = int(whole[0].name) if whole else ALL_DAMAGED if damaged else NONE
        self.newest = from_first(self.newest)
        if self.newest == ALL_DAMAGED:  # they stay where they are: repeating the command must not begin a new run
            raise orbax.all_damaged(self.directory, damaged)
        for path, reason in damaged.items():
            self.set_aside(path, reason)
        handlers = {name: ocp.PyTreeCheckpointHandler(use_compression=False) for name in ARRAYS}
        handlers |= {name: ocp.JsonCheckpointHandler() for name in JSONS}
        # Directories are made at once: where they cannot be, Orbax's threads would wait for them for five minutes.
        options = ocp.AsyncOptions(create_directories_asynchronously=False)
        self.checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**handlers), async_options=options)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.pending: tuple[int, Future] | None = None

    def save(self, state: State, progress: dict, model: dict, experiment: dict, best: float | None = None) -> None:
        """Begin to write a checkpoint of this step; one of the same step is replaced.

        Args:
          state: all that training changes, on the devices of all hosts; it may be donated afterwards.
          progress: the data iterator's state and the like, JSON.
          model: what ``zoo.load`` needs beside the weights, JSON.
          experiment: the whole experiment, JSON.
          best: lower is better; None if it was not measured at this step.

        Raises:
          SaveFailed: the disk has no room for this one, or the one before could not be written.
        """
        self.finish()
        step = int(state.step)
        needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + MARGIN, shutil.disk_usage(self.directory).free
        if not everywhere(free >= needed):
            raise self.no_space(step, f": {needed / 2**20:,.1f} MiB are needed and {free / 2**20:,.1f} are free")
        jsons = {"data": progress, "model": model, "experiment": experiment, "metrics": {BEST: best}}
        items = {name: ocp.args.PyTreeSave(tree) for name, tree in parts(state).items()}
        items |= {name: ocp.args.JsonSave(value) for name, value in jsons.items()}
        try:
            self.checkpointer.save(self.directory / f"{step}.saving", args=ocp.args.Composite(**items))
            self.pending = step, self.thread.submit(self.commit, step)
        except Exception as error:  # raised by finish, together with the other hosts
            failed: Future = Future()
            failed.set_exception(error)
            self.pending = step, failed

    def commit(self, step: int) -> None:
        """Wait for Orbax, then give the step its manifest and its name, and delete those that are no longer kept."""
        self.checkpointer.wait_until_finished()
        if not self.first:
            return
        saved, final = self.directory / f"{step}.saving", self.directory / str(step)
        manifest.write(saved, step)
        if (final / manifest.MANIFEST).exists():
            self.delete(final)
        elif os.path.lexists(final):
            self.set_aside(final, "it stood in the way of a new checkpoint")
        saved.rename(final)
        manifest.sync(self.directory)
        newest_first = orbax.steps(self.directory)[::-1]
        kept = {*newest_first[: self.keep_last], *sorted(newest_first, key=orbax.score)[:1]}
        for path in newest_first:
            if path not in kept:
                self.delete(path)

    def finish(self) -> None:
        """Wait until the checkpoint that is being written is safe on the disk.

        Raises:
          SaveFailed: it could not be written.
        """
        if self.pending is None:
            return
        step, future = self.pending
        error = future.exception()
        self.pending = None
        if everywhere(error is None):
            self.newest = step
            return
        if self.first:
            self.clean()
        if error is not None and not isinstance(error, OSError | ValueError | RuntimeError):
            raise error  # a fault of the program
        if getattr(error, "errno", None) == errno.ENOSPC or NO_SPACE in str(error):
            raise self.no_space(step) from error
        reason = "another host failed" if error is None else first_line(error)
        raise SaveFailed(
            f"checkpoint {step} in {self.directory} could not be written ({reason}); earlier checkpoints are intact: "
            "make the directory writable and repeat the command to continue"
        ) from error

    def no_space(self, step: int, detail: str = "") -> SaveFailed:
        return SaveFailed(
            f"no disk space is left for checkpoint {step} in {self.directory}{detail}; earlier checkpoints are intact, "
            "free some space and repeat the command to continue"
        )

    def latest(self) -> int | None:
        """The newest step: one that verified at the start, or was saved since."""
        return None if self.newest == NONE else self.newest

    def read_json(self, step: int, item: str) -> Any:
        """One of a checkpoint's JSON items."""
        return orbax.read_json(self.directory / str(step), item)

    def restore(self, step: int, abstract: State) -> Saved:
        """A checkpoint in the places that ``abstract`` names, whatever devices it was saved from.

        Raises:
          UserError: it is of another model, optimizer, ``lora``, ``optimizer.ema`` or ``optimizer.accumulate``, or cannot be
            read.
        """
        path = self.directory / str(step)
        if step != self.newest:
            self.verify(step)
        templates = parts(abstract)
        check_settings(path, templates)
        found = {name: orbax.read_tree(path / name, template) for name, template in templates.items()}
        rest = found.pop("optimizer")
        progress = self.read_json(step, "data")
        if not isinstance(progress, dict):
            raise UserError(f"the place in the data in {path} is {progress!r}: a JSON object is wanted")
        return Saved(State(**found | rest | {"key": jax.random.wrap_key_data(rest["key"])}), progress)

    def verify(self, step: int) -> None:
        """Read a checkpoint's files again and compare them with its manifest. Raises UserError if they differ."""
        path = self.directory / str(step)
        try:
            manifest.verify(path, step)
        except manifest.Damaged as error:
            raise UserError(f"the checkpoint {path} is damaged: {error}; continue from another one") from error

    def close(self) -> None:
        """``finish``, and end the threads."""
        try:
            self.finish()
        finally:
            self.thread.shutdown()
            self.checkpointer.close()

    def delete(self, path: Path) -> None:
        """Delete a step. It ceases to be one at once: no kill can leave half a step under its name."""
        doomed = path.with_name(f"{path.name}.deleting")
        path.rename(doomed)
        manifest.sync(self.directory)
        remove(doomed)

    def set_aside(self, path: Path, reason: str) -> None:
        """Move what is not a whole step to damaged/, and say so."""
        aside = self.directory / "damaged"
        aside.mkdir(exist_ok=True)
        number = next(n for n in range(10**9) if not os.path.lexists(aside / f"{path.name}-{n}"))
        path.rename(aside / f"{path.name}-{number}")
        manifest.sync(self.directory)
        logging.getLogger(__name__).warning("%s was moved to %s: %s", path, aside / f"{path.name}-{number}", reason)

    def clean(self) -> None:
        """Remove what interrupted saves and deletions have left."""
        for path in list(self.directory.iterdir()):
            if re.fullmatch(r"[0-9]+\.(saving.*|deleting)", path.name):
                remove(path)


def parts(state: State) -> dict[str, PyTree]:
    """A state as the items of a checkpoint, of arrays or of shapes; Orbax wants the key's bits instead of a typed key."""
    key = state.key
    if isinstance(key, jax.ShapeDtypeStruct):
        bits = jax.eval_shape(jax.random.key_data, key)
        key = jax.ShapeDtypeStruct(bits.shape, bits.dtype, sharding=key.sharding)
    else:
        key = jax.random.key_data(key)
    rest = {name: part for name, part in state._asdict().items() if part is not None} | {"key": key}
    trees = {name: rest.pop(name) for name in ("params", "ema", "base") if name in rest}
    return trees | {"optimizer": rest}


def check_settings(path: Path, templates: dict[str, PyTree]) -> None:
    """Raises UserError if the optimizer's settings in a checkpoint give its state other parts than the experiment's."""
    saved = orbax.item_metadata(path / "optimizer").keys()
    wanted = orbax.by_name(templates["optimizer"]).keys()
    for field, was, now in (
        ("lora", (path / "base").is_dir(), "base" in templates),
        ("optimizer.ema", (path / "ema").is_dir(), "ema" in templates),
        ("optimizer.accumulate", *(any(name.startswith("accumulated/") for name in names) for names in (saved, wanted))),
    ):
        if was != now:
            raise UserError(
                f"{path} was saved {'with' if was else 'without'} {field}, and the experiment is "
                f"{'with' if now else 'without'} it: repeat the run's command, or choose another --workdir"
            )
    if saved != wanted:
        raise UserError(
            f"{path} holds the state of another optimizer, missing {some(sorted(wanted - saved))}; not taken "
            f"{some(sorted(saved - wanted))}: set optimizer.name and the like as they were, or choose another --workdir"
        )


def everywhere(ok: bool) -> bool:
    """Whether it is so on every host."""
    return ok if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(ok)).all())


def from_first(value: int) -> int:
    """The first host's value."""
    return value if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def remove(path: Path) -> None:
    """A directory and all in it, or a file; what cannot be removed now is left to the next start."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
