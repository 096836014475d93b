"""The searches as one compiled call on a model of the zoo."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo import core
from zoo.generate import result, select
from zoo.generate.rules import Rules
from zoo.generate.single import Greedy

SHORTEST = 8  # the smallest bucket of source lengths; the others are its doubles

Search = Any
"""``Greedy``, ``Sample``, ``Beam`` or another of ``zoo.generate``: a dataclass that JAX takes for a tree of its values."""


def generate(
    model: core.Seq2Seq,
    params: core.PyTree,
    source: core.PyTree,
    *,
    max_len: int,
    search: Search = Greedy(),  # noqa: B008
    rules: Rules = Rules(),  # noqa: B008
    attention: bool = False,
) -> result.Generated:
    """Generate for a batch of sources: encode, then search, compiled as one program.

    Batches are filled up to a power of two of rows, token sources and results to 8, 16, 32 ... tokens, so that few programs
    serve all shapes: one a search, a batch bucket and a length bucket. Padding changes no row's result, and another penalty,
    temperature, key, limit or token id compiles nothing.

    Args:
      model: any model of the contract, or an ``Ensemble`` of them.
      params: its parameters.
      source: a batch of what its ``encode`` takes.
      max_len: T, the most tokens of a result with the end token.
      search: how to search.
      rules: what may be generated; ratios count the tokens of the source.
      attention: whether to return the cross attention weights of the best hypothesis.

    Returns:
      What the search found, see ``Generated``: host arrays, but what a caller's own ``jax.jit`` traces.

    Raises:
      UserError: ``max_len`` is below 1, or a value of the search or of the rules cannot be meant.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((params, source, search, rules))):
        rules = rules.of(config_of(model), first_of(source))
        return _generate(model, params, source, search, rules, max_len=max_len, attention=attention)
    fit = fitted((model,), source, max_len, rules)
    search = search.canonical(fit.batch, fit.rows)
    found = _generate(model, params, fit.source, search, fit.rules, max_len=fit.length, attention=attention)
    return cut(found, fit.batch, max_len, source)


def score(model: core.Seq2Seq, params: core.PyTree, source: core.PyTree, target: core.Tokens) -> tuple[jax.Array, jax.Array]:
    """How probable the model finds given targets, by teacher forcing (forced decoding), compiled.

    Args:
      model: any model of the contract, or an ``Ensemble`` of them.
      params: its parameters.
      source: a batch of what its ``encode`` takes.
      target: the target tokens, with the end token where it is to count.

    Returns:
      (B,) float32 sums, and the (B, T) float32 log-probability of each token, 0 where ``target.mask`` is False.
    """
    return _score(model, params, source, target)


def bucket(size: int, smallest: int) -> int:
    """The least double of ``smallest`` that holds ``size``.

    >>> bucket(17, 8)
    32
    """
    return smallest << max(-(-int(size) // smallest) - 1, 0).bit_length()


class Fit(NamedTuple):
    """A call's arguments in its bucket: what programs are compiled for.

    Attributes:
      source: of ``rows`` rows, each ``core.Tokens`` in it as long as its bucket.
      batch, rows: the caller's sentences, and with those added, which have limit 0.
      length: T, the length of the buffers.
      rules: ``Rules.canonical``, with the limit that was asked for.
    """

    source: core.PyTree
    batch: int
    rows: int
    length: int
    rules: Rules


def fitted(models: Sequence[core.Seq2Seq], source: core.PyTree, max_len: int, rules: Rules, beyond: int = 0) -> Fit:
    """The bucket of a call of these models; a source on several devices stays as it was placed.

    Args:
      models: those that read the source and the result; none is given more positions than it has learned, if the call fits.
      beyond: how many positions more than ``max_len`` the caches hold.

    Raises:
      UserError: ``max_len`` is below 1, or a rule cannot be meant.
    """
    if max_len < 1:
        raise core.UserError(f"max_len is {max_len}: a search needs room for at least 1 token")
    batch, movable = batch_of(source), _movable(source)
    rows = bucket(batch, 1) if movable else batch
    length = room(max_len + beyond, models, bucket(max_len, SHORTEST) + beyond) - beyond
    config, mine = config_of(models[0]), first_of(source)
    most = config.most(mine)
    if most is not None and np.min(most, initial=1) < 1:
        raise core.UserError("a prompt leaves no position to go on at: shorten it, for the model has its max_len positions")
    rules = rules.of(config, mine)
    rules = rules._replace(limit=max_len if rules.limit is None else np.minimum(rules.limit, max_len))
    padded = pad_source(source, rows, models) if movable else source
    return Fit(padded, batch, rows, length, rules.canonical(batch, rows))


def config_of(model: core.Seq2Seq) -> core.ModelConfig:
    """A model's configuration; the base class's values for a model that keeps none."""
    return getattr(model, "config", core.ModelConfig())


def room(length: int, models: Sequence[core.Seq2Seq], wanted: int | None = None) -> int:
    """The bucket of a length; the positions that a model has learned, where they hold the length and not its bucket."""
    members = [member for model in models for member in getattr(model, "models", (model,))]
    learned = [most for m in members if (most := getattr(config_of(m), "max_len", None)) and most >= length]
    return min([bucket(length, SHORTEST) if wanted is None else wanted, *learned])


def pad_source(source: core.PyTree, rows: int, models: Sequence[core.Seq2Seq] = ()) -> core.PyTree:
    """A source of ``rows`` rows, each ``core.Tokens`` in it as long as its bucket."""

    def pad(leaf, length=None):
        more = [(0, rows - leaf.shape[0])] + [(0, 0)] * (leaf.ndim - 1)
        if length is not None:
            more[1] = (0, length - leaf.shape[1])
        return np.pad(np.asarray(leaf), more) if any(width for _, width in more) else leaf

    def pad_node(node):
        if isinstance(node, core.Tokens):
            length = room(node.ids.shape[1], models)
            return jax.tree.map(lambda leaf: pad(leaf, length), node)
        return pad(node)

    return jax.tree.map(pad_node, source, is_leaf=_is_tokens)


def cut(found: result.Generated, batch: int, max_len: int, source: core.PyTree) -> result.Generated:
    """The first rows and tokens of a result, on the host, its attention as long as the source."""
    found = on_host(found)
    return result.Generated(
        ids=found.ids[:batch, ..., :max_len],
        log_probs=found.log_probs[:batch, ..., :max_len],
        score=found.score[:batch],
        length=found.length[:batch],
        steps=found.steps,
        attention={name: x[:batch, :, :max_len, : _source_len(source, name)] for name, x in found.attention.items()},
    )


def on_host(tree: core.PyTree) -> core.PyTree:
    """The arrays of a tree as host arrays, those whole whose rows lie on several hosts; there all must ask."""
    if not all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree)):
        from jax.experimental import multihost_utils

        tree = multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


def _source_len(source: core.PyTree, name: str) -> int | None:
    """How long the source is that the attention of this name looks at; None where it is not made of tokens."""
    number = name.partition("/")[0]
    if isinstance(source, list) and number.isdigit():  # a source for each model of an ``Ensemble``
        source = source[int(number)]
    return source.ids.shape[1] if _is_tokens(source) else None


def _movable(source: core.PyTree) -> bool:
    """Whether no leaf lies on several devices: those were padded and placed by somebody who knows how they are shared."""
    return all(not isinstance(x, jax.Array) or len(x.sharding.device_set) == 1 for x in jax.tree.leaves(source))


def batch_of(source: core.PyTree) -> int:
    """How many sentences a source has."""
    return jax.tree.leaves(source)[0].shape[0]


def bind(model, params, source, max_len: int, rows: int):
    """What a search takes of a model: (decode, memory, cache) for ``rows`` rows a sentence."""
    variables = {"params": params}

    def decode(tokens_RN, memory, cache, attention=False):
        return model.apply(variables, tokens_RN, memory, cache, attention=attention, method="decode")

    memory = model.apply(variables, source, method="encode")
    return decode, memory, model.apply(variables, memory, max_len, rows, method="init_cache")


def first_of(source: core.PyTree) -> core.PyTree:
    """The source of an ``Ensemble``'s first model, whose configuration counts for all; of a model by itself its own."""
    return source[0] if isinstance(source, list) else source


def relate(search: Search, rules: Rules, source: core.PyTree, model: core.Seq2Seq) -> tuple[Search, Rules]:
    """The search and the rules with what they need to know of the source."""
    ratios = rules.relative
    if config_of(model).decoder_only and (rules.repetition is not None or rules.ngram is not None):
        rules = rules._replace(prompt=first_of(source))
    if rules.source_ngram is not None:
        rules = rules._replace(source=first_of(source))
    covers = getattr(search, "coverage", None) is not None and search.source_mask is None
    if ratios or covers:
        mask = next((x.mask for x in jax.tree.leaves(source, is_leaf=_is_tokens) if _is_tokens(x)), None)
        if mask is None:
            what = "a length relative to the source" if ratios else "coverage"
            raise core.UserError(f"{what} needs a source of tokens, not {type(source).__name__}: give absolute lengths")
        rules = rules.relative_to(mask.sum(axis=1))
        search = dataclasses.replace(search, source_mask=mask) if covers else search
    return search, rules


def _is_tokens(x) -> bool:
    return isinstance(x, core.Tokens)


@functools.partial(jax.jit, static_argnames=("model", "max_len", "attention"))
def _generate(model, params, source, search, rules, *, max_len, attention):
    search, rules = relate(search, rules, source, model)
    decode, memory, cache = bind(model, params, source, max_len, search.rows)
    return search(decode, memory, cache, batch_of(source), max_len, rules, attention)


@functools.partial(jax.jit, static_argnames="model")
def _score(model, params, source, target):
    logits_BTV = select.clean(model.apply({"params": params}, source, target).logits)
    batch, length, vocab = logits_BTV.shape
    normaliser_BT = select.log_sum_exp(logits_BTV.reshape(batch * length, vocab)).reshape(batch, length)
    logit_BT = jnp.take_along_axis(logits_BTV, target.ids[:, :, None], axis=2)[:, :, 0]
    log_probs_BT = jnp.where(target.mask, select.log_prob(logit_BT, normaliser_BT), 0.0)
    return jnp.sum(log_probs_BT, axis=1), log_probs_BT
