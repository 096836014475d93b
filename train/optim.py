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
      layer_decay: each layer learns this much slower than the one above it (see ``layer_rules``); 1: all alike.
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
    layer_decay: float = 1.0
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


def layer_rules(params: PyTree, decay: float) -> Rules:
    """Factors of the learning rate that fall from layer to layer (Howard & Ruder 2018, section 3.2): the top layer of each
    stack has 1, the one below it ``decay``, and so on; embeddings are below the deepest stack, all else is on top.

    >>> layer_rules({"embedding": 0, "encoder_0": {"kernel": 0}, "encoder_1": {"kernel": 0}, "head": 0}, 0.5)
    (('encoder_0/.*', 0.5), ('encoder_1/.*', 1.0), ('.*embed.*', 0.25), ('.*', 1.0))
    """
    paths = list(flatten_params(params))
    numbered = [match for path in paths if (match := re.match(r"(.*?_)(\d+)/", path))]
    if not numbered:
        raise UserError("optimizer.layer_decay is set, but the model's parameters have no numbered layers: leave it at 1")
    top: dict[str, int] = {}
    for stack, number in (match.groups() for match in numbered):
        top[stack] = max(top.get(stack, 0), int(number))
    layers = dict.fromkeys((match[1], int(match[2])) for match in numbered)
    rules = [(f"{re.escape(stack)}{number}/.*", decay ** (top[stack] - number)) for stack, number in layers]
    embeddings = [(r".*embed.*", decay ** (1 + max(top.values())))] if any("embed" in path for path in paths) else []
    return (*rules, *embeddings, (r".*", 1.0))


def rates(optimizer: Optimizer, params: PyTree) -> PyTree:
    """The factor of the learning rate of each parameter; 0 where it is frozen. Raises UserError as ``by_rules``."""
    factors = by_rules(params, optimizer.rate_rules, "optimizer.rate_rules")
    if optimizer.layer_decay == 1:
        return factors
    layers = by_rules(params, layer_rules(params, optimizer.layer_decay), "optimizer.layer_decay")
    return jax.tree.map(lambda factor, layer: factor * layer, factors, layers)


def of_adapters(values: PyTree, adapters: PyTree) -> PyTree:
    """For each adapter the value of the parameter that it is added to."""
    flat = flatten_params(values)
    return unflatten_params({path: flat[path.rpartition("/")[0]] for path in flatten_params(adapters)})


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


def make(optimizer: Optimizer, params: PyTree, steps: int, adapters: PyTree | None = None) -> optax.GradientTransformation:
    """The gradient transformation for these parameters (arrays or shapes), or for adapters of some of them.

    Frozen parameters have no optimizer state and do not count in the gradient's norm.

    Args:
      optimizer: the settings; its rules speak of ``params``.
      params: the model's.
      steps: as for ``learning_rate``.
      adapters: what is trained in their place, see ``train.lora``.
    """
    factors, decay = rates(optimizer, params), by_rules(params, optimizer.decay_rules, "optimizer.decay_rules")
    if adapters is not None:
        factors, decay = of_adapters(factors, adapters), of_adapters(decay, adapters)
    decay = jax.tree.map(lambda factor: factor * optimizer.weight_decay, decay)
    transform = optax.chain(
        optax.clip_by_global_norm(optimizer.clip) if optimizer.clip else optax.identity(),
        scaling(optimizer),
        decay_each(decay) if optimizer.weight_decay and optimizer.name != "adam" else optax.identity(),
        scale_each(factors),
        optax.scale_by_learning_rate(learning_rate(optimizer, steps)),
    )
    groups = jax.tree.map(lambda factor: "trained" if factor else "frozen", factors)
    return optax.partition({"trained": transform, "frozen": optax.set_to_zero()}, groups)
