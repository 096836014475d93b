"""Tokens as they are made: greedy search and sampling, one step at a time, for a reader who does not wait for the end."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax import lax

from zoo import core
from zoo.generate import facade, single
from zoo.generate.rules import Rules
from zoo.generate.single import Greedy, Sample


class Step(NamedTuple):
    """The next token of each of R rows: B sentences of S samples (1 unless ``Sample`` asks for more), sentence by sentence.

    Attributes:
      token: (R,) int32; the padding id in rows that had ended before.
      log_prob: (R,) float32, the model's own log-probability of it; 0 in rows that had ended before.
      done: (R,) bool, whether the row ends here or has ended.
    """

    token: np.ndarray
    log_prob: np.ndarray
    done: np.ndarray


def stream(
    model: core.Seq2Seq,
    params: core.PyTree,
    source: core.PyTree,
    *,
    max_len: int,
    search: Greedy | Sample = Greedy(),  # noqa: B008
    rules: Rules = Rules(),  # noqa: B008
) -> Iterator[Step]:
    """Generate as ``generate`` does with the same arguments, but hand over each token as it is made.

    Two programs are compiled for each of ``generate``'s buckets: one encodes, the other makes a token and updates the cache in
    place. The device is always one token ahead of the reader; who stops reading loses that one. Encoding starts at once.

    Args:
      model: any model of the contract, or an ``Ensemble`` of them.
      params: its parameters.
      source: a batch of what its ``encode`` takes.
      max_len: the most tokens of a row with the end token.
      search: ``Greedy()`` or ``Sample(...)``.
      rules: what may be generated; ratios count the tokens of the source.

    Returns:
      An iterator of host arrays, as many as the longest row has tokens.

    Raises:
      UserError: another search, ``max_len`` is below 1, or a value of the search or of the rules cannot be meant.
    """
    if not isinstance(search, (Greedy, Sample)):
        raise core.UserError(f"search is {type(search).__name__}: stream Greedy() or Sample(...); for the others use generate")
    fit = facade.fitted((model,), source, max_len, rules)
    search = search.canonical(fit.batch, fit.rows)
    state, memory, search, rules, done_R = _start(model, params, fit.source, search, fit.rules, max_len=fit.length)
    make = functools.partial(_step, model, params, memory, search, rules)
    return _read(make, state, done_R, max_len, fit.batch * search.rows)


def _read(make, state: single.State, done_R: jax.Array, max_len: int, rows: int) -> Iterator[Step]:
    """The first ``rows`` rows of each step on the host, the next step always under way before one is read."""
    ahead = make(state)
    for left in reversed(range(max_len)):
        if np.all(done_R):
            return
        state, now = ahead
        ahead = make(state) if left else None
        now = jax.device_get(now)
        yield Step(*(x[:rows] for x in now))
        done_R = now.done


@functools.partial(jax.jit, static_argnames=("model", "max_len"))
def _start(model, params, source, search, rules, *, max_len):
    search, rules = facade.relate(search, rules, source, model)
    _, memory, cache = facade.bind(model, params, source, max_len, search.rows)
    batch = facade.batch_of(source)
    state = single.begin(cache, batch * search.rows, max_len, rules, batch)
    return state, memory, search, rules, state.done_R


@functools.partial(jax.jit, static_argnames="model", donate_argnames="state")
def _step(model, params, memory, search, rules, state):
    def decode(tokens_RN, memory, cache):
        return model.apply({"params": params}, tokens_RN, memory, cache, method="decode")

    state = single.step(decode, memory, state, rules, search.chooser(state.limit_B.shape[0]))
    log_prob_R = lax.dynamic_index_in_dim(state.log_probs_RT, state.step - 1, axis=1, keepdims=False)
    return state, Step(state.last_R, log_prob_R, state.done_R)
