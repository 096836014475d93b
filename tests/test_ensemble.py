"""Ensembles against the mean of what their members say, computed outside of them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tinies import CONFIGS, SOURCE, VOCAB, tiny

from zoo import core
from zoo.core import BOS, PAD, UserError
from zoo.generate import Beam, Greedy, Rules, Sample, facade, generate, penalty, score
from zoo.generate.ensemble import Ensemble, log_probs

MAX_LEN = 12
TARGET = CONFIGS["luong"].example(batch=5, target_len=7, seed=1)[1]
LSTM, TRANSFORMER = tiny("sutskever"), tiny("transformer")
PARAMS = (LSTM[1], TRANSFORMER[1])
MODES = [("log-average", None), ("log-average", (1.0, 3.0)), ("average", None), ("average", (1.0, 3.0))]


def pair(how: str = "log-average", weights=None) -> Ensemble:
    return Ensemble((LSTM[0], TRANSFORMER[0]), how, weights)


@functools.partial(jax.jit, static_argnames="model")
def forced(model, params, source, target):
    return model.apply({"params": params}, source, target, attention=True)


def mean(how: str, weights, members: list[np.ndarray]) -> np.ndarray:
    """The log of the members' mean probability, or their normalised mean log-probability, in float64."""
    weights = np.array(weights or [1.0] * len(members)) / sum(weights or [1.0] * len(members))
    logs = [np.asarray(x, np.float64) for x in members]
    logs = [x - np.log(np.exp(x).sum(axis=-1, keepdims=True)) for x in logs]
    if how == "average":
        return np.log(sum(w * np.exp(x) for w, x in zip(weights, logs)))
    total = sum(w * x for w, x in zip(weights, logs))
    return total - np.log(np.exp(total).sum(axis=-1, keepdims=True))


def rescored(how: str, weights, ids_BT, sources=(SOURCE, SOURCE), models=(LSTM, TRANSFORMER)) -> np.ndarray:
    """What the mean of the members says of every token that may follow each prefix of ``ids``: (B, T, V) float64."""
    target = core.Tokens(np.asarray(ids_BT), np.ones(ids_BT.shape, bool))
    return mean(how, weights, [forced(*member, source, target).logits for member, source in zip(models, sources)])


def at(log_probs_BTV: np.ndarray, ids_BT: np.ndarray, length_B: np.ndarray) -> np.ndarray:
    """The log-probabilities of these tokens, 0 on padding."""
    real_BT = np.arange(ids_BT.shape[1]) < length_B[:, None]
    return np.where(real_BT, np.take_along_axis(log_probs_BTV, ids_BT[:, :, None], axis=2)[:, :, 0], 0)


@pytest.mark.parametrize(
    ("family", "how"),
    [("sutskever", "log-average"), ("luong", "average"), ("transformer", "log-average")],
)
def test_an_ensemble_of_one_is_the_model(family, how):
    model, params = tiny(family)
    alone = generate(model, params, SOURCE, max_len=MAX_LEN)
    found = generate(Ensemble((model,), how), (params,), SOURCE, max_len=MAX_LEN)
    np.testing.assert_array_equal(found.ids, alone.ids)
    np.testing.assert_allclose(found.log_probs, alone.log_probs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("how", "weights"), MODES)
def test_teacher_forcing_is_the_mean_of_the_members(how, weights):
    model, expected_BTV = pair(how, weights), rescored(how, weights, TARGET.ids)
    logits_BTV = forced(model, PARAMS, SOURCE, TARGET).logits
    assert logits_BTV.dtype == jnp.float32
    np.testing.assert_allclose(logits_BTV, expected_BTV, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.exp(logits_BTV).sum(axis=-1), 1, rtol=1e-5)


def test_the_modes_and_the_weights_differ():
    means = [rescored(how, weights, TARGET.ids) for how, weights in MODES]
    for i, one in enumerate(means):
        assert all(np.abs(one - other).max() > 0.1 for other in means[:i])


def test_beam_search_over_two_families_scores_as_they_do():
    search = Beam(4, penalty.none(), n_best=3)
    found = generate(pair(), PARAMS, SOURCE, max_len=MAX_LEN, search=search)
    for ids_BT, log_probs_BT, score_B, length_B in zip(*(np.moveaxis(x, 1, 0) for x in found[:4])):
        expected_BT = at(rescored("log-average", None, ids_BT), ids_BT, length_B)
        np.testing.assert_allclose(log_probs_BT, expected_BT, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(score_B, expected_BT.sum(axis=1), rtol=1e-3, atol=1e-3)
    one = generate(pair(), PARAMS, SOURCE, max_len=MAX_LEN)
    assert (found.score[:, 0] > one.score + 1e-3).any()  # it found what greedy search did not


def test_greedy_search_takes_what_the_mean_finds_most_probable():
    found = generate(pair(), PARAMS, SOURCE, max_len=MAX_LEN)
    log_probs_BTV = rescored("log-average", None, found.ids)
    log_probs_BTV[:, :, [PAD, BOS]] = -np.inf
    real_BT = np.arange(MAX_LEN) < found.length[:, None]
    np.testing.assert_array_equal(found.ids[real_BT], log_probs_BTV.argmax(axis=-1)[real_BT])


def test_sampling_knows_the_probability_of_what_it_draws():
    search = Sample(jax.random.key(1), samples=2)
    found = generate(pair("average"), PARAMS, SOURCE, max_len=MAX_LEN, search=search)
    for sample in range(2):
        ids_BT, length_B = found.ids[:, sample], found.length[:, sample]
        expected_BT = at(rescored("average", None, ids_BT), ids_BT, length_B)
        np.testing.assert_allclose(found.log_probs[:, sample], expected_BT, rtol=1e-3, atol=1e-3)


def test_each_model_may_read_a_source_of_its_own():
    models = tiny("luong"), tiny("transformer", source_vocab=20)
    other = core.random_tokens(np.random.default_rng(3), 5, 17, 20)
    ensemble, params = Ensemble(tuple(model for model, _ in models)), tuple(params for _, params in models)
    found = generate(ensemble, params, [SOURCE, other], max_len=MAX_LEN, attention=True)
    expected_BT = at(rescored("log-average", None, found.ids, (SOURCE, other), models), found.ids, found.length)
    np.testing.assert_allclose(found.log_probs, expected_BT, rtol=1e-3, atol=1e-3)
    shapes = {name: x.shape for name, x in found.attention.items()}
    assert shapes == {"0/cross": (5, 1, 12, 9), "1/decoder_0/cross": (5, 4, 12, 17)}
    real_BT = np.arange(MAX_LEN) < found.length[:, None]
    outputs = forced(*models[1], other, core.Tokens(found.ids, np.ones_like(real_BT)))
    expected = outputs.attention["decoder_0/cross"] * real_BT[:, None, :, None]
    np.testing.assert_allclose(found.attention["1/decoder_0/cross"], expected, rtol=1e-3, atol=1e-4)
    total_B, log_probs_BT = score(ensemble, params, [SOURCE, other], core.Tokens(found.ids, real_BT))
    np.testing.assert_allclose(total_B, found.score, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(log_probs_BT, found.log_probs, rtol=1e-3, atol=1e-3)
    _, rules = facade.relate(Greedy(), Rules(limit_ratio=0.5), [SOURCE, other], ensemble)
    np.testing.assert_array_equal(rules.limit, SOURCE.mask.sum(axis=1) // 2)


def test_a_member_that_fails_is_outvoted_in_one_mode_and_a_veto_in_the_other():
    nan, even = jnp.full((1, 1, 4), jnp.nan), jnp.zeros((1, 1, 4))
    assert log_probs(nan).tolist() == [[[-np.inf] * 4]]
    np.testing.assert_allclose(log_probs(even + 7), np.log(0.25) + np.zeros((1, 1, 4)), rtol=1e-6)
    outputs = [core.Outputs(nan, {}), core.Outputs(even, {})]
    np.testing.assert_allclose(pair("average")._vote(outputs).logits, np.log(0.125) + np.zeros((1, 1, 4)), rtol=1e-6)
    assert pair("log-average")._vote(outputs).logits.tolist() == [[[-np.inf] * 4]]


def test_equal_ensembles_share_a_program():
    generate(pair(), PARAMS, SOURCE, max_len=MAX_LEN)
    programs = facade._generate._cache_size()
    generate(Ensemble([LSTM[0], TRANSFORMER[0]]), PARAMS, SOURCE, max_len=MAX_LEN - 1, rules=Rules(min_len=2, limit=9))
    assert facade._generate._cache_size() == programs


def test_what_cannot_be_meant_is_refused():
    model, params = LSTM
    with pytest.raises(UserError, match=r"models is empty"):
        Ensemble(())
    with pytest.raises(UserError, match=r"target vocabularies of \[32, 31\] entries"):
        Ensemble((model, type(model)(CONFIGS["sutskever"].__class__(32, 31))))
    with pytest.raises(UserError, match=r"how is 'vote': choose 'log-average' or 'average'"):
        Ensemble((model,), "vote")
    for weights in ((1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, np.nan), (1.0, np.inf)):
        with pytest.raises(UserError, match=r"weights is .*: give each of the 2 models a number above 0"):
            Ensemble((model, model), weights=weights)
    both = Ensemble((model, model))
    with pytest.raises(UserError, match=r"params is one dict: give a tuple .* 2 models"):
        generate(both, params, SOURCE, max_len=4)
    with pytest.raises(UserError, match=r"params is 3 trees"):
        generate(both, (params,) * 3, SOURCE, max_len=4)
    with pytest.raises(UserError, match=r"there are 3 sources for 2 models"):
        generate(both, (params, params), [SOURCE] * 3, max_len=4)
    with pytest.raises(UserError, match=r"method is 'train': an ensemble has encode, init_cache, decode and None"):
        both.apply({"params": (params, params)}, SOURCE, method="train")
    assert both.config.target_vocab_size == VOCAB
