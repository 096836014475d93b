"""Speculative decoding: a small model guesses several tokens ahead, the large one reads them all in one call.

Leviathan et al. 2023 (arXiv:2211.17192, algorithm 1) and Chen et al. 2023 (arXiv:2302.01318, algorithm 2), with the greedy
choice for the distribution: a guess is kept where it is the very token that the large model, the target, chooses, so that the
result is the target's own greedy search. Each round keeps the guesses up to the first wrong one and puts the target's token in
its place, or adds that token where all were right: 1 to ``draft_len`` + 1 tokens for one call of the target.

Batches. Rows go on in lockstep, by the fewest tokens that any row that has not ended can keep: a cache counts positions once
for all rows. Expect the most of one sentence, and little of many.

Caches. What a round read too much is taken back. A cache that is ``core.AppendOnly`` but for counters only needs them set back:
what stands behind is written over (Transformer). A state cannot be unread: there the target reads the guesses one by one and
keeps the states of all, which is right but no faster than greedy search (recurrent models).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zoo import core
from zoo.generate import facade, result, select, single
from zoo.generate.rules import Rules


class _State(NamedTuple):
    """The target's rows as greedy search has them, the draft's cache beside them: both have read all tokens but the last."""

    target: single.State
    draft_cache: core.PyTree
    rounds: jax.Array


def speculative(
    model: core.Seq2Seq,
    params: core.PyTree,
    draft: core.Seq2Seq,
    draft_params: core.PyTree,
    source: core.PyTree,
    *,
    max_len: int,
    draft_len: int = 4,
    rules: Rules = Rules(),  # noqa: B008
) -> result.Generated:
    """``generate(model, params, source, search=Greedy())`` with the help of another model, compiled as one program.

    The same tokens but for rounding: a call with several tokens may tell two nearly equal logits apart in another way. Buckets
    are ``generate``'s. The caches hold the bucket of ``max_len`` and ``draft_len`` positions: as many must be learned, if any.

    Args:
      model: the target: any model of the contract, or an ``Ensemble`` of them.
      params: its parameters.
      draft: the model that guesses, of any family; it reads the same source.
      draft_params: its parameters.
      source: a batch of what their ``encode`` takes.
      max_len: T, the most tokens of a result with the end token.
      draft_len: how many tokens the draft guesses a round; another number compiles another program.
      rules: what may be generated; they hold for the guesses too.

    Returns:
      The target's tokens and log-probabilities, see ``Generated``; ``steps`` counts the rounds, in each of which the target
      reads ``draft_len`` + 1 tokens.

    Raises:
      UserError: the target vocabularies differ, ``draft_len`` or ``max_len`` is below 1, or a rule cannot be meant.
    """
    sizes = model.config.target_vocab_size, draft.config.target_vocab_size
    if sizes[0] != sizes[1]:
        raise core.UserError(
            f"model and draft have target vocabularies of {sizes[0]} and {sizes[1]} entries: they need the same"
        )
    if draft_len < 1:
        raise core.UserError(f"draft_len is {draft_len}: the draft guesses at least 1 token a round; generate needs no draft")
    fit = facade.fitted((model, draft), source, max_len, rules, draft_len)
    found = _speculate(model, params, draft, draft_params, fit.source, fit.rules, max_len=fit.length, draft_len=draft_len)
    return facade.cut(found, fit.batch, max_len, source)


@functools.partial(jax.jit, static_argnames=("model", "draft", "max_len", "draft_len"))
def _speculate(model, params, draft, draft_params, source, rules, *, max_len, draft_len):
    search, rules = facade.relate(single.Greedy(), rules, source, model)
    # Guesses may stand behind the rows' limits, which ``rules`` has within ``max_len``.
    batch, length = facade.batch_of(source), max_len + draft_len
    decode, memory, cache = facade.bind(model, params, source, length, 1)
    draft_decode, draft_memory, draft_cache = facade.bind(draft, draft_params, source, length, 1)
    choose = search.chooser(batch)

    def one_round(state: _State) -> _State:
        known = state.target
        guesses_RN, draft_back = propose(
            draft_decode, draft_memory, known._replace(cache=state.draft_cache), rules, choose, draft_len
        )
        read_RN = jnp.concatenate([known.last_R[:, None], guesses_RN], axis=1)
        logits_RNV, back = read(decode, memory, known.cache, read_RN)
        target = accept(known._replace(cache=None), logits_RNV, guesses_RN, rules, choose)
        kept = target.step - known.step
        return _State(target._replace(cache=back(kept)), draft_back(kept), state.rounds + 1)

    start = _State(single.begin(cache, batch, length, rules), draft_cache, jnp.int32(0))
    end = lax.while_loop(lambda state: jnp.any(~state.target.done_R), one_round, start)
    ids_RT, log_probs_RT = end.target.ids_RT[:, :max_len], end.target.log_probs_RT[:, :max_len]
    return result.Generated(ids_RT, log_probs_RT, jnp.sum(log_probs_RT, axis=1), end.target.length_R, end.rounds, {})


def propose(
    decode: result.DecodeFn, memory: core.PyTree, state: single.State, rules: Rules, choose: Callable, count: int
) -> tuple[jax.Array, Callable]:
    """The draft's next tokens, (R, count) int32, and the function from a number of tokens kept to its cache then.

    It takes one step more than it guesses, so that it has read its last guess if that is kept.
    """

    def one(state, _):
        state = single.step(decode, memory, state, rules, choose)
        return state, states(state.cache)

    end, states_N = lax.scan(one, state, None, length=count + 1)
    guesses_RN = lax.dynamic_slice_in_dim(end.ids_RT, state.step, count, axis=1)
    return guesses_RN, lambda kept: pick(end.cache, states_N, kept)


def read(decode: result.DecodeFn, memory: core.PyTree, cache: core.PyTree, tokens_RN: jax.Array) -> tuple[jax.Array, Callable]:
    """The logits after each of N tokens, (R, N, V), and the function from a number of them kept (1 ... N) to the cache then."""
    if only_counts(cache):
        outputs, after = decode(tokens_RN, memory, cache)
        return outputs.logits, lambda kept: rewind(after, tokens_RN.shape[1] - kept)

    def one(cache, token_R):
        outputs, cache = decode(token_R[:, None], memory, cache)
        return cache, (outputs.logits[:, 0], states(cache))

    after, (logits_NRV, states_N) = lax.scan(one, cache, tokens_RN.T)
    return logits_NRV.swapaxes(0, 1), lambda kept: pick(after, states_N, kept)


def accept(state: single.State, logits_RNV: jax.Array, guesses_RN: jax.Array, rules: Rules, choose: Callable) -> single.State:
    """The state after the target's own tokens, up to the first that is not what every row that goes on had guessed.

    Args:
      state: before the guesses, without a cache.
      logits_RNV: what the target says after the last token and after each guess: N = 1 + the number of guesses.
      guesses_RN: (R, N - 1) int32.
    """
    start = state.step

    def one(carry):
        state, _ = carry
        number = state.step - start
        logits_RV = lax.dynamic_index_in_dim(logits_RNV, number, axis=1, keepdims=False)
        state = single.advance(state, select.clean(logits_RV), None, rules, choose)
        guess_R = lax.dynamic_index_in_dim(guesses_RN, number, axis=1, keepdims=False)  # any after the last: it goes no further
        right = jnp.all(state.done_R | (state.last_R == guess_R)) & jnp.any(~state.done_R)
        return state, right & (number < guesses_RN.shape[1])

    return lax.while_loop(lambda carry: carry[1], one, (state, jnp.bool_(True)))[0]


def only_counts(cache: core.PyTree) -> bool:
    """Whether a cache is counters beside what is written once: then ``rewind`` takes tokens back."""
    return all(jnp.ndim(leaf) == 0 for leaf in jax.tree.leaves(states(cache)))


def rewind(cache: core.PyTree, count: jax.Array) -> core.PyTree:
    """A cache of which ``only_counts`` is true, as it was ``count`` tokens ago: what stands behind is written over unread."""
    return _map(lambda leaf: leaf - count, cache)


def states(cache: core.PyTree) -> core.PyTree:
    """The cache without its ``core.AppendOnly``: what each step replaces."""
    return jax.tree.map(lambda x: None if _stays(x) else x, cache, is_leaf=_stays)


def pick(cache: core.PyTree, states_N: core.PyTree, kept: jax.Array) -> core.PyTree:
    """The cache as it was after ``kept`` of N steps, of which ``states_N`` are the ``states`` along a new axis 0."""
    return _map(lambda _, past_N: lax.dynamic_index_in_dim(past_N, kept - 1, keepdims=False), cache, states_N)


def _map(function: Callable, cache: core.PyTree, *others: core.PyTree) -> core.PyTree:
    return jax.tree.map(lambda x, *y: x if _stays(x) else function(x, *y), cache, *others, is_leaf=_stays)


def _stays(x) -> bool:
    return isinstance(x, core.AppendOnly)
