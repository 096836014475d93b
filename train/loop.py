"""A training run, from data to the test score. Repeating its command continues it, or prints the result of one that is done."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

import zoo
from train import evaluate, experiment, memory, optim, parallel, report
from train.checkpoint import Checkpoints
from train.data import Example, Tokenized, bucket_shapes, eval_batches, prefetch_to_device, train_batches
from train.experiment import Experiment
from train.metrics import add, divide
from train.step import State, init_state, make_eval_step, make_train_step
from train.tasks import TASKS
from train.view import View
from zoo.checkpoint.directory import describe
from zoo.checkpoint.orbax import CHECKPOINTS, find_step, steps
from zoo.core import UserError
from zoo.predictor import Predictor
from zoo.text import Tokenizer
from zoo.variants import abstract_params

TOKENIZER_TEXTS = 1_000_000  # training examples at most that a vocabulary is learned from


def run(config: Experiment, workdir: Path, command: str) -> dict[str, Any]:
    """Train, evaluate on the test split, write DIR/result.json and return what is in it.

    Raises:
      UserError: bad input of any kind; whatever had been saved before is intact.
    """
    experiment.check(config)
    checkpoints = open_workdir(config, workdir)
    try:
        return Run(config, workdir, checkpoints, command).finish()
    finally:
        checkpoints.close()


def open_workdir(config: Experiment, workdir: Path) -> Checkpoints:
    """The run's directory, new or that of the same experiment."""
    path = workdir / "experiment.json"
    now = experiment.to_json(config)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if steps(workdir / CHECKPOINTS):  # before the first checkpoint there is nothing to lose, and options may change
                experiment.check_same(json.loads(path.read_text(encoding="utf-8")), now, str(workdir))
        elif any(workdir.iterdir()):
            raise UserError(f"{workdir} is not empty and holds no training run: choose another --workdir")
        report.write_atomically(path, json.dumps(now, indent=2) + "\n")
        return Checkpoints(workdir, config.training.keep_last)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be written ({error.strerror or error}): choose another") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({error}): restore it, or choose another --workdir") from error


class Run:
    """One run: what it is made of, and the loop over it."""

    def __init__(self, config: Experiment, workdir: Path, checkpoints: Checkpoints, command: str):
        self.start_time = time.monotonic()
        self.workdir, self.checkpoints, self.command = workdir, checkpoints, command
        self.view = View(config.training.steps)
        self.task = TASKS[config.task]
        self.latest = checkpoints.latest()
        self.view.say("reading the data")
        self.train_examples, self.validation = config.data.load("train"), config.data.load("validation")
        self.test_examples = config.data.load("test")  # now: a wrong name must not wait for the end of training
        self.source_tokenizer, self.target_tokenizer = self.tokenizers(config)
        sizes = {f"{side}_vocab_size": getattr(self, f"{side}_tokenizer").vocab_size for side in ("source", "target")}
        self.config = dataclasses.replace(config, model=dataclasses.replace(config.model, **sizes))
        self.model = self.config.model.build()
        self.parallel = parallel.make(config.parallel, self.model.SHARDING)
        self.spent = 0.0  # seconds of earlier commands of this run
        self.predictor = Predictor(
            self.model,
            params=None,
            source_tokenizer=self.source_tokenizer,
            target_tokenizer=self.target_tokenizer,
            decoding=config.decoding,
            place=self.parallel.put_rows,
            multiple_of=self.parallel.rows,
        )

    def tokenizers(self, config: Experiment) -> tuple[Tokenizer, Tokenizer]:
        """Those of the run's checkpoint, else new ones learned from the training split."""
        if self.latest is not None:
            saved = self.checkpoints.read_json(self.latest, "model")
            return tuple(Tokenizer.from_json(saved[f"{side}_tokenizer"], str(self.workdir)) for side in ("source", "target"))
        wanted = config.tokenizers
        sample = evaluate.spread(self.train_examples, TOKENIZER_TEXTS)
        sources, targets = [e.source for e in sample], [e.target for e in sample]
        learn = partial(
            Tokenizer.train, vocab_size=wanted.vocab_size or None, min_count=wanted.min_count, lowercase=wanted.lowercase
        )
        if wanted.shared:
            shared = learn(wanted.source, [*sources, *targets])
            return shared, shared
        return learn(wanted.source, sources), learn(wanted.target, targets)

    def finish(self) -> dict[str, Any]:
        """Train what is left, then test; nothing if both are done."""
        path = self.workdir / report.RESULT
        if self.latest is None or self.latest < self.config.training.steps:
            self.train()
        elif path.exists() and (done := json.loads(path.read_text(encoding="utf-8")))["steps"] == self.latest:
            self.view.say(f"{self.workdir} is done; raise --training.steps to train it further")
            self.view.summary(done, None, self.workdir, self.typed())
            return done
        return self.test()

    def train(self) -> None:
        """The loop: step, log, and every so often evaluate and save."""
        config, training = self.config, self.config.training
        batches, shapes = self.training_batches()
        source, target = config.model.example(batch=1)
        tx = optim.make(config.optimizer, abstract_params(config.model), training.steps)
        init = partial(init_state, self.model, tx, (source, target), jax.random.key(config.seed))
        memory.check(self.parallel.abstract(init))
        state = self.restore(batches, init) if self.latest is not None else self.parallel.init(init)
        first = int(state.step)
        self.view.parameters(type(config.model).__name__.removesuffix("Config"), state.params)
        self.view.say(f"{len(self.train_examples):,} training examples, batches of (rows, source, target): {shapes}")
        recorder = report.Recorder(self.workdir, first, training.tensorboard)
        train_step = self.parallel.compile_train(make_train_step(self.model, tx, training.label_smoothing))
        self.eval_step = self.parallel.compile_eval(make_eval_step(self.model))
        self.eval_batches = eval_batches(Tokenized(self.validation, *self.sides()), shapes)
        rate = optim.learning_rate(config.optimizer, training.steps)
        self.view.start(first)
        try:
            with prefetch_to_device(batches, self.put) as stream:
                clock = Clock(first, training.steps)
                totals: dict = {}
                for step in range(first + 1, training.steps + 1):
                    batch, tokens = next(stream)
                    state, metrics = train_step(state, batch)
                    totals = add(totals, metrics)
                    clock.tokens += tokens
                    if step % training.log_every == 0 or step == training.steps:
                        values = {f"train/{name}": value for name, value in divide(jax.device_get(totals)).items()}
                        values |= clock.lap(step) | {"train/learning_rate": float(rate(step - 1))}
                        self.view.step(step, values, clock.seconds_left(step))
                        recorder.write(step, values)
                        totals = {}
                    if step % training.eval_every == 0 or step == training.steps:
                        recorder.write(step, self.evaluate_and_save(state, stream.get_state()))
                        clock.restart()
        finally:
            self.view.stop()
            recorder.close()
        if batches.dropped:
            self.view.say(
                f"{batches.dropped:,} training examples were left out: longer than batching.max_source_len or max_target_len"
            )

    def training_batches(self):
        """The endless stream of batches, and the shapes they come in."""
        batching = self.config.batching
        data = Tokenized(self.train_examples, *self.sides())
        shapes = bucket_shapes(batching, self.parallel.rows, data.sample_lengths())
        host = (jax.process_index(), jax.process_count())
        return train_batches(data, batching, shapes, self.config.seed, host), shapes

    def restore(self, batches, init) -> State:
        """The newest checkpoint's state; the data goes on where it was."""
        saved = self.checkpoints.restore(self.latest, self.parallel.abstract(init))
        batches.set_state(saved.progress["iterator"])
        self.spent = saved.progress["seconds"]
        self.view.say(f"continuing at step {self.latest} of {self.config.training.steps}")
        return saved.state

    def sides(self) -> tuple[Tokenizer, Tokenizer]:
        return self.source_tokenizer, self.target_tokenizer

    def put(self, batch) -> tuple[Any, int]:
        """A batch on its devices, and its number of real tokens."""
        return self.parallel.put(batch), int(batch.source.mask.sum() + batch.target.mask.sum())

    def seconds(self) -> float:
        """Wall time of the whole run, earlier commands included."""
        return self.spent + time.monotonic() - self.start_time

    def evaluate_and_save(self, state: State, iterator: dict) -> dict[str, float]:
        """Scores on the validation split, shown and returned; a checkpoint; a heatmap."""
        training = self.config.training
        step = int(state.step)
        values = evaluate.teacher_forced(self.eval_step, state.params, self.eval_batches, self.parallel.put)
        predictor = dataclasses.replace(self.predictor, params=state.params)
        examples = evaluate.spread(self.validation, training.eval_examples)
        scores, predictions = evaluate.decoded(predictor, self.task, examples)
        values = {f"validation/{name}": value for name, value in (values | scores).items()}
        self.view.evaluation(step, values, examples[: training.samples], predictions)
        best = scores[self.task.best] * (-1 if self.task.higher_is_better else 1)
        progress = {"iterator": iterator, "seconds": self.seconds()}
        self.checkpoints.save(state, progress, describe(predictor), experiment.to_json(self.config), best)
        self.draw(predictor, examples, f"attention/step_{step:07d}.png")
        return values

    def draw(self, predictor: Predictor, examples: Sequence[Example], name: str) -> Path | None:
        """The heatmap of one example, the longest that is not too long of a few; None for a model without attention."""
        example = max(evaluate.spread(examples, 16), key=lambda example: (len(example.source) <= 24, len(example.source)))
        prediction = predictor.predictions([example.source], attention=True)[0]
        path = self.workdir / name
        path.parent.mkdir(exist_ok=True)
        return path if report.heatmap(prediction, path) else None

    def test(self) -> dict[str, Any]:
        """The best checkpoint's score on the whole test split, written to result.json."""
        test = self.test_examples
        best = find_step(self.workdir)
        self.view.say(f"testing checkpoint {best.name} on {len(test):,} {self.task.unit}")
        loaded = zoo.load(best)
        predictor = dataclasses.replace(self.predictor, params=loaded.params, place=lambda source: source)
        scores, _ = evaluate.decoded(predictor, self.task, test)
        image = self.draw(predictor, test, "attention.png")
        result = {
            **{f"test/{name}": value for name, value in scores.items()},
            f"test/{self.task.unit}": len(test),
            "steps": self.checkpoints.latest(),
            "best_step": int(best.name),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(loaded.params)),
            "wall_seconds": round(self.seconds(), 1),
            "devices": f"{len(self.parallel.devices)} x {self.parallel.devices[0].device_kind}",
            "checkpoint": str(best),
            "command": self.command,
        }
        report.write_atomically(self.workdir / report.RESULT, json.dumps(result, indent=2) + "\n")
        self.view.summary(result, image, self.workdir, self.typed())
        return result

    def typed(self) -> str:
        """A source for the command that the summary suggests: a plain word, if there is one."""
        sources = [example.source for example in evaluate.spread(self.test_examples, 16)]
        return next((source for source in sources if source.isalpha()), sources[0])


class Clock:
    """Speed between two logged steps, evaluation left out, and the time that is left."""

    def __init__(self, step: int, steps: int):
        self.tokens, self.step, self.steps, self.per_step = 0, step, steps, 0.0
        self.restart()

    def restart(self) -> None:
        """Do not count the time since the last lap."""
        self.since = time.monotonic()

    def lap(self, step: int) -> dict[str, float]:
        """Tokens and steps a second since the last lap."""
        seconds = max(time.monotonic() - self.since, 1e-9)
        speed = {"train/tokens_per_second": self.tokens / seconds, "train/steps_per_second": (step - self.step) / seconds}
        self.per_step = seconds / max(step - self.step, 1)
        self.tokens, self.step = 0, step
        self.restart()
        return speed

    def seconds_left(self, step: int) -> float:
        """At the speed of the last lap."""
        return self.per_step * (self.steps - step)
