"""What may be generated: every rule alone, and all of them in a search, against a plain Python implementation."""

from __future__ import annotations

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from toys import assert_same, beam, gnmt, play, table, toy

from zoo import core
from zoo.core import BOS, EOS, PAD
from zoo.generate import Beam, Greedy, Rules, bias, generate, penalty, stop_sequences

R, T, V = 3, 6, 7
INF = np.inf

seeds = st.integers(0, 10_000)
token_rows = st.lists(st.lists(st.integers(0, V - 1), min_size=T, max_size=T), min_size=R, max_size=R)


def random_logits(seed: int, *shape: int, impossible: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < impossible, -INF, rng.normal(size=shape, scale=2)).astype(np.float32)


# --- each rule in plain Python ------------------------------------------------------------------------------------------------


def penalise(scores_V, read: list[int], factor: float) -> np.ndarray:
    scores_V = scores_V.copy()
    for token in set(read):
        scores_V[token] = scores_V[token] / factor if scores_V[token] > 0 else scores_V[token] * factor
    return scores_V


def blocked(read: list[int], n: int) -> set[int]:
    """The tokens that would complete an n-gram for the second time."""
    seen = [tuple(read[i : i + n]) for i in range(len(read) - n + 1)]
    return {token for token in range(V) if len(read) >= n - 1 and (*read[len(read) - n + 1 :], token) in seen}


def ends_with(ids: list[int], sequences) -> bool:
    return any(len(ids) >= len(s) and ids[len(ids) - len(s) :] == list(s) for s in sequences)


class Plain:
    """The rules of one row, as lists and numbers; ``stop`` is a list of sequences, ``prefix`` a list of tokens."""

    def __init__(self, rules: Rules, row: int, max_len: int, prefix=(), stop=()):
        at = lambda x: x if np.ndim(x) == 0 else x[row]  # noqa: E731
        self.rules, self.prefix, self.stop = rules, list(prefix), stop
        self.min_len, self.limit = at(rules.min_len), max_len if rules.limit is None else min(at(rules.limit), max_len)
        self.bias_V = 0 if rules.bias is None else rules.bias if rules.bias.ndim == 1 else rules.bias[row]

    def allowed(self, scores_V, ids: list[int]) -> np.ndarray:
        """Scores as the rules leave them: log-probabilities for beams, logits for the others."""
        r, read = self.rules, [self.rules.start_id, *ids]
        scores_V = np.asarray(scores_V, np.float64)
        scores_V = scores_V if r.repetition is None else penalise(scores_V, read, r.repetition)
        if r.ngram is not None:
            scores_V[list(blocked(read, r.ngram))] = -INF
        scores_V = scores_V + self.bias_V
        if r.first_bias is not None and len(ids) == len(self.prefix):
            scores_V = scores_V + r.first_bias
        for token in {r.start_id, r.pad_id} - {r.end_id}:
            scores_V[token] = -INF
        if len(ids) + 1 < self.min_len:
            scores_V[r.end_id] = -INF
        return scores_V

    def forced(self, ids: list[int]) -> int | None:
        if len(ids) < len(self.prefix):
            return self.prefix[len(ids)]
        if self.rules.end_at_limit and len(ids) + 1 >= self.limit:
            return self.rules.end_id
        return self.rules.first_id if self.rules.first_id >= 0 and len(ids) == len(self.prefix) else None

    def ends(self, ids: list[int]) -> bool:
        return len(ids) > len(self.prefix) and (ids[-1] == self.rules.end_id or ends_with(ids, self.stop))


def log_probs(logits_V) -> np.ndarray:
    logits_V = np.asarray(logits_V, np.float64)
    return logits_V - np.logaddexp.reduce(logits_V)


def plain_greedy(logits_TV, plain: Plain) -> list[tuple[float, tuple]]:
    ids, total = [], 0.0
    while len(ids) < plain.limit and not plain.ends(ids):
        scores_V, token = plain.allowed(logits_TV[len(ids)], ids), plain.forced(ids)
        possible = token is not None or scores_V.max() > -INF
        token = token if token is not None else int(np.argmax(scores_V)) if possible else plain.rules.end_id
        total += log_probs(logits_TV[len(ids)])[token] if possible else -INF
        ids.append(token)
    return [(total, tuple(ids))]


def plain_beam(logits_TV, plain: Plain, beams: int, alpha: float) -> list[tuple[float, tuple]]:
    if plain.limit <= 0:
        return [(0.0, ())]
    live, bank, score = [(0.0, [])], [], gnmt(alpha)
    for step in range(plain.limit):
        candidates = []
        for total, ids in live:
            scores_V, token = plain.allowed(log_probs(logits_TV[step]), ids), plain.forced(ids)
            if token is not None:
                candidates.append((total + log_probs(logits_TV[step])[token], [*ids, token]))
            else:
                candidates += [(total + scores_V[token], [*ids, token]) for token in range(V)]
        candidates = sorted((c for c in candidates if c[0] > -INF), key=lambda c: -c[0])
        bank += [(score(total, step + 1), tuple(ids)) for total, ids in candidates[:beams] if plain.ends(ids)]
        live = [c for c in candidates if not plain.ends(c[1])][:beams]
    bank += [(score(total, plain.limit), tuple(ids)) for total, ids in live]
    return sorted(bank, key=lambda c: -c[0])[:beams]


# --- each rule alone ----------------------------------------------------------------------------------------------------------


@jax.jit
def change(rules, logits_RV, ids_RT, step, normaliser_R):
    return rules.change(logits_RV, ids_RT, step, normaliser_R)


@pytest.mark.parametrize("logarithmic", [False, True])
@given(
    ids=token_rows,
    step=st.integers(0, T),
    seed=seeds,
    factor=st.sampled_from([0.5, 1.0, 1.3, 3.0]),
    start=st.integers(0, V - 1),
)
def test_repetition(logarithmic, ids, step, seed, factor, start):
    """On log-probabilities in beam search and on logits elsewhere, the start token included, unread positions not."""
    logits_RV, ids = random_logits(seed, R, V), np.array(ids, np.int32)
    shift_R = np.logaddexp.reduce(logits_RV, axis=1) if logarithmic else np.zeros(R, np.float32)
    rules = Rules(start_id=np.int32(start), repetition=np.float32(factor))
    found = change(rules, logits_RV, ids, np.int32(step), shift_R if logarithmic else None)
    for row in range(R):
        expected_V = penalise(logits_RV[row] - shift_R[row], [start, *ids[row, :step]], np.float32(factor)) + shift_R[row]
        np.testing.assert_allclose(found[row], expected_V, rtol=1e-5, atol=1e-5)


@given(ids=token_rows, step=st.integers(0, T), seed=seeds, n=st.integers(1, 4), start=st.integers(0, V - 1), few=st.booleans())
@settings(max_examples=60)
def test_ngram_blocking(ids, step, seed, n, start, few):
    """No n-gram stands twice, the start token being the first of the first one; unread positions are none."""
    logits_RV, ids = random_logits(seed, R, V, impossible=0.0), np.array(ids, np.int32) % (2 if few else V)
    start = start % 2 if few else start
    found = change(Rules(start_id=np.int32(start), ngram=np.int32(n)), logits_RV, ids, np.int32(step), None)
    for row in range(R):
        expected = blocked([start, *ids[row, :step].tolist()], n)
        assert set(np.flatnonzero(np.asarray(found[row]) == -INF)) == expected
        kept = sorted(set(range(V)) - expected)
        np.testing.assert_array_equal(found[row, kept], logits_RV[row, kept])


@jax.jit
def forbid(rules, scores_RV, step):
    return rules.forbid(scores_RV, step, R)


@given(
    tokens=st.tuples(*[st.integers(0, V - 1)] * 3),
    outside=st.booleans(),
    min_len=st.lists(st.integers(0, T), min_size=R, max_size=R),
    step=st.integers(0, T - 1),
)
def test_start_and_padding_are_forbidden_and_an_early_end(tokens, outside, min_len, step):
    start, end, pad = tokens
    start = V + 2 if outside else start  # no token of the vocabulary: nothing is forbidden
    scores_RV = random_logits(0, R, V, impossible=0.0)
    rules = Rules(*(np.int32(x) for x in (start, end, pad)), min_len=np.array(min_len, np.int32))
    found = forbid(rules, scores_RV, np.int32(step))
    for row in range(R):
        banned = ({start, pad} - {end} - {V + 2}) | ({end} if step + 1 < min_len[row] else set())
        expected = [-INF if token in banned else scores_RV[row, token] for token in range(V)]
        np.testing.assert_array_equal(found[row], expected)


@jax.jit
def ends(rules, ids_RT, step):
    return rules.ends(ids_RT[:, step], ids_RT, step)


@given(ids=token_rows, step=st.integers(0, T - 1), lengths=st.tuples(*[st.integers(1, 3)] * 3), seed=seeds)
@settings(max_examples=60)
def test_stop_sequences(ids, step, lengths, seed):
    rng, ids = np.random.default_rng(seed), np.array(ids, np.int32) % 3 + 3
    sequences = [rng.integers(3, 6, n).tolist() for n in lengths]
    rows = np.full((3, 3), -1, np.int32)
    for row, sequence in zip(rows, sequences):
        row[3 - len(sequence) :] = sequence
    assume(stop_sequences(sequences).shape[1] <= 3)
    np.testing.assert_array_equal(stop_sequences(sequences), rows[:, 3 - max(lengths) :])
    found = ends(Rules(stop=rows), ids, np.int32(step))
    assert found.tolist() == [ends_with(row[: step + 1].tolist(), sequences) for row in ids]


def test_a_row_of_nothing_but_filling_stops_nothing():
    assert not ends(Rules(stop=np.full((2, 3), -1, np.int32)), np.full((R, T), -1, np.int32) + 4, np.int32(2)).any()
    assert stop_sequences([]) is None


# --- all rules in a search ----------------------------------------------------------------------------------------------------

STOPS = [[3, 4], [5, 5, 5], [6]]


@st.composite
def cases(draw):
    """Rules with every field given, so that one program serves all cases, and the prefixes as lists."""
    each = lambda low, high: st.lists(st.integers(low, high), min_size=R, max_size=R)  # noqa: E731
    prefixes = draw(st.lists(st.lists(st.integers(2, V - 1), max_size=4), min_size=R, max_size=R))
    used = draw(st.sets(st.sampled_from(["bias", "first_bias", "repetition", "ngram", "stop", "first_id"])))
    seed = draw(seeds)
    rng = np.random.default_rng(seed)
    stop = draw(st.lists(st.sampled_from(STOPS), min_size=1, max_size=2, unique_by=tuple)) if "stop" in used else []
    rows = np.full((2, 3), -1, np.int32)
    for row, sequence in zip(rows, stop):
        row[3 - len(sequence) :] = sequence
    minus = lambda *shape: np.where(rng.random(shape) < 0.2, -INF, -rng.exponential(size=shape)).astype(np.float32)  # noqa: E731
    rules = Rules(
        start_id=draw(st.sampled_from([BOS, 3])),
        end_id=EOS,
        pad_id=PAD,
        min_len=np.array(draw(each(0, T + 2))),
        limit=np.array(draw(each(0, T))),
        end_at_limit=draw(st.booleans()),
        prefix=core.pad_tokens(prefixes, 4),
        first_id=draw(st.integers(2, V - 1)) if "first_id" in used else -1,
        bias=minus(R, V) if "bias" in used else np.zeros((R, V), np.float32),
        first_bias=minus(V) if "first_bias" in used else np.zeros(V, np.float32),
        repetition=draw(st.sampled_from([0.7, 1.5])) if "repetition" in used else 1.0,
        ngram=draw(st.integers(1, 4)) if "ngram" in used else 99,
        stop=rows,
    )
    return rules, prefixes, stop, random_logits(seed, R, T, V)


def found_by(search, rules: Rules, logits_RTV) -> list[list[tuple[float, tuple]]]:
    out = play(logits_RTV, search, **rules._asdict())
    ids, score, length = (
        np.asarray(x).reshape(R, -1, *np.shape(x)[np.ndim(out.score) :]) for x in (out.ids, out.score, out.length)
    )
    return [
        [(float(s), tuple(i[:n].tolist())) for i, s, n in zip(*row) if s > -INF or ids.shape[1] == 1]
        for row in zip(ids, score, length)
    ]


@settings(max_examples=80)
@given(case=cases())
def test_greedy_search_keeps_to_all_rules(case):
    rules, prefixes, stop, logits_RTV = case
    for row, found in enumerate(found_by(Greedy(), rules, logits_RTV)):
        assert_same(found, plain_greedy(logits_RTV[row], Plain(rules, row, T, prefixes[row], stop)))


@settings(max_examples=80)
@given(case=cases())
def test_beam_search_keeps_to_all_rules(case):
    rules, prefixes, stop, logits_RTV = case
    for row, found in enumerate(found_by(beam(3, 0.6, n_best=3), rules, logits_RTV)):
        assert_same(found, plain_beam(logits_RTV[row], Plain(rules, row, T, prefixes[row], stop), 3, 0.6))


@pytest.mark.parametrize("search", [Greedy(), beam(1, 1.0), beam(3, 1.0)])
def test_a_prefix_may_hold_the_end_token_and_may_be_as_long_as_the_row(search):
    rows = np.repeat(table(*[{3: 1.0, 4: 0.0, EOS: 2.0, 5: -1.0}] * 4), 4, axis=0)
    prefix = core.pad_tokens([[EOS, 5], [], [4, 4, 4, 4], [5]], 4)
    out = play(rows, search, prefix=prefix, limit=np.array([4, 4, 4, 1]))
    assert out.ids.tolist() == [[EOS, 5, EOS, PAD], [EOS, PAD, PAD, PAD], [4, 4, 4, 4], [5, PAD, PAD, PAD]]
    one = play(rows, search, prefix=core.pad_tokens([[5, 4]]))  # one for all rows
    assert one.ids.tolist() == [[5, 4, EOS, PAD]] * 4


@pytest.mark.parametrize("free", [False, True])
def test_a_forced_prefix_costs_what_the_penalty_says(free):
    rows = table(*[{3: 1.0, 4: 0.0, EOS: -2.0}] * 2, {EOS: 0.0})
    rule = penalty.huggingface(1.0)._replace(free=np.bool_(free))
    out = play(rows, Beam(2, rule), prefix=core.pad_tokens([[4]]), first_id=4)
    assert out.ids.tolist() == [[4, 4, EOS]]
    cost = 0.0 - np.logaddexp.reduce([1.0, 0.0, -2.0])
    np.testing.assert_allclose(out.log_probs, [[cost, cost, 0.0]], rtol=1e-5)  # the model's own, whatever they cost
    np.testing.assert_allclose(out.score, [0.0 if free else 2 * cost / 3], rtol=1e-5, atol=1e-6)


def test_a_bias_that_raises_scores_lets_no_search_stop_too_early():
    """Scores may rise then: the best hypothesis is still found, though it ends long after another."""
    rows = table({EOS: 3.0, 3: 0.0}, *[{3: 0.0}] * 6, {EOS: 0.0, 3: 0.0})
    out = play(rows, beam(1, 0.0), bias=bias(6, add={3: 1.0}))
    assert out.ids.tolist() == [[3] * 8]


# --- lengths relative to the source -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", [Greedy(), beam(2, 1.0)])
def test_ratios_are_lengths_of_each_rows_source(search):
    for seed in range(3):
        model, params, source = toy(seed, batch=4)
        count_B = source.mask.sum(axis=1)
        for least, most in ((0.5, 0.8), (1.0, 1.2), (2.0, 1.0)):
            ratios = generate(model, params, source, max_len=6, search=search, rules=Rules(min_ratio=least, limit_ratio=most))
            lengths = Rules(min_len=np.ceil(least * count_B), limit=np.floor(most * count_B))
            numbers = generate(model, params, source, max_len=6, search=search, rules=lengths)
            np.testing.assert_array_equal(ratios.ids, numbers.ids)
            assert (ratios.length <= np.floor(most * count_B)).all()


def test_ratios_meet_whole_numbers_exactly():
    count = np.arange(1, 513)
    for tenths in range(1, 41):
        rules = Rules(min_ratio=np.float32(tenths / 10), limit_ratio=np.float32(tenths / 10)).relative_to(count)
        expected = [Fraction(tenths, 10) * int(n) for n in count]
        assert rules.min_len.tolist() == [math.ceil(x) for x in expected], tenths
        assert rules.limit.tolist() == [math.floor(x) for x in expected], tenths


def test_a_limit_and_a_ratio_hold_both():
    rules = Rules(limit=np.array([2, 9]), limit_ratio=1.0, min_len=np.array([3, 0]), min_ratio=0.5).relative_to(
        np.array([4, 4])
    )
    assert rules.limit.tolist() == [2, 4]
    assert rules.min_len.tolist() == [3, 2]


# --- what is refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (Rules(min_len=np.zeros(2)), r"rules.min_len has the shape \(2,\)"),
        (Rules(limit=np.zeros((3, 1))), r"rules.limit has the shape \(3, 1\)"),
        (Rules(repetition=0.0), "rules.repetition is 0.0"),
        (Rules(repetition=np.nan), "rules.repetition is nan"),
        (Rules(ngram=0), "rules.ngram is 0"),
        (Rules(min_ratio=-0.1), "rules.min_ratio is -0.1"),
        (Rules(limit_ratio=np.nan), "rules.limit_ratio is nan"),
        (Rules(prefix=core.pad_tokens([[3], [4]])), "rules.prefix has 2 rows"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(rules, message):
    model, params, source = toy(0)
    for search in (Greedy(), beam(2)):
        with pytest.raises(core.UserError, match=message):
            generate(model, params, source, max_len=5, search=search, rules=rules)


def test_other_refusals():
    with pytest.raises(core.UserError, match="token 4 cannot be biased"):
        bias(4, suppress=[4])
    with pytest.raises(core.UserError, match="token -1 cannot be biased"):
        bias(4, add={-1: 1.0})
    with pytest.raises(core.UserError, match="a stop sequence is empty"):
        stop_sequences([[3], []])
    with pytest.raises(core.UserError, match="max_len is 0"):
        Rules().limits(2, 0)
    with pytest.raises(core.UserError, match="relative_to"):
        Rules(min_ratio=1.0).limits(2, 5)
    with pytest.raises(core.UserError, match="relative_to"):
        Greedy()(None, None, jnp.int32(0), 2, 5, Rules(limit_ratio=1.0))
