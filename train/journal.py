"""What the steps of a run said: read from the device a little late, then traced, counted, logged and shown."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from train import hosts, optim, report
from train.experiment import Experiment
from train.metrics import Metric, add, divide
from train.step import State
from train.survive import NOT_FINITE, Stopped
from train.view import View

LATE = 2  # steps that the device may be ahead of what is read: reading never makes it wait


class Fed(NamedTuple):
    """A batch on its devices, and what the host knows of it.

    Attributes:
      batch: for the step.
      shape: of the host's batch, (rows, source length, target length): one program each.
      example_ids: of its examples, on the devices of all hosts; -1 for padding.
      tokens: real ones, source and target; an estimate, if other hosts have some of the rows.
      flops: the model's, forward and backward, for the rows of all hosts.
    """

    batch: Any
    shape: tuple[int, ...]
    example_ids: jax.Array
    tokens: int
    flops: int


class Journal:
    """Follows the steps of one command.

    Attributes:
      skipped: batches left out since the run began.
    """

    def __init__(
        self,
        config: Experiment,
        state: State,
        view: View,
        recorder: report.Recorder,
        trace: report.Lines | None = None,
        utilisation: Callable[[float, float], float | None] = lambda flops, seconds: None,
    ):
        """Args: state: what the command begins with; utilisation: of the devices, None where their peak is not known."""
        self.config, self.view, self.recorder, self.trace = config, view, recorder, trace
        self.skipped, self.in_a_row = int(state.skipped.total), int(state.skipped.in_a_row)
        self._rate = optim.learning_rate(config.optimizer, config.training.steps // config.optimizer.accumulate)
        self._unread: deque[tuple[int, Fed, dict[str, Metric]]] = deque()
        self._totals: dict[str, Metric] = {}
        self._lost: list[int] = []  # the examples of the batches left out in a row
        self.clock = Clock(int(state.step), config.training.steps, utilisation)

    def add(self, step: int, fed: Fed, metrics: dict[str, Metric]) -> None:
        """A step that was dispatched. Raises Stopped if those before it left out too many batches in a row."""
        jax.tree.map(lambda leaf: leaf.copy_to_host_async(), metrics)
        self._unread.append((step, fed._replace(batch=None), metrics))
        while len(self._unread) > LATE:
            self._read(*self._unread.popleft())

    def settle(self) -> None:
        """Wait for all steps so far. Raises Stopped as ``add`` does."""
        while self._unread:
            self._read(*self._unread.popleft())

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """After all steps so far are read, the block does something else, whose time does not count."""
        self.settle()
        start = self.clock.now()
        yield
        self.clock.since += self.clock.now() - start

    def _read(self, step: int, fed: Fed, metrics: dict[str, Metric]) -> None:
        metrics = jax.device_get(metrics)
        skipped = bool(metrics["skipped"].sum)
        self._totals = add(self._totals, metrics)
        self.clock.add(fed)
        example_ids: list[int] = []
        if skipped or self.trace is not None:
            padded_B = hosts.whole(fed.example_ids)
            example_ids = padded_B[padded_B >= 0].tolist()
        if self.trace is not None:
            loss = float("nan") if skipped else divide(metrics)["loss"]
            self.trace.write({"step": step, "example_ids": example_ids, "loss": loss.hex()})
        if skipped:
            self._skip(step, example_ids)
        else:
            self.in_a_row, self._lost = 0, []

    def _skip(self, step: int, example_ids: list[int]) -> None:
        """Say which batch was left out, and end the run after too many."""
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        self._lost += example_ids
        self.recorder.note(step, {"skipped_example_ids": example_ids})
        self.view.warn(
            f"step {step}: the loss or gradient is not finite, nothing is learned from examples {listed(example_ids)}"
        )
        if self.in_a_row >= self.config.training.max_skipped:
            raise Stopped(
                NOT_FINITE,
                f"{self.in_a_row} batches in a row up to step {step} gave no finite loss and gradient (training.max_skipped), "
                f"with the examples {listed(self._lost)}: the last checkpoint is good; mend these examples, or lower "
                "optimizer.learning_rate in a new --workdir",
            )

    def log(self, step: int, waited: float) -> None:
        """One line of metrics. Args: waited: seconds spent waiting for data since this command began."""
        self.settle()
        values = {f"train/{name}": value for name, value in divide(self._totals).items()}
        values |= self.clock.lap(step, waited)
        updates = (step - self.skipped) // self.config.optimizer.accumulate
        values["train/learning_rate"] = float(self._rate(max(updates - 1, 0)))
        self._totals = {}
        self.view.step(step, values, self.clock.seconds_left(step))
        self.recorder.write(step, values)


class Clock:
    """Speed between two logged steps, evaluation left out, and the time that is left."""

    def __init__(self, step: int, steps: int, utilisation: Callable, now: Callable[[], float] = time.monotonic):
        self.step, self.steps, self.utilisation, self.now = step, steps, utilisation, now
        self.tokens, self.flops, self.waited, self.per_step = 0, 0, 0.0, 0.0
        self.since = now()

    def add(self, fed: Fed) -> None:
        self.tokens += fed.tokens
        self.flops += fed.flops

    def lap(self, step: int, waited: float) -> dict[str, float]:
        """Speeds since the last lap; the arguments are those of ``Journal.log``."""
        seconds = max(self.now() - self.since, 1e-9)
        speed = {
            "train/tokens_per_second": self.tokens / seconds,
            "train/steps_per_second": (step - self.step) / seconds,
            "train/waiting": min((waited - self.waited) / seconds, 1.0),
            "train/model_flops_per_second": self.flops / seconds,
        }
        utilisation = self.utilisation(self.flops, seconds)
        if utilisation is not None:
            speed["train/utilisation"] = utilisation
        self.per_step = seconds / max(step - self.step, 1)
        self.tokens, self.flops, self.waited, self.step = 0, 0, waited, step
        self.since = self.now()
        return speed

    def seconds_left(self, step: int) -> float:
        """At the speed of the last lap."""
        return self.per_step * (self.steps - step)


def listed(example_ids: list[int], most: int = 20) -> str:
    """The first of them, and how many more there are.

    >>> listed([3, 1, 2], most=2)
    '3, 1 and 1 more'
    """
    more = f" and {len(example_ids) - most} more" if len(example_ids) > most else ""
    return ", ".join(map(str, example_ids[:most])) + more
