"""Sampling: the filters against sorting, the draws against the distribution they come from, the keys against their batch."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, currently_in_test_context, given
from hypothesis import strategies as st
from toys import every_hypothesis, hypotheses, oracles, play, power, toy

from zoo import core
from zoo.core import EOS
from zoo.generate import Greedy, Rules, Sample, generate, sampling, score

INF = np.inf
ROWS, V = 4, 40


# --- the filters by sorting ---------------------------------------------------------------------------------------------------


def softmax(x_V) -> np.ndarray:
    weights_V = np.exp(np.asarray(x_V, np.float64) - np.max(x_V))
    return weights_V / weights_V.sum()


def down_to(rank_V, last: int) -> np.ndarray:
    """Which tokens stand among the first ``last`` + 1 by falling rank, or tie with the last of them."""
    return rank_V >= np.sort(rank_V)[::-1][min(last, len(rank_V) - 1)]


def sure(decided) -> None:
    """That rounding does not decide the case: such ones are left out."""
    if currently_in_test_context():
        assume(decided)
    assert decided


def mass_reaches(prob_V, rank_V, p: float) -> int:
    """At which place by falling rank the mass reaches p."""
    total_V = np.cumsum(prob_V[np.argsort(-rank_V, kind="stable")])
    sure(p == 1 or np.abs(total_V - p).min() > 1e-5)
    return int(np.argmax(total_V >= p)) if p < 1 else len(prob_V) - 1


def keep_top_k(x_V, k):
    return down_to(x_V, k - 1)


def keep_top_p(x_V, p):
    return down_to(x_V, mass_reaches(softmax(x_V), x_V, p))


def keep_min_p(x_V, p):
    prob_V = softmax(x_V)
    sure(np.abs(prob_V / prob_V.max() - p).min() > 1e-5 or p == 1)
    return prob_V >= p * prob_V.max()


def keep_typical(x_V, p):
    prob_V = softmax(x_V)
    surprise_V = -np.log(np.maximum(prob_V, 1e-300))
    near_V = np.where(prob_V > 0, -np.abs(surprise_V - (prob_V * surprise_V).sum()), -INF).astype(np.float64)
    levels = np.unique(near_V)  # of different logits, no two may be as near as rounding
    sure(len(levels) == len(np.unique(x_V)) and (len(levels) < 2 or np.diff(levels[np.isfinite(levels)]).min(initial=1) > 1e-4))
    return down_to(near_V, mass_reaches(prob_V, near_V, p))


KEEP = {"top_k": keep_top_k, "top_p": keep_top_p, "min_p": keep_min_p, "typical": keep_typical}
compiled = {name: jax.jit(getattr(sampling, name)) for name in KEEP}


@pytest.mark.parametrize("name", KEEP)
@given(
    seed=st.integers(0, 10_000),
    k=st.one_of(st.integers(1, V), st.sampled_from([1, V, V + 1, 10_000])),
    p=st.one_of(st.floats(0.01, 1.0), st.sampled_from([1e-6, 1.0])),
    levels=st.sampled_from([2, 5, 0]),
    impossible=st.sampled_from([0.0, 0.5]),
)
def test_filters_are_those_of_sorting(name, seed, k, p, levels, impossible):
    """With ties (``levels`` different logits; what ties with the last one kept is kept) and impossible tokens."""
    rng = np.random.default_rng(seed)
    x_RV = rng.normal(size=(ROWS, V), scale=2) if levels == 0 else rng.integers(0, levels, (ROWS, V)) * 0.7
    x_RV = np.where(rng.random((ROWS, V)) < impossible, -INF, x_RV).astype(np.float32)
    x_RV[:, 3] = 0.35  # at least one is possible
    value = k if name == "top_k" else float(np.float32(p))
    found_RV = np.asarray(compiled[name](x_RV, np.int32(k) if name == "top_k" else np.float32(p)))
    for x_V, found_V in zip(x_RV, found_RV):
        np.testing.assert_array_equal(found_V, np.where(KEEP[name](x_V, value), x_V, -INF))


@pytest.mark.parametrize("name", ["top_p", "typical"])
def test_the_whole_mass_is_every_token(name):
    """However improbable: 1 means no filter, though float32 sums reach 1 before the tail."""
    x_RV = np.linspace(0, -60, V, dtype=np.float32)[None]
    np.testing.assert_array_equal(compiled[name](x_RV, np.float32(1)), x_RV)


def test_something_is_always_kept():
    flat_RV = np.zeros((1, V), np.float32)
    for name in ("top_p", "min_p", "typical"):
        assert np.isfinite(compiled[name](flat_RV, np.float32(1e-6))).all()
    single_RV = np.where(np.arange(V) == 7, 2.0, -INF).astype(np.float32)[None]
    for name in KEEP:
        np.testing.assert_array_equal(compiled[name](single_RV, np.int32(1) if name == "top_k" else np.float32(0.5)), single_RV)


# --- the draws ----------------------------------------------------------------------------------------------------------------

N = 4000


def chi_square(count, prob) -> None:
    """Counts that a right sampler gives with all but one in ten thousand keys; none where nothing is possible."""
    count, prob = np.asarray(count, np.float64), np.asarray(prob, np.float64)
    assert count[prob == 0].sum() == 0
    count, prob = count[prob > 0], prob[prob > 0]
    if len(prob) > 1:
        assert scipy.stats.chisquare(count, count.sum() * prob / prob.sum()).pvalue > 1e-4


DISTRIBUTIONS = {
    "plain": {},
    "sharp": {"temperature": 0.5},
    "flat": {"temperature": 3.0},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.2},
    "typical": {"typical": 0.6},
    "warm_top_k_top_p": {"temperature": 1.7, "top_k": 5, "top_p": 0.75},
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_tokens_come_as_often_as_they_are_probable(name):
    """Temperature first, then each filter on what the one before it left; padding and the start token take no part."""
    logits_V = np.array([5.0, 4.0, 0.3, 1.1, -0.4, 0.9, -1.5, 0.1])
    options = DISTRIBUTIONS[name]
    expected_V = np.where(np.arange(8) < EOS, -INF, logits_V) / options.get("temperature", 1.0)
    for filter_name in KEEP:
        if filter_name in options:
            expected_V = np.where(KEEP[filter_name](expected_V, options[filter_name]), expected_V, -INF)
    table_BTV = np.broadcast_to(logits_V.astype(np.float32), (N, 1, 8))
    found = play(table_BTV, Sample(jax.random.key(5), **options))
    chi_square(np.bincount(found.ids[:, 0], minlength=8), softmax(expected_V))


@functools.cache
def toy_samples():
    """Many samples of each of two sentences, at most two tokens long."""
    model, params, source = toy(3, batch=2, vocab=5)
    found = generate(model, params, source, max_len=2, search=Sample(jax.random.key(1), samples=N))
    return found, oracles(params, source, 2)


def test_sequences_come_as_often_as_they_are_probable():
    """The joint distribution of two tokens: the second one's given the first, and independent draws for each sentence."""
    found, oracle_B = toy_samples()
    assert found.ids.shape == (2, N, 2)
    for samples, oracle in zip(hypotheses(found), oracle_B):
        # Padding and the start token are cut out of each step.
        possible = {prefix: x - np.logaddexp.reduce(x[EOS:]) for prefix, x in oracle.items()}
        every = {ids: np.exp(total) for total, ids in every_hypothesis(possible, 2, power(0.0))}
        drawn = [ids for _, ids in samples]
        assert set(drawn) <= set(every)
        chi_square([drawn.count(ids) for ids in every], list(every.values()))
    both = [tuple(x) for x in np.asarray(found.ids[..., 0]).T]
    first = [np.bincount(found.ids[b, :, 0], minlength=5)[EOS:] / N for b in range(2)]
    chi_square([both.count(pair) for pair in itertools.product(range(EOS, 5), repeat=2)], np.outer(*first).ravel())


def test_scores_are_the_models_own_whatever_was_sampled_from():
    model, params, source = toy(4, batch=3)
    search = Sample(jax.random.key(2), temperature=2.0, top_k=2, samples=2)
    found = generate(model, params, source, max_len=6, search=search, rules=Rules(repetition=1.5))
    for n in range(2):
        target = core.Tokens(found.ids[:, n], np.arange(6) < found.length[:, n, None])
        sums_B, log_probs_BT = score(model, params, source, target)
        np.testing.assert_allclose(found.log_probs[:, n], log_probs_BT, atol=1e-5)
        np.testing.assert_allclose(found.score[:, n], sums_B, rtol=1e-5)


def test_one_token_to_choose_from_is_greedy():
    model, params, source = toy(5, batch=3)
    greedy = generate(model, params, source, max_len=8, search=Greedy())
    for search in (Sample(jax.random.key(0), top_k=1), Sample(jax.random.key(0), top_p=1e-6), Sample(jax.random.key(0), 1e-4)):
        np.testing.assert_array_equal(generate(model, params, source, max_len=8, search=search).ids, greedy.ids)


# --- the keys -----------------------------------------------------------------------------------------------------------------

OPTIONS = {"temperature": 1.3, "top_p": 0.95}


def keys_of(key, batch: int):
    """What a search makes of one key: each sentence's own."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))


def sample(model, params, source, key, max_len: int = 8, **options) -> np.ndarray:
    return generate(model, params, source, max_len=max_len, search=Sample(key, **OPTIONS, **options)).ids


@pytest.mark.parametrize("seed", range(3))
def test_a_sentence_and_its_key_make_the_text(seed):
    """Alone or in a batch, in whatever row, with however much padding and room, and however many samples are drawn."""
    model, params, source = toy(seed, batch=5)
    row = lambda *rows: jax.tree.map(lambda x: x[list(rows)], source)  # noqa: E731
    keys = keys_of(jax.random.key(seed), 5)
    together = sample(model, params, source, jax.random.key(seed))
    assert len(np.unique(together, axis=0)) > 1
    np.testing.assert_array_equal(sample(model, params, source, keys), together)
    for b in range(5):
        np.testing.assert_array_equal(sample(model, params, row(b), keys[b : b + 1])[0], together[b])
    np.testing.assert_array_equal(sample(model, params, row(4, 1, 2), keys[jnp.array([4, 1, 2])]), together[[4, 1, 2]])
    wider = jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, 6))), source)
    np.testing.assert_array_equal(sample(model, params, wider, keys), together)
    np.testing.assert_array_equal(sample(model, params, source, keys, max_len=13)[:, :8], together)  # a limit only cuts
    three, five = (sample(model, params, source, keys, samples=n) for n in (3, 5))
    np.testing.assert_array_equal(three[:, 0], together)
    np.testing.assert_array_equal(three, five[:, :3])
    assert len(np.unique(five.reshape(25, -1), axis=0)) > 10


def test_another_key_another_text():
    model, params, source = toy(0, batch=5)
    texts = [sample(model, params, source, jax.random.key(seed)).tobytes() for seed in range(4)]
    assert len(set(texts)) == 4
    same = jnp.repeat(jax.random.key(7)[None], 2)
    twice = jax.tree.map(lambda x: np.repeat(x[:1], 2, axis=0), source)
    found = generate(model, params, twice, max_len=8, search=Sample(same)).ids
    np.testing.assert_array_equal(found[0], found[1])  # the same sentence with the same key


def test_the_axis_of_samples():
    model, params, source = toy(1, batch=3)
    for samples, axis in ((None, ()), (1, (1,)), (4, (4,))):
        found = generate(model, params, source, max_len=5, search=Sample(jax.random.key(0), samples=samples), attention=True)
        assert [x.shape for x in found[:4]] == [(3, *axis, 5), (3, *axis, 5), (3, *axis), (3, *axis)]
        assert found.attention["layer/cross"].shape == (3, 1, 5, 5)
        first = found.length if samples is None else found.length[:, 0]
        np.testing.assert_array_equal(found.attention["layer/cross"].sum(axis=3)[:, 0] > 0.5, np.arange(5) < first[:, None])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": np.nan}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"typical": np.nan}, "typical is nan"),
        ({"samples": 0}, "samples is 0"),
        ({"key": 0}, "key is 0: give a PRNG key"),
        ({"key": np.zeros(2, np.uint32)}, "give a PRNG key"),
        ({"key": jax.random.split(jax.random.key(0), 2)}, r"key has the shape \(2,\)"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, message):
    model, params, source = toy(0)
    with pytest.raises(core.UserError, match=message):
        generate(model, params, source, max_len=5, search=Sample(**{"key": jax.random.key(0), **options}))
