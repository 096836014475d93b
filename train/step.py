"""One training step and one evaluation step, as pure functions of one device's share of the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from train import optim
from train.lora import Lora
from train.metrics import Metric, chunked_token_metrics, noise_metrics, token_metrics
from train.optim import Optimizer
from zoo.checkpoint import adapters
from zoo.core import EncoderOnly, PyTree, Seq2Seq


@dataclasses.dataclass(frozen=True)
class Compute:
    """How the same numbers are computed: a run may be resumed with other values.

    Attributes:
      precision: of activations and products; parameters, their averages and the loss stay float32.
      remat: compute the layers' activations again for the gradient instead of keeping them.
      scan_layers: compile one layer and loop over it, where the variant's layers are alike.
      logits_chunk: target positions whose logits exist at a time in training; 0: all.
      attention: "auto" uses cuDNN's kernel where it can be used, "xla" never.
    """

    precision: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    scan_layers: bool = False
    logits_chunk: int = 0
    attention: Literal["auto", "xla"] = "auto"


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
      params: what is trained, float32: the model's parameters, or adapters that are added to them.
      opt_state: Optax's state.
      skipped: what was left out.
      ema: exponential moving average of the parameters, float32; None without one.
      accumulated: gradients of an unfinished update; None where every batch is an update.
      base: the model's parameters, if adapters are trained instead of them; they never change.
    """

    step: jax.Array
    key: jax.Array
    params: PyTree
    opt_state: PyTree
    skipped: Skipped
    ema: PyTree | None = None
    accumulated: Accumulated | None = None
    base: PyTree | None = None


def init_state(
    model: Seq2Seq,
    tx: optax.GradientTransformation,
    example: tuple,
    key: jax.Array,
    optimizer: Optimizer = Optimizer(),
    lora: Lora = Lora(),
) -> State:
    """The state before the first step. ``example`` is (source, target) of any shape that the model takes."""
    init_key, key = jax.random.split(key)
    return new_state(model.init(init_key, *example)["params"], tx, key, optimizer, lora)


def new_state(
    params: PyTree,
    tx: optax.GradientTransformation,
    key: jax.Array,
    optimizer: Optimizer = Optimizer(),
    lora: Lora = Lora(),
) -> State:
    """The state that begins with these parameters of a model.

    Args:
      params: the model's, float32.
      tx: made for them, or for their adapters.
      key: that of ``State``.
      optimizer: says whether gradients are accumulated and there is an average.
      lora: says whether there are adapters.
    """
    base = None
    if lora.rank:
        base, params = params, lora.init(params, jax.random.fold_in(key, jnp.uint32(2**32 - 1)))  # a step that never comes
    zero = lambda dtype: jnp.zeros((), dtype)  # noqa: E731  each time a buffer of its own, since a step consumes its state
    accumulated = Accumulated(jax.tree.map(jnp.zeros_like, params), zero(jnp.float32), zero(jnp.int32))
    return State(
        step=zero(jnp.int32),
        key=key,
        params=params,
        opt_state=tx.init(params),
        skipped=Skipped(zero(jnp.int32), zero(jnp.int32)),
        ema=jax.tree.map(jnp.copy, params) if optimizer.ema else None,
        accumulated=accumulated if optimizer.accumulate > 1 else None,
        base=base,
    )


def model_params(trained: PyTree, base: PyTree | None, lora: Lora) -> PyTree:
    """The parameters that the model reads: what is trained, or that merged with what it is added to."""
    return trained if base is None else adapters.merge(base, trained, lora.alpha)


def updates(state: State, accumulate: int) -> jax.Array:
    """The updates made so far, () int32: what a schedule counts."""
    return (state.step - state.skipped.total) // accumulate


def make_train_step(
    model: Seq2Seq,
    tx: optax.GradientTransformation,
    label_smoothing: float = 0.0,
    optimizer: Optimizer = Optimizer(),
    compute: Compute = Compute(),
    lora: Lora = Lora(),
) -> Callable:
    """``train_step(state, batch, axis=None) -> (state, metrics)``.

    The loss is a sum over real target tokens; sum and count are added over the devices of ``axis`` and an update's batches,
    then divided once: ``accumulate`` batches give the update of one batch of all their rows. Dropout depends on the state's
    key, the step and, under an axis, the device.

    A batch whose loss or gradient is not finite leaves every bit of the parameters, the optimizer with its schedule, the
    average and the accumulated gradients as it was. Its metrics count nothing, but for ``skipped``, which is one.

    Args:
      tx: made by ``optim.make``; its schedule counts updates.
      label_smoothing: share of the target probability given to the other tokens.
      optimizer: for its ``accumulate`` and ``ema``, those of the state, and for what it freezes.
      compute: for its precision and ``logits_chunk``.
      lora: for the scale of the state's adapters.
    """

    def hold(params: PyTree, base: PyTree | None) -> PyTree:
        """No gradient is computed where none is used."""
        factors = optim.rates(optimizer, params if base is None else base)
        factors = factors if base is None else optim.of_adapters(factors, params)
        return jax.tree.map(lambda x, factor: x if factor else jax.lax.stop_gradient(x), params, factors)

    def update(state: State, total: Accumulated) -> State:
        grads = jax.tree.map(lambda g: g / jnp.maximum(total.count, 1), total.grads)
        changes, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, changes)
        ema, accumulated = state.ema, state.accumulated
        if ema is not None:
            ema = average(ema, params, optimizer.ema, updates(state, optimizer.accumulate))
        if accumulated is not None:
            accumulated = jax.tree.map(jnp.zeros_like, accumulated)
        return state._replace(params=params, opt_state=opt_state, ema=ema, accumulated=accumulated)

    def train_step(state: State, batch, axis: str | None = None) -> tuple[State, dict[str, Metric]]:
        key = jax.random.fold_in(state.key, state.step)
        if axis is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))

        def loss_sum(params):
            params = model_params(hold(params, state.base), state.base, lora)
            metrics = teacher_forced(model, params, batch, compute, label_smoothing, key)
            return metrics["loss"].sum, metrics

        grads, metrics = jax.grad(loss_sum, has_aux=True)(state.params)
        if axis is not None:
            grads, metrics = summed((grads, metrics), axis)
        loss = metrics["loss"]
        norm = optax.tree.norm(grads) / jnp.maximum(loss.count, 1)
        finite = jnp.isfinite(loss.sum) & jnp.isfinite(norm)

        metrics["gradient_norm"] = Metric(norm, jnp.float32(1))
        metrics = jax.tree.map(lambda x: jnp.where(finite, x, 0), metrics)
        metrics["skipped"] = Metric((~finite).astype(jnp.float32), jnp.float32(1))

        total = Accumulated(grads, loss.count, jnp.int32(1))
        old = state._replace(key=None, base=None)  # which take part in no choice: they never change
        complete = finite
        if optimizer.accumulate > 1:
            total = where(finite, jax.tree.map(jnp.add, old.accumulated, total), old.accumulated)
            old = old._replace(accumulated=total)
            complete = finite & (total.batches == optimizer.accumulate)
        # A branch, in which XLA updates in place: a choice between new and old values would copy the old ones first.
        new = jax.lax.cond(complete, lambda: update(old, total), lambda: old)
        skipped = Skipped(state.skipped.total + ~finite, jnp.where(finite, 0, state.skipped.in_a_row + 1))
        return new._replace(step=state.step + 1, key=state.key, base=state.base, skipped=skipped), metrics

    return train_step


def make_eval_step(model: Seq2Seq, compute: Compute = Compute()) -> Callable:
    """``eval_step(params, batch, axis=None) -> metrics`` by teacher forcing, without dropout or label smoothing."""

    def eval_step(params: PyTree, batch, axis: str | None = None) -> dict[str, Metric]:
        metrics = teacher_forced(model, params, batch, compute)
        return metrics if axis is None else summed(metrics, axis)

    return eval_step


def teacher_forced(
    model: Seq2Seq, params: PyTree, batch, compute: Compute, label_smoothing: float = 0.0, key: jax.Array | None = None
) -> dict[str, Metric]:
    """``token_metrics`` of a batch, or ``noise_metrics`` of one that has noise; with a key, dropout draws from it.

    Args:
      params: float32, whatever the precision: their gradients are too.
    """
    low = lambda tree: cast(tree, jnp.dtype(compute.precision))  # noqa: E731
    train, rngs = key is not None, {} if key is None else {"dropout": key}
    # A model makes numbers that it reads, such as sound, of its parameters' dtype itself: at the front they need all digits.
    outputs = model.apply({"params": low(params)}, batch.source, batch.target, train=train, rngs=rngs)
    if batch.target.noise is not None:
        return noise_metrics(outputs.logits, batch.target)
    pad_id = None if isinstance(model, EncoderOnly) else model.config.pad_id  # a label, or a word, may have any number
    if not compute.logits_chunk:
        return token_metrics(outputs.logits, batch.target, label_smoothing, pad_id)

    def logits(hidden_BTD):  # cast anew for each chunk, so that their gradients are added in float32
        return model.apply({"params": low(params)}, hidden_BTD, method="logits")

    return chunked_token_metrics(logits, outputs.hidden, batch.target, compute.logits_chunk, label_smoothing, pad_id)


def summed(tree: PyTree, axis: str) -> PyTree:
    """The sum over the devices of an axis. Of one device it is the tree itself, which XLA's all-reduce would copy."""
    return tree if jax.lax.axis_size(axis) == 1 else jax.lax.psum(tree, axis)


def cast(tree: PyTree, dtype) -> PyTree:
    """The tree with its floating-point leaves of this dtype."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def where(condition: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """``new`` or ``old``, each leaf bit for bit."""
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def average(ema: PyTree, params: PyTree, decay: float, count: jax.Array) -> PyTree:
    """decay x ema + (1 - decay) x params, where the decay is at most (1 + count) / (10 + count).

    Without that bound the first 1 / (1 - decay) updates would be averaged with the random start.
    """
    decay = jnp.minimum(decay, (1 + count) / (10 + count))
    return jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, params)  # exactly e where p is e
