"""What a run is made of: the data, the tokenizers, the model, the devices, and the state that it begins with."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from train import embeddings, evaluate, memory, optim, parallel, start
from train.checkpoint import Checkpoints
from train.data import (
    Batch,
    Example,
    Heard,
    Recordings,
    Tokenized,
    WindowBatches,
    Windows,
    check_ids,
    eval_batches,
    train_batches,
)
from train.data.corrupt import CORRUPTIONS
from train.experiment import Experiment
from train.step import State, init_state, make_train_step, new_state
from train.view import View
from zoo import vectors
from zoo.checkpoint.rules import some
from zoo.core import PyTree, UserError
from zoo.predictors import predictor_for
from zoo.text import Tokenizer, encoders
from zoo.variants import abstract_params

TOKENIZER_TEXTS = 1_000_000  # training examples at most that a vocabulary is learned from


class Prepared:
    """The parts of one run."""

    def __init__(self, config: Experiment, workdir: Path, checkpoints: Checkpoints):
        self.checkpoints = checkpoints
        self.view = View(config.training.steps)
        self.latest = checkpoints.latest()
        self.view.say("reading the data")
        self.train_examples, self.validation = config.data.load("train"), config.data.load("validation")
        self.test_examples = config.data.load("test")  # now: a wrong name must not wait for the end of training
        self.known = start.settings(config, workdir)  # what is known of the model before the data
        self.source_tokenizer, self.target_tokenizer = self.tokenizers(config)
        sizes = {f"{side}_vocab_size": getattr(self, f"{side}_tokenizer").vocab_size for side in ("source", "target")}
        model = dataclasses.replace(config.model, **sizes)
        self.config = dataclasses.replace(config, model=model, batching=start.batching(config))
        compute = config.compute
        self.model = self.config.model.build().clone(
            remat=compute.remat, scan_layers=compute.scan_layers, kernel=compute.attention, right_padded=True
        )
        if config.batching.pack and not self.model.PACKS:
            raise UserError(f"batching.pack is on, but {type(self.model).__name__} reads one pair a row: turn it off")
        self.parallel = parallel.make(config.parallel, self.model.SHARDING)
        self.predictor = predictor_for(self.model)(
            self.model,
            params=None,
            source_tokenizer=self.source_tokenizer,
            target_tokenizer=self.target_tokenizer,
            decoding=config.decoding,
            place=self.place,
            multiple_of=self.parallel.rows,
            origin=self.known and start.origin(self.known, self.config),
        )
        if self.model.SOUND:
            self.predictor.targets(config.data.language, config.data.task)  # now: a wrong language must not wait
        self.spent = 0.0  # seconds of earlier commands of this run

    def place(self, source: PyTree) -> PyTree:
        """Sources on their devices."""
        return self.parallel.put_rows(source)

    def tokenizers(self, config: Experiment) -> tuple[Tokenizer, Tokenizer]:
        """Those of the run's checkpoint or of what it starts from, else new ones learned from the training split."""
        if self.known is not None:
            target = self.known.target_tokenizer
            if self.latest is None and config.model.wants_labels:
                target = start.labels(target, self.train_examples)
            return self.known.source_tokenizer, target
        wanted = config.tokenizers
        sample = evaluate.spread(self.train_examples, TOKENIZER_TEXTS)
        sources, targets = [e.source for e in sample], [e.target for e in sample]
        options = {name: getattr(wanted, name) for name in ("min_count", "lowercase", "sentinels")}
        learn: Callable = partial(Tokenizer.train, vocab_size=wanted.vocab_size or None, **options)
        if isinstance(config.data, Recordings):
            sources = []  # which are paths
        if wanted.shared:
            shared = learn(wanted.source, [*sources, *targets])
            return shared, shared
        if config.model.wants_labels:
            return learn(wanted.source, sources), start.labels(None, self.train_examples)
        return learn(wanted.source, sources), learn(wanted.target, targets)

    def tokenized(self, examples: Sequence[Example]) -> Tokenized:
        data = self.config.data
        if isinstance(data, Recordings):
            return Heard(examples, self.predictor.targets(data.language, data.task), self.predictor.window)
        corrupt = CORRUPTIONS[self.config.corruption](self.target_tokenizer)
        return Tokenized(examples, *encoders(self.config.model, *self.sides()), corrupt=corrupt)

    def sides(self) -> tuple[Tokenizer, Tokenizer]:
        return self.source_tokenizer, self.target_tokenizer

    def put(self, batch: Batch) -> Batch:
        """A batch on its devices, if all its ids are in the vocabularies."""
        check_ids(batch, self.source_tokenizer.vocab_size, self.target_tokenizer.vocab_size)
        return self.parallel.put(batch)

    def training_batches(self):
        """The endless stream of batches, and the shapes they come in."""
        batching = self.config.batching
        if isinstance(self.config.data, Windows):
            return self.windows.train_batches(), (self.windows.shape,)
        data = self.tokenized(self.train_examples)
        shapes = data.shapes(batching, self.parallel.rows)
        return train_batches(data, batching, shapes, self.config.seed, self.parallel.host), shapes

    @functools.cached_property
    def windows(self) -> WindowBatches:
        """What batches of word windows are drawn by."""
        config, data = self.config, self.tokenized(self.train_examples)
        return WindowBatches(data, config.data, config.batching, self.parallel.rows, config.seed, self.parallel.host)

    def evaluation_batches(self, examples: Sequence[Example], shapes: Sequence) -> Iterable[Batch]:
        """All of these examples, in batches of the shapes that training has."""
        data = self.tokenized(examples)
        if isinstance(self.config.data, Windows):
            return self.windows.eval_batches(data)
        return eval_batches(data, shapes, self.parallel.host)

    def begin(self, batches) -> tuple[State, Any]:
        """The first state or the newest checkpoint's, with the data at its place; and the compiled step."""
        config = self.config
        updates = config.training.steps // config.optimizer.accumulate
        params, lora = abstract_params(config.model), config.lora
        tx = optim.make(config.optimizer, params, updates, lora.shapes(params) if lora.rank else None)
        example, key = config.model.example(batch=1), jax.random.key(config.seed)
        init = partial(init_state, self.model, tx, example, key, config.optimizer, lora)
        train_step = self.parallel.compile_train(
            make_train_step(self.model, tx, config.training.label_smoothing, config.optimizer, config.compute, lora)
        )
        abstract = self.parallel.abstract(init)
        memory.check(abstract)
        if self.latest is None:
            state = self.pretrained(tx, example) if config.init_from else self.parallel.init(init)
            return self.embedded(state) if config.init_embeddings else state, train_step
        saved = self.checkpoints.restore(self.latest, abstract)
        batches.set_state(saved.progress["iterator"])
        self.spent = saved.progress["seconds"]
        self.view.say(f"continuing at step {self.latest} of {config.training.steps}")
        return saved.state, train_step

    def pretrained(self, tx: optax.GradientTransformation, example: tuple) -> State:
        """The first state of a run that starts from a model."""
        config = self.config
        init_key, key = jax.random.split(jax.random.key(config.seed))
        initial = lambda: self.model.init(init_key, *example)["params"]  # noqa: E731
        params, new = start.params(config, config.model, self.parallel.mesh, initial)
        self.view.say(f"starting from {config.init_from}" + (f"; new are {some(new)}" if new else ""))
        return self.parallel.init(partial(new_state, tx=tx, key=key, optimizer=config.optimizer, lora=config.lora), params)

    def embedded(self, state: State) -> State:
        """The state with word vectors for the embeddings of known tokens."""
        where, sides = self.config.init_embeddings, {"source": self.source_tokenizer, "target": self.target_tokenizer}
        trained = state.base is None
        params, lines = embeddings.fill(state.params if trained else state.base, vectors.load(where), sides, where)
        for line in lines:
            self.view.say(line)
        if not trained:
            return state._replace(base=params)
        return state._replace(params=params, ema=None if state.ema is None else jax.tree.map(jnp.copy, params))
