"""Streams against ``generate``: the same tokens, one at a time."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from tinies import CONFIGS, SOURCE, ragged, tiny

from zoo import core
from zoo.core import UserError
from zoo.generate import Beam, Greedy, Rules, Sample, generate, stop_sequences
from zoo.generate.stream import Step, _read, _start, _step, stream

MAX_LEN = 16
KEY = jax.random.key(3)


def same(family: str, source=SOURCE, max_len: int = MAX_LEN, **given) -> list[Step]:
    """The stream's steps, once they are seen to be what ``generate`` finds."""
    model, params = tiny(family)
    found = generate(model, params, source, max_len=max_len, **given)
    steps = list(stream(model, params, source, max_len=max_len, **given))
    assert len(steps) == found.steps
    ids_RT, log_probs_RT = (x.reshape(-1, max_len) for x in (found.ids, found.log_probs))
    length_R = found.length.reshape(-1)
    for t, step in enumerate(steps):
        assert [x.dtype for x in step] == [np.int32, np.float32, bool]
        assert all(isinstance(x, np.ndarray) for x in step)
        np.testing.assert_array_equal(step.token, ids_RT[:, t])
        np.testing.assert_allclose(step.log_prob, log_probs_RT[:, t], rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(step.done, length_R <= t + 1)
    return steps


@pytest.mark.parametrize("family", CONFIGS)
def test_greedy_search_streams_what_it_finds(family):
    model, params = tiny(family)
    rules = ragged(model, params, MAX_LEN)
    steps = same(family, rules=rules)
    assert len({int(np.sum([~step.done[row] for step in steps])) for row in range(5)}) >= 3  # rows end at different times


@pytest.mark.parametrize(
    ("family", "search"),
    [
        ("sutskever", Sample(KEY)),
        ("luong", Sample(KEY, samples=3, top_p=0.9, temperature=0.7)),
        ("transformer", Sample(jax.random.split(KEY, 5), top_k=5)),
    ],
)
def test_sampling_streams_what_it_finds(family, search):
    steps = same(family, search=search, max_len=13)
    assert len(steps[0].token) == 5 * search.rows


def test_the_rules_hold():
    search = Sample(KEY, samples=2)
    stop = stop_sequences([[18, 28], [15]])
    prefix = core.pad_tokens([[7, 8], [9], [], [10], [11, 12]])
    free = {"stop": stop, "prefix": prefix, "repetition": 1.0, "ngram": 99}
    lengths = []
    for given in (
        {},
        {"min_len": 6, "end_id": 28},
        {"limit": np.array([12, 3, 0, 5, 1])},
        {"repetition": 2.0, "ngram": 2, "end_at_limit": True},
    ):
        steps = same("transformer", search=search, rules=Rules(**free | given))
        lengths.append(len(steps))
        assert steps[0].token[0] == 7
    assert min(lengths) > 1


def test_lengths_may_be_relative_to_the_source():
    steps = same("luong", rules=Rules(min_ratio=0.5, limit_ratio=1.0))
    assert len(steps) == 9
    lengths = [int(np.argmax([step.done[row] for step in steps])) + 1 for row in range(5)]
    assert all(n / 2 <= length <= n for n, length in zip(SOURCE.mask.sum(axis=1), lengths))


def test_nothing_comes_of_rows_that_may_have_nothing():
    assert same("luong", rules=Rules(limit=0)) == []
    model, params = tiny("luong")
    one = list(stream(model, params, jax.tree.map(lambda x: x[:1], SOURCE), max_len=2, rules=Rules(min_len=2)))
    assert [step.done.tolist() for step in one] == [[False], [True]]


def test_another_call_compiles_nothing():
    model, params = tiny("luong")
    search = Sample(KEY, samples=3, top_p=0.9)
    one = list(stream(model, params, SOURCE, max_len=9, search=search))
    programs = _start._cache_size(), _step._cache_size()
    other = dataclasses.replace(search, key=jax.random.key(4), temperature=2.0, top_p=0.5)
    shorter = jax.tree.map(lambda x: x[:6, :10], core.random_tokens(np.random.default_rng(0), 6, 10, 32))
    two = list(stream(model, params, shorter, max_len=14, search=other, rules=Rules(min_len=3, limit=13, end_id=5)))
    assert (_start._cache_size(), _step._cache_size()) == programs
    assert len(one) <= 9
    assert len(two) <= 13
    assert len(two[0].token) == 6 * 3


def test_a_reader_may_leave():
    model, params = tiny("transformer")
    tokens = stream(model, params, SOURCE, max_len=MAX_LEN)
    first = next(tokens)
    tokens.close()
    assert list(tokens) == []
    np.testing.assert_array_equal(same("transformer")[0].token, first.token)


@pytest.mark.parametrize("family", ["sutskever", "transformer"])  # a first state that is the memory's own, and buffers
def test_the_state_is_updated_in_place_and_the_memory_stays(family):
    model, params = tiny(family)
    source, rules = core.random_tokens(np.random.default_rng(0), 8, 16, 32), Rules(limit=MAX_LEN).canonical(8, 8)
    state, memory, search, rules, _ = _start(model, params, source, Greedy(), rules, max_len=16)
    after, first = _step(model, params, memory, search, rules, state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.cache))
    after, _ = _step(model, params, memory, search, rules, after)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((memory, first, rules, after)))


def test_the_next_token_is_under_way_before_one_is_read():
    made = []

    def make(state):
        made.append(state)
        step = state + 1
        return step, Step(np.array([step]), np.zeros(1), np.array([step >= 3]))

    asked = []
    for step in _read(make, 0, np.array([False]), 10, 1):
        asked.append((int(step.token[0]), len(made)))
    assert asked == [(1, 2), (2, 3), (3, 4)]
    made.clear()
    assert [int(step.token[0]) for step in _read(make, 0, np.array([False]), 2, 1)] == [1, 2]
    assert len(made) == 2  # none beyond the limit


def test_what_cannot_be_meant_is_refused_at_once():
    model, params = tiny("luong")
    with pytest.raises(UserError, match=r"search is Beam: stream Greedy\(\) or Sample"):
        stream(model, params, SOURCE, max_len=4, search=Beam(2))
    with pytest.raises(UserError, match=r"max_len is 0"):
        stream(model, params, SOURCE, max_len=0)
    with pytest.raises(UserError, match=r"temperature is 0"):
        stream(model, params, SOURCE, max_len=4, search=Sample(KEY, temperature=0))
    with pytest.raises(UserError, match=r"rules.min_len has the shape \(2,\)"):
        stream(model, params, SOURCE, max_len=4, rules=Rules(min_len=np.array([1, 2])))
