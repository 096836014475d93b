"""A training run, from data to the test score. Repeating its command continues it, or prints the result of one that is done."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

import zoo
from train import evaluate, experiment, flops, hosts, report
from train.checkpoint import Checkpoints, SaveFailed
from train.data import Batch, Example, prefetch_to_device
from train.experiment import Experiment
from train.journal import Fed, Journal
from train.prepare import Prepared
from train.saver import Saver
from train.step import State, make_eval_step
from train.survive import CANNOT_SAVE, Programs, Signals, Stopped, Watchdog, disk_is_full
from train.tasks import TASKS, confusion
from train.workdir import open_workdir
from zoo.checkpoint.directory import describe
from zoo.checkpoint.orbax import BEST, find_step
from zoo.core import SPECIAL_TOKENS, EncoderOnly
from zoo.predictor_base import PredictorBase
from zoo.variants import abstract_params


def run(config: Experiment, workdir: Path, command: str) -> dict[str, Any]:
    """Train, evaluate on the test split, write DIR/result.json and return what is in it.

    Raises:
      UserError: bad input of any kind; whatever had been saved before is intact.
      Stopped: by a signal, or for want of disk space or of finite numbers; with the command's exit code.
    """
    hosts.connect(config.hosts)
    now = experiment.to_json(config)
    hosts.agree({"the code": hosts.code()} | experiment.flat({**now, "hosts": {}}))
    experiment.check(config)
    with contextlib.ExitStack() as held:
        with hosts.together():
            if hosts.first():
                held.enter_context(open_workdir(now, workdir))
        signals, watchdog = held.enter_context(Signals()), held.enter_context(Watchdog(config.training.watchdog))
        try:
            with contextlib.closing(Checkpoints(workdir, config.training.keep_last)) as checkpoints:
                with hosts.together():
                    prepared = Run(config, workdir, checkpoints, command, signals, watchdog)
                hosts.agree(prepared.facts())
                return prepared.finish()
        except SaveFailed as error:
            raise Stopped(CANNOT_SAVE, str(error)) from error


class Run(Prepared):
    """One run: the loop, its evaluations, and the test at its end."""

    def __init__(
        self, config: Experiment, workdir: Path, checkpoints: Checkpoints, command: str, signals: Signals, watchdog: Watchdog
    ):
        self.start_time = time.monotonic()
        self.workdir, self.command, self.signals, self.watchdog = workdir, command, signals, watchdog
        super().__init__(config, workdir, checkpoints)
        self.task = TASKS[config.task]
        self.flops = flops.training_flops(self.model)
        self.saver = Saver(checkpoints, self.config, self.view)

    def facts(self) -> dict[str, Any]:
        """What all hosts must have alike."""
        return {
            "the newest checkpoint": self.latest,
            "the tokenizers": hosts.digest(*(tokenizer.to_json() for tokenizer in self.sides())),
            "the number of training examples": len(self.train_examples),
            "the number of devices": jax.local_device_count(),
        }

    def finish(self) -> dict[str, Any]:
        """Train what is left, then test; nothing if both are done."""
        path = self.workdir / report.RESULT
        steps = self.config.training.steps
        if self.latest is None or self.latest < steps or (self.latest == steps and not self.evaluated()):
            self.train()
        elif path.exists() and (done := json.loads(path.read_text(encoding="utf-8")))["steps"] == self.latest:
            self.view.say(f"{self.workdir} is done; raise --training.steps to train it further")
            self.view.summary(done, None, self.workdir, self.task.command, self.typed())
            return done
        return self.test()

    def train(self) -> None:
        """The loop: step, log, and every so often evaluate and save."""
        training = self.config.training
        batches, shapes = self.training_batches()
        state, train_step = self.begin(batches)
        first = int(state.step)
        self.view.parameters(type(self.config.model).__name__.removesuffix("Config"), state.params)
        self.view.say(f"{len(self.train_examples):,} training examples, batches of (rows, source, target): {shapes}")
        self.eval_step = self.parallel.compile_eval(make_eval_step(self.model, self.config.compute))
        self.eval_batches = self.evaluation_batches(self.validation, shapes)
        with (
            self.journal(state) as journal,
            Programs() as programs,
            prefetch_to_device(batches, self.feed) as stream,
            self.signals.held(),
        ):
            self.watchdog.alive()
            if self.latest is None:
                self.saver.save_first(state, self.progress(stream.get_state()), self.description())
            elif self.evaluates(first) and not self.evaluated():  # a signal broke it off
                self.keep(state, stream.get_state(), journal, evaluates=True)
            for step in range(first + 1, training.steps + 1):
                fed = next(stream)
                with programs.watched(fed.shape, partial(self.view.warn, f"step {step}: compiled again for {fed.shape}")):
                    state, metrics = train_step(state, fed.batch)
                journal.add(step, fed, metrics)
                self.watchdog.alive()
                stop, last = self.signals.asked(), step == training.steps
                if step % training.log_every == 0 or last:
                    journal.log(step, stream.waited)
                if stop or self.evaluates(step) or (training.save_every and step % training.save_every == 0):
                    with journal.settled():
                        self.keep(state, stream.get_state(), journal, self.evaluates(step) and not stop, wait=stop or last)
                if stop:
                    raise self.signals.end(step)
        if batches.dropped:
            longest = f"{self.predictor.seconds:g} s" if self.model.SOUND else "batching.max_source_len"
            self.view.say(f"{batches.dropped:,} training examples were left out: longer than {longest} or max_target_len")

    @contextlib.contextmanager
    def journal(self, state: State) -> Iterator[Journal]:
        """What is left of the steps to come; lines of steps after this state's are dropped."""
        training, first = self.config.training, int(state.step)
        recorder = report.Recorder(self.workdir, first, training.tensorboard) if hosts.first() else report.Unwritten()
        trace = None
        if training.trace:
            trace = report.Lines(self.workdir / report.TRACE, first) if hosts.first() else report.Unwritten()
        self.view.start(first)
        try:
            devices, precision = self.parallel.devices, self.config.compute.precision
            utilisation = partial(flops.utilisation, devices=devices, precision=precision)
            yield Journal(self.config, state, self.view, recorder, trace, utilisation)
        finally:
            self.view.stop()
            recorder.close()
            if trace is not None:
                trace.close()

    def evaluates(self, step: int) -> bool:
        """Whether the parameters after this step are to be evaluated."""
        return step > 0 and (step % self.config.training.eval_every == 0 or step == self.config.training.steps)

    def evaluated(self) -> bool:
        """Whether the checkpoint that this command began with has been."""
        return self.checkpoints.read_json(self.latest, "metrics")[BEST] is not None

    def feed(self, batch: Batch) -> Fed:
        """A training batch on its devices, checked before."""
        tokens = int(batch.source.mask.sum() + batch.target.mask.sum())
        shape = (*batch.source.mask.shape, batch.target.mask.shape[1])
        placed, shares = self.put(batch), self.parallel.host[1]
        return Fed(placed, shape, placed.example_ids, tokens * shares, self.flops(batch.source, batch.target) * shares)

    def place(self, source: Any) -> Any:
        """As before, between two batches of an evaluation."""
        self.breathe()
        return super().place(source)

    def breathe(self) -> None:
        """Called between two batches of an evaluation: it goes on, and a signal breaks it off."""
        self.watchdog.alive()
        self.signals.check()

    def seconds(self) -> float:
        """Wall time of the whole run, earlier commands included."""
        return self.spent + time.monotonic() - self.start_time

    def keep(self, state: State, iterator: dict, journal: Journal, evaluates: bool, wait: bool = False) -> None:
        """Save this step: with its score, if it is evaluated and that is not broken off."""
        best = None
        try:
            if evaluates:
                values, best = self.evaluate(state)
                journal.recorder.write(int(state.step), values)
        finally:
            self.watchdog.alive()
            self.saver.save(state, self.progress(iterator), self.description(), best, wait)

    def progress(self, iterator: dict) -> dict[str, Any]:
        """What a checkpoint keeps beside the state: the place in the data, and the wall time of the whole run."""
        return {"iterator": iterator, "seconds": self.seconds()}

    def description(self) -> dict[str, Any]:
        """What ``zoo.load`` needs beside the weights."""
        lora, params = self.config.lora, abstract_params(self.config.model)
        return describe(self.predictor) | ({"lora": lora.described(params)} if lora.rank else {})

    def evaluate(self, state: State) -> tuple[dict[str, float], float]:
        """Scores on the validation split, shown and returned, and the one that the best checkpoint is chosen by; a heatmap."""
        training, step, params = self.config.training, int(state.step), evaluate.parameters(state, self.config.lora)

        def put(batch):
            self.breathe()
            return self.put(batch)

        values = evaluate.teacher_forced(self.eval_step, params, self.eval_batches, put)
        predictor = dataclasses.replace(self.predictor, params=params)
        decodes = self.task.score is not None and self.config.corruption == "none"
        examples = evaluate.spread(self.validation, training.eval_examples if decodes else 0)
        scores, predictions = evaluate.decoded(predictor, self.task, examples) if decodes else ({}, [])
        best = (values | scores)[self.task.best]
        values = {f"validation/{name}": value for name, value in (values | scores).items()}
        self.view.evaluation(step, values, examples[: training.samples], predictions)
        self.draw(predictor, examples, f"attention/step_{step:07d}.png")
        return values, best * (-1 if self.task.higher_is_better else 1)

    def draw(self, predictor: PredictorBase, examples: Sequence[Example], name: str) -> Path | None:
        """The heatmap of one text, the longest that is not too long of a few; None without attention, or on a full disk."""
        no_text = self.model.SOUND or self.config.corruption != "none"
        if isinstance(self.model, EncoderOnly) or no_text:
            return None
        example = max(evaluate.spread(examples, 16), key=lambda example: (len(example.source) <= 24, len(example.source)))
        prediction = predictor.predictions([example.source], attention=True)[0]
        path = self.workdir / name
        if not hosts.first():
            return None
        try:
            path.parent.mkdir(exist_ok=True)
            return path if report.heatmap(prediction, path) else None
        except OSError as error:
            if not disk_is_full(error):
                raise
            self.view.warn(f"no disk space is left for {path}")
            return None

    def test(self) -> dict[str, Any]:
        """The best checkpoint's score on the whole test split, written to result.json."""
        self.checkpoints.finish()
        test = self.test_examples
        best = find_step(self.workdir)
        self.view.say(f"testing checkpoint {best.name} on {len(test):,} {self.task.unit}")
        params = zoo.load(best, mesh=self.parallel.mesh).params
        predictor = dataclasses.replace(self.predictor, params=params)
        scores, predictions = self.scores(predictor, test)
        image = self.draw(predictor, test, "attention.png")
        result = {
            **{f"test/{name}": value for name, value in scores.items()},
            f"test/{self.task.unit}": len(test),
            "steps": self.checkpoints.latest(),
            "best_step": int(best.name),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "wall_seconds": round(self.seconds(), 1),
            "devices": f"{len(self.parallel.devices)} x {self.parallel.devices[0].device_kind}",
            "checkpoint": str(best),
            "command": self.command,
        }
        if self.config.task == "classify":
            table = confusion(predictions, [example.references for example in test])
            result["test/confusion"] = table._asdict()
            self.view.confusion(table)
        with hosts.together():  # none leaves before the first has written
            if hosts.first():
                report.write_atomically(self.workdir / report.RESULT, json.dumps(result, indent=2) + "\n")
        self.view.summary(result, image, self.workdir, self.task.command, self.typed())
        return result

    def scores(self, predictor: PredictorBase, examples: Sequence[Example]) -> tuple[dict[str, float], list]:
        """What the task counts: of outputs, which are given too, or, where that is perplexity or a loss, of the examples."""
        if self.task.best not in ("perplexity", "loss"):
            return evaluate.decoded(predictor, self.task, examples)
        _, shapes = self.training_batches()
        batches = self.evaluation_batches(examples, shapes)
        eval_step = self.parallel.compile_eval(make_eval_step(self.model, self.config.compute))
        return evaluate.teacher_forced(eval_step, predictor.params, batches, self.put), []

    def typed(self) -> str:
        """A source for the command that the summary suggests: a plain word, if there is one."""
        if self.task.command == "similar":
            words = self.source_tokenizer.tokens()[len(SPECIAL_TOKENS) :]  # the most frequent first
            return next((word for word in words if word.isalpha()), words[0])
        sources = [example.source for example in evaluate.spread(self.test_examples, 16)]
        return next((source for source in sources if source.isalpha()), sources[0])
