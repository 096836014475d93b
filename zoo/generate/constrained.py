"""Lexically constrained beam search: phrases that must stand in the output.

Post & Vilar 2018, "Fast Lexically Constrained Decoding with Dynamic Beam Allocation" (arXiv:1804.06609, section 3). Hypotheses
are sorted in banks by how many tokens of the phrases they cover; the beam is divided evenly among the banks, so that one which
has paid for a phrase need not compete with one that has not.

Progress. Whether the last tokens of a hypothesis are the first ones of a phrase is kept for every such beginning of every
phrase, a bit each (shift-and, Baeza-Yates & Gonnet 1992): overlaps and restarts are exact, "a a b" contains "a b". A phrase is
met once it has occurred. A hypothesis covers all tokens of a phrase met, and of another the longest beginning it ends with.

Candidates. The best continuations of each live hypothesis; and, however improbable, the next token of each phrase not met, and
its first one. One that has not met all phrases may neither end nor be cut.

Departures. A hypothesis that can no longer meet all phrases within its limit is dropped at once: how many tokens are still
needed, phrases overlapping as they may, is known exactly (a table over sets of phrases, Held & Karp 1962). So all that is in
the beam can be completed, and a beam of any width meets the phrases if they fit and no token is impossible. And what closes is
kept apart from the beam, as in ``Beam``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zoo import core
from zoo.generate import penalty as penalties
from zoo.generate import result, select
from zoo.generate.hypotheses import Continuations, Hypotheses, best, blank, grow, join, reorder, scored, shift, take
from zoo.generate.penalty import Penalty
from zoo.generate.rules import Rules

MOST = 10  # phrases of a sentence: the table has a row for each set of them
NONE = -1  # no token: fills phrases from the right
FAR = 1 << 20  # more tokens than any limit


class Phrases(NamedTuple):
    """The phrases of a batch and what is known of them beforehand: P phrases of at most L tokens, Z = 2 ** P sets of them.

    Attributes:
      ids_BPL: int32, right-padded with -1; length_BP: 0 where there is no phrase.
      others_BP: int32, a bit for each phrase that does not stand in this one (as it does in itself): not met by reading it.
      rest_BZP: int32, the fewest tokens that still make all phrases of a set occur when this phrase was just read.
    """

    ids_BPL: jax.Array
    length_BP: jax.Array
    others_BP: jax.Array
    rest_BZP: jax.Array


class Progress(NamedTuple):
    """How far N hypotheses of each sentence are.

    Attributes:
      begun_BNPL: bool, whether the last l + 1 tokens are the first l + 1 of the phrase.
      met_BNP: bool, whether the phrase has occurred; True for phrases that do not exist.
    """

    begun_BNPL: jax.Array
    met_BNP: jax.Array

    @property
    def prefix(self) -> jax.Array:
        """The length of the longest beginning of each phrase that each hypothesis ends with, (B, N, P) int32."""
        return jnp.max(jnp.where(self.begun_BNPL, jnp.arange(1, self.begun_BNPL.shape[3] + 1), 0), axis=3)


class _State(NamedTuple):
    step: jax.Array
    live: Hypotheses
    bank: Hypotheses
    last_BW: jax.Array
    progress: Progress
    done_B: jax.Array
    cache: core.PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ConstrainedBeam:
    """The best hypotheses that contain all phrases of their sentence; this file's docstring has the rules.

    A sentence without any hypothesis that does gets empty ones of score -inf and length 0. Without phrases this is ``Beam``.

    Attributes:
      phrases: (B, P, L) int32, P phrases of each sentence, at most 10, or (P, L) for all sentences; each filled from the right
        with -1, and a phrase of -1 alone does not exist (see ``phrases``).
      beams: the live hypotheses of a sentence, W. More than the phrases' tokens, so that every bank has a place.
      penalty: how lengths are compared. Its ``stop`` is not read: a sentence is finished when no live hypothesis can still
        enter the n best.
      n_best: how many hypotheses to return of each sentence, at most ``beams``; None for the best without an axis.
    """

    phrases: jax.Array
    beams: int = dataclasses.field(default=10, metadata={"static": True})
    penalty: Penalty = penalties.gnmt()
    n_best: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def rows(self) -> int:
        """Rows of each sentence."""
        return self.beams

    @property
    def keep(self) -> int:
        """How many hypotheses are wanted."""
        return 1 if self.n_best is None else self.n_best

    def canonical(self, batch: int, rows: int) -> ConstrainedBeam:
        """With phrases for ``rows`` sentences, as long as a power of two: the added sentences have none.

        Raises:
          UserError: a value that cannot be meant.
        """
        self.check(batch)
        ids_BPL = np.asarray(self.phrases, np.int32)
        if (ids_BPL < NONE).any() or ((ids_BPL[..., :-1] == NONE) & (ids_BPL[..., 1:] != NONE)).any():
            raise core.UserError("phrases must hold token ids, each phrase filled from the right with -1: see phrases()")
        ids_BPL = np.broadcast_to(ids_BPL, (batch, *ids_BPL.shape[-2:]))
        more = (1 << (ids_BPL.shape[2] - 1).bit_length()) - ids_BPL.shape[2]
        ids_BPL = np.pad(ids_BPL, ((0, rows - batch), (0, 0), (0, more)), constant_values=NONE)
        return dataclasses.replace(self, phrases=ids_BPL)

    def check(self, batch: int) -> None:
        """Refuse what cannot be meant."""
        if self.beams < 1:
            raise core.UserError(f"beams is {self.beams}: a search needs at least 1")
        if not 1 <= self.keep <= self.beams:
            raise core.UserError(f"n_best is {self.keep}: ask for 1 to {self.beams}, the number of beams")
        shape = np.shape(self.phrases)
        if len(shape) not in (2, 3) or not all(shape) or (len(shape) == 3 and shape[0] != batch):
            raise core.UserError(f"phrases has the shape {shape}: give (P, L), or ({batch}, P, L) for the {batch} sentences")
        if shape[-2] > MOST:
            raise core.UserError(
                f"phrases has {shape[-2]} phrases a sentence: give at most {MOST}, or join some to longer ones"
            )

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
          UserError: ``max_len`` or ``beams`` is below 1, ``n_best`` not within 1 ... ``beams``, or ``phrases`` misshapen.
        """
        self.check(batch)
        wanted = study(jnp.broadcast_to(jnp.asarray(self.phrases, jnp.int32), (batch, *np.shape(self.phrases)[-2:])))
        limit_B = rules.limits(batch, max_len)
        end = lax.while_loop(
            lambda state: jnp.any(~state.done_B),
            lambda state: self.step(decode, memory, state, wanted, rules, limit_B),
            self.begin(cache, max_len, wanted, rules, limit_B),
        )
        first = jax.tree.map(lambda x: x[:, 0], end.bank)
        found = first if self.n_best is None else end.bank
        weights = {}
        if attention:
            weights = result.cross_attention(decode, memory, first.ids_BNT, first.length_BN, rules.start_id)
        return result.Generated(found.ids_BNT, found.log_probs_BNT, found.score_BN, found.length_BN, end.step, weights)

    def begin(self, cache: core.PyTree, max_len: int, wanted: Phrases, rules: Rules, limit_B: jax.Array) -> _State:
        """The state before the first token; an empty row is a result where no phrase is wanted."""
        B, W = limit_B.shape[0], self.beams
        progress = nothing(wanted, W)
        return _State(
            step=jnp.int32(0),
            live=blank(jnp.ones((B,), bool), W, max_len, rules.pad_id),
            bank=blank((limit_B == 0) & jnp.all(progress.met_BNP[:, 0], axis=1), self.keep, max_len, rules.pad_id),
            last_BW=jnp.full((B, W), rules.start_id, jnp.int32),
            progress=progress,
            done_B=limit_B == 0,
            cache=cache,
        )

    def step(
        self, decode: result.DecodeFn, memory: core.PyTree, state: _State, wanted: Phrases, rules: Rules, limit_B: jax.Array
    ) -> _State:
        """One more token of every live hypothesis."""
        B, length = limit_B.shape[0], state.step + 1
        outputs, cache = decode(state.last_BW.reshape(-1, 1), memory, state.cache)
        options = self.candidates(outputs.logits[:, 0], state, wanted, rules, limit_B)
        progress = read(wanted, take(state.progress, options.parent_BC), options.token_BC)
        prefix_B = rules.prefix_length(B)
        # XLA computes the grown tokens only where there are stop sequences to look for in them.
        ends_BC = rules.ends(options.token_BC, grow(state.live, options, state.step).ids_BNT, state.step)
        ends_BC &= (length > prefix_B)[:, None]
        room_B = limit_B - length - (jnp.asarray(rules.end_at_limit) & (prefix_B < limit_B))
        fits_BC = missing(wanted, progress) <= jnp.where(ends_BC, 0, room_B[:, None])
        options = options._replace(total_BC=jnp.where(fits_BC, options.total_BC, -jnp.inf))
        going = options._replace(total_BC=jnp.where(ends_BC, -jnp.inf, options.total_BC))

        closing_BW, living_BW = (allocate(x.total_BC, covered(wanted, progress), wanted, self.beams) for x in (options, going))
        counted_B = length - jnp.where(self.penalty.free, prefix_B, 0)
        ended = grow(state.live, options.at(closing_BW), state.step)
        ended = self.closed(ended, jnp.take_along_axis(ends_BC, closing_BW, axis=1) & ~state.done_B[:, None], counted_B)
        chosen = going.at(living_BW)
        live = grow(state.live, chosen, state.step)
        cut = self.closed(live, ((length >= limit_B) & ~state.done_B)[:, None], counted_B)
        bank, _ = best(join(join(state.bank, ended), cut), self.keep)

        best_B = jnp.max(live.score_BN, axis=1)
        exact, last_B = self.penalty._replace(stop=np.int32(penalties.EXACT)), limit_B - (length - counted_B)
        finished_B = exact.finished(best_B, bank.score_BN, counted_B, last_B, self.keep, rules.falls)
        return _State(
            step=length,
            live=live,
            bank=bank,
            last_BW=chosen.token_BC,
            progress=take(progress, living_BW),
            done_B=state.done_B | (length >= limit_B) | finished_B | (best_B == -jnp.inf),
            cache=reorder(cache, chosen.parent_BC),
        )

    def candidates(
        self, logits_RV: jax.Array, state: _State, wanted: Phrases, rules: Rules, limit_B: jax.Array
    ) -> Continuations:
        """Ways to go on, (B, C): of each hypothesis the best tokens, then those that the phrases ask for; none twice."""
        (B, W), V = state.last_BW.shape, logits_RV.shape[1]
        changed_RV, logits_RV, normaliser_R = scored(logits_RV, state.live, state.step, rules)
        allowed_RV = rules.forbid(changed_RV, state.step, B)
        ways = 1 if rules.stop is None else 1 + rules.stop.shape[0]  # in which a hypothesis may end at this step
        _, token_RK = select.top_k(allowed_RV, min(W + ways, V))
        token_RM = jnp.concatenate([token_RK, asked(wanted, state.progress).reshape(B * W, -1)], axis=1)
        forced_R1 = core.per_beam(rules.forced(B, state.step, limit_B), B * W)[:, None]
        free_RM, first_1M = forced_R1 < 0, jnp.arange(token_RM.shape[1])[None] == 0
        token_RM = jnp.where(free_RM | ~first_1M, token_RM, forced_R1)
        possible_RM = (free_RM | first_1M) & (token_RM >= 0) & (token_RM < V) & _first_of_each(token_RM)
        token_RM = jnp.clip(token_RM, 0, V - 1)
        logit_RM = jnp.take_along_axis(logits_RV, token_RM, axis=1)
        value_RM = jnp.where(free_RM, jnp.take_along_axis(allowed_RV, token_RM, axis=1), logit_RM)
        value_RM = jnp.where(possible_RM, value_RM, -jnp.inf)
        log_prob_RM = select.log_prob(logit_RM, normaliser_R[:, None])
        score_RM = shift(value_RM, normaliser_R) if rules.changes else select.log_prob(value_RM, normaliser_R[:, None])
        score_RM = jnp.where(possible_RM & ~free_RM & self.penalty.free, 0.0, score_RM)
        parent_R1 = jnp.tile(jnp.arange(W, dtype=jnp.int32), B)[:, None]
        options = Continuations(
            total_BC=state.live.score_BN.reshape(-1, 1) + score_RM,
            token_BC=token_RM,
            parent_BC=jnp.broadcast_to(parent_R1, token_RM.shape),
            log_prob_BC=log_prob_RM,
        )
        return Continuations(*(x.reshape(B, -1) for x in options))

    def closed(self, grown: Hypotheses, closes_BW: jax.Array, counted_B: jax.Array) -> Hypotheses:
        """Hypotheses with their final score, -inf those that do not close."""
        score_BW = self.penalty(grown.score_BN, counted_B[:, None])
        return grown._replace(score_BN=jnp.where(closes_BW, score_BW, -jnp.inf))


def phrases(sentences: Sequence[Sequence[Sequence[int]]], rules: Rules = Rules()) -> np.ndarray:  # noqa: B008
    """``ConstrainedBeam.phrases`` of the phrases of each sentence, each a list of token ids: (B, P, L) int32.

    >>> phrases([[[5, 6], [7]], []]).tolist()
    [[[5, 6], [7, -1]], [[-1, -1], [-1, -1]]]

    Raises:
      UserError: an empty phrase, more than 10 of one sentence, a negative id, or the id of a start, end or padding token.
    """
    reserved = {int(x) for x in (rules.start_id, rules.end_id, rules.pad_id)}
    for row, sentence in enumerate(sentences):
        if len(sentence) > MOST:
            raise core.UserError(
                f"sentence {row} has {len(sentence)} phrases: give at most {MOST}, or join some to longer ones"
            )
        for phrase in sentence:
            if not len(phrase):
                raise core.UserError(f"a phrase of sentence {row} is empty: leave it out")
            if bad := [token for token in phrase if token < 0 or token in reserved]:
                raise core.UserError(
                    f"a phrase of sentence {row} holds the id {bad[0]}, which no output can hold: leave it out"
                )
    P = max(map(len, sentences), default=0)
    L = max((len(phrase) for sentence in sentences for phrase in sentence), default=0)
    ids_BPL = np.full((len(sentences), max(P, 1), max(L, 1)), NONE, np.int32)
    for row, sentence in enumerate(sentences):
        for p, phrase in enumerate(sentence):
            ids_BPL[row, p, : len(phrase)] = phrase
    return ids_BPL


def study(ids_BPL: jax.Array) -> Phrases:
    """What a search wants to know of its phrases: which stand in which, and how few tokens hold a set of them."""
    B, P, L = ids_BPL.shape
    none_BP = jnp.zeros((B, P), jnp.int32)
    wanted = Phrases(ids_BPL, jnp.sum(ids_BPL != NONE, axis=2, dtype=jnp.int32), none_BP, none_BP[:, None])

    def read_one(place, progress):  # of hypothesis p the next token of phrase p
        after = read(wanted, progress, ids_BPL[:, :, place])
        inside_BP = place < wanted.length_BP
        keep = lambda new, old: jnp.where(jnp.expand_dims(inside_BP, tuple(range(2, new.ndim))), new, old)  # noqa: E731
        return jax.tree.map(keep, after, progress)

    alone = lax.fori_loop(0, L, read_one, nothing(wanted, P))
    others_BP = _bits(~alone.met_BNP)
    added_BPP = wanted.length_BP[:, None] - alone.prefix  # [b, p, q]: the tokens that phrase q takes after phrase p

    def fill(chosen, rest_BZP):  # the set whose bits are ``chosen``: by the phrase that is next; smaller sets are filled
        then_B1P = jnp.take_along_axis(rest_BZP, (chosen & others_BP)[:, None], axis=1)
        next_11P = ((chosen >> jnp.arange(P)) & 1 == 1)[None, None]
        rest_BP = jnp.min(jnp.where(next_11P, added_BPP + then_B1P, FAR), axis=2)
        return lax.dynamic_update_slice_in_dim(rest_BZP, rest_BP[:, None], chosen, axis=1)

    rest_BZP = lax.fori_loop(1, 1 << P, fill, jnp.zeros((B, 1 << P, P), jnp.int32))
    return wanted._replace(others_BP=others_BP, rest_BZP=rest_BZP)


def nothing(wanted: Phrases, count: int) -> Progress:
    """The progress of ``count`` empty hypotheses of each sentence."""
    B, P, L = wanted.ids_BPL.shape
    met_BNP = jnp.broadcast_to((wanted.length_BP == 0)[:, None], (B, count, P))
    return Progress(jnp.zeros((B, count, P, L), bool), met_BNP)


def read(wanted: Phrases, progress: Progress, token_BN: jax.Array) -> Progress:
    """The progress after one more token of each hypothesis."""
    begun_BNPL = progress.begun_BNPL
    before_BNPL = jnp.concatenate([jnp.ones_like(begun_BNPL[..., :1]), begun_BNPL[..., :-1]], axis=3)
    begun_BNPL = before_BNPL & (token_BN[:, :, None, None] == wanted.ids_BPL[:, None])
    last_BPL = jnp.arange(begun_BNPL.shape[3])[None, None] == wanted.length_BP[:, :, None] - 1
    return Progress(begun_BNPL, progress.met_BNP | jnp.any(begun_BNPL & last_BPL[:, None], axis=3))


def covered(wanted: Phrases, progress: Progress) -> jax.Array:
    """The number of each hypothesis's bank, (B, N) int32: the phrases' tokens that it covers."""
    return jnp.sum(jnp.where(progress.met_BNP, wanted.length_BP[:, None], progress.prefix), axis=2)


def missing(wanted: Phrases, progress: Progress) -> jax.Array:
    """The fewest tokens with which each hypothesis can meet all phrases, (B, N) int32."""
    unmet_BN = _bits(~progress.met_BNP)
    then_BNP = jnp.take_along_axis(wanted.rest_BZP, unmet_BN[:, :, None] & wanted.others_BP[:, None], axis=1)
    fewest_BNP = wanted.length_BP[:, None] - progress.prefix + then_BNP
    return jnp.where(unmet_BN == 0, 0, jnp.min(jnp.where(progress.met_BNP, FAR, fewest_BNP), axis=2))


def asked(wanted: Phrases, progress: Progress) -> jax.Array:
    """The tokens that each hypothesis's unmet phrases ask for, the next and the first of each: (B, N, 2P), -1 for none."""
    ids_BNPL = jnp.broadcast_to(wanted.ids_BPL[:, None], progress.begun_BNPL.shape)
    place_BNP = jnp.minimum(progress.prefix, ids_BNPL.shape[3] - 1)
    next_BNP = jnp.take_along_axis(ids_BNPL, place_BNP[..., None], axis=3)[..., 0]
    both = jnp.concatenate([next_BNP, ids_BNPL[..., 0]], axis=2)
    return jnp.where(jnp.concatenate([progress.met_BNP] * 2, axis=2), NONE, both)


def allocate(total_BC: jax.Array, covered_BC: jax.Array, wanted: Phrases, beams: int) -> jax.Array:
    """Which candidates get a place in the beam, (B, W) int32, best first.

    Each bank has an even share of the places, the fuller banks one more where they do not come out even; what a bank leaves
    goes to the best of all that have no place yet.
    """
    order_BC = jnp.argsort(-total_BC, axis=1, stable=True)
    bank_BC = jnp.take_along_axis(covered_BC, order_BC, axis=1)
    banks_B1 = jnp.sum(wanted.length_BP, axis=1, keepdims=True) + 1
    share_BC = beams // banks_B1 + (bank_BC >= banks_B1 - beams % banks_B1)
    tokens = wanted.ids_BPL.shape[1] * wanted.ids_BPL.shape[2]
    same_BCM = (bank_BC[:, :, None] == jnp.arange(tokens + 1)[None, None]).astype(jnp.int32)
    rank_BC = jnp.sum(jnp.cumsum(same_BCM, axis=1) * same_BCM, axis=2)  # within the bank, from 1 on
    first_BC = (rank_BC <= share_BC) & (jnp.take_along_axis(total_BC, order_BC, axis=1) > -jnp.inf)
    place_BW = jnp.sort(lax.top_k(first_BC.astype(jnp.int32), beams)[1], axis=1)  # in order of the total again
    return jnp.take_along_axis(order_BC, place_BW, axis=1)


def _first_of_each(token_RM: jax.Array) -> jax.Array:
    """Where each row's tokens stand for the first time, bool."""
    M = token_RM.shape[1]
    earlier_MM = jnp.arange(M)[None, :] < jnp.arange(M)[:, None]
    return ~jnp.any((token_RM[:, :, None] == token_RM[:, None, :]) & earlier_MM[None], axis=2)


def _bits(true_BNP: jax.Array) -> jax.Array:
    """A row of bool as the bits of a number, (B, N) int32."""
    bit_P = np.int32(1) << np.arange(true_BNP.shape[2], dtype=np.int32)
    return jnp.sum(jnp.where(true_BNP, bit_P[None, None], 0), axis=2, dtype=jnp.int32)
