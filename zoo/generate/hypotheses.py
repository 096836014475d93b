"""Several hypotheses of each sentence as arrays, and what every search over them does: keep the best, grow, reorder caches."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zoo import core
from zoo.generate import select
from zoo.generate.rules import Rules


class Hypotheses(NamedTuple):
    """N hypotheses of each sentence. ``score_BN`` is a sum while they live and penalised once they are closed; -inf: none."""

    score_BN: jax.Array
    ids_BNT: jax.Array
    log_probs_BNT: jax.Array
    length_BN: jax.Array


class Continuations(NamedTuple):
    """C ways to go on from each sentence's hypotheses, best first where they come from a choice.

    Attributes:
      total_BC: the sum of the search's scores with the new token.
      token_BC: the token; parent_BC: the hypothesis it continues, within the sentence.
      log_prob_BC: the model's log-probability of the token.
    """

    total_BC: jax.Array
    token_BC: jax.Array
    parent_BC: jax.Array
    log_prob_BC: jax.Array

    def at(self, index_BN: jax.Array) -> Continuations:
        """Those that stand at these places."""
        return Continuations(*(jnp.take_along_axis(x, index_BN, axis=1) for x in self))


def blank(first_B: jax.Array, count: int, max_len: int, pad_id: jax.Array | int) -> Hypotheses:
    """Empty hypotheses: of score 0 the first where ``first_B`` is True, impossible (-inf) the others."""
    batch = first_B.shape[0]
    possible_BN = first_B[:, None] & (jnp.arange(count) == 0)[None]
    return Hypotheses(
        score_BN=jnp.where(possible_BN, 0.0, -jnp.inf).astype(jnp.float32),
        ids_BNT=jnp.full((batch, count, max_len), pad_id, jnp.int32),
        log_probs_BNT=jnp.zeros((batch, count, max_len), jnp.float32),
        length_BN=jnp.zeros((batch, count), jnp.int32),
    )


def take(tree: core.PyTree, index_BN: jax.Array) -> core.PyTree:
    """Of each leaf (B, M, ...) the entries at these places along axis 1: (B, N, ...)."""
    return jax.tree.map(lambda x: jnp.take_along_axis(x, jnp.expand_dims(index_BN, tuple(range(2, x.ndim))), axis=1), tree)


def join(first: Hypotheses, second: Hypotheses) -> Hypotheses:
    """Both, side by side."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), first, second)


def best(hypotheses: Hypotheses, count: int) -> tuple[Hypotheses, jax.Array]:
    """The ``count`` best of each sentence, earlier ones first among equals, and where they stood, (B, count) int32."""
    _, index_BN = lax.top_k(hypotheses.score_BN, count)
    return take(hypotheses, index_BN), index_BN


def grow(hypotheses: Hypotheses, chosen: Continuations, step: jax.Array) -> Hypotheses:
    """Each chosen continuation as a hypothesis, with its sum as the score."""
    grown = take(hypotheses, chosen.parent_BC)
    return Hypotheses(
        score_BN=chosen.total_BC,
        ids_BNT=lax.dynamic_update_slice_in_dim(grown.ids_BNT, chosen.token_BC[:, :, None], step, axis=2),
        log_probs_BNT=lax.dynamic_update_slice_in_dim(grown.log_probs_BNT, chosen.log_prob_BC[:, :, None], step, axis=2),
        length_BN=grown.length_BN + 1,
    )


def scored(logits_RV: jax.Array, live: Hypotheses, step: jax.Array, rules: Rules) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a search chooses from: scores (R, V) with nothing banned yet, clean logits (R, V), the rows' normalisers (R,)."""
    logits_RV = select.clean(logits_RV)
    normaliser_R = select.log_sum_exp(logits_RV)
    changed_RV = logits_RV
    if rules.changes:
        ids_RT = live.ids_BNT.reshape(logits_RV.shape[0], -1)
        changed_RV = select.clean(rules.change(logits_RV, ids_RT, step, normaliser_R))
    return changed_RV, logits_RV, normaliser_R


def continuations(
    logits_RV: jax.Array,
    live: Hypotheses,
    step: jax.Array,
    rules: Rules,
    limit_B: jax.Array,
    count: int,
    free: jax.Array | bool = False,
) -> Continuations:
    """The ``count`` best next tokens of each hypothesis, (B, N * count): hypothesis by hypothesis, best first in each.

    A forced token is the only one of its row. Scores are not normalised again after the rules have changed them.

    Args:
      logits_RV: what the decoder says; R rows are B sentences of N hypotheses.
      live: the hypotheses, of ``step`` tokens.
      limit_B: (B',) int32, B' divides B: the rows' limits, for the rules.
      free: () bool, whether forced tokens cost nothing.
    """
    B, N = live.score_BN.shape
    changed_RV, logits_RV, normaliser_R = scored(logits_RV, live, step, rules)
    K = min(count, logits_RV.shape[1])
    value_RK, token_RK = select.top_k(changed_RV, K, rules.banned(step, limit_B.shape[0], B * N))
    forced_R1 = core.per_beam(rules.forced(limit_B.shape[0], step, limit_B), B * N)[:, None]
    first_RK = jnp.arange(K)[None] == 0
    logit_R1 = jnp.take_along_axis(logits_RV, jnp.maximum(forced_R1, 0), axis=1)
    token_RK = jnp.where((forced_R1 >= 0) & first_RK, forced_R1, token_RK)
    value_RK = jnp.where(forced_R1 >= 0, jnp.where(first_RK, logit_R1, -jnp.inf), value_RK)
    raw_RK = jnp.take_along_axis(logits_RV, token_RK, axis=1) if rules.changes else value_RK
    log_prob_RK = select.log_prob(raw_RK, normaliser_R[:, None])
    score_RK = shift(value_RK, normaliser_R) if rules.changes else log_prob_RK
    score_RK = jnp.where((forced_R1 >= 0) & first_RK & free, 0.0, score_RK)
    return Continuations(
        total_BC=(live.score_BN.reshape(-1, 1) + score_RK).reshape(B, N * K),
        token_BC=token_RK.reshape(B, N * K),
        parent_BC=jnp.broadcast_to(jnp.repeat(jnp.arange(N, dtype=jnp.int32), K), (B, N * K)),
        log_prob_BC=log_prob_RK.reshape(B, N * K),
    )


def shift(value_RK: jax.Array, normaliser_R: jax.Array) -> jax.Array:
    """Scores that the rules changed, less the normaliser that they had before: float32, -inf where nothing is possible."""
    return jnp.where(value_RK == -jnp.inf, -jnp.inf, value_RK.astype(jnp.float32) - normaliser_R[:, None])


def reorder(cache: core.PyTree, parent_BW: jax.Array) -> core.PyTree:
    """Give each beam the state of the beam that it continues. The one place where a search touches a cache.

    Args:
      cache: leaves of B * W rows; scalar leaves are shared and stay, and so does what is ``core.AppendOnly``.
      parent_BW: (B, W) int32, the beam of the same sentence that each beam grew from.
    """
    batch, beams = parent_BW.shape
    if beams == 1:
        return cache
    row_R = (parent_BW + beams * jnp.arange(batch)[:, None]).reshape(-1)

    def move(x):
        stays = isinstance(x, core.AppendOnly) or jnp.ndim(x) == 0
        return x if stays else x.at[row_R].get(mode="promise_in_bounds")

    return jax.tree.map(move, cache, is_leaf=lambda x: isinstance(x, core.AppendOnly))
