"""Gradient flow: how much of a loss still reaches what was read k steps before.

Measured is the norm of the gradient of one target token's loss, -log p(y_t), with respect to the embedding vector of one token
that was read earlier. A recurrent model carries it through k steps, so that the gradient is d loss_t / d state_{t-k} times what
one step makes of its input; attention has a way around. Two ways back are followed:

    along the target   the decoder read the token k steps before: lag 0 is the one it reads when it writes y_t
    to the source      the encoder read the token: k steps from there to the end of the source and on to y_t. With S tokens in
                       the source, position s and t counted from 0, that is S - s + t, or s + 1 + t read from the end
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train.data import Example
from zoo.core import PyTree, Seq2Seq, Tokens, flatten_params, pad_tokens, shift_right, unflatten_params
from zoo.predictor import Predictor
from zoo.variants import abstract_params

EXAMPLES = 16  # the longest of the test split that are not longer than what was trained on
PAIRS = 8  # a lag with fewer pairs of tokens is left out


class Norms(NamedTuple):
    """Of each target token's gradient: (T, B, T) for what the decoder read, (T, B, S) for the source."""

    target: jax.Array
    source: jax.Array


@functools.partial(jax.jit, static_argnames="model")
def gradient_norms(model: Seq2Seq, params: PyTree, source: Tokens, target: Tokens) -> Norms:
    """The norms for a batch; those of masked tokens mean nothing.

    Each position is given a row of its own in a longer table of embeddings, so that the rows' gradients tell them apart.
    """
    (B, S), T = source.ids.shape, target.ids.shape[1]
    read_BT = shift_right(target.ids, model.config.first(source))
    rows_N = jnp.concatenate([source.ids.ravel(), read_BT.ravel()])
    sizes = model.config.source_vocab_size, model.config.target_vocab_size
    longer = dataclasses.replace(
        model.config, source_vocab_size=sizes[0] + rows_N.size, target_vocab_size=sizes[1] + rows_N.size
    )
    new_source = source._replace(ids=sizes[0] + jnp.arange(B * S).reshape(B, S))
    new_read_BT = sizes[1] + B * S + jnp.arange(B * T).reshape(B, T)
    padded, own_rows = lengthened(params, abstract_params(longer), rows_N)

    def losses(own_rows: dict[str, jax.Array]) -> jax.Array:
        tables = {name: jnp.concatenate([padded[name], rows_ND]) for name, rows_ND in own_rows.items()}
        variables = {"params": unflatten_params(padded | tables)}
        wide = longer.build()
        memory = wide.apply(variables, new_source, method="encode")
        outputs, _ = wide.apply(variables, new_read_BT, memory, method="decode")
        log_probs_BTV = jax.nn.log_softmax(outputs.logits[..., : sizes[1]].astype(jnp.float32))
        nll_BT = -jnp.take_along_axis(log_probs_BTV, target.ids[..., None], axis=-1)[..., 0]
        return jnp.where(target.mask, nll_BT, 0).sum(axis=0)  # rows of a batch have nothing to do with each other

    _, backward = jax.vjp(losses, own_rows)

    def norms(one_hot_T: jax.Array) -> jax.Array:
        [gradients] = backward(one_hot_T)  # a row that is not read has none
        return jnp.sqrt(sum((g_ND**2).sum(axis=-1) for g_ND in gradients.values()))

    norms_TN = jax.lax.map(norms, jnp.eye(T))  # one token after the other: tables may be large
    return Norms(norms_TN[:, B * S :].reshape(T, B, T), norms_TN[:, : B * S].reshape(T, B, S))


def lengthened(params: PyTree, wanted: PyTree, rows_N: jax.Array) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Parameters for larger vocabularies, new entries 0, but tables of embeddings as they are; and the rows that those want."""
    padded, own_rows, wanted = {}, {}, flatten_params(wanted)
    for name, leaf in flatten_params(params).items():
        more = [(0, new - old) for new, old in zip(wanted[name].shape, leaf.shape, strict=True)]
        if name.endswith("embedding") and more[0][1]:
            padded[name], own_rows[name] = leaf, jnp.take(leaf, rows_N, axis=0, mode="clip")
        else:
            padded[name] = jnp.pad(leaf, more)
    return padded, own_rows


def flow(predictor: Predictor, test: Sequence[Example], longest: int) -> dict[str, list]:
    """Medians by lag, over pairs of tokens of the longest sources: name -> [[lag, norm, pairs], ...]."""
    sources, targets = (
        tokenizer.encode_batch([example[side] for example in test])
        for side, tokenizer in enumerate((predictor.source_tokenizer, predictor.target_tokenizer))
    )
    rows = [row for row, ids in enumerate(sources) if len(ids) <= longest and len(targets[row]) <= 2 * longest]
    rows = sorted(rows, key=lambda row: -len(sources[row]))[:EXAMPLES]
    source, target = pad_tokens([sources[row] for row in rows]), pad_tokens([targets[row] for row in rows])
    norms = jax.device_get(gradient_norms(predictor.model, predictor.params, source, target))
    t_T11, real_TB1 = np.arange(target.ids.shape[1])[:, None, None], target.mask.T[:, :, None]
    back_TBT = np.broadcast_to(t_T11 - np.arange(target.ids.shape[1]), norms.target.shape)
    s_S, length_B1 = np.arange(source.ids.shape[1]), source.mask.sum(axis=1)[:, None]
    from_end = getattr(predictor.model.config, "reverse_source", False)
    back_TBS = t_T11 + (np.broadcast_to(s_S + 1, source.ids.shape) if from_end else length_B1 - s_S)
    return {
        "target": medians(norms.target, back_TBT, real_TB1 & (back_TBT >= 0)),
        "source": medians(norms.source, back_TBS, real_TB1 & source.mask),
    }


def medians(norms: np.ndarray, lags: np.ndarray, counts: np.ndarray) -> list[list[Any]]:
    """[lag, median norm, pairs] for each lag with enough pairs that count."""
    found = []
    for lag in np.unique(lags[counts]).tolist():
        chosen = norms[counts & (lags == lag)]
        if len(chosen) >= PAIRS:
            found.append([lag, float(np.median(chosen)), len(chosen)])
    return found
