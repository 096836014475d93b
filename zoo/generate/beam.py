"""Beam search: several hypotheses a sentence, the best kept after each token.

Candidates. Each step ranks the continuations of a sentence's live beams by the sum of their log-probabilities. An end token
among the first ``beams`` closes a hypothesis; the best ``beams`` of the others live on (Sutskever et al. 2014, section 3.2,
as fairseq and transformers do it). So one beam without a penalty is greedy search.

Bank. Closed hypotheses compete under the length penalty for ``n_best`` places of their own and never for a beam. A live beam
that reaches the row's limit is closed there as it is: the space searched is every sequence that ends or is cut at the limit.

Stop. A sentence is finished when no live beam can still beat the worst kept hypothesis. Log-probabilities only fall and the
penalty is monotone in the length, so the most that a beam can reach is its sum now, penalised at the shortest or the longest
length left to it: stopping never changes the result.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zoo import core
from zoo.generate import result, select


class _Hypotheses(NamedTuple):
    """N hypotheses of each sentence, best first by ``score``: a sum while they live, penalised once closed."""

    score_BN: jax.Array
    ids_BNT: jax.Array
    log_probs_BNT: jax.Array
    length_BN: jax.Array


class _State(NamedTuple):
    step: jax.Array
    live: _Hypotheses
    bank: _Hypotheses
    last_BW: jax.Array
    done_B: jax.Array
    cache: core.PyTree


def gnmt_penalty(length: jax.Array, alpha: jax.Array | float) -> jax.Array:
    """What a sum is divided by: ((5 + length) / 6) ** alpha, float32 (Wu et al. 2016, equation 14).

    >>> float(gnmt_penalty(jnp.array(7), 1.0))
    2.0
    """
    return ((5.0 + length.astype(jnp.float32)) / 6.0) ** jnp.asarray(alpha, jnp.float32)


def reorder(cache: core.PyTree, parent_BW: jax.Array) -> core.PyTree:
    """Give each beam the state of the beam that it continues. The one place where a search touches a cache.

    Args:
      cache: leaves of B * W rows; scalar leaves are shared and stay.
      parent_BW: (B, W) int32, the beam of the same sentence that each beam grew from.
    """
    batch, beams = parent_BW.shape
    if beams == 1:
        return cache
    row_R = (parent_BW + beams * jnp.arange(batch)[:, None]).reshape(-1)
    return jax.tree.map(lambda x: x if jnp.ndim(x) == 0 else x.at[row_R].get(mode="promise_in_bounds"), cache)


def beam_search(
    decode: result.DecodeFn,
    memory: core.PyTree,
    cache: core.PyTree,
    batch: int,
    max_len: int,
    *,
    beams: int = 4,
    alpha: jax.Array | float = 1.0,
    n_best: int | None = None,
    limit_B: jax.Array | int | None = None,
    min_len: jax.Array | int = 0,
    start_id: int = core.BOS,
    end_id: int = core.EOS,
    pad_id: int = core.PAD,
    attention: bool = False,
) -> result.Generated:
    """The best hypotheses that ``beams`` live ones at a time lead to; this file's docstring has the rules.

    Ties go to the hypothesis closed first, then to the better-ranked beam, then to the lower id. A sentence with fewer
    hypotheses than asked for fills up with empty ones of score -inf; NaN counts as impossible.

    Args:
      decode: see ``result.DecodeFn``.
      memory: whatever ``decode`` reads of the source, one row a sentence.
      cache: the decoder's state before the first token, for ``beams`` rows a sentence and ``max_len`` tokens.
      batch: B, the number of sentences.
      max_len: T, the length of the buffers.
      beams: W, the live hypotheses of a sentence.
      alpha: () float, the exponent of ``gnmt_penalty``: 0 none, above 0 favours longer hypotheses.
      n_best: how many hypotheses to return of each sentence, at most ``beams``; None for the best without an axis.
      limit_B: (B,) or () int, the most tokens of each row with the end token, at most ``max_len``, which is the default.
        0 gives an empty row.
      min_len: (B,) or () int, the fewest tokens with the end token; the limit goes first.
      start_id: what the decoder reads first.
      end_id: what ends a hypothesis.
      pad_id: what stands after the end.
      attention: whether to return the cross attention weights of the best hypothesis.

    Returns:
      The hypotheses; ``score`` is penalised.

    Raises:
      UserError: ``max_len`` or ``beams`` is below 1, or ``n_best`` not within 1 ... ``beams``.
    """
    keep = 1 if n_best is None else n_best
    if beams < 1:
        raise core.UserError(f"beams is {beams}: a search needs at least 1")
    if not 1 <= keep <= beams:
        raise core.UserError(f"n_best is {keep}: ask for 1 to {beams}, the number of beams")
    limit_B = result.row_limits(limit_B, batch, max_len)
    min_len_B = jnp.broadcast_to(jnp.asarray(min_len, jnp.int32), (batch,))

    def step(state: _State) -> _State:
        outputs, cache = decode(state.last_BW.reshape(-1, 1), memory, state.cache)
        end_R = core.per_beam(state.step + 1 >= min_len_B, batch * beams)
        logits_RV = select.clean(outputs.logits[:, 0])
        allowed_RV = select.mask_tokens(logits_RV, end_R, start_id, end_id, pad_id)
        candidates, token_BC, parent_BC = _expand(state.live, logits_RV, allowed_RV, state.step)

        length, limit_B1 = state.step + 1, limit_B[:, None]
        ends_BC = token_BC == end_id
        closes_BC = jnp.where(ends_BC, (jnp.arange(token_BC.shape[1]) < beams)[None], length >= limit_B1)
        score_BC = candidates.score_BN / gnmt_penalty(length, alpha)
        closed = candidates._replace(score_BN=jnp.where(closes_BC & ~state.done_B[:, None], score_BC, -jnp.inf))
        bank, _ = _best(_join(state.bank, closed), keep)
        live, from_BW = _best(candidates._replace(score_BN=jnp.where(ends_BC, -jnp.inf, candidates.score_BN)), beams)

        best_B = live.score_BN[:, 0]
        reach_B = jnp.maximum(best_B / gnmt_penalty(length + 1, alpha), best_B / gnmt_penalty(limit_B, alpha))
        return _State(
            step=length,
            live=live,
            bank=bank,
            last_BW=jnp.take_along_axis(token_BC, from_BW, axis=1),
            done_B=state.done_B | (length >= limit_B) | (reach_B <= bank.score_BN[:, -1]),
            cache=reorder(cache, jnp.take_along_axis(parent_BC, from_BW, axis=1)),
        )

    start = _State(
        step=jnp.int32(0),
        live=_blank(jnp.ones((batch,), bool), beams, max_len, pad_id),
        bank=_blank(limit_B == 0, keep, max_len, pad_id),
        last_BW=jnp.full((batch, beams), start_id, jnp.int32),
        done_B=limit_B == 0,
        cache=cache,
    )
    end = lax.while_loop(lambda state: jnp.any(~state.done_B), step, start)
    best_ids_BT, best_length_B = end.bank.ids_BNT[:, 0], end.bank.length_BN[:, 0]
    hypotheses = end.bank if n_best is not None else jax.tree.map(lambda x: x[:, 0], end.bank)
    return result.Generated(
        ids=hypotheses.ids_BNT,
        log_probs=hypotheses.log_probs_BNT,
        score=hypotheses.score_BN,
        length=hypotheses.length_BN,
        steps=end.step,
        attention=result.cross_attention(decode, memory, best_ids_BT, best_length_B, start_id) if attention else {},
    )


def _blank(first_B: jax.Array, count: int, max_len: int, pad_id: int) -> _Hypotheses:
    """Empty hypotheses: of score 0 the first where ``first_B`` is True, impossible (-inf) the others."""
    batch = first_B.shape[0]
    possible_BN = first_B[:, None] & (jnp.arange(count) == 0)[None]
    return _Hypotheses(
        score_BN=jnp.where(possible_BN, 0.0, -jnp.inf).astype(jnp.float32),
        ids_BNT=jnp.full((batch, count, max_len), pad_id, jnp.int32),
        log_probs_BNT=jnp.zeros((batch, count, max_len), jnp.float32),
        length_BN=jnp.zeros((batch, count), jnp.int32),
    )


def _expand(
    live: _Hypotheses, logits_RV: jax.Array, allowed_RV: jax.Array, step: jax.Array
) -> tuple[_Hypotheses, jax.Array, jax.Array]:
    """The best 2W continuations of each sentence, best first, with the token and the parent beam of each, (B, C) int32.

    2W, for at most W of them end. And of one beam W + 1 are enough: W that go on and one that ends.
    """
    batch, beams = live.score_BN.shape
    logit_RK, token_RK = select.top_k(allowed_RV, min(beams + 1, allowed_RV.shape[1]))
    log_prob_RK = select.log_prob(logit_RK, select.log_sum_exp(logits_RV)[:, None])
    sum_BM = (live.score_BN.reshape(-1, 1) + log_prob_RK).reshape(batch, -1)
    sum_BC, from_BC = lax.top_k(sum_BM, min(2 * beams, sum_BM.shape[1]))
    token_BC = jnp.take_along_axis(token_RK.reshape(batch, -1), from_BC, axis=1)
    log_prob_BC = jnp.take_along_axis(log_prob_RK.reshape(batch, -1), from_BC, axis=1)
    parent_BC = from_BC // token_RK.shape[1]
    grown = _take(live, parent_BC)
    candidates = _Hypotheses(
        score_BN=sum_BC,
        ids_BNT=lax.dynamic_update_slice_in_dim(grown.ids_BNT, token_BC[:, :, None], step, axis=2),
        log_probs_BNT=lax.dynamic_update_slice_in_dim(grown.log_probs_BNT, log_prob_BC[:, :, None], step, axis=2),
        length_BN=grown.length_BN + 1,
    )
    return candidates, token_BC, parent_BC


def _join(first: _Hypotheses, second: _Hypotheses) -> _Hypotheses:
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), first, second)


def _take(hypotheses: _Hypotheses, index_BN: jax.Array) -> _Hypotheses:
    def take(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, index_BN if x.ndim == 2 else index_BN[:, :, None], axis=1)

    return jax.tree.map(take, hypotheses)


def _best(hypotheses: _Hypotheses, count: int) -> tuple[_Hypotheses, jax.Array]:
    """The ``count`` best of each sentence, earlier ones first among equals, and where they stood, (B, count) int32."""
    _, index_BN = lax.top_k(hypotheses.score_BN, count)
    return _take(hypotheses, index_BN), index_BN
