"""Stochastic beam search: a sample without replacement from the model's sequences, in one search.

Kool et al. 2019, "Stochastic Beams and Where to Find Them" (arXiv:1903.06059), algorithm 1. The W largest of log-probability +
Gumbel noise are a sample of W without replacement (the Gumbel-top-k trick, their section 2); a beam search finds them without
looking at every sequence. For what a partial sequence is worth is the largest perturbed log-probability among all that continue
it, which is Gumbel noise at its own log-probability: so the children's noise is drawn on the condition that the largest of them
is their parent's (section 3), and what falls out of the beam could not have led to any of the W largest.

Departures. The empty sequence's noise is drawn, where the paper's algorithm sets it to 0: this changes no rank, and makes the
score of each sequence what it is in the Gumbel-top-k trick, unconditional noise at its log-probability. And the sequences are
those that the rules leave: at each token, what is allowed is normalised again.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zoo import core
from zoo.generate import result, sampling, select
from zoo.generate.hypotheses import Continuations, Hypotheses, blank, grow, reorder
from zoo.generate.rules import Rules
from zoo.generate.single import sentence_keys

ROOT = np.uint32(2**32 - 1)  # the step at which the empty sequence's noise is drawn: before the others


class _State(NamedTuple):
    """``found.score_BN`` is the perturbed log-probability, best first; complete ones and blanks are done."""

    step: jax.Array
    found: Hypotheses
    phi_BW: jax.Array  # the log-probability under the distribution that is sampled from
    last_BW: jax.Array
    done_BW: jax.Array
    cache: core.PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StochasticBeam:
    """``beams`` different outputs of each sentence, drawn without replacement; the first alone is one draw from the model.

    ``Generated.score`` is the perturbed log-probability, by which the outputs are ordered; ``log_probs`` are the model's own. A
    row that reaches its limit is cut there and is complete. A sentence with fewer sequences than beams fills up with empty ones
    of score -inf; so does one with beams that no token can continue. NaN counts as impossible.

    The draws of a sentence depend on its key alone, not on the batch or its padding. With more beams the first stay the same.

    Attributes:
      key: () a PRNG key, of which sentence b uses ``fold_in(key, b)``; or (B,) a key of each sentence's own.
      beams: W, how many outputs of each sentence, always axis 1 of the result.
      temperature: () float above 0; each token's distribution is the softmax of the logits divided by it.
    """

    key: jax.Array
    beams: int = dataclasses.field(default=4, metadata={"static": True})
    temperature: jax.Array | float = 1.0

    @property
    def rows(self) -> int:
        """Rows of each sentence."""
        return self.beams

    def canonical(self, batch: int, rows: int) -> StochasticBeam:
        """With values of fixed dtypes and a key for each of ``rows`` sentences.

        Raises:
          UserError: a value that cannot be meant.
        """
        self.check()
        if not self.temperature > 0:
            raise core.UserError(f"temperature is {self.temperature}: it must be above 0; Beam() is what 0 would mean")
        key = sentence_keys(self.key, batch, rows)
        return dataclasses.replace(self, key=key, temperature=np.float32(self.temperature))

    def check(self) -> None:
        """Refuse what cannot be meant."""
        if self.beams < 1:
            raise core.UserError(f"beams is {self.beams}: draw at least 1 output of each sentence")

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
        """Search; the arguments are ``Greedy``'s. The attention is the first output's.

        Raises:
          UserError: ``max_len`` or ``beams`` is below 1.
        """
        self.check()
        rules = rules.of(core.ModelConfig())
        limit_B = rules.limits(batch, max_len)
        key_R = sampling.row_keys(self.key, batch, self.beams)
        end = lax.while_loop(
            lambda state: jnp.any(~state.done_BW),
            lambda state: self.step(decode, memory, state, rules, limit_B, key_R),
            self.begin(cache, max_len, rules, limit_B, key_R),
        )
        found = _without_impossible(end.found, rules.pad_id)
        weights = {}
        if attention:
            weights = result.cross_attention(decode, memory, found.ids_BNT[:, 0], found.length_BN[:, 0], rules.first(batch))
        return result.Generated(found.ids_BNT, found.log_probs_BNT, found.score_BN, found.length_BN, end.step, weights)

    def begin(self, cache: core.PyTree, max_len: int, rules: Rules, limit_B: jax.Array, key_R: jax.Array) -> _State:
        """The state before the first token: the empty sequence, which is certain, and its noise."""
        B, W = limit_B.shape[0], self.beams
        noise_B1 = sampling.gumbel(key_R.reshape(B, W)[:, 0], ROOT, 1)
        found = blank(jnp.ones((B,), bool), W, max_len, rules.pad_id)
        return _State(
            step=jnp.int32(0),
            found=found._replace(score_BN=found.score_BN + noise_B1),
            phi_BW=found.score_BN,
            last_BW=rules.first(B * W).reshape(B, W),
            done_BW=(limit_B == 0)[:, None] | (found.score_BN == -jnp.inf),
            cache=cache,
        )

    def step(
        self, decode: result.DecodeFn, memory: core.PyTree, state: _State, rules: Rules, limit_B: jax.Array, key_R: jax.Array
    ) -> _State:
        """One more token of every hypothesis that is not complete."""
        outputs, cache = decode(state.last_BW.reshape(-1, 1), memory, state.cache)
        options, phi_BC = self.children(outputs.logits[:, 0], state, rules, limit_B, key_R)
        _, index_BW = lax.top_k(options.total_BC, self.beams)
        chosen = options.at(index_BW)
        complete_BW = jnp.take_along_axis(state.done_BW, chosen.parent_BC, axis=1)
        found = grow(state.found, chosen, state.step)
        found = found._replace(length_BN=found.length_BN - complete_BW)
        ended_BW = rules.ends(chosen.token_BC, found.ids_BNT, state.step)
        ended_BW &= (state.step >= rules.prefix_length(limit_B.shape[0]))[:, None]
        ended_BW |= (state.step + 1 >= limit_B)[:, None] | (chosen.total_BC == -jnp.inf)
        return _State(
            step=state.step + 1,
            found=found,
            phi_BW=jnp.take_along_axis(phi_BC, index_BW, axis=1),
            last_BW=chosen.token_BC,
            done_BW=complete_BW | ended_BW,
            cache=reorder(cache, chosen.parent_BC),
        )

    def children(
        self, logits_RV: jax.Array, state: _State, rules: Rules, limit_B: jax.Array, key_R: jax.Array
    ) -> tuple[Continuations, jax.Array]:
        """The W best children of each hypothesis by perturbed log-probability, and their log-probabilities (B, C).

        A complete hypothesis has one child: itself, with the value that it has.
        """
        (B, W), V = state.last_BW.shape, logits_RV.shape[1]
        logits_RV = select.clean(logits_RV)
        phi_RV = state.phi_BW.reshape(-1, 1) + self.distribution(logits_RV, state, rules, limit_B)
        noisy_RV = phi_RV + sampling.gumbel(key_R, state.step, V)
        value_RK, token_RK = select.top_k(condition(noisy_RV, state.found.score_BN.reshape(-1)), min(W, V))
        log_prob_RK = select.log_prob(jnp.take_along_axis(logits_RV, token_RK, axis=1), select.log_sum_exp(logits_RV)[:, None])
        done_R1 = state.done_BW.reshape(-1, 1)
        itself_RK = jnp.where(jnp.arange(value_RK.shape[1])[None] == 0, state.found.score_BN.reshape(-1, 1), -jnp.inf)
        phi_RK = jnp.where(done_R1, state.phi_BW.reshape(-1, 1), jnp.take_along_axis(phi_RV, token_RK, axis=1))
        parent_R1 = jnp.tile(jnp.arange(W, dtype=jnp.int32), B)[:, None]
        options = Continuations(
            total_BC=jnp.where(done_R1, itself_RK, value_RK),
            token_BC=jnp.where(done_R1, rules.pad_id, token_RK),
            parent_BC=jnp.broadcast_to(parent_R1, token_RK.shape),
            log_prob_BC=jnp.where(done_R1, 0.0, log_prob_RK),
        )
        return Continuations(*(x.reshape(B, -1) for x in options)), phi_RK.reshape(B, -1)

    def distribution(self, logits_RV: jax.Array, state: _State, rules: Rules, limit_B: jax.Array) -> jax.Array:
        """The log-probabilities, (R, V), of what the rules leave at this temperature; a forced token is certain."""
        R, V = logits_RV.shape
        B = limit_B.shape[0]
        if rules.changes:
            logits_RV = select.clean(rules.change(logits_RV, state.found.ids_BNT.reshape(R, -1), state.step, None))
        logits_RV = rules.forbid(logits_RV, state.step, B).astype(jnp.float32)
        logits_RV = sampling.temper(logits_RV, self.temperature)
        forced_R1 = core.per_beam(rules.forced(B, state.step, limit_B), R)[:, None]
        certain_RV = jnp.where(jnp.arange(V)[None] == forced_R1, 0.0, -jnp.inf)
        logits_RV = jnp.where(forced_R1 >= 0, certain_RV, logits_RV)
        return select.log_prob(logits_RV, select.log_sum_exp(logits_RV)[:, None])


def condition(noisy_RV: jax.Array, largest_R: jax.Array) -> jax.Array:
    """Independent Gumbel noise at some locations, conditioned on what the largest of each row is.

    Kool et al. 2019, appendix B.3, the stable form of -log(exp(-T) - exp(-Z) + exp(-G)), with Z the row's maximum and T the
    maximum that it gets: no value is ever exponentiated that is not at most 0. The largest comes out as T exactly.

    >>> jnp.max(condition(jnp.array([[1.0, 3.0, 2.0, -jnp.inf]]), jnp.array([0.5])), axis=1).tolist()
    [0.5]

    Args:
      noisy_RV: (R, V) float32, location + Gumbel noise; -inf is impossible and stays so.
      largest_R: (R,) float32, what the maximum is to be; -inf makes the whole row impossible.
    """
    top_R1 = jnp.max(noisy_RV, axis=1, keepdims=True)
    possible_RV = (noisy_RV > -jnp.inf) & (largest_R > -jnp.inf)[:, None]
    noisy_RV, top_R1 = jnp.where(possible_RV, noisy_RV, 0.0), jnp.where(top_R1 == -jnp.inf, 0.0, top_R1)
    v_RV = largest_R[:, None] - noisy_RV + _log1mexp(jnp.minimum(noisy_RV - top_R1, 0.0))
    conditioned_RV = largest_R[:, None] - jnp.maximum(v_RV, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(v_RV)))
    return jnp.where(possible_RV, conditioned_RV, -jnp.inf)


def _log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - exp(x)) for x <= 0, accurate at both ends (Maechler 2012); -inf at 0."""
    return jnp.where(x > -np.log(2.0), jnp.log(-jnp.expm1(x)), jnp.log1p(-jnp.exp(x)))


def _without_impossible(found: Hypotheses, pad_id: jax.Array | int) -> Hypotheses:
    """The same with empty hypotheses in place of those of score -inf."""
    possible_BN = found.score_BN > -jnp.inf
    return found._replace(
        ids_BNT=jnp.where(possible_BN[:, :, None], found.ids_BNT, pad_id),
        log_probs_BNT=jnp.where(possible_BN[:, :, None], found.log_probs_BNT, 0.0),
        length_BN=jnp.where(possible_BN, found.length_BN, 0),
    )
