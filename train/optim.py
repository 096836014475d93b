"""Optimizers and schedules: Optax, put together from one dataclass, with (regex, value) rules for groups of parameters."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from zoo.core import PyTree, UserError, flatten_params, unflatten_params

Rules = tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How parameters are updated. Rules are (path regex, value) pairs; the first whose regex matches the whole path wins.

    Attributes:
      name: "adam", "adamw" (decay apart from the gradient), "adafactor" or "sgd" (with momentum).
      learning_rate: the schedule's peak.
      schedule: "constant"; "inverse_sqrt", falling as 1 / sqrt(step) after the warm-up (Vaswani et al. 2017, equation 3);
        "cosine", falling to zero at the last step.
      warmup_steps: steps of linear growth from zero to the peak.
      b1: decay of the gradient's mean (Adam), or the momentum (SGD).
      b2: decay of the gradient's square (Adam).
      eps: added to the root of the square.
      clip: greatest global norm of the gradient; 0 clips nothing.
      weight_decay: adamw and sgd: parameters shrink by learning rate x weight_decay x the rule's factor at each step.
      decay_rules: (regex, factor of weight_decay); by default not biases, norms' scales and embeddings.
      rate_rules: (regex, factor of the learning rate); 0 freezes a parameter.
      accumulate: batches whose gradients make one update; schedules count updates.
      ema: decay of the exponential moving average of the parameters, which is evaluated and exported instead of them; 0: none.
        After t updates it is at most (1 + t) / (10 + t), so that the average soon forgets where it began.
    """

    name: Literal["adam", "adamw", "adafactor", "sgd"] = "adam"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "inverse_sqrt", "cosine"] = "constant"
    warmup_steps: int = 0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip: float = 1.0
    weight_decay: float = 0.0
    decay_rules: Rules = ((r".*(bias|scale|embedding)", 0.0), (r".*", 1.0))
    rate_rules: Rules = ((r".*", 1.0),)
    accumulate: int = 1
    ema: float = 0.0


def learning_rate(optimizer: Optimizer, steps: int) -> optax.Schedule:
    """update -> learning rate; the first one is 0 and already moves.

    Args:
      steps: updates in all: the run's batches // ``optimizer.accumulate``.
    """
    peak, warmup = optimizer.learning_rate, optimizer.warmup_steps

    def schedule(count):
        step = jnp.asarray(count, jnp.float32) + 1
        factor = jnp.minimum(1.0, step / max(warmup, 1))
        if optimizer.schedule == "inverse_sqrt":
            factor = factor * jnp.minimum(1.0, jnp.sqrt(max(warmup, 1) / step))
        elif optimizer.schedule == "cosine":
            progress = jnp.clip((step - 1 - warmup) / max(steps - warmup, 1), 0.0, 1.0)
            factor = factor * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return peak * factor

    return schedule


def by_rules(params: PyTree, rules: Rules, field: str) -> PyTree:
    """Each parameter's value, a tree like ``params``.

    Raises:
      UserError: a parameter that no rule matches, a rule that matches none, or a regex that is none.
    """
    values, used = {}, set()
    for path in flatten_params(params):
        rule = next((rule for rule in rules if matches(rule[0], path, field)), None)
        if rule is None:
            raise UserError(f'{field} says nothing of the parameter {path}: end the rules with (".*", value)')
        used.add(rule)
        values[path] = rule[1]
    for rule in rules:
        if rule not in used and rule[0] != ".*" and not any(matches(rule[0], path, field) for path in values):
            raise UserError(f"{field} has the rule {rule[0]!r}, which matches no parameter: such as {next(iter(values))}")
    return unflatten_params(values)


def matches(regex: str, path: str, field: str) -> bool:
    """Whether the regex matches the whole path."""
    try:
        return re.fullmatch(regex, path) is not None
    except re.error as error:
        raise UserError(f"{field} has the rule {regex!r}, which is not a regular expression: {error}") from error


def scaling(optimizer: Optimizer) -> optax.GradientTransformation:
    """The optimizer's own direction, before decay and learning rate."""
    if optimizer.name == "adafactor":
        return optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
        )
    if optimizer.name == "sgd":
        return optax.trace(decay=optimizer.b1)
    return optax.scale_by_adam(b1=optimizer.b1, b2=optimizer.b2, eps=optimizer.eps)


def scale_each(factors: PyTree) -> optax.GradientTransformation:
    """Updates times each parameter's own factor."""
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u, f: u * f, updates, keep(factors, updates)))


def decay_each(factors: PyTree) -> optax.GradientTransformation:
    """Updates plus each parameter times its own factor: decay apart from the gradient (Loshchilov & Hutter 2019)."""
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda u, p, f: u + f * p, updates, params, keep(factors, updates))
    )


def keep(factors: PyTree, like: PyTree) -> PyTree:
    """The factors of the leaves that ``like`` has: ``optax.partition`` leaves holes where another group's leaves are."""
    hole = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(lambda x, f: x if hole(x) else f, like, factors, is_leaf=hole)


def make(optimizer: Optimizer, params: PyTree, steps: int) -> optax.GradientTransformation:
    """The gradient transformation for these parameters (arrays or shapes); ``steps`` as for ``learning_rate``.

    Frozen parameters have no optimizer state and do not count in the gradient's norm.
    """
    rates = by_rules(params, optimizer.rate_rules, "optimizer.rate_rules")
    decay = by_rules(params, optimizer.decay_rules, "optimizer.decay_rules")
    decay = jax.tree.map(lambda factor: factor * optimizer.weight_decay, decay)
    transform = optax.chain(
        optax.clip_by_global_norm(optimizer.clip) if optimizer.clip else optax.identity(),
        scaling(optimizer),
        decay_each(decay) if optimizer.weight_decay and optimizer.name != "adam" else optax.identity(),
        scale_each(rates),
        optax.scale_by_learning_rate(learning_rate(optimizer, steps)),
    )
    groups = jax.tree.map(lambda rate: "trained" if rate else "frozen", rates)
    return optax.partition({"trained": transform, "frozen": optax.set_to_zero()}, groups)
