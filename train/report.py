"""What a run leaves to read: metrics.jsonl, TensorBoard events, attention heatmaps and result.json."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from zoo.predictor import Prediction

METRICS, RESULT = "metrics.jsonl", "result.json"


class Recorder:
    """Appends to metrics.jsonl, one object a logged step, and to TensorBoard's event files."""

    def __init__(self, workdir: Path, step: int, tensorboard: bool = True):
        """Args: step: lines of later steps, left by a run that ended between two checkpoints, are dropped."""
        path = workdir / METRICS
        kept = [line for line in read_lines(path) if line["step"] <= step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._events = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line; a value that is not finite is null, since JSON has no other word for it."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a metrics file; a last line that was cut short by a kill is left out."""
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
    if not prediction.attention or not prediction.target_pieces:
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
    FigureCanvasAgg(figure).print_png(path)
    return True
