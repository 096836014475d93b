"""Trains what is left, measures what is not measured yet, and gathers all of it as JSON has it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax

import zoo
from train import evaluate
from train.compare import flow, lengths, runs, speed, table
from train.compare.runs import Settings, Trained
from train.data import Example
from train.tasks import TASKS
from zoo.core import UserError
from zoo.page.attention import attend
from zoo.predictor import Predictor

DRAWN = 3  # texts, if none are given
MEASURES = ("decoding", "memory", "speed", "flow", "attention")  # of the first seed's run; its lengths are those of each run


def gather(settings: Settings) -> dict[str, Any]:
    """All that the report says; see ``report.json``.

    Raises:
      UserError: bad input of any kind; what was done before is intact.
      Stopped: by a signal; the same command goes on.
    """
    members = runs.members(settings)
    tasks = sorted({one.experiment.task for one in members})
    if len(tasks) > 1:
        raise UserError(f"the configs have different tasks, {', '.join(tasks)}: compare those of one")
    say = progress(len(members) * (2 * settings.seeds + len(MEASURES)))
    trained: dict[str, list[Trained]] = {one.name: [] for one in members}
    for seed in range(settings.seeds):
        for one in members:
            say(f"{one.name}, seed {seed}: training")
            trained[one.name].append(runs.train(settings, one, seed))
    task, every = TASKS[tasks[0]], [run for found in trained.values() for run in found]
    curves = {name: [table.curve(run) for run in found] for name, found in trained.items()}
    reach = settings.reach
    if reach is None:
        reach = table.reached_by_all([each for found in curves.values() for each in found], task.higher_is_better)
    measured = {name: measure(settings, found, say) for name, found in trained.items()}
    rows = [
        table.row(found, curves[name], reach, measured[name]["memory"], measured[name]["decoding"])
        for name, found in trained.items()
    ]
    said = {
        "command": settings.command,
        "task": tasks[0],
        "score": task.best,
        "seeds": settings.seeds,
        "runs": {name: [run.result for run in found] for name, found in trained.items()},
        "target_tokens": {name: runs.target_tokens(found[0]) for name, found in trained.items()},
        "longest_source": max(run.member.facts.longest_source for run in every),
        "warnings": runs.unfair(every),
        "reach": reach,
        "table": rows,
        "curves": {name: [each._asdict() for each in found] for name, found in curves.items()},
        **{part: {name: found[part] for name, found in measured.items()} for part in ("lengths", "speed", "flow")},
        "attention": [{"model": name, **found} for name in measured for found in measured[name]["attention"]],
    }
    return runs.finite(said)


def progress(parts: int):
    """A function that says which of the parts begins."""
    count = iter(range(1, parts + 1))

    def say(what: str) -> None:
        if jax.process_index() == 0:
            print(f"part {next(count)} of {parts}: {what}", flush=True)

    return say


def measure(settings: Settings, trained: Sequence[Trained], say) -> dict[str, Any]:
    """The measures of one config: lengths of each run, and ``MEASURES`` of the first; a stop loses the one it breaks off."""
    one, first = trained[0].member, Measuring(trained[0])
    config, facts = one.experiment, one.facts
    name = TASKS[config.task].best
    parts = {
        "decoding": (None, lambda: speed.decoding(first.predictor, first.test)),
        "memory": (facts.shape, lambda: speed.memory(config, first.predictor.model, facts.shape)),
        "speed": (settings.lengths, lambda: speed.by_length(config, first.predictor.model, settings.lengths)),
        "flow": (facts.longest_source, lambda: flow.flow(first.predictor, first.test, facts.longest_source)),
        "attention": (settings.texts, lambda: attention(first.predictor, settings.texts or typical(first.test))),
    }
    found: dict[str, Any] = {}
    for part in MEASURES:
        say(f"{one.name}: {part}")
        depends, compute = parts[part]
        found[part] = kept(settings, trained[0], part, depends, compute)
    found["lengths"] = []
    for run in trained:
        say(f"{one.name}, seed {run.seed}: {name} by length")
        each = first if run is trained[0] else Measuring(run)
        found["lengths"].append(kept(settings, run, "lengths", facts.longest_source, each.by_length))
    return found


def kept(settings: Settings, run: Trained, part: str, depends: Any, compute) -> Any:
    path = settings.workdir / "measures" / f"{run.directory.name}-{part}.json"
    return runs.cached(path, run.key | {"depends": depends}, compute)


class Measuring:
    """A run's best checkpoint and its test split, read when first asked for: nothing is, where all is measured."""

    def __init__(self, run: Trained):
        self.run = run

    @functools.cached_property
    def predictor(self) -> Predictor:
        return zoo.load(self.run.directory)

    @functools.cached_property
    def test(self) -> Sequence[Example]:
        return self.run.member.experiment.data.load("test")

    def by_length(self) -> list[dict]:
        config, longest = self.run.member.experiment, self.run.member.facts.longest_source
        return lengths.by_length(self.predictor, self.test, longest, config.tokenizers, config.task)


def typical(test: Sequence[Example]) -> list[str]:
    """A few sources of different length, none too long to be looked at."""
    sources = sorted({example.source for example in evaluate.spread(test, 64)}, key=lambda text: (len(text), text))
    sources = [text for text in sources if len(text) <= 24] or sources[:1]
    return [sources[i * (len(sources) - 1) // DRAWN] for i in range(1, DRAWN + 1)]


def attention(predictor: Predictor, texts: Sequence[str]) -> list[dict]:
    """What a model that attends looked at; nothing for another."""
    found = [attend(predictor, text) for text in dict.fromkeys(texts)]
    return [each for each in found if each["maps"]]
