"""Stochastic beam search against the exact distributions of sequences, of pairs without replacement, and of their noise."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from toys import assert_same, forced, hypotheses, oracles, path_sum, play, table, toy

from zoo import core
from zoo.core import BOS, EOS, PAD
from zoo.generate import Rules, bias, facade, generate, stop_sequences
from zoo.generate.stochastic import StochasticBeam, condition

LENGTH = 3
EVERY = 16  # beams: one more than there are sequences of at most 3 tokens over 2 and the end
DRAWS = 4000


def distribution(oracle, limit: int, temperature: float = 1.0, min_len: int = 0, ban: tuple = ()) -> dict[tuple, float]:
    """Every sequence -> its probability, by the tree: what is allowed after each prefix is normalised again."""
    found, prefixes = {}, {(): 1.0}
    for length in range(1, limit + 1):
        longer = {}
        for prefix, prob in prefixes.items():
            tokens = [t for t in range(EOS, len(oracle[prefix])) if (t != EOS or length >= min_len) and t not in ban]
            share = np.exp(oracle[prefix][tokens] / temperature)
            for token, p in zip(tokens, share / share.sum()):
                (found if token == EOS or length == limit else longer)[(*prefix, token)] = prob * p
        prefixes = longer
    return found


@functools.partial(jax.jit, static_argnames=("model", "beams"))
def drawn(model, params, source, keys, temperature, rules, *, beams):
    """The outputs of a batch of one under each key: one program for all."""

    def one(key):
        decode, memory, cache = facade.bind(model, params, source, LENGTH, beams)
        return StochasticBeam(key, beams, temperature)(decode, memory, cache, 1, LENGTH, rules)

    return jax.tree.map(lambda x: x[:, 0], jax.vmap(one)(keys)._replace(steps=jnp.zeros((len(keys), 1))))


def draws(seed: int, beams: int, temperature: float = 1.0, min_len: int = 0):
    """Many keys' outputs of one sentence of a random model, and the exact distribution of a single one."""
    model, params, source = toy(seed, batch=1, vocab=5)
    keys, rules = jax.random.split(jax.random.key(seed), DRAWS), Rules(min_len=jnp.array([min_len]))
    out = drawn(model, params, source, keys, jnp.float32(temperature), rules, beams=beams)
    return out, distribution(oracles(params, source, LENGTH)[0], LENGTH, temperature, min_len)


def assert_frequencies(found: list, probability: dict) -> None:
    """Pearson's test at 1 in 1000; what is expected less than 5 times is counted together."""
    counts = dict.fromkeys(probability, 0)
    for item in found:
        counts[item] += 1
    expected = np.array([probability[item] * len(found) for item in counts])
    observed, rare = np.array(list(counts.values())), expected < 5
    groups = [(observed[~rare], expected[~rare]), (observed[rare].sum(keepdims=True), expected[rare].sum(keepdims=True))]
    observed, expected = (np.concatenate(x) for x in zip(*(group for group in groups if group[1].sum() > 0)))
    assert len(expected) > 4
    assert scipy.stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


# --- against the exact distributions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "min_len"), [(1.0, 0), (0.5, 2)])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_first_place_is_a_draw_from_the_model(seed, temperature, min_len):
    out, exact = draws(seed, 1, temperature, min_len)
    assert sum(exact.values()) == pytest.approx(1)
    assert_frequencies([ids for ((_, ids),) in hypotheses(out)], exact)


@pytest.mark.parametrize(("temperature", "min_len"), [(1.0, 0), (2.0, 2)])
@pytest.mark.parametrize("seed", [1, 2])
def test_two_beams_are_a_pair_without_replacement(seed, temperature, min_len):
    """Ordered pairs: the first by its probability, the second by its share of what the first leaves."""
    out, p = draws(seed, 2, temperature, min_len)
    exact = {(a, b): p[a] * p[b] / (1 - p[a]) for a, b in itertools.permutations(p, 2)}
    assert_frequencies([tuple(ids for _, ids in pair) for pair in hypotheses(out)], exact)


def test_the_scores_are_independent_gumbel_noise_at_the_log_probabilities():
    """All sequences at once: score less log-probability is the noise of the Gumbel-top-k trick, one a sequence."""
    out, exact = draws(3, EVERY)
    noise = np.array([[{ids: s for s, ids in found}[ids] for ids in exact] for found in hypotheses(out)])
    noise -= np.log(list(exact.values()))
    for column in noise.T:
        assert scipy.stats.kstest(column, "gumbel_r").pvalue > 1e-3
    correlation = np.corrcoef(noise.T) - np.eye(len(exact))
    assert np.abs(correlation).max() < 4.5 / np.sqrt(DRAWS)


@pytest.mark.parametrize("seed", range(3))
def test_with_beams_for_all_each_sequence_comes_once(seed):
    model, params, source = toy(seed, vocab=5)
    limit, min_len = np.array([3, 2, 3]), np.array([0, 0, seed])
    search = StochasticBeam(jax.random.key(seed), EVERY, temperature=[1.0, 0.3, 3.0][seed])
    out = generate(model, params, source, max_len=LENGTH, search=search, rules=Rules(limit=limit, min_len=min_len))
    rows = zip(
        hypotheses(out), oracles(params, source, LENGTH), limit, min_len, np.asarray(out.log_probs), np.asarray(out.score)
    )
    for found, oracle, most, least, log_probs, scores in rows:
        assert sorted(ids for _, ids in found) == sorted(distribution(oracle, most, 1.0, least))
        assert (np.diff(scores[: len(found)]) <= 0).all()
        assert (scores[len(found) :] == -np.inf).all()
        np.testing.assert_allclose(log_probs.sum(axis=1)[: len(found)], [path_sum(oracle, ids) for _, ids in found], atol=1e-4)
    assert out.steps == 3


def test_with_more_beams_the_first_stay_the_same():
    model, params, source = toy(4)
    few, many = (generate(model, params, source, max_len=8, search=StochasticBeam(jax.random.key(0), n)) for n in (3, 7))
    for a, b in zip(few[:4], many[:4]):
        np.testing.assert_allclose(a, b[:, :3], rtol=1e-4, atol=1e-5)


def test_the_conditional_noise_is_the_formula_of_the_paper():
    rng = np.random.default_rng(0)
    noisy = rng.gumbel(size=(50, 7)).astype(np.float32)
    largest = rng.gumbel(size=50).astype(np.float32)
    exact = -np.log(
        np.exp(-largest[:, None].astype(float))
        - np.exp(-noisy.max(1, keepdims=True).astype(float))
        + np.exp(-noisy.astype(float))
    )
    found = np.asarray(condition(noisy, largest))
    np.testing.assert_allclose(found, exact, atol=1e-5)
    assert (found.max(axis=1) == largest).all()


@pytest.mark.parametrize("largest", [-1e4, -60.0, 60.0, 1e4])
def test_the_conditional_noise_holds_far_from_0(largest):
    """-log(exp(-T) - ...) itself overflows here: the largest is T exactly, the order stays, what is impossible stays so."""
    noisy = np.array([[3.0, -2000.0, 2.9999, -np.inf, -5.0], [-900.0, -900.1, -np.inf, -np.inf, -5000.0]], np.float32)
    found = np.asarray(condition(noisy, jnp.full(2, largest)))
    assert not np.isnan(found).any()
    assert (found.max(axis=1) == largest).all()
    assert (found.argmax(axis=1) == 0).all()
    assert ((found == -np.inf) == (noisy == -np.inf)).all()
    assert np.isneginf(condition(noisy, jnp.full(2, -jnp.inf))).all()
    assert np.isneginf(condition(np.full((2, 5), -np.inf, np.float32), jnp.full(2, largest))).all()


# --- keys ---------------------------------------------------------------------------------------------------------------------


def test_a_sentence_draws_the_same_alone_in_a_batch_and_beside_padding():
    model, params, source = toy(5, batch=5)
    keys = jax.random.split(jax.random.key(3), 5)
    together = generate(model, params, source, max_len=7, search=StochasticBeam(keys, 4))  # 8 rows and 8 tokens inside
    for b in (0, 4):
        one = core.Tokens(source.ids[b : b + 1], source.mask[b : b + 1])
        alone = generate(model, params, one, max_len=5, search=StochasticBeam(keys[b : b + 1], 4), rules=Rules(limit=5))
        same = generate(model, params, source, max_len=7, search=StochasticBeam(keys, 4), rules=Rules(limit=5))
        assert_same(hypotheses(alone)[0], hypotheses(same)[b])
    folded = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(7), jnp.arange(5))
    one_key = generate(model, params, source, max_len=7, search=StochasticBeam(jax.random.key(7), 4))
    own_keys = generate(model, params, source, max_len=7, search=StochasticBeam(folded, 4))
    assert np.array_equal(one_key.ids, own_keys.ids)
    assert not np.array_equal(one_key.ids, together.ids)


def test_equal_sentences_draw_differently():
    model, params, source = toy(6, batch=1)
    source = jax.tree.map(lambda x: np.repeat(x, 4, axis=0), source)
    out = generate(model, params, source, max_len=8, search=StochasticBeam(jax.random.key(0), 2))
    assert len({float(score) for score in out.score[:, 0]}) == 4
    assert len({ids.tobytes() for ids in np.asarray(out.ids)}) > 1


# --- rules and edges ----------------------------------------------------------------------------------------------------------

SEARCH = StochasticBeam(jax.random.key(0), EVERY)


@pytest.mark.parametrize("limit", [0, 1])
def test_the_shortest_limits(limit):
    model, params, source = toy(1, vocab=5)
    out = generate(model, params, source, max_len=LENGTH, search=SEARCH, rules=Rules(limit=limit))
    for found in hypotheses(out):
        assert {ids for _, ids in found} == ({()} if limit == 0 else {(EOS,), (3,), (4,)})
    assert (np.asarray(out.length)[:, 3:] == 0).all()
    assert out.steps == limit


def test_a_model_that_never_ends_is_cut():
    out = play(np.tile(table({4: 0.0, 5: 0.0}), (1, 4, 1)), SEARCH)
    assert {ids for _, ids in hypotheses(out)[0]} == set(itertools.product([4, 5], repeat=4))
    assert len(hypotheses(out)[0]) == 16


def test_where_no_token_is_possible_a_beam_is_lost():
    logits = np.full((1, 2, 6), -np.inf, np.float32)
    logits[0, 0, [EOS, 4]] = 0.0
    out = play(logits, StochasticBeam(jax.random.key(0), 3))
    assert [ids for _, ids in hypotheses(out)[0]] == [(EOS,)]
    assert np.asarray(out.length)[0].tolist() == [1, 0, 0]
    assert hypotheses(play(np.full((1, 2, 6), np.nan, np.float32), StochasticBeam(jax.random.key(0), 3))) == [[]]


def test_a_prefix_and_a_forced_end_cost_nothing():
    model, params, source = toy(2, vocab=5)
    prefix = core.Tokens(np.array([[4, 3], [3, 0], [0, 0]]), np.array([[True, True], [True, False], [False, False]]))
    out = generate(
        model, params, source, max_len=LENGTH, search=SEARCH, rules=Rules(prefix=prefix, end_at_limit=True, bias=bias(5, [PAD]))
    )
    expected = [
        {(4, 3, EOS)},
        {(3, EOS), (3, 3, EOS), (3, 4, EOS)},
        {(EOS,), (3, EOS), (4, EOS), *((a, b, EOS) for a in (3, 4) for b in (3, 4))},
    ]
    assert [{ids for _, ids in found} for found in hypotheses(out)] == expected
    # Forced tokens are certain: the one sequence's value is the noise of the whole sentence, as it is without any token.
    empty = generate(model, params, source, max_len=LENGTH, search=SEARCH, rules=Rules(limit=0))
    assert np.array_equal(out.score[0, 0], empty.score[0, 0])
    log_probs = np.asarray(forced(params, source, np.array([[4, 3]]))[0])[0, 0]
    np.testing.assert_allclose(out.log_probs[0, 0], log_probs[[0, 1, 2], [4, 3, EOS]], atol=1e-5)


def test_suppressed_tokens_stop_sequences_and_ngrams():
    model, params, source = toy(3, vocab=6)
    search = StochasticBeam(jax.random.key(1), 64)
    rules = Rules(bias=bias(6, suppress=[5]), stop=stop_sequences([[4, 4]]), ngram=2)
    out = generate(model, params, source, max_len=4, search=search, rules=rules)
    every = {
        (*ids, EOS) for n in range(4) for ids in itertools.product([3, 4], repeat=n)
    } | set(itertools.product([3, 4], repeat=4))  # fmt: skip

    def fits(ids):
        read = (BOS, *ids)
        stops = [n for n in range(1, len(ids)) if ids[n - 1 : n + 1] == (4, 4)]
        bigrams = list(itertools.pairwise(read))
        return len(set(bigrams)) == len(bigrams) and all(n == len(ids) - 1 for n in stops)

    expected = {ids for ids in every if fits(ids)} | {(4, 4), (3, 4, 4)}
    for found in hypotheses(out):
        assert {ids for _, ids in found} == expected
        assert len(found) == len(expected)


def test_the_attention_is_the_first_outputs():
    model, params, source = toy(4)
    out = generate(model, params, source, max_len=5, search=StochasticBeam(jax.random.key(2), 3), attention=True)
    (weights,) = out.attention.values()
    _, exact = forced(params, source, np.asarray(out.ids)[:, 0])
    for b, length in enumerate(np.asarray(out.length)[:, 0]):
        np.testing.assert_allclose(weights[b, 0, :length], exact[b, b, :length], atol=1e-5)
        assert (np.asarray(weights)[b, :, length:] == 0).all()


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (StochasticBeam(jax.random.key(0), 0), "beams is 0"),
        (StochasticBeam(jax.random.key(0), 2, 0.0), "temperature is 0.0"),
        (StochasticBeam(jax.random.key(0), 2, float("nan")), "temperature is nan"),
        (StochasticBeam(7, 2), "key is 7"),
        (StochasticBeam(jax.random.split(jax.random.key(0), 2), 2), "one for each of the 3 sentences"),
    ],
)
def test_what_cannot_be_meant_is_refused(search, message):
    model, params, source = toy(0)
    with pytest.raises(core.UserError, match=message):
        generate(model, params, source, max_len=4, search=search)
