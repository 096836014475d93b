"""Constrained beam search against enumeration, its progress and its table against brute force, and at the edges."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import assert_same, every_hypothesis, forced, gnmt, hypotheses, oracles, play, power, table, toy

from zoo import core
from zoo.core import BOS, EOS, PAD
from zoo.generate import Beam, Rules, bias, constrained, facade, generate, penalty, stop_sequences
from zoo.generate.constrained import ConstrainedBeam, phrases

LENGTH = 5
SPACE = 256  # beams: more than the 3 ** 5 sequences of 5 tokens over 3 and the end


def contains(ids: tuple, phrase: tuple) -> bool:
    return any(ids[n : n + len(phrase)] == tuple(phrase) for n in range(len(ids) - len(phrase) + 1))


def satisfying(oracle, wanted, limit: int, score, min_len: int = 0) -> list[tuple[float, tuple]]:
    """The whole space of those that contain all phrases, best first."""
    return [h for h in every_hypothesis(oracle, limit, score, min_len) if all(contains(h[1], phrase) for phrase in wanted)]


def shortest(wanted, alphabet=(3, 4, 5), most: int = 9) -> int:
    """The length of the shortest string that contains all phrases, by trying all."""
    return next(
        n
        for n in range(most + 1)
        if any(all(contains(ids, phrase) for phrase in wanted) for ids in itertools.product(alphabet, repeat=n))
    )


def search(wanted, seed: int = 0, rules: Rules = Rules(), beams: int = SPACE, rank=penalty.gnmt(), n_best: int = 9):  # noqa: B008
    """Constrained search of a random model for 3 sentences: (each one's hypotheses, each one's oracle).

    The phrases are filled up to one shape, so that the tests share programs.
    """
    model, params, source = toy(seed)
    ids_BPL = phrases(wanted)
    ids_BPL = np.pad(ids_BPL, [(0, 0), *((0, n - m) for n, m in zip((2, 4), ids_BPL.shape[1:]))], constant_values=-1)
    beam = ConstrainedBeam(ids_BPL, beams, rank, n_best)
    found = generate(model, params, source, max_len=LENGTH, search=beam, rules=rules)
    return hypotheses(found), oracles(params, source, LENGTH)


# --- against enumeration ------------------------------------------------------------------------------------------------------

PENALTIES = {
    "none": (penalty.none(), power(0.0)),
    "gnmt": (penalty.gnmt(0.6), gnmt(0.6)),
    "negative": (penalty.gnmt(-1.0), gnmt(-1.0)),
    "average": (penalty.average(), power(1.0)),
    "fairseq": (penalty.fairseq(2.0), power(2.0)),
    "marian": (penalty.marian(2.0, -1.5), power(2.0, -1.5)),
    "huggingface": (penalty.huggingface(1.0, True), power(1.0)),
}
WANTED = [
    [[3]],
    [[4, 4, 5]],
    [[3, 4], [5]],
    [[3, 4], [4, 5]],  # may overlap
    [[3, 3, 4], [3, 4, 3]],  # overlap, restart
    [[3, 4, 3], [4, 3]],  # one within the other
    [[4, 4], [4, 4]],  # the same twice: one occurrence meets both
    [[3, 4, 5], [5, 4, 3]],  # fits only where the 5 is shared
    [[3, 4, 5], [3, 5, 4]],  # cannot fit
    [],
]


@pytest.mark.parametrize("name", PENALTIES)
def test_a_beam_as_wide_as_the_space_finds_the_exact_best(name):
    rank, score = PENALTIES[name]
    found_any = 0
    for seed in range(4):
        batch = [WANTED[(3 * seed + n) % len(WANTED)] for n in range(3)]
        limit, min_len = np.array([5, 4, 5]), seed
        rules = Rules(limit=limit, min_len=min_len)
        found, oracle = search(batch, seed, rules, rank=rank)
        for b in range(3):
            expected = satisfying(oracle[b], batch[b], limit[b], score, min_len)[:9]
            assert_same(found[b], expected)
            found_any += len(expected)
    assert found_any > 50


@pytest.mark.parametrize("name", ["none", "gnmt", "average"])
def test_without_phrases_it_is_beam(name):
    rank, _ = PENALTIES[name]
    for seed in range(4):
        model, params, source = toy(seed)
        rules = Rules(limit=np.array([6, 3, 1]), min_len=seed)
        same = [
            generate(model, params, source, max_len=6, search=kind, rules=rules)
            for kind in (ConstrainedBeam(phrases([[]] * 3), 3, rank, 2), Beam(3, rank, n_best=2))
        ]
        for a, b in zip(*same):
            np.testing.assert_allclose(a, b, rtol=1e-5) if not isinstance(a, dict) else None


token = st.integers(3, 5)


@given(
    wanted=st.lists(st.lists(st.lists(token, min_size=1, max_size=3), min_size=2, max_size=3), min_size=3, max_size=3),
    slack=st.integers(-1, 2),
    seed=st.integers(0, 99),
    beams=st.sampled_from([1, 3, 8]),
    end=st.booleans(),
)
def test_narrow_beams_satisfy_whatever_fits(wanted, slack, seed, beams, end):
    """To the very length that the shortest string with all phrases has, in which they overlap; one token less has none."""
    limit = np.array([shortest(sentence) + slack for sentence in wanted])
    padded = [sentence + sentence[:1] * (3 - len(sentence)) for sentence in wanted]  # for one program: the same phrase twice
    model, params, source = toy(seed)
    given_ids = np.full((3, 3, 3), -1, np.int32)
    for b, p in itertools.product(range(3), range(3)):
        given_ids[b, p, : len(padded[b][p])] = padded[b][p]
    rules = Rules(limit=limit + end, end_at_limit=end)
    out = generate(model, params, source, max_len=16, search=ConstrainedBeam(given_ids, beams), rules=rules)
    for found, sentence, most in zip(hypotheses(out), wanted, limit):
        assert len(found) == (slack >= 0)
        for _, ids in found:
            assert all(contains(ids, tuple(phrase)) for phrase in sentence)
            assert len(ids) <= most + end
            assert ids[-1] == EOS or (len(ids) == most and not end)
    assert np.array_equal(np.asarray(out.length) == 0, np.asarray(out.score) == -np.inf)


def test_a_beam_of_ten_mostly_finds_the_exact_best():
    reached = []
    for seed in range(6):
        batch = [WANTED[(seed + n) % 4] for n in range(3)]
        found, oracle = search(batch, seed, beams=10)
        for b in range(3):
            best, _ = satisfying(oracle[b], batch[b], LENGTH, gnmt(0.6))[0]
            assert found[b][0][0] <= best + 1e-5
            reached.append(found[b][0][0] > best - 1e-4)
    assert np.mean(reached) > 0.8


# --- progress, and what is still missing --------------------------------------------------------------------------------------


@jax.jit
def follow(ids_BPL, tokens_BT):
    """(met, covered, missing, asked) after each prefix, the empty one first: T + 1 of each."""
    wanted = constrained.study(ids_BPL)
    progress, seen = constrained.nothing(wanted, 1), []
    for step in range(tokens_BT.shape[1] + 1):
        if step:
            progress = constrained.read(wanted, progress, tokens_BT[:, step - 1 : step])
        functions = (constrained.covered, constrained.missing, constrained.asked)
        seen.append((progress.met_BNP[:, 0], *(f(wanted, progress)[:, 0] for f in functions)))
    return seen


def longest_beginning(ids: tuple, phrase: tuple) -> int:
    return max(n for n in range(len(phrase) + 1) if n == 0 or ids[-n:] == phrase[:n])


@given(st.data())
def test_progress_and_what_is_missing_are_exact(data):
    """Against the definitions: substrings, longest beginnings, and the shortest completion by trying all of them."""
    phrase = st.lists(st.integers(3, 4), min_size=0, max_size=3).map(tuple)
    wanted = [data.draw(st.lists(phrase, min_size=3, max_size=3)) for _ in range(4)]
    tokens = [data.draw(st.lists(st.integers(3, 4), min_size=4, max_size=4)) for _ in range(4)]
    ids_BPL = np.full((4, 3, 3), -1, np.int32)
    for b, p in itertools.product(range(4), range(3)):
        ids_BPL[b, p, : len(wanted[b][p])] = wanted[b][p]
    for step, state in enumerate(follow(ids_BPL, np.array(tokens, np.int32))):
        met, covered, missing, asked = (np.asarray(x) for x in state)
        for b in range(4):
            ids, real = tuple(tokens[b][:step]), wanted[b]
            is_met = [contains(ids, p) for p in real]
            begun = [longest_beginning(ids, p) for p in real]
            unmet = [p for p, done in zip(real, is_met) if not done]
            assert met[b].tolist() == is_met
            assert covered[b] == sum(len(p) if done else n for p, n, done in zip(real, begun, is_met))
            assert set(asked[b].tolist()) - {-1} == {
                p[i] for p, n, done in zip(real, begun, is_met) if not done for i in (0, n)
            }
            tails = (tail for n in range(10) for tail in itertools.product((3, 4), repeat=n))
            assert missing[b] == next(len(tail) for tail in tails if all(contains(ids + tail, p) for p in unmet))


def test_ten_phrases_at_once():
    """All 9 pairs fit into a ring of 9 with one token more to close it; "5 5 5" takes one more."""
    wanted = [list(pair) for pair in itertools.product((3, 4, 5), repeat=2)] + [[5, 5, 5]]
    model, params, source = toy(0, batch=1)
    for limit in (11, 10):
        constrained_beam = ConstrainedBeam(phrases([wanted]), 4)
        found = hypotheses(generate(model, params, source, max_len=12, search=constrained_beam, rules=Rules(limit=limit)))[0]
        assert len(found) == (limit == 11)
        assert all(contains(ids, tuple(phrase)) for phrase in wanted for _, ids in found)


def test_places_are_shared_among_the_banks():
    wanted = constrained.study(jnp.array([[[3, 4, -1]], [[-1, -1, -1]]]))
    total = jnp.array([[-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -jnp.inf]] * 2)
    bank = jnp.array([[0, 0, 0, 1, 2, 2, 2], [0] * 7])
    chosen = lambda beams: np.asarray(constrained.allocate(total, bank, wanted, beams)).tolist()  # noqa: E731
    assert chosen(1) == [[4], [0]]  # 1 place for 3 banks: the fullest; without phrases the best
    assert chosen(3) == [[0, 3, 4], [0, 1, 2]]
    assert chosen(5) == [[0, 1, 3, 4, 5], [0, 1, 2, 3, 4]]  # bank 1 leaves its second place to the best without one
    assert chosen(7)[1] == [0, 1, 2, 3, 4, 5, 6]


# --- rules and edges ----------------------------------------------------------------------------------------------------------


def test_a_sentence_alone_is_what_it_is_in_a_batch():
    batch = [WANTED[2], WANTED[4], [[5, 5, 5], [4]], WANTED[0], []]
    model, params, source = toy(7, batch=5)
    whole = phrases(batch)
    together = generate(model, params, source, max_len=7, search=ConstrainedBeam(whole, 5, n_best=2))  # 8 rows inside
    for b in (0, 2, 4):
        one = core.Tokens(source.ids[b : b + 1], source.mask[b : b + 1])
        alone = generate(model, params, one, max_len=7, search=ConstrainedBeam(whole[b : b + 1], 5, n_best=2))
        assert_same(hypotheses(alone)[0], hypotheses(together)[b])
    shared = generate(model, params, source, max_len=7, search=ConstrainedBeam(whole[1], 5, n_best=2))
    assert_same(hypotheses(shared)[1], hypotheses(together)[1])
    assert all(contains(ids, (3, 3, 4)) and contains(ids, (3, 4, 3)) for found in hypotheses(shared) for _, ids in found)


def test_phrases_that_the_model_finds_all_but_impossible_are_there():
    """One is never among the best tokens; another's beginning is, so that it would be broken off again and again."""
    logits = table(*[{EOS: 2.0, 5: 1.0, 4: 0.0, 3: -80.0}] * 8, vocab=12)
    out = play(logits, ConstrainedBeam(phrases([[[3, 3], [5, 4, 5, 5]]]), 2, penalty.none()))
    ((score, ids),) = hypotheses(out)[0]
    assert contains(ids, (3, 3))
    assert contains(ids, (5, 4, 5, 5))
    assert score < -150


def test_a_restart_keeps_what_still_counts():
    """Everything is forced to "a a a b": progress that starts again from nothing would miss "a a b" in it."""
    logits = table({3: 0.0}, {3: 0.0}, {3: 0.0}, {4: 0.0}, {EOS: 0.0})
    out = play(logits, ConstrainedBeam(phrases([[[3, 3, 4]]]), 2))
    assert [ids for _, ids in hypotheses(out)[0]] == [(3, 3, 3, 4, EOS)]


def test_the_end_waits_for_the_phrases():
    logits = table(*[{EOS: 50.0, 3: 0.0, 4: 1.0}] * 4)
    out = play(logits, ConstrainedBeam(phrases([[[4, 3]]]), 4, penalty.none(), n_best=4))
    assert hypotheses(out)[0][0][1] == (4, 3, EOS)
    assert all(contains(ids, (4, 3)) for _, ids in hypotheses(out)[0])


def test_a_phrase_that_the_model_forbids_gives_an_empty_result():
    logits = table(*[{EOS: 1.0, 4: 0.0}] * 4)
    out = play(logits, ConstrainedBeam(phrases([[[3]]]), 3, n_best=2))
    assert hypotheses(out) == [[]]
    assert np.asarray(out.length).tolist() == [[0, 0]]
    assert (np.asarray(out.ids) == PAD).all()
    outside = play(logits, ConstrainedBeam(phrases([[[77]]]), 3, n_best=2))  # not in the vocabulary
    assert np.asarray(outside.score).tolist() == [[-np.inf] * 2]


@pytest.mark.parametrize("limit", [0, 1])
def test_the_shortest_limits(limit):
    found, oracle = search([[[3]], [[3, 4]], []], rules=Rules(limit=limit))
    for b, wanted in enumerate([[[3]], [[3, 4]], []]):
        expected = satisfying(oracle[b], wanted, limit, gnmt(0.6)) if limit else [] if wanted else [(0.0, ())]
        assert_same(found[b], expected)


def test_a_model_that_never_ends_is_cut():
    logits = np.tile(table({3: 0.0, 4: -1.0, 5: 0.0}), (1, 6, 1))
    out = play(logits, ConstrainedBeam(phrases([[[4], [5, 5]]]), 4))
    ((_, ids),) = hypotheses(out)[0]
    assert len(ids) == 6
    assert contains(ids, (5, 5))
    assert 4 in ids


def test_a_prefix_counts_and_the_last_token_may_be_kept_for_the_end():
    prefix = core.Tokens(np.array([[3, 4]] * 3), np.array([[True, True]] * 3))
    batch = [[[3, 4]], [[4, 5]], [[5, 5], [4, 3]]]
    rules = Rules(prefix=prefix, end_at_limit=True)
    found, oracle = search(batch, rules=rules, rank=penalty.none())
    for b in range(3):
        every = every_hypothesis(oracle[b], LENGTH, power(0.0), cut=False)
        expected = [h for h in every if h[1][:2] == (3, 4) and all(contains(h[1], tuple(p)) for p in batch[b])]
        assert_same(found[b], expected[:9])
    assert found[2] == []  # 3 4 3 5 5 leaves no place for the end
    # transformers' way: neither the prefix nor an end that the limit forces costs anything, and the prefix has no length.
    free, _ = search(batch, rules=rules, rank=penalty.huggingface(1.0))
    for b in range(2):
        every = [ids for _, ids in every_hypothesis(oracle[b], LENGTH, power(0.0), cut=False) if ids[:2] == (3, 4)]
        every = [ids for ids in every if all(contains(ids, tuple(p)) for p in batch[b])]
        chosen = [range(2, len(ids) - (len(ids) == LENGTH)) for ids in every]
        sums = [sum(oracle[b][ids[:t]][ids[t]] for t in places) for ids, places in zip(every, chosen)]
        expected = sorted(((s / (len(ids) - 2), ids) for s, ids in zip(sums, every)), reverse=True)
        assert_same(free[b], expected[:9])
    found, _ = search(batch, rules=rules._replace(end_at_limit=False))
    assert [ids for _, ids in found[2]] == [(3, 4, 3, 5, 5)]


def test_a_stop_sequence_closes_only_what_is_satisfied():
    """One that completes a phrase closes it; one that comes too early is no way at all."""
    rules = Rules(stop=stop_sequences([[4, 4]]))
    batch = [[[4, 4]], [[3, 3], [5]], [[4, 4, 3]]]
    found, oracle = search(batch, rules=rules, rank=penalty.none())
    for b in range(3):
        expected = [
            h
            for h in _stopped(oracle[b], (4, 4))
            if all(contains(h[1], tuple(p)) for p in batch[b]) and not contains(h[1][:-1], (4, 4))
        ]
        assert_same(found[b], sorted(expected, reverse=True)[:9])
    assert found[0]
    assert found[2] == []


def _stopped(oracle, stop):
    """Every sequence that ends, is cut, or ends in the stop sequence, once."""
    sums = {ids: s for s, ids in every_hypothesis(oracle, LENGTH, power(0.0))}
    for prefix in oracle:
        if prefix[-2:] == stop:
            sums[prefix] = sum(oracle[prefix[:t]][token] for t, token in enumerate(prefix))
    return [(s, ids) for ids, s in sums.items()]


@pytest.mark.parametrize("repeat", [{"ngram": 2}, {"repetition": 1.7}])
def test_rules_hold_for_the_phrases_too(repeat):
    rules = Rules(bias=bias(6, suppress=[5], add={4: -0.5}), **repeat)
    found, _ = search([[[3, 4, 3]], [[4, 4]], [[5]]], rules=rules)
    assert found[0]
    assert found[1]
    assert found[2] == []
    for _, ids in found[0] + found[1]:
        read = (BOS, *ids)
        assert "ngram" not in repeat or len(set(itertools.pairwise(read))) == len(read) - 1


def test_a_bias_that_raises_sums_does_not_stop_the_search_early():
    """What closes at once is ahead of all that lives; but each further token is a gain."""
    logits = table({4: 0.0}, {EOS: 0.0, 3: -30.0}, *[{3: 0.0}] * 4)
    out = play(logits, ConstrainedBeam(phrases([[[4]]]), 4, penalty.none()), bias=bias(6, add={3: 9.0}))
    ((score, ids),) = hypotheses(out)[0]
    assert ids == (4, 3, 3, 3, 3, 3)
    assert score == pytest.approx(15)


def test_a_reward_for_each_token_does_not_stop_the_search_early():
    """(sum + 2 * length) / length ** 2 is greatest between the next length and the limit, where the usual bound looks."""
    rows = [{3: 0.0}, {PAD: 0.0, EOS: -3.7, 4: -14.0}, *[{4: 0.0}] * 11, *[{EOS: 0.0}] * 7]
    out = play(table(*rows), ConstrainedBeam(phrases([[[3]]]), 4, penalty.marian(2.0, -2.0)))
    ((score, ids),) = hypotheses(out)[0]
    assert ids == (3, *[4] * 12, EOS)
    assert score == pytest.approx((-14.02 + 28) / 14**2, abs=1e-3)


def test_it_stops_when_nothing_can_enter_any_more():
    logits = table(*[{EOS: 9.0, 3: 0.0}] * 20)
    out = play(logits, ConstrainedBeam(np.array([[3, -1]]), 3, penalty.none()))
    assert hypotheses(out)[0][0][1] == (3, EOS)
    assert out.steps == 2
    assert play(logits, ConstrainedBeam(np.array([[3, 3]]), 3, penalty.none()), limit=1).steps == 1


def test_the_attention_is_the_best_hypothesis():
    model, params, source = toy(4)
    wanted = ConstrainedBeam(phrases([[[3]], [[4, 5]], [[3] * 9]]), 4, n_best=2)
    out = generate(model, params, source, max_len=5, search=wanted, attention=True)
    (weights,) = out.attention.values()
    _, exact = forced(params, source, np.asarray(out.ids)[:, 0])
    for b, length in enumerate(np.asarray(out.length)[:, 0]):
        np.testing.assert_allclose(weights[b, 0, :length], exact[b, b, :length], atol=1e-5)
        assert (np.asarray(weights)[b, :, length:] == 0).all()


def test_other_phrases_of_the_same_shape_compile_nothing():
    model, params, source = toy(1)
    run = lambda wanted, rank: generate(  # noqa: E731
        model, params, source, max_len=8, search=ConstrainedBeam(phrases(wanted), 3, rank)
    )
    run([[[3, 4, 5]], [], [[3]]], penalty.none())
    before = facade._generate._cache_size()
    run([[[3, 4, 5, 3]], [[5]], []], penalty.average())
    assert facade._generate._cache_size() == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: phrases([[[3], []]]), "a phrase of sentence 0 is empty"),
        (lambda: phrases([[], [[3, EOS]]]), "sentence 1 holds the id 2"),
        (lambda: phrases([[[PAD]]]), "holds the id 0"),
        (lambda: phrases([[[BOS]]]), "holds the id 1"),
        (lambda: phrases([[[-1]]]), "holds the id -1"),
        (lambda: phrases([[[7]]], Rules(end_id=7)), "holds the id 7"),
        (lambda: phrases([[[3]] * 11]), "11 phrases: give at most 10"),
        (lambda: ConstrainedBeam(np.zeros((11, 1), np.int32)), "11 phrases a sentence"),
        (lambda: ConstrainedBeam(phrases([[[3]]] * 2)), r"the shape \(2, 1, 1\)"),
        (lambda: ConstrainedBeam(np.array([3, 4])), r"the shape \(2,\)"),
        (lambda: ConstrainedBeam(np.zeros((3, 0, 2), np.int32)), r"the shape \(3, 0, 2\)"),
        (lambda: ConstrainedBeam(np.array([[3, -1, 4]])), "filled from the right"),
        (lambda: ConstrainedBeam(np.array([[-5]])), "filled from the right"),
        (lambda: ConstrainedBeam(phrases([[[3]]] * 3), 0), "beams is 0"),
        (lambda: ConstrainedBeam(phrases([[[3]]] * 3), 2, n_best=3), "n_best is 3"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message):
    model, params, source = toy(0)
    with pytest.raises(core.UserError, match=message):
        generate(model, params, source, max_len=4, search=make())


def test_the_helper_pads_and_an_id_that_ends_nothing_may_be_wanted():
    assert phrases([]).shape == (0, 1, 1)
    assert phrases([[[EOS]]], Rules(end_id=7)).tolist() == [[[EOS]]]
    assert phrases([[(4,), np.array([5, 6])]]).tolist() == [[[4, -1], [5, 6]]]
