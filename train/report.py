"""What a run leaves to read: metrics.jsonl, trace.jsonl, TensorBoard events, attention heatmaps and result.json."""

from __future__ import annotations

import contextlib
import json
import math
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from train.survive import disk_is_full
from zoo.predictor import Prediction

METRICS, TRACE, RESULT = "metrics.jsonl", "trace.jsonl", "result.json"


class Lines:
    """A file of JSON lines that outlives a full disk: what cannot be written is kept, and written later.

    Attributes:
      waiting: bytes that are not on disk yet.
    """

    def __init__(self, path: Path, step: int):
        """Args: step: lines of later steps, left by a run that ended between two checkpoints, are dropped."""
        kept = [line for line in read_lines(path) if line["step"] <= step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("ab", buffering=0)
        self.waiting = b""

    def write(self, line: dict[str, Any]) -> None:
        self.waiting += json.dumps(line).encode() + b"\n"
        try:
            while self.waiting:
                self.waiting = self.waiting[self._file.write(self.waiting) :]
        except OSError as error:
            if not disk_is_full(error):
                raise

    def close(self) -> None:
        self._file.close()


class Recorder:
    """Appends to metrics.jsonl, one object a logged step, and to TensorBoard's event files."""

    def __init__(self, workdir: Path, step: int, tensorboard: bool = True):
        """Args: step: what was recorded of later steps does not count."""
        self._lines = Lines(workdir / METRICS, step)
        self._events = Events(workdir / "tensorboard", step + 1) if tensorboard else None

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line; a value that is not finite is null, since JSON has no other word for it."""
        self.note(step, {name: value if math.isfinite(value) else None for name, value in values.items()})
        if self._events is not None and not self._lines.waiting:
            self._events.write(step, values)

    def note(self, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl that is no curve."""
        self._lines.write({"step": step, **values})

    def close(self) -> None:
        self._lines.close()
        if self._events is not None:
            self._events.close()


class Unwritten:
    """The recorder of a host that is not the first: what it would write is what the first one writes."""

    def write(self, *line: Any) -> None:
        pass

    note = write

    def close(self) -> None:
        pass


class Events:
    """TensorBoard's event files, written in this thread: tensorboardX's own writer blocks for ever once its disk was full."""

    def __init__(self, directory: Path, step: int):
        """Args: step: values of this step and later ones, left by an earlier command, are taken back."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._step, self._file = directory, step, None

    def write(self, step: int, values: dict[str, float]) -> None:
        """One event a value; none, and a new file the next time, while the disk is full."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        try:
            self._file = self._file or self._open()
            for name, value in values.items():
                self._file.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
            self._file.flush()
        except OSError as error:
            if not disk_is_full(error):
                raise
            self.close()

    def _open(self):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        file = EventsWriter(str(self._directory / "events"), f".{time.time_ns()}")
        file.write_event(Event(step=self._step, session_log=SessionLog(status=SessionLog.START)))
        return file

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of lines; a last line that was cut short by a kill is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def write_atomically(path: Path, text: str) -> None:
    """The whole text or, if anything fails, the file as it was."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def heatmap(prediction: Prediction, path: Path) -> bool:
    """Draw what each generated token looked at, the mean over heads and layers; False for a model without attention."""
    if not prediction.attention or not prediction.source_pieces or not prediction.target_pieces:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    weights_TS = np.mean([weights.mean(axis=0) for weights in prediction.attention.values()], axis=0)
    T, S = weights_TS.shape
    figure = Figure(figsize=(2.2 + 0.35 * S, 1.6 + 0.35 * T), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(weights_TS, vmin=0, vmax=1, cmap="magma", aspect="equal")
    axes.set_xticks(range(S), prediction.source_pieces)
    axes.set_yticks(range(T), prediction.target_pieces)
    axes.set_xlabel("source token read")
    axes.set_ylabel("target token written")
    figure.colorbar(image, label="attention weight", shrink=0.8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # drawn as a box: no font has every script
        FigureCanvasAgg(figure).print_png(path)
    return True
