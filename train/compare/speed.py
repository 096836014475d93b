"""How fast a model trains, how fast it generates, and the memory that a step takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from train import evaluate, optim
from train.data import Batch, Example
from train.experiment import Experiment
from train.step import init_state, make_train_step
from zoo.core import SPECIAL_TOKENS, Seq2Seq, Tokens, UserError
from zoo.predictor import Predictor
from zoo.variants import abstract_params

TIMES = 3  # of which the median is taken
DECODED = 256  # test examples


def compiled(config: Experiment, model: Seq2Seq, shape: Sequence[int]) -> tuple[Any, Any, Batch]:
    """A training step of one device, compiled for full rows of (rows, source length, target length), a state and a batch."""
    compute = config.compute
    model = model.clone(remat=compute.remat, scan_layers=compute.scan_layers, kernel=compute.attention, right_padded=True)
    tx = optim.make(
        config.optimizer, abstract_params(model.config), max(config.training.steps // config.optimizer.accumulate, 1)
    )
    example, key = model.config.example(batch=1, source_len=2, target_len=2), jax.random.key(0)
    state = jax.jit(partial(init_state, model, tx, example, key, config.optimizer))()
    step = make_train_step(model, tx, config.training.label_smoothing, config.optimizer, compute)
    batch = full_batch(shape, model.config.source_vocab_size, model.config.target_vocab_size)
    return jax.jit(step, donate_argnums=0).lower(state, batch).compile(), state, batch


def full_batch(shape: Sequence[int], *vocab_sizes: int) -> Batch:
    """Random tokens, without padding."""
    rng, (rows, *lengths) = np.random.default_rng(0), shape
    sides = [
        Tokens(rng.integers(len(SPECIAL_TOKENS), size, (rows, length), np.int32), np.ones((rows, length), bool))
        for length, size in zip(lengths, vocab_sizes, strict=True)
    ]
    return Batch(*sides, np.arange(rows, dtype=np.int32))


def memory(config: Experiment, model: Seq2Seq, shape: Sequence[int]) -> int | None:
    """Bytes that the compiler sets aside for a step on the largest batch: state, batch, results and what lies between."""
    planned = compiled(config, model, shape)[0].memory_analysis()
    if planned is None:  # not every backend tells
        return None
    results = planned.output_size_in_bytes - planned.alias_size_in_bytes
    return planned.argument_size_in_bytes + results + planned.temp_size_in_bytes


def by_length(config: Experiment, model: Seq2Seq, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Training tokens a second, source and target, with sources and targets of one length, as many rows as make a batch.

    Returns:
      For each length ``length``, ``rows`` and ``tokens_per_second``, null where the model cannot read so far.
    """
    found = []
    for length in lengths:
        rows = max(1, config.batching.tokens // length)
        try:
            step, state, batch = compiled(config, model, (rows, length, length))
        except UserError:  # learned positions end somewhere
            speed = None
        else:
            speed = 2 * rows * length / seconds_a_step(step, state, batch)
        found.append({"length": length, "rows": rows, "tokens_per_second": speed})
    return found


def seconds_a_step(step: Any, state: Any, batch: Batch) -> float:
    """The median of a few steps, after one that does not count."""
    batch, taken = jax.device_put(batch), []
    for _ in range(1 + TIMES):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def decoding(predictor: Predictor, test: Sequence[Example]) -> dict[str, float]:
    """Outputs and generated tokens a second, with the run's own settings, once all is compiled."""
    sources, taken = [example.source for example in evaluate.spread(test, DECODED)], []
    for _ in range(1 + TIMES):
        start = time.perf_counter()
        found = predictor.predictions(sources)
        taken.append(time.perf_counter() - start)
    seconds = statistics.median(taken[1:])
    tokens = sum(len(prediction.log_probs) for prediction in found)
    return {"outputs_per_second": len(sources) / seconds, "tokens_per_second": tokens / seconds}
