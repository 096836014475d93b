"""Speculative decoding against greedy search: the same result in fewer calls."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tinies import CONFIGS, SOURCE, VOCAB, ragged, tiny

from zoo import core
from zoo.core import UserError
from zoo.generate import Generated, Rules, bias, generate, single, stop_sequences
from zoo.generate.ensemble import Ensemble
from zoo.generate.speculative import _speculate, accept, only_counts, pick, read, rewind, speculative, states

MAX_LEN = 16
DRAFT_LEN = 4


def near(params: core.PyTree, noise: float = 0.15) -> core.PyTree:
    """Parameters of a model that often says the same, but not always."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x * (1 + noise * rng.normal(size=x.shape)).astype(np.float32), params)


def same(target, draft, source=SOURCE, max_len: int = MAX_LEN, draft_len: int = DRAFT_LEN, rules: Rules = Rules()) -> Generated:  # noqa: B008
    """What speculative decoding finds, once it is seen to be greedy search's."""
    expected = generate(*target, source, max_len=max_len, rules=rules)
    found = speculative(*target, *draft, source, max_len=max_len, draft_len=draft_len, rules=rules)
    for name in ("ids", "length"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype
    for name in ("log_probs", "score"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-3, atol=1e-3)
    assert -(-expected.steps // (draft_len + 1)) <= found.steps <= expected.steps
    return found


@pytest.mark.parametrize("draft", CONFIGS)
@pytest.mark.parametrize("target", CONFIGS)
def test_any_draft_leaves_the_result_as_it_is(target, draft):
    target = tiny(target)
    found = same(target, tiny(draft, seed=1), rules=ragged(*target, MAX_LEN))
    assert len(set(found.length.tolist())) >= 4  # rows end at different times


@pytest.mark.parametrize("family", CONFIGS)
def test_what_the_target_would_say_is_accepted(family):
    model, params = tiny(family)
    rules = ragged(model, params, MAX_LEN)
    steps = int(generate(model, params, SOURCE, max_len=MAX_LEN, rules=rules).steps)
    found = same((model, params), (model, params), rules=rules)
    assert found.steps == -(-steps // (DRAFT_LEN + 1))
    for noise in (0.02, 0.15):
        partly = same((model, params), (model, near(params, noise)), rules=rules)
        assert partly.steps > found.steps
    assert same((model, params), (model, near(params, 0.02)), rules=rules).steps < steps


FREE = {
    "repetition": 1.0,
    "ngram": 99,
    "bias": np.zeros(VOCAB, np.float32),
    "stop": stop_sequences([[30, 30, 30]] * 2),
    "prefix": core.pad_tokens([[]] * 5, 3),
}
RULES = {
    "free": {},
    "min_len": {"min_len": np.array([3, 16, 9, 5, 8])},
    "limit": {"limit": np.array([16, 3, 0, 7, 1])},
    "end at the limit": {"limit": np.array([16, 3, 2, 7, 1]), "end_at_limit": True},
    "repetition": {"repetition": 2.0},
    "ngram": {"ngram": 2},
    "bias": {"bias": bias(VOCAB, suppress=[28, 10], add={core.EOS: 2.0})},
    "prefix": {"prefix": core.pad_tokens([[7, 8, 9], [10], [], [11, 12], [2, 3]], 3), "first_id": 6},
    "all": {"min_len": 4, "limit": np.array([16, 9, 2, 7, 12]), "repetition": 1.5, "ngram": 3, "first_id": 5},
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("family", ["luong", "transformer"])
def test_the_rules_hold_at_every_token(family, name):
    model, params = tiny(family)
    end_id = ragged(model, params, MAX_LEN).end_id
    draft = model, near(params, 0.03)
    rules = Rules(end_id=end_id)._replace(**FREE | RULES[name])
    found = same((model, params), draft, rules=rules)
    fewest = -(-found.length.max() // (DRAFT_LEN + 1))
    assert same((model, params), (model, params), rules=rules).steps == fewest  # the draft keeps to the rules as well
    if name != "free":
        plain = generate(model, params, SOURCE, max_len=MAX_LEN, rules=Rules(end_id=end_id))
        assert (found.ids != plain.ids).any()


@pytest.mark.parametrize("family", ["luong", "transformer"])
def test_stop_sequences_end_rows_in_the_middle_of_a_round(family):
    model, params = tiny(family)
    ids_BT = generate(model, params, SOURCE, max_len=MAX_LEN, rules=Rules(end_id=0)).ids
    stop = stop_sequences([ids_BT[3, 5:8].tolist(), ids_BT[4, 1:3].tolist()])
    rules = Rules(end_id=0)._replace(**FREE | {"stop": stop})
    found = same((model, params), (model, params), rules=rules)
    assert found.length[3] <= 8
    assert found.length[4] <= 3


@pytest.mark.parametrize(("draft_len", "max_len"), [(1, 13), (20, 15)])
def test_any_number_of_guesses_and_of_tokens(draft_len, max_len):
    model, params = tiny("transformer")
    found = same((model, params), (model, params), max_len=max_len, draft_len=draft_len, rules=Rules(end_id=0))
    assert found.steps == -(-found.length.max() // (draft_len + 1))
    assert found.ids.shape == (5, max_len)


def test_rows_wait_for_the_first_that_disagrees():
    model, params = tiny("transformer")
    both = model, params, model, near(params)
    together = speculative(*both, SOURCE, max_len=MAX_LEN).steps
    rows = [core.Tokens(SOURCE.ids[row : row + 1], SOURCE.mask[row : row + 1]) for row in range(5)]
    alone = [speculative(*both, row, max_len=MAX_LEN).steps for row in rows]
    assert max(alone) <= together
    assert min(alone) < together


def test_an_ensemble_may_be_the_target():
    members = [tiny("sutskever"), tiny("transformer")]
    target = Ensemble(tuple(model for model, _ in members)), tuple(params for _, params in members)
    found = same(target, members[0], rules=Rules(min_ratio=0.5, limit_ratio=1.0))
    assert (found.length <= SOURCE.mask.sum(axis=1)).all()


@jax.jit
def played(logits_RNV, guesses_RN):
    rules = Rules(start_id=core.BOS, end_id=core.EOS, pad_id=core.PAD)
    state = single.begin(None, guesses_RN.shape[0], 8, rules)
    return accept(state, logits_RNV, guesses_RN, rules, single.Greedy().chooser(guesses_RN.shape[0]))


@pytest.mark.parametrize(
    ("says", "guesses", "kept"),
    [
        ([[5, 6, 7], [8, 9, 4]], [[5, 6], [8, 9]], 3),
        ([[5, 6, 7], [8, 9, 4]], [[5, 5], [8, 9]], 2),
        ([[5, 6, 7], [8, 9, 4]], [[5, 6], [5, 9]], 1),
        ([[2, 6, 7], [8, 9, 4]], [[5, 5], [8, 9]], 3),  # a row that ends holds up no other, whatever was guessed
        ([[2, 6, 7], [8, 2, 4]], [[2, 0], [8, 5]], 2),  # nor is there anything to do when all have ended
    ],
)
def test_what_all_rows_agree_on_is_kept(says, guesses, kept):
    logits_RNV = np.eye(10, dtype=np.float32)[np.array(says)]
    for impossible in (0, np.nan):
        end = played(np.where(logits_RNV == 1, logits_RNV, np.float32(impossible)), np.array(guesses, np.int32))
        assert end.step == kept
        for row, tokens in enumerate(says):
            length = min(kept, tokens.index(2) + 1 if 2 in tokens else kept)
            assert end.ids_RT[row].tolist() == tokens[:length] + [0] * (8 - length)
            assert end.length_R[row] == length


def bound(family: str):
    """(decode, memory, cache) of a model, compiled."""
    model, params = tiny(family)
    apply = lambda method: jax.jit(functools.partial(model.apply, {"params": params}, method=method))  # noqa: E731
    memory = apply("encode")(SOURCE)
    return apply("decode"), memory, model.apply({"params": params}, memory, 12, method="init_cache")


@pytest.mark.parametrize("family", ["luong", "transformer"])
def test_a_cache_forgets_what_is_taken_back(family):
    decode, memory, cache = bound(family)
    assert only_counts(cache) == (family == "transformer")
    tokens_RN = np.random.default_rng(0).integers(4, VOCAB, (5, 8)).astype(np.int32)
    other_RN = np.random.default_rng(1).integers(4, VOCAB, (5, 3)).astype(np.int32)
    _, cache = decode(tokens_RN[:, :2], memory, cache)
    logits_RNV, back = read(decode, memory, cache, jnp.asarray(tokens_RN[:, 2:]))
    expected, _ = decode(tokens_RN[:, 2:], memory, cache)
    np.testing.assert_allclose(logits_RNV, expected.logits, rtol=1e-3, atol=1e-3)
    for kept in (1, 6):
        there = cache
        for token_R in tokens_RN.T[2 : 2 + kept]:
            _, there = decode(token_R[:, None], memory, there)
        again, _ = decode(other_RN, memory, back(kept))
        expected, _ = decode(other_RN, memory, there)
        np.testing.assert_allclose(again.logits, expected.logits, rtol=1e-3, atol=1e-3)


def test_what_stands_beside_the_states_stays():
    class Cache(core.NamedTuple):
        buffers: core.AppendOnly
        index: jax.Array

    cache = Cache(core.AppendOnly({"key": jnp.ones(3)}), jnp.int32(7))
    assert only_counts(cache)
    assert rewind(cache, 3).index == 4
    assert rewind(cache, 3).buffers.buffers["key"] is cache.buffers.buffers["key"]
    assert jax.tree.leaves(states(cache)) == [7]
    assert pick(cache, states(cache)._replace(index=jnp.array([5, 6, 7])), jnp.int32(2)).index == 6
    assert not only_counts((cache, jnp.zeros((2, 3))))


def test_another_call_compiles_nothing():
    target, draft = tiny("transformer"), tiny("luong", 1)
    speculative(*target, *draft, SOURCE, max_len=MAX_LEN)
    programs = _speculate._cache_size()
    source = core.random_tokens(np.random.default_rng(0), 7, 11, VOCAB)
    speculative(*tiny("transformer", 1), *tiny("luong"), source, max_len=11, rules=Rules(min_len=3, limit=9, end_id=5))
    assert _speculate._cache_size() == programs


def test_what_cannot_be_meant_is_refused():
    target = tiny("luong")
    small = CONFIGS["luong"].__class__(VOCAB, 30).build()
    with pytest.raises(UserError, match=r"model and draft have target vocabularies of 32 and 30 entries"):
        speculative(*target, small, target[1], SOURCE, max_len=4)
    with pytest.raises(UserError, match=r"draft_len is 0"):
        speculative(*target, *target, SOURCE, max_len=4, draft_len=0)
    with pytest.raises(UserError, match=r"max_len is 0"):
        speculative(*target, *target, SOURCE, max_len=0)
