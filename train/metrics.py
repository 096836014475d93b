"""Metrics as (sum, count): added over batches, devices and hosts first, divided once.

A mean of per-batch or per-device means is wrong as soon as padding differs between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zoo.core import PAD


class Metric(NamedTuple):
    """A sum and what it is to be divided by; add two with ``add``."""

    sum: jax.Array | float
    count: jax.Array | float


def add(left: dict[str, Metric], right: dict[str, Metric]) -> dict[str, Metric]:
    """Metrics of two batches together.

    >>> add({"loss": Metric(6.0, 2)}, {"loss": Metric(1.0, 1)})
    {'loss': Metric(sum=7.0, count=3)}
    """
    return jax.tree.map(lambda x, y: x + y, left, right) if left else right


def divide(metrics: dict[str, Metric]) -> dict[str, float]:
    """The values, as Python floats; nan for a metric that counted nothing.

    >>> divide({"loss": Metric(6.0, 2)})
    {'loss': 3.0}
    """
    return {name: float(m.sum) / float(m.count) if float(m.count) else math.nan for name, m in metrics.items()}


def token_metrics(logits_BTV: jax.Array, target, label_smoothing: float = 0.0, pad_id: int | None = PAD) -> dict[str, Metric]:
    """Cross-entropy in nats (``loss`` with smoothed labels, ``nll`` without) and accuracy of the real target tokens.

    Label smoothing (Szegedy et al. 2016) gives 1 - epsilon to the true token and shares epsilon among all but padding. A token
    is predicted rightly where none is more probable.

    Args:
      logits_BTV: any float dtype; computed in float32.
      target: ``core.Tokens`` (B, T); ids at masked positions are not read.
      label_smoothing: epsilon, 0 ... 1.
      pad_id: padding's; None if there is none among the V.
    """
    logits_BTV = logits_BTV.astype(jnp.float32)
    # From the logits, since the log-probabilities of all tokens would be one more array of this size.
    logit_BT = jnp.take_along_axis(logits_BTV, target.ids[..., None], axis=-1)[..., 0]
    normaliser_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    loss_BT = nll_BT = normaliser_BT - logit_BT
    if label_smoothing:
        others = logits_BTV.shape[-1] - (pad_id is not None)
        padding_BT = 0 if pad_id is None else logits_BTV[..., pad_id]
        uniform_BT = normaliser_BT - (logits_BTV.sum(axis=-1) - padding_BT) / others
        loss_BT = (1 - label_smoothing) * nll_BT + label_smoothing * uniform_BT
    right_BT = logit_BT >= logits_BTV.max(axis=-1)  # far cheaper than the index of the greatest
    count = target.mask.sum().astype(jnp.float32)

    def total(x_BT):
        return Metric(jnp.where(target.mask, x_BT, 0).sum(dtype=jnp.float32), count)

    return {"loss": total(loss_BT), "nll": total(nll_BT), "accuracy": total(right_BT)}


def noise_metrics(logits_BTK: jax.Array, target) -> dict[str, Metric]:
    """Negative sampling (Mikolov et al. 2013, arXiv:1310.4546, equation 4) of the real target tokens.

    ``loss`` is -log sigma(logit of the token) - the sum over its noise of log sigma(-logit), in nats; ``accuracy`` the share of
    tokens that score above all of their noise. Noise that is the token itself counts in neither.

    Args:
      logits_BTK: (B, T, 1 + K), of each token and its noise; any float dtype, computed in float32.
      target: ``core.Tokens`` (B, T) with K tokens of noise each.
    """
    logits_BTK = logits_BTK.astype(jnp.float32)
    token_BT, noise_BTK = logits_BTK[..., 0], logits_BTK[..., 1:]
    other_BTK = target.noise != target.ids[..., None]
    loss_BT = jax.nn.softplus(-token_BT) + jnp.where(other_BTK, jax.nn.softplus(noise_BTK), 0).sum(axis=-1)
    above_BT = (jnp.where(other_BTK, noise_BTK, -jnp.inf) < token_BT[..., None]).all(axis=-1)
    count = target.mask.sum().astype(jnp.float32)

    def total(x_BT):
        return Metric(jnp.where(target.mask, x_BT, 0).sum(dtype=jnp.float32), count)

    return {"loss": total(loss_BT), "accuracy": total(above_BT)}


def chunked_token_metrics(
    logits: Callable[[jax.Array], jax.Array],
    hidden_BTD: jax.Array,
    target,
    chunk: int,
    label_smoothing: float = 0.0,
    pad_id: int | None = PAD,
) -> dict[str, Metric]:
    """``token_metrics`` without ever holding the logits of all positions, nor their gradient.

    Args:
      logits: hidden states (B, N, D) -> (B, N, V), for any N; computed a second time for the gradient.
      hidden_BTD: what it reads.
      target: ``core.Tokens`` (B, T).
      chunk: positions at a time, at most.
      label_smoothing, pad_id: as for ``token_metrics``.
    """
    B, T = target.mask.shape
    count = max(-(-T // chunk), 1)
    size = -(-T // count)  # chunks of one size, the last one padded by as little as can be

    def split(x_BTX: jax.Array) -> jax.Array:
        padding = [(0, 0), (0, count * size - T), *[(0, 0)] * (x_BTX.ndim - 2)]
        return jnp.pad(x_BTX, padding).reshape(B, count, size, *x_BTX.shape[2:]).swapaxes(0, 1)

    def metrics(part) -> dict[str, Metric]:
        hidden_BND, target = part
        return token_metrics(logits(hidden_BND), target, label_smoothing, pad_id)

    parts = jax.lax.map(jax.checkpoint(metrics, prevent_cse=False), jax.tree.map(split, (hidden_BTD, target)))
    return jax.tree.map(lambda x: x.sum(axis=0), parts)
