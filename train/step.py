"""One training step and one evaluation step, as pure functions of one device's share of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from train.metrics import Metric, token_metrics
from zoo.core import PyTree, Seq2Seq


class Accumulated(NamedTuple):
    """Gradients that wait for the rest of their update.

    Attributes:
      grads: the sum over the real target tokens so far, like the parameters, float32.
      count: () float32, those tokens.
      batches: () int32, those batches.
    """

    grads: PyTree
    count: jax.Array
    batches: jax.Array


class Skipped(NamedTuple):
    """Batches left out because their loss or gradient was not finite.

    Attributes:
      total: () int32, since the run began.
      in_a_row: () int32, since the last batch that counted.
    """

    total: jax.Array
    in_a_row: jax.Array


class State(NamedTuple):
    """All that a step changes, and the key that it draws from.

    Attributes:
      step: () int32, batches seen; each updates the parameters unless gradients are accumulated over several.
      key: () typed PRNG key; dropout draws from it and the step, so that it never changes.
      params: the model's parameters, float32.
      opt_state: Optax's state.
      skipped: what was left out.
      ema: exponential moving average of the parameters, float32; None without one.
      accumulated: gradients of an unfinished update; None where every batch is an update.
    """

    step: jax.Array
    key: jax.Array
    params: PyTree
    opt_state: PyTree
    skipped: Skipped
    ema: PyTree | None = None
    accumulated: Accumulated | None = None


def init_state(model: Seq2Seq, tx: optax.GradientTransformation, example: tuple, key: jax.Array) -> State:
    """The state before the first step. ``example`` is (source, target) of any shape that the model takes."""
    init_key, key = jax.random.split(key)
    return new_state(model.init(init_key, *example)["params"], tx, key)


def new_state(params: PyTree, tx: optax.GradientTransformation, key: jax.Array) -> State:
    """The state that begins with these parameters."""
    zero = jnp.zeros((), jnp.int32)
    return State(zero, key, params, tx.init(params), Skipped(zero, zero))


def make_train_step(model: Seq2Seq, tx: optax.GradientTransformation, label_smoothing: float = 0.0) -> Callable:
    """``train_step(state, batch, axis=None) -> (state, metrics)``.

    The loss is a sum over real target tokens; sum and count are added over the devices of ``axis`` and divided once.
    Dropout depends on the state's key, the step and, under an axis, the device.
    """

    def train_step(state: State, batch, axis: str | None = None) -> tuple[State, dict[str, Metric]]:
        key = jax.random.fold_in(state.key, state.step)
        if axis is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))

        def loss_sum(params):
            rngs = {"dropout": key}
            outputs = model.apply({"params": params}, batch.source, batch.target, train=True, rngs=rngs)
            metrics = token_metrics(outputs.logits, batch.target, label_smoothing)
            return metrics["loss"].sum, metrics

        grads, metrics = jax.grad(loss_sum, has_aux=True)(state.params)
        if axis is not None:
            grads, metrics = jax.lax.psum((grads, metrics), axis)
        grads = jax.tree.map(lambda g: g / jnp.maximum(metrics["loss"].count, 1), grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        metrics["gradient_norm"] = Metric(optax.tree.norm(grads), jnp.float32(1))
        params = optax.apply_updates(state.params, updates)
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return train_step


def make_eval_step(model: Seq2Seq) -> Callable:
    """``eval_step(params, batch, axis=None) -> metrics`` by teacher forcing, without dropout or label smoothing."""

    def eval_step(params: PyTree, batch, axis: str | None = None) -> dict[str, Metric]:
        outputs = model.apply({"params": params}, batch.source, batch.target)
        metrics = token_metrics(outputs.logits, batch.target)
        return metrics if axis is None else jax.lax.psum(metrics, axis)

    return eval_step
