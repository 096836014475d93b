"""The runs that are compared: each an ordinary training run in a directory of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shlex
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train import experiment, hosts, loop, report
from train.__main__ import parse, read_config
from train.checkpoint import Checkpoints
from train.data import Tokenized
from train.experiment import Experiment
from train.survive import Signals, Watchdog
from zoo.checkpoint.orbax import CHECKPOINTS
from zoo.core import UserError

COUNTED = 200  # batches whose target tokens are counted
WATCHED = ("training", "compute", "parallel", "hosts")  # how a run is watched and where it runs, not what comes of it
LIKE = 1.1  # the most that the parameters of a fair comparison may differ by, as a ratio


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the command line says.

    Attributes:
      configs: files.
      workdir: where all is written.
      seeds: runs of each config.
      steps, tokens: the budget of each run, in batches or in target tokens; both 0: that of each config.
      overrides: options of ``python -m train``, for all runs.
      reach: the validation score to which time is taken; None: the best that all runs reach.
      lengths: sequence lengths at which the speed of training is measured.
      texts: sources whose attention is drawn; none: some of the test split.
      command: what was typed.
    """

    configs: tuple[str, ...]
    workdir: Path
    seeds: int = 3
    steps: int = 0
    tokens: int = 0
    overrides: tuple[str, ...] = ()
    reach: float | None = None
    lengths: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    command: str = ""


class Facts(NamedTuple):
    """What the training data of an experiment is like; the same for each model that is trained on it.

    Attributes:
      longest_source: tokens of the longest source that is trained on.
      target_tokens: of a batch, the mean over the first ``COUNTED`` ones.
      shape: the largest batch, (rows, source length, target length).
    """

    longest_source: int
    target_tokens: float
    shape: list[int]


class Member(NamedTuple):
    """One config of a comparison.

    Attributes:
      name: of the file, without its ending.
      path: the file.
      experiment: with all that was typed, and seed 0.
      options: what a run's command says beside the config, its directory and its seed.
      facts: of its data.
    """

    name: str
    path: str
    experiment: Experiment
    options: list[str]
    facts: Facts


class Trained(NamedTuple):
    """A finished run.

    Attributes:
      result: its result.json.
      log: the lines of its metrics.jsonl.
      key: what its measures depend on; another key, and they are taken again.
    """

    member: Member
    seed: int
    directory: Path
    result: dict[str, Any]
    log: list[dict[str, Any]]
    key: dict[str, Any]


def members(settings: Settings) -> list[Member]:
    """The configs, in the order of their papers' years.

    Raises:
      UserError: a number or an option that cannot be meant, or two configs of one name.
    """
    for name in ("seeds", *(["steps"] if settings.steps else []), *(["tokens"] if settings.tokens else [])):
        if getattr(settings, name) < 1:
            raise UserError(f"--{name} is {getattr(settings, name)}: it must be at least 1")
    if "--seed" in settings.overrides:
        raise UserError("--seed is set for each run: choose how many with --seeds")
    if settings.lengths and min(settings.lengths) < 2:
        raise UserError(f"--lengths has {min(settings.lengths)}: a sequence has at least 2 tokens")
    names = [Path(path).stem for path in settings.configs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two configs are called {name}: rename one, since runs are named after them")
    found = [member(settings, name, path) for name, path in zip(names, settings.configs, strict=True)]
    year = lambda each: str(getattr(each.experiment.model, "PAPER", ""))[-4:]  # noqa: E731
    return sorted(found, key=year)


def member(settings: Settings, name: str, path: str) -> Member:
    first = parsed(path, list(settings.overrides), settings.workdir, 0)
    if first.task == "speech":
        raise UserError(f"{path} hears sound, whose length no token counts: a comparison is of models that read text")
    experiment.check(first)
    if first.hosts.kind != "one":
        raise UserError(f"hosts.kind is {first.hosts.kind}: a comparison runs on one host, so leave it out")
    facts = data_facts(first, settings.workdir)
    steps = settings.steps or math.ceil(settings.tokens / facts.target_tokens)
    options = [*budget(steps), *settings.overrides] if steps else list(settings.overrides)
    return Member(name, path, parsed(path, options, settings.workdir, 0), options, facts)


def budget(steps: int) -> list[str]:
    """The options of a run of so many steps, seen ten times on the way."""
    training = {"steps": steps, "eval-every": math.ceil(steps / 10), "log-every": math.ceil(steps / 50)}
    return [word for name, value in training.items() for word in (f"--training.{name}", str(value))]


def parsed(path: str, options: list[str], directory: Path, seed: int) -> Experiment:
    return parse(read_config(path), [*options, "--seed", str(seed), "--workdir", str(directory)], path)[0]


def data_facts(config: Experiment, workdir: Path) -> Facts:
    """Those of an experiment's training data, from the pipeline of a run that is not started."""
    said = experiment.to_json(config)
    key = {name: said[name] for name in ("data", "tokenizers", "batching", "parallel")}

    def read() -> list:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / CHECKPOINTS).mkdir()
            with contextlib.closing(Checkpoints(Path(folder), keep_last=1)) as checkpoints:
                run = loop.Run(config, Path(folder), checkpoints, "", Signals(), Watchdog(0))
                batches, shapes = run.training_batches()
                lengths_N2 = Tokenized(run.train_examples, *run.sides()).lengths(np.arange(len(run.train_examples)))
                admitted_N = config.batching.admits(lengths_N2)
                counts = [int(batch.target.mask.sum()) for batch in islice(batches, COUNTED)]
        return [int(lengths_N2[admitted_N, 0].max()), sum(counts) / len(counts), shapes[-1]]

    return Facts(*cached(workdir / "measures" / f"data-{hosts.digest(key)}.json", key, read))


def train(settings: Settings, one: Member, seed: int) -> Trained:
    """Train, or continue, or find it done.

    Raises:
      UserError: the directory holds a run that would have been another.
    """
    directory = settings.workdir / "runs" / f"{one.name}-{seed}"
    config = parsed(one.path, one.options, directory, seed)
    if not done(directory, config):
        typed = [one.path, "--workdir", str(directory), "--seed", str(seed), *one.options]
        loop.run(config, directory, "python -m train " + shlex.join(typed))
    result = json.loads((directory / report.RESULT).read_text(encoding="utf-8"))
    key = {name: result[name] for name in ("steps", "best_step", "parameters")} | {"experiment": experiment.to_json(config)}
    return Trained(one, seed, directory, result, report.read_lines(directory / report.METRICS), key)


def done(directory: Path, config: Experiment) -> bool:
    """Whether there is a result of this experiment; with more steps than are asked for it counts too."""
    path = directory / report.RESULT
    if not path.exists() or json.loads(path.read_text(encoding="utf-8"))["steps"] < config.training.steps:
        return False
    saved = json.loads((directory / "experiment.json").read_text(encoding="utf-8"))
    for name, before, after in experiment.differences(saved, experiment.to_json(config), WATCHED):
        raise UserError(
            f"{directory} was trained and tested with {name} {before!r}, which is {after!r} now: repeat its command, or choose "
            "another --workdir"
        )
    return True


def unfair(runs: list[Trained]) -> list[str]:
    """A sentence for each thing that the runs do not have in common."""
    found = []
    for name in ("data", "tokenizers", "batching"):
        said = [experiment.flat({name: run.key["experiment"][name]}) for run in runs]
        differs = sorted({field for each in said for field in each | said[0] if each.get(field) != said[0].get(field)})
        if differs:
            found.append(f"Not the same data or batches for all: {', '.join(differs)} differ.")
    tokens = {run.member.name: target_tokens(run) for run in runs}
    if max(tokens.values()) > min(tokens.values()) * 1.01:
        found.append("Not the same budget: " + ", ".join(f"{name} saw {n:,} target tokens" for name, n in tokens.items()) + ".")
    sizes = {run.member.name: run.result["parameters"] for run in runs}
    if max(sizes.values()) > LIKE * min(sizes.values()):
        counts = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        found.append(f"Parameters differ by more than {LIKE - 1:.0%}: {counts}.")
    if len({run.result["devices"] for run in runs}) > 1:
        found.append("Not all were trained on the same devices, so that their speeds do not compare.")
    return found


def target_tokens(run: Trained) -> int:
    """What a run learned from, to a batch's accuracy."""
    return round(run.result["steps"] * run.member.facts.target_tokens)


def cached(path: Path, key: Any, compute: Callable[[], Any]) -> Any:
    """What was computed for this key before, else what is computed now, as JSON has it; written at once."""
    key = json.loads(json.dumps(key))
    if path.exists():
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["key"] == key:
            return saved["value"]
    value = finite(json.loads(json.dumps(compute())))
    path.parent.mkdir(parents=True, exist_ok=True)
    report.write_atomically(path, json.dumps({"key": key, "value": value}) + "\n")
    return value


def finite(tree: Any) -> Any:
    """The tree with null for a number that is none, since JSON has no other word for it.

    >>> finite({"a": [1.5, float("nan")]})
    {'a': [1.5, None]}
    """
    if isinstance(tree, dict):
        return {name: finite(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
