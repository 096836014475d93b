"""What the runs' own logs say: learning curves, and the rows of the table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from train.compare.published import beside
from train.compare.runs import Trained
from train.tasks import TASKS


class Curve(NamedTuple):
    """A run as it went. Seconds are of training alone, compilation included; evaluation, saving and stops do not count.

    Attributes:
      training: [step, seconds, loss] at each logged step.
      validation: [step, seconds, nats a token, score] at each evaluation.
    """

    training: list[list[float]]
    validation: list[list[float]]


def curve(run: Trained) -> Curve:
    """From the lines of metrics.jsonl."""
    best, seconds, last = f"validation/{TASKS[run.member.experiment.task].best}", 0.0, 0
    found = Curve([], [])
    for line in run.log:
        if "train/steps_per_second" in line:
            seconds += (line["step"] - last) / line["train/steps_per_second"]
            last = line["step"]
            found.training.append([last, seconds, line["train/loss"]])
        elif best in line:
            found.validation.append([line["step"], seconds, line["validation/nll"], line[best]])
    return found


def reached_by_all(curves: Sequence[Curve], higher_is_better: bool) -> float:
    """The best validation score that each run had at some time."""
    sign = -1 if higher_is_better else 1
    return sign * max(min(sign * point[3] for point in each.validation) for each in curves)


def seconds_to(reach: float, found: Curve, higher_is_better: bool) -> float | None:
    """Seconds of training until an evaluation gave this score; None if none did."""
    sign = -1 if higher_is_better else 1
    return next((point[1] for point in found.validation if sign * point[3] <= sign * reach), None)


def row(runs: Sequence[Trained], curves: Sequence[Curve], reach: float, bytes_of_a_step: int | None, decoding: dict) -> dict:
    """One config: means over its seeds, and of the test scores the least and the greatest too."""
    one = runs[0].member
    task, model = TASKS[one.experiment.task], one.experiment.model
    times = [seconds_to(reach, each, task.higher_is_better) for each in curves]
    names = [name for name in runs[0].result if name.startswith("test/") and name != f"test/{task.unit}"]
    published = beside(model.PAPER) if one.experiment.task == "pronunciation" else None
    return {
        "config": one.name,
        "paper": model.PAPER,
        "parameters": runs[0].result["parameters"],
        "tokens_per_second": statistics.mean(speed(run.log) for run in runs),
        "seconds_to_reach": None if None in times else statistics.mean(times),
        "step_bytes": bytes_of_a_step,
        "best_nll": statistics.mean(min(point[2] for point in each.validation) for each in curves),
        "test": {name.removeprefix("test/"): spread([run.result[name] for run in runs]) for name in names},
        "decoding": decoding,
        "published": published and published._asdict(),
    }


def speed(log: Sequence[dict[str, Any]]) -> float:
    """Training tokens a second, the median of what was logged: the first steps, which compile, do not count for more."""
    return statistics.median(line["train/tokens_per_second"] for line in log if "train/tokens_per_second" in line)


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.mean(values), "low": min(values), "high": max(values)}
