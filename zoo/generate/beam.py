"""Beam search: several hypotheses a sentence, the best kept after each token.

Candidates. Each step ranks the continuations of a sentence's live beams by the sum of their log-probabilities. An end token
among the first ``beams`` closes a hypothesis; the best ``beams`` of the others live on (Sutskever et al. 2014, section 3.2,
as fairseq and transformers do it; Marian's beam shrinks instead). So one beam without a penalty is greedy search.

Bank. Closed hypotheses compete under the length penalty for places of their own and never for a beam. A live beam that reaches
the row's limit is closed there as it is: the space searched is every sequence that ends or is cut at the limit.

Stop. See ``zoo.generate.penalty``: unless another rule is asked for, stopping never changes the result.

Groups. Beams may be split in groups that search one after the other at each step, each discouraged from the tokens that the
groups before it took (Vijayakumar et al. 2018, arXiv:1610.02424). A hypothesis's score does not contain that discouragement.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zoo import core
from zoo.generate import penalty as penalties
from zoo.generate import result
from zoo.generate.hypotheses import (
    Continuations,
    Hypotheses,
    best,
    blank,
    continuations,
    grow,
    join,
    reorder,
    take,
)
from zoo.generate.penalty import Penalty
from zoo.generate.rules import Rules


class _State(NamedTuple):
    """G is the batch times the groups, W the beams of a group."""

    step: jax.Array
    live: Hypotheses
    bank: Hypotheses
    last_GW: jax.Array
    open_G: jax.Array  # how many beams are left to the group
    done_G: jax.Array
    coverage_GWS: jax.Array | None
    cache: core.PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Beam:
    """The best hypotheses that ``beams`` live ones at a time lead to; this file's docstring has the rules.

    Ties go to the hypothesis closed first, then to the better-ranked beam, then to the lower id. A sentence with fewer
    hypotheses than asked for fills up with empty ones of score -inf; NaN counts as impossible.

    Attributes:
      beams: the live hypotheses of a sentence.
      penalty: how lengths are compared and when the search stops, see ``zoo.generate.penalty``.
      n_best: how many hypotheses to return of each sentence, at most ``beams``; None for the best without an axis.
      groups: into how many groups the beams are split; divides ``beams``.
      diversity: () float, subtracted for each beam of an earlier group that took the same token at the same step.
      coverage: () float, GNMT's beta: beta * sum over the source of log(min(attention received, 1)) is added to a closed
        hypothesis's score (Wu et al. 2016, equation 14), attention being the mean of all cross-attention heads; or None.
      source_mask: (B, S) bool, the source's real positions; needed for ``coverage``, and filled in by ``generate``.
    """

    beams: int = dataclasses.field(default=4, metadata={"static": True})
    penalty: Penalty = penalties.gnmt()
    n_best: int | None = dataclasses.field(default=None, metadata={"static": True})
    groups: int = dataclasses.field(default=1, metadata={"static": True})
    diversity: jax.Array | float = 0.5
    coverage: jax.Array | float | None = None
    source_mask: jax.Array | None = None

    @property
    def rows(self) -> int:
        """Rows of each sentence."""
        return self.beams

    def canonical(self, batch: int, rows: int) -> Beam:
        """With values of fixed dtypes."""
        self.check()
        if self.coverage is not None and not self.coverage >= 0:
            raise core.UserError(f"coverage is {self.coverage}: it must not be negative; None leaves it out")
        coverage = None if self.coverage is None else np.float32(self.coverage)
        return dataclasses.replace(self, diversity=np.float32(self.diversity), coverage=coverage)

    def check(self) -> None:
        """Refuse what cannot be meant."""
        if self.beams < 1:
            raise core.UserError(f"beams is {self.beams}: a search needs at least 1")
        if self.groups < 1 or self.beams % self.groups:
            raise core.UserError(f"groups is {self.groups}: it must divide the {self.beams} beams")
        if not 1 <= self.keep <= self.beams:
            raise core.UserError(f"n_best is {self.keep}: ask for 1 to {self.beams}, the number of beams")

    @property
    def keep(self) -> int:
        """How many hypotheses are wanted."""
        return 1 if self.n_best is None else self.n_best

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
        """Search; the arguments are ``Greedy``'s. The attention is the best hypothesis's.

        Raises:
          UserError: ``max_len`` or ``beams`` is below 1, ``n_best`` not within 1 ... ``beams``, or ``groups`` no divisor.
        """
        self.check()
        if self.coverage is not None and self.source_mask is None:
            raise core.UserError("coverage needs source_mask, the (B, S) bool mask of the source's real positions")
        rules = rules.of(core.ModelConfig())
        rules = rules._replace(end_at_limit=rules.end_at_limit | (self.penalty.stop == penalties.FIRST))
        start = self.begin(cache, batch, max_len, rules)
        limit_B = rules.limits(batch, max_len)
        end = lax.while_loop(
            lambda state: jnp.any(~state.done_G), lambda state: self.step(decode, memory, state, rules, limit_B), start
        )
        bank = jax.tree.map(lambda x: x.reshape(batch, -1, *x.shape[2:]), end.bank)
        bank, _ = best(bank, self.keep)
        first, found = jax.tree.map(lambda x: x[:, 0], bank), bank
        if self.n_best is None:
            found = first
        weights = {}
        if attention:
            weights = result.cross_attention(decode, memory, first.ids_BNT, first.length_BN, rules.first(batch))
        return result.Generated(found.ids_BNT, found.log_probs_BNT, found.score_BN, found.length_BN, end.step, weights)

    def begin(self, cache: core.PyTree, batch: int, max_len: int, rules: Rules) -> _State:
        """The state before the first token."""
        G, W = batch * self.groups, self.beams // self.groups
        limit_G = core.per_beam(rules.limits(batch, max_len), G)
        return _State(
            step=jnp.int32(0),
            live=blank(jnp.ones((G,), bool), W, max_len, rules.pad_id),
            bank=blank(limit_G == 0, W, max_len, rules.pad_id),
            last_GW=rules.first(G * W).reshape(G, W),
            open_G=jnp.full((G,), W, jnp.int32),
            done_G=limit_G == 0,
            coverage_GWS=None if self.coverage is None else jnp.zeros((G, W, self.source_mask.shape[1])),
            cache=cache,
        )

    def step(self, decode: result.DecodeFn, memory: core.PyTree, state: _State, rules: Rules, limit_B: jax.Array) -> _State:
        """One more token of every live hypothesis."""
        (G, W), batch, stop = state.last_GW.shape, limit_B.shape[0], self.penalty.stop
        attends = {} if self.coverage is None else {"attention": True}
        outputs, cache = decode(state.last_GW.reshape(-1, 1), memory, state.cache, **attends)
        ways = 1 if rules.stop is None else 1 + rules.stop.shape[0]  # in which a hypothesis may end at this step
        count = W + ways + (self.groups - 1) * W  # as many of one beam as can matter, whatever the groups before it took
        options = continuations(outputs.logits[:, 0], state.live, state.step, rules, limit_B, count, self.penalty.free)
        chosen = self.choose(options, W * (1 + ways), G, W)
        grown = grow(state.live, chosen, state.step)

        length, limit_G, prefix_G = state.step + 1, core.per_beam(limit_B, G), core.per_beam(rules.prefix_length(batch), G)
        rank_1C = jnp.arange(chosen.token_BC.shape[1])[None]
        in_beam_GC = rank_1C < state.open_G[:, None]
        ends_GC = rules.ends(chosen.token_BC, grown.ids_BNT, state.step) & (length > prefix_G[:, None])
        would_live_GC = jnp.cumsum(~ends_GC, axis=1) <= W
        cut_GC = (length >= limit_G)[:, None] & (in_beam_GC | (stop == penalties.EXACT) & would_live_GC)
        closes_GC = jnp.where(ends_GC, in_beam_GC, cut_GC) & ~state.done_G[:, None] & (chosen.total_BC > -jnp.inf)
        kept_G1 = jnp.sum(state.bank.score_BN > -jnp.inf, axis=1, keepdims=True)
        first_come_GC = kept_G1 + jnp.cumsum(closes_GC, axis=1) <= W
        closes_GC &= first_come_GC | (stop != penalties.FIRST)

        counted_G = length - jnp.where(self.penalty.free, prefix_G, 0)
        score_GC = self.penalty(chosen.total_BC, counted_G[:, None])
        coverage_GWS = None
        if self.coverage is not None:
            coverage_GWS = take(state.coverage_GWS + _attention(outputs, G, W), chosen.parent_BC)
            score_GC += self.coverage * _covered(coverage_GWS, core.per_beam(self.source_mask, G))
        bank, _ = best(join(state.bank, grown._replace(score_BN=jnp.where(closes_GC, score_GC, -jnp.inf))), W)

        open_G = state.open_G - jnp.where(stop == penalties.EMPTY, jnp.sum(closes_GC, axis=1), 0)
        goes_on_GC = ~ends_GC & (in_beam_GC | (stop != penalties.EMPTY))
        from_GW = _first(goes_on_GC & (chosen.total_BC > -jnp.inf), W)
        lives_GW = jnp.take_along_axis(goes_on_GC, from_GW, axis=1)
        live = take(grown, from_GW)
        live = live._replace(score_BN=jnp.where(lives_GW, live.score_BN, -jnp.inf))
        best_G, last_G = jnp.max(live.score_BN, axis=1), limit_G - (length - counted_G)
        keep = min(self.keep, W)
        finished_G = self.penalty.finished(best_G, bank.score_BN, counted_G, last_G, keep, rules.falls)
        return _State(
            step=length,
            live=live,
            bank=bank,
            last_GW=jnp.take_along_axis(chosen.token_BC, from_GW, axis=1),
            open_G=open_G,
            done_G=state.done_G | (length >= limit_G) | finished_G | (best_G == -jnp.inf),
            coverage_GWS=None if coverage_GWS is None else take(coverage_GWS, from_GW),
            cache=reorder(cache, self.parents(jnp.take_along_axis(chosen.parent_BC, from_GW, axis=1), batch)),
        )

    def parents(self, parent_GW: jax.Array, batch: int) -> jax.Array:
        """Parents within a group as parents within a sentence, (B, beams)."""
        first_G1 = (jnp.arange(parent_GW.shape[0]) % self.groups * parent_GW.shape[1])[:, None]
        return (parent_GW + first_G1).reshape(batch, self.beams)

    def choose(self, options: Continuations, count: int, G: int, W: int) -> Continuations:
        """The ``count`` best continuations of each group, best first, groups after one another."""
        count = min(count, options.total_BC.shape[1])
        if self.groups == 1:
            return options.at(lax.top_k(options.total_BC, count)[1])
        by_group = [Continuations(*(x.reshape(-1, self.groups, x.shape[1])[:, g] for x in options)) for g in range(self.groups)]
        taken_BN = jnp.zeros((G // self.groups, 0), jnp.int32)
        chosen = []
        for group in by_group:
            times_BC = jnp.sum(group.token_BC[:, :, None] == taken_BN[:, None, :], axis=2)
            chosen.append(group.at(lax.top_k(group.total_BC - self.diversity * times_BC, count)[1]))
            taken_BN = jnp.concatenate([taken_BN, chosen[-1].token_BC[:, :W]], axis=1)
        return Continuations(*(jnp.stack(x, axis=1).reshape(G, count) for x in zip(*chosen, strict=True)))


def _first(true_GC: jax.Array, count: int) -> jax.Array:
    """Where the first ``count`` True stand in each row, then the first False, (G, count) int32."""
    return lax.top_k(true_GC.astype(jnp.int32), count)[1]


def _attention(outputs: core.Outputs, G: int, W: int) -> jax.Array:
    """The mean of all cross-attention heads for the one new token, (G, W, S)."""
    weights = [x.mean(axis=1)[:, 0] for name, x in outputs.attention.items() if name.endswith("cross")]
    if not weights:
        raise core.UserError("coverage needs a model with cross-attention: this one has none")
    if len({x.shape[1] for x in weights}) > 1:
        raise core.UserError("coverage needs one source: the models of this ensemble read sources of different lengths")
    return (sum(weights) / len(weights)).reshape(G, W, -1)


def _covered(coverage_GCS: jax.Array, mask_GS: jax.Array) -> jax.Array:
    """The sum over the real source of log(min(coverage, 1)), (G, C); a position that nothing looked at counts log 1e-9."""
    log_GCS = jnp.log(jnp.clip(coverage_GCS, 1e-9, 1.0))
    return jnp.sum(jnp.where(mask_GS[:, None], log_GCS, 0.0), axis=2)
