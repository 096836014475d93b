"""One training step and one evaluation step, as pure functions of one device's share of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from train.metrics import Metric, token_metrics
from zoo.core import PyTree, Seq2Seq


class State(NamedTuple):
    """All that a step changes.

    Attributes:
      step: () int32, updates done.
      params: the model's parameters.
      opt_state: Optax's state.
    """

    step: jax.Array
    params: PyTree
    opt_state: PyTree


def init_state(model: Seq2Seq, tx: optax.GradientTransformation, example: tuple, key: jax.Array) -> State:
    """The state before the first step. ``example`` is (source, target) of any shape that the model takes."""
    params = model.init(key, *example)["params"]
    return State(jnp.zeros((), jnp.int32), params, tx.init(params))


def make_train_step(model: Seq2Seq, tx: optax.GradientTransformation, label_smoothing: float = 0.0) -> Callable:
    """``train_step(state, batch, key, axis=None) -> (state, metrics)``.

    The loss is a sum over real target tokens; sum and count are added over the devices of ``axis`` and divided once.
    Dropout depends on the key, the step and, under an axis, the device.
    """

    def train_step(state: State, batch, key: jax.Array, axis: str | None = None) -> tuple[State, dict[str, Metric]]:
        key = jax.random.fold_in(key, state.step)
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
        return State(state.step + 1, optax.apply_updates(state.params, updates), opt_state), metrics

    return train_step


def make_eval_step(model: Seq2Seq) -> Callable:
    """``eval_step(params, batch, axis=None) -> metrics`` by teacher forcing, without dropout or label smoothing."""

    def eval_step(params: PyTree, batch, axis: str | None = None) -> dict[str, Metric]:
        outputs = model.apply({"params": params}, batch.source, batch.target)
        metrics = token_metrics(outputs.logits, batch.target)
        return metrics if axis is None else jax.lax.psum(metrics, axis)

    return eval_step
