"""Searches in which no hypothesis competes with another: greedy, and sampling one or several outputs of each sentence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zoo import core
from zoo.generate import result, sampling, select
from zoo.generate.rules import Rules


class State(NamedTuple):
    """R rows in the middle of being generated: what ``step`` takes and returns."""

    step: jax.Array
    last_R: jax.Array
    done_R: jax.Array
    ids_RT: jax.Array
    log_probs_RT: jax.Array
    length_R: jax.Array
    limit_B: jax.Array
    cache: core.PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Greedy:
    """The most probable next token, again and again, in one loop that ends when every row has ended.

    The lowest id wins a tie, and NaN counts as impossible. A row that has not ended at its limit is cut there. Where no token
    is possible the row ends with the end token at log-probability -inf.
    """

    rows = 1  # of each sentence

    def __call__(
        self,
        decode: result.DecodeFn,
        memory: core.PyTree,
        cache: core.PyTree,
        batch: int,
        max_len: int,
        rules: Rules = Rules(),  # noqa: B008
        attention: bool = False,
    ) -> result.Generated:
        """Search.

        Args:
          decode: see ``result.DecodeFn``.
          memory: whatever ``decode`` reads of the source, one row a sentence.
          cache: the decoder's state before the first token, for ``self.rows`` rows a sentence and ``max_len`` tokens.
          batch: B, the number of sentences.
          max_len: T, the length of the buffers.
          rules: what may be generated.
          attention: whether to return the cross attention weights.

        Raises:
          UserError: ``max_len`` is below 1.
        """
        rules = rules.of(core.ModelConfig())
        end = run(decode, memory, begin(cache, batch, max_len, rules), rules, self.chooser(batch))
        weights = result.cross_attention(decode, memory, end.ids_RT, end.length_R, rules.first(batch)) if attention else {}
        return _generated(end, weights)

    def chooser(self, batch: int) -> Callable:
        """The function (logits (R, V), step) -> tokens (R,) that this search is."""
        del batch
        return lambda logits_RV, step: select.argmax(logits_RV)[1]

    def canonical(self, batch: int, rows: int) -> Greedy:
        return self


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sample:
    """Draw each next token from the model's distribution, changed in this order by whatever is given.

    A row's draws depend on its sentence's key, its number among the samples and the step: not on the batch or its padding.

    Attributes:
      key: () a PRNG key, of which sentence b uses ``fold_in(key, b)``; or (B,) a key of each sentence's own.
      temperature: () float above 0; below 1 sharper than the model, above 1 flatter.
      top_k, top_p, min_p, typical: see ``zoo.generate.sampling``.
      samples: how many outputs of each sentence, as axis 1 of the result; None for one without an axis.
    """

    key: jax.Array
    temperature: jax.Array | float = 1.0
    top_k: jax.Array | int | None = None
    top_p: jax.Array | float | None = None
    min_p: jax.Array | float | None = None
    typical: jax.Array | float | None = None
    samples: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def rows(self) -> int:
        """Rows of each sentence."""
        return self.samples or 1

    def __call__(self, decode, memory, cache, batch, max_len, rules=Rules(), attention=False) -> result.Generated:  # noqa: B008
        """Search; see ``Greedy``. The attention is the first sample's."""
        rules = rules.of(core.ModelConfig())
        end = run(decode, memory, begin(cache, batch * self.rows, max_len, rules, batch), rules, self.chooser(batch))
        first = end._replace(ids_RT=end.ids_RT[:: self.rows], length_R=end.length_R[:: self.rows])
        weights = result.cross_attention(decode, memory, first.ids_RT, first.length_R, rules.first(batch)) if attention else {}
        found = _generated(end, weights)
        if self.samples is None:
            return found
        split = lambda x: x.reshape(batch, self.samples, *x.shape[1:])  # noqa: E731
        return found._replace(**{name: split(getattr(found, name)) for name in ("ids", "log_probs", "score", "length")})

    def chooser(self, batch: int) -> Callable:
        """The function (logits (R, V), step) -> tokens (R,) that this search is."""
        key_R = sampling.row_keys(self.key, batch, self.rows)

        def choose(logits_RV, step):
            logits_RV = self.distribution(logits_RV.astype(jnp.float32))
            return select.argmax(logits_RV + sampling.gumbel(key_R, step, logits_RV.shape[1]))[1]

        return choose

    def distribution(self, logits_RV: jax.Array) -> jax.Array:
        """The logits of the distribution that is sampled from."""
        logits_RV = sampling.temper(logits_RV, self.temperature)
        for name in ("top_k", "top_p", "min_p", "typical"):
            if (value := getattr(self, name)) is not None:
                logits_RV = getattr(sampling, name)(logits_RV, value)
        return logits_RV

    def canonical(self, batch: int, rows: int) -> Sample:
        """With values of fixed dtypes and a key for each of ``rows`` sentences.

        Raises:
          UserError: a value that cannot be meant.
        """
        if not self.temperature > 0:
            raise core.UserError(f"temperature is {self.temperature}: it must be above 0 (0 would be greedy search)")
        if self.top_k is not None and self.top_k < 1:
            raise core.UserError(f"top_k is {self.top_k}: keep at least 1 token, or None for all")
        for name in ("top_p", "min_p", "typical"):
            if (value := getattr(self, name)) is not None and not 0 < value <= 1:
                raise core.UserError(f"{name} is {value}: it must be above 0 and at most 1, or None")
        if self.samples is not None and self.samples < 1:
            raise core.UserError(f"samples is {self.samples}: draw at least 1 of each sentence")
        return dataclasses.replace(
            self,
            key=sentence_keys(self.key, batch, rows),
            **{name: None if (x := getattr(self, name)) is None else np.float32(x) for name in ("top_p", "min_p", "typical")},
            temperature=np.float32(self.temperature),
            top_k=None if self.top_k is None else np.int32(self.top_k),
        )


def sentence_keys(key: jax.Array, batch: int, rows: int) -> jax.Array:
    """A search's key as it is, or its ``batch`` keys filled up to ``rows``.

    Raises:
      UserError: no key, or another number of keys.
    """
    if not isinstance(key, jax.Array) or not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise core.UserError(f"key is {key!r}: give a PRNG key, such as jax.random.key(0)")
    if key.ndim and key.shape != (batch,):
        raise core.UserError(f"key has the shape {key.shape}: give one key, or one for each of the {batch} sentences")
    return key if key.ndim == 0 or rows == batch else key[np.minimum(np.arange(rows), batch - 1)]


def begin(cache: core.PyTree, rows: int, max_len: int, rules: Rules, batch: int | None = None) -> State:
    """The state before the first token of ``rows`` rows of ``batch`` sentences."""
    limit_B = rules.limits(rows if batch is None else batch, max_len)
    return State(
        step=jnp.int32(0),
        last_R=rules.first(rows),
        done_R=core.per_beam(limit_B == 0, rows),
        ids_RT=jnp.full((rows, max_len), rules.pad_id, jnp.int32),
        log_probs_RT=jnp.zeros((rows, max_len), jnp.float32),
        length_R=jnp.zeros((rows,), jnp.int32),
        limit_B=limit_B,
        cache=cache,
    )


def step(decode: result.DecodeFn, memory: core.PyTree, state: State, rules: Rules, choose: Callable) -> State:
    """One more token of every row that has not ended."""
    outputs, cache = decode(state.last_R[:, None], memory, state.cache)
    return advance(state, select.clean(outputs.logits[:, 0]), cache, rules, choose)


def advance(state: State, logits_RV: jax.Array, cache: core.PyTree, rules: Rules, choose: Callable) -> State:
    """The state once each row has taken the token that ``choose`` makes of its clean logits, under the rules."""
    R, batch = state.last_R.shape[0], state.limit_B.shape[0]
    normaliser_R = select.log_sum_exp(logits_RV)
    changed_RV = select.clean(rules.change(logits_RV, state.ids_RT, state.step, None)) if rules.changes else logits_RV
    allowed_RV = rules.forbid(changed_RV, state.step, batch)
    token_R = choose(allowed_RV, state.step)
    possible_R = jnp.take_along_axis(allowed_RV, token_R[:, None], axis=1)[:, 0] > -jnp.inf
    forced_R = core.per_beam(rules.forced(batch, state.step, state.limit_B), R)
    token_R = jnp.where(forced_R >= 0, forced_R, jnp.where(possible_R, token_R, rules.end_id))
    logit_R = jnp.take_along_axis(logits_RV, token_R[:, None], axis=1)[:, 0]
    logit_R = jnp.where(possible_R | (forced_R >= 0), logit_R, -jnp.inf)
    token_R = jnp.where(state.done_R, rules.pad_id, token_R)
    log_prob_R = jnp.where(state.done_R, 0.0, select.log_prob(logit_R, normaliser_R))
    ids_RT = lax.dynamic_update_slice_in_dim(state.ids_RT, token_R[:, None], state.step, axis=1)
    ended_R = rules.ends(token_R, ids_RT, state.step) & (state.step >= core.per_beam(rules.prefix_length(batch), R))
    return state._replace(
        step=state.step + 1,
        last_R=token_R,
        done_R=state.done_R | ended_R | (state.step + 1 >= core.per_beam(state.limit_B, R)),
        ids_RT=ids_RT,
        log_probs_RT=lax.dynamic_update_slice_in_dim(state.log_probs_RT, log_prob_R[:, None], state.step, axis=1),
        length_R=state.length_R + ~state.done_R,
        cache=cache,
    )


def run(decode: result.DecodeFn, memory: core.PyTree, state: State, rules: Rules, choose: Callable) -> State:
    """Steps until every row has ended."""
    return lax.while_loop(lambda s: jnp.any(~s.done_R), lambda s: step(decode, memory, s, rules, choose), state)


def _generated(end: State, attention: dict[str, jax.Array]) -> result.Generated:
    score_R = jnp.sum(end.log_probs_RT, axis=1)
    return result.Generated(end.ids_RT, end.log_probs_RT, score_R, end.length_R, end.step, attention)
