"""One run in a child process, killed and continued; and what two runs must have in common."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).parent.parent.parent
OPTIONS = shlex.split(
    "--model.d-model 16 --model.d-ff 32 --model.num-heads 2 --model.num-layers 1 --model.dropout 0.1 --tokenizers.source "
    "characters --tokenizers.target characters --batching.tokens 256 --batching.max-source-len 16 --batching.max-target-len "
    "16 --batching.buckets 2 --decoding.max-len 12 --decoding.beams 1 --training.eval-examples 4 --training.log-every 2 "
    "--training.eval-every 10 --training.save-every 4 --training.steps 30 --training.trace --training.no-tensorboard "
    "--optimizer.schedule cosine --optimizer.warmup-steps 4 --optimizer.accumulate 2 --optimizer.ema 0.9"
)
INTERRUPTED = 42
OPERATIONS = {"rename": ("before", "after"), "delete": ("before", "half", "after"), "manifest": ("before", "half")}


@dataclasses.dataclass(frozen=True)
class Kill:
    """How a command is to end.

    Attributes:
      kind: "-9" or "-15", some time after the first step; "early", -9 some time after the start; "save", -9 while a checkpoint
        is written; one of OPERATIONS, -9 in the midst of it.
      where: the seconds after that, or what ``inject`` takes after the kind.
    """

    kind: str
    where: str

    def __str__(self) -> str:
        return f"{self.kind:8}  {self.where:10}"

    @property
    def codes(self) -> tuple[int, ...]:
        """Exit codes of a command that was killed so. Between Python's start and ours, SIGTERM does what it always does."""
        return (INTERRUPTED, -signal.SIGTERM) if self.kind == "-15" else (-signal.SIGKILL,)


def random_kill(kind: str, rng: np.random.Generator, start: float, seconds: float) -> Kill:
    """Args: start, seconds: what a run that is left alone takes to its first step, and from there."""
    if kind in OPERATIONS:
        return Kill(kind, f"{rng.integers(1, 7)}:{rng.choice(OPERATIONS[kind])}")
    return Kill(kind, f"{rng.uniform(0, {'early': start, 'save': 0.05}.get(kind, seconds)):.3f}")


def write_pairs(path: Path) -> None:
    """A TSV of words and their reverse."""
    rng = np.random.default_rng(0)
    words = {"".join(rng.choice(list("abcde"), rng.integers(2, 15))) for _ in range(200)}
    path.write_text("".join(f"{word}\t{word[::-1]}\n" for word in sorted(words)), encoding="utf-8")


class Command:
    """``python -m train`` in a child process, as a person starts it, with small numbers and everything random switched on."""

    def __init__(self, directory: Path, *more: str):
        """Args: directory: for the data, the compiled programs and the runs; more: options."""
        self.directory, self.more = directory, more
        self.pairs = directory / "pairs.tsv"
        directory.mkdir(parents=True, exist_ok=True)
        if not self.pairs.exists():
            write_pairs(self.pairs)

    def arguments(self, workdir: Path) -> list[str]:
        """Those of ``python -m train``."""
        config = str(ROOT / "configs" / "transformer_tsv.py")
        return [config, "--workdir", str(workdir), "--data.train", str(self.pairs), *OPTIONS, *self.more]

    def start(self, workdir: Path, **environment: str) -> subprocess.Popen:
        """A child; its programs are compiled once for all of them, so that all compute the very same."""
        environment = {
            **os.environ,
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_COMPILATION_CACHE_DIR": str(self.directory / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "inject"), str(ROOT)]),
            "PYTHONUNBUFFERED": "1",
            **environment,
        }
        command = [sys.executable, "-m", "train", *self.arguments(workdir)]
        return subprocess.Popen(
            command, cwd=self.directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, workdir: Path, **environment: str) -> str:
        """To the end. Returns what it printed; raises AssertionError if it failed."""
        child = self.start(workdir, **environment)
        said, _ = child.communicate()
        assert child.returncode == 0, f"exit code {child.returncode}\n{said}"
        return said

    def times(self, workdir: Path) -> tuple[float, float]:
        """As ``run``. Returns the seconds to the first step, and from there to the end."""
        begin = time.monotonic()
        child = self.start(workdir)
        self.await_first(child, stepping, workdir)
        first = time.monotonic()
        said, _ = child.communicate()
        assert child.returncode == 0, f"exit code {child.returncode}\n{said}"
        return first - begin, time.monotonic() - first

    def await_first(self, child: subprocess.Popen, sign: Callable[[Path], int], workdir: Path) -> None:
        """Until the child shows a new sign, or has ended."""
        before = sign(workdir)
        while child.poll() is None and sign(workdir) <= before:
            time.sleep(0.002)

    def run_killed(self, workdir: Path, kill: Kill) -> tuple[int, str]:
        """Until it is killed, or done if it is quicker. Returns the exit code and what it printed."""
        if kill.kind in OPERATIONS:
            child = self.start(workdir, FAULT=f"{kill.kind}:{kill.where}")
        else:
            child = self.start(workdir)
            if kill.kind != "early":
                self.await_first(child, saving if kill.kind == "save" else stepping, workdir)
            time.sleep(float(kill.where))
            child.send_signal(signal.SIGTERM if kill.kind == "-15" else signal.SIGKILL)
        said, _ = child.communicate()
        return child.returncode, said


def stepping(workdir: Path) -> int:
    """Grows as soon as the run makes steps."""
    trace = workdir / "trace.jsonl"
    return trace.stat().st_mtime_ns if trace.exists() and trace.stat().st_size else 0


def saving(workdir: Path) -> int:
    """Grows when a checkpoint begins to be written."""
    return max((path.stat().st_ctime_ns for path in (workdir / "checkpoints").glob("*.saving*")), default=0)


def resumed_from(said: str) -> str:
    """The step that a command continued at, from what it printed; "-" if from none."""
    found = re.search(r"continuing at step (\d+)", said)
    return found[1] if found else "-"


def evidence(workdir: Path) -> dict[str, object]:
    """What must be equal, bit for bit: the ids and the loss of every step, all evaluations, and the last state."""
    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = max((path for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    return {
        "trace": (workdir / "trace.jsonl").read_text(),
        "evaluations": [line for line in metrics if "validation/nll" in line],
        "best": json.loads((workdir / "result.json").read_text())["best_step"],
        **{name: digest(last / name) for name in ("params", "ema", "optimizer")},
    }


def digest(path: Path) -> str:
    """A hash of the names, shapes, dtypes and bytes of an item's arrays."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax misses what a whole checkpoint has, not an item
    found = hashlib.sha256()
    with ocp.PyTreeCheckpointer() as checkpointer:
        names = checkpointer.metadata(path.resolve()).item_metadata.tree
        on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
        tree = checkpointer.restore(path.resolve(), restore_args=on_host)
    for name, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        found.update(f"{jax.tree_util.keystr(name)} {array.shape} {array.dtype}".encode() + array.tobytes())
    return found.hexdigest()


def differences(left: dict[str, object], right: dict[str, object]) -> list[str]:
    """The names of what is not equal."""
    return [name for name in left if left[name] != right[name]]
