"""Minimum Bayes risk against the direct double loop."""

from __future__ import annotations

import sys

import jax
import numpy as np
import pytest
import sacrebleu
from toys import toy

from zoo import core
from zoo.core import UserError
from zoo.generate import Sample, generate
from zoo.generate.risk import minimum_bayes_risk

TEXTS = ["the cat sat on the mat", "a cat sat on the mat", "the cat is on the mat", "the cat sat on the mat", "dogs bark", ""]
SCORES = {
    "chrf": lambda hypothesis, reference: sacrebleu.sentence_chrf(hypothesis, [reference]).score,
    "bleu": lambda hypothesis, reference: sacrebleu.sentence_bleu(hypothesis, [reference], use_effective_order=True).score,
}


def common(hypothesis, reference) -> float:
    return len({*hypothesis} & {*reference}) - 0.1 * len(hypothesis)


@pytest.mark.parametrize("references", [None, ["the cat sat", "on the mat", "on the mat"]])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("utility", ["chrf", "bleu", common])
def test_it_is_the_direct_double_loop(utility, weighted, references):
    compared = TEXTS if references is None else references
    weights = np.arange(len(compared)) ** 2.0 if weighted else None
    score = SCORES.get(utility, utility)
    expected = [np.average([score(h, r) for r in compared], weights=weights) for h in TEXTS]
    found = minimum_bayes_risk(TEXTS, utility, weights, references)
    np.testing.assert_allclose(found.utilities, expected, rtol=1e-12)
    assert found.utilities.dtype == np.float64
    assert found.index == int(np.argmax(expected))
    assert found.best == TEXTS[found.index]


def test_equal_pairs_are_compared_once_and_those_without_weight_never():
    calls = []
    minimum_bayes_risk(["a", "b", "a", "c"], lambda h, r: calls.append((h, r)) or 0.0, weights=[0, 1, 2, 0])
    assert sorted(calls) == [(h, r) for h in "abc" for r in "ab"]


def test_the_first_of_equals_wins_and_one_candidate_is_enough():
    assert minimum_bayes_risk(["b", "a"], lambda h, r: 1.0).index == 0
    assert minimum_bayes_risk(["only"]) == ("only", 0, np.array([100.0]))


def test_the_utility_is_not_symmetric():
    """The expectation is over references: with the arguments swapped, the longest would win."""
    found = minimum_bayes_risk(["a", "abc", "ab"], lambda hypothesis, reference: len(reference) - 2 * len(hypothesis))
    assert found.best == "a"


def test_samples_of_a_search_as_tuples_of_ids():
    model, params, source = toy(1)
    out = generate(model, params, source, max_len=6, search=Sample(jax.random.key(0), samples=8))
    samples = [tuple(ids[:n].tolist()) for ids, n in zip(np.asarray(out.ids[0]), np.asarray(out.length[0]))]
    found = minimum_bayes_risk(samples, common)
    assert found.best in samples
    assert core.EOS in {token for ids in samples for token in ids}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "there are 0 candidates"),
        ((["a"], "chrf", None, []), "0 references"),
        ((["a", "b"], "chrf", [1.0]), "one weight for each of the 2 references"),
        ((["a", "b"], "chrf", [1.0, -0.5]), "weights holds -0.5"),
        ((["a", "b"], "chrf", [np.nan, 1.0]), "weights holds nan"),
        ((["a", "b"], "chrf", [np.inf, 1.0]), "weights holds inf"),
        ((["a", "b"], "chrf", [0, 0]), "weights are all 0"),
        ((["a"], "meteor"), "utility is 'meteor'"),
        (([(1, 2)], "bleu"), "compares texts"),
        (([[1, 2]], common), "give texts or tuples"),
        ((["a"], lambda h, r: float("nan")), "NaN"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        minimum_bayes_risk(*arguments)


def test_a_missing_sacrebleu_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(UserError, match="pip install sacrebleu"):
        minimum_bayes_risk(["a"])
    assert minimum_bayes_risk(["a"], lambda h, r: 1.0).best == "a"
