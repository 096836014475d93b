"""Which charts a report has, made of its numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from train.compare.charts import Chart, Series

ATTENTION = (
    "What each model looked at while it wrote, by teacher forcing on its own output: rows are what was written, columns what "
    "was read. Where a model has several layers and heads, choose."
)
LENGTHS = (
    "A fixed vector must hold the whole source, however long; attention looks at the source again at each step. Right of the "
    "line are lengths that training never saw: there, dashed, sources are joined from several of the test split."
)
FLOW = (
    "The norm of the gradient of one target token's loss with respect to the embedding of a token read k steps before: the "
    "median over pairs of tokens of the longest test examples, in the trained models. Without attention it comes through k "
    "steps of the state: d loss(t) / d state(t-k) times what one step makes of its input. Attention is a way around."
)
SPEED = (
    "Sources and targets of one length, as many rows as make a batch. A recurrent model takes its steps one after the other; a "
    "Transformer reads all positions at once, and compares each with each."
)


def sections(said: dict[str, Any]) -> list[tuple[str, str, list[Chart]]]:
    """(title, note, charts) of each section of the report."""
    return [
        ("Learning curves", "On the validation split; a band spans the seeds.", learning(said)),
        ("Accuracy by length", LENGTHS, by_length(said)),
        ("Gradient flow", FLOW, flow(said)),
        ("Training speed by length", SPEED, speed(said)),
    ]


def places(said: dict[str, Any]) -> list[tuple[int, str]]:
    """(colour, name) of each config, alike in all charts."""
    return list(enumerate(said["curves"]))


def learning(said: dict[str, Any]) -> list[Chart]:
    score = said["score"]
    kinds = [(3, score.upper(), f"{score.upper()}, %"), (2, "loss", "nats a token")]
    ways = [(0, "step", "training steps"), (1, "time", "seconds of training")]
    found = []
    for value, name, y_label in kinds:
        for x, way, x_label in ways:
            series = [
                averaged(label, place, [c["validation"] for c in said["curves"][label]], x, value)
                for place, label in places(said)
            ]
            title = f"Validation {name} by {way}"
            found.append(Chart(f"curve-{name.lower()}-{way}", title, "", x_label, y_label, series))
    return found


def averaged(name: str, place: int, runs: Sequence[list[list[float]]], x: int, y: int) -> Series:
    """The mean over runs at each of their common points, with a band from the least to the greatest."""
    together = [[p for p in points if p[y] is not None] for points in zip(*runs, strict=False)]
    together = [points for points in together if points]
    xs = [statistics.mean(point[x] for point in points) for points in together]
    values = [[point[y] for point in points] for points in together]
    band = [(a, min(found), max(found)) for a, found in zip(xs, values, strict=True)] if len(runs) > 1 else []
    return Series(name, [(a, statistics.mean(found)) for a, found in zip(xs, values, strict=True)], place, band)


def by_length(said: dict[str, Any]) -> list[Chart]:
    names = list(said["table"][0]["test"])
    mark = (said["longest_source"], "longest in training")
    charts = []
    for name in names:
        series = []
        for place, label in places(said):
            for beyond in (False, True):
                runs = [
                    [[(b["low"] + b["high"]) / 2, b["scores"] and b["scores"][name]] for b in bands if b["beyond"] == beyond]
                    for bands in said["lengths"][label]
                ]
                one = averaged(label + (", joined" if beyond else ""), place, runs, 0, 1)._replace(dashed=beyond)
                series += [one] if one.points else []
        title = f"Test {name.upper()} by source length"
        charts.append(Chart(f"length-{name}", title, "", "tokens of the source", f"{name.upper()}, %", series, mark=mark))
    return charts


def flow(said: dict[str, Any]) -> list[Chart]:
    ways = [("target", "Gradient along the target"), ("source", "Gradient back to the source")]
    notes = {
        "target": "To what the decoder read k steps before it wrote; 0 is what it reads in that step.",
        "source": "To what the encoder read: k steps to the end of the source, as it is read, and on to the token written.",
    }
    return [
        Chart(
            f"flow-{way}",
            title,
            notes[way],
            "lag k, steps",
            "gradient norm",
            [
                Series(label, [(lag, norm) for lag, norm, _ in said["flow"][label][way] if norm], place)
                for place, label in places(said)
            ],
            y_log=True,
        )
        for way, title in ways
    ]


def speed(said: dict[str, Any]) -> list[Chart]:
    series = [
        Series(label, [(p["length"], p["tokens_per_second"]) for p in said["speed"][label] if p["tokens_per_second"]], place)
        for place, label in places(said)
    ]
    note = "One device; source and target tokens count."
    return [
        Chart(
            "speed", "Training speed by length", note, "tokens of source and of target", "tokens a second", series, x_log=True
        )
    ]
