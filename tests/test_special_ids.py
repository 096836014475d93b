"""Special ids that belong to a model, not to the house: what its decoder reads first, what ends a sequence, what pads it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import numpy as np
import pytest
from tinies import SOURCE, VOCAB, tiny

from zoo import core, transformer
from zoo.core import Tokens, shift_right
from zoo.generate import Beam, ConstrainedBeam, Greedy, Rules, Sample, StochasticBeam, generate, phrases, score, stream

MAX_LEN = 6
IDS = {"start_id": 5, "end_id": 7, "pad_id": 6}


@dataclasses.dataclass(frozen=True)
class OwnIds(transformer.TransformerConfig):
    """A Transformer with the ids of ``IDS``."""

    start_id: ClassVar[int] = IDS["start_id"]
    end_id: ClassVar[int] = IDS["end_id"]
    pad_id: ClassVar[int] = IDS["pad_id"]


@dataclasses.dataclass(frozen=True)
class Continues(transformer.TransformerConfig):
    """A Transformer that goes on from the last real token of its source, as a decoder-only model does."""

    def first(self, source):
        last_B = np.asarray(source.mask).sum(axis=1) - 1 if isinstance(source.mask, np.ndarray) else source.mask.sum(axis=1) - 1
        return jax.numpy.take_along_axis(jax.numpy.asarray(source.ids), jax.numpy.maximum(last_B, 0)[:, None], axis=1)[:, 0]


def model_of(config_class):
    model, params = tiny("transformer")
    fields = {field.name: getattr(model.config, field.name) for field in dataclasses.fields(model.config)}
    return config_class(**fields).build(), params


SEARCHES = {
    "greedy": Greedy(),
    "sample": Sample(jax.random.key(0)),
    "beam": Beam(3),
    "stochastic": StochasticBeam(jax.random.key(0), 2),
    "constrained": ConstrainedBeam(phrases([[[9]]] * 5), 3),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_takes_the_models_own_ids(name):
    plain, params = tiny("transformer")
    own, _ = model_of(OwnIds)
    asked = generate(plain, params, SOURCE, max_len=MAX_LEN, search=SEARCHES[name], rules=Rules(**IDS))
    taken = generate(own, params, SOURCE, max_len=MAX_LEN, search=SEARCHES[name])
    jax.tree.map(np.testing.assert_array_equal, taken, asked)
    house = generate(plain, params, SOURCE, max_len=MAX_LEN, search=SEARCHES[name])
    assert not np.array_equal(house.ids, asked.ids)
    other = generate(own, params, SOURCE, max_len=MAX_LEN, search=SEARCHES[name], rules=Rules(start_id=core.BOS))
    assert not np.array_equal(other.ids, asked.ids), "an id that is given goes first"


def test_scores_and_streams_take_them_too():
    plain, params = tiny("transformer")
    own, _ = model_of(OwnIds)
    found = generate(own, params, SOURCE, max_len=MAX_LEN)
    target = Tokens(found.ids, np.arange(MAX_LEN) < found.length[:, None])
    np.testing.assert_allclose(score(own, params, SOURCE, target)[1], found.log_probs, atol=2e-5)
    assert np.abs(score(plain, params, SOURCE, target)[0] - found.score).max() > 0.1
    tokens = np.stack([step.token for step in stream(own, params, SOURCE, max_len=MAX_LEN)], axis=1)
    np.testing.assert_array_equal(tokens, found.ids[:, : tokens.shape[1]])


@pytest.mark.parametrize("name", ["greedy", "sample", "beam"])
def test_each_sentence_may_begin_with_its_own_token(name):
    model, params = model_of(Continues)
    plain, _ = tiny("transformer")
    search = SEARCHES[name]
    # Sources end with the end token: without it their last tokens differ.
    ragged = Tokens(SOURCE.ids, SOURCE.mask & (np.arange(SOURCE.ids.shape[1]) < SOURCE.mask.sum(axis=1)[:, None] - 1))
    together = generate(model, params, ragged, max_len=MAX_LEN, search=search, attention=True)
    first_B = np.asarray(model.config.first(ragged))
    assert len(set(first_B.tolist())) > 2
    key = getattr(search, "key", None)
    for row, first in enumerate(first_B):
        one = jax.tree.map(lambda x, row=row: x[row : row + 1], ragged)
        alone = search if key is None else dataclasses.replace(search, key=jax.random.fold_in(key, row)[None])
        rules = Rules(start_id=int(first), anything=True)
        found = generate(plain, params, one, max_len=MAX_LEN, search=alone, rules=rules, attention=True)
        if (found.ids == core.PAD)[0].any() and found.length.max() == MAX_LEN:
            continue  # the model may say padding alone, but not in the batch, where only the first token is free
        np.testing.assert_array_equal(together.ids[row], found.ids[0])
        for where, weights in found.attention.items():
            np.testing.assert_allclose(together.attention[where][row], weights[0], atol=1e-5)


def test_the_start_and_padding_may_be_generated_where_asked_for():
    model, params = tiny("transformer")
    bias = np.zeros(VOCAB, np.float32)
    bias[[core.PAD, core.BOS]] = 2e4, 1e4
    ids = generate(model, params, SOURCE, max_len=3, rules=Rules(bias=bias)).ids
    assert not np.isin(ids[:, 0], [core.PAD, core.BOS]).any()
    ids = generate(model, params, SOURCE, max_len=3, rules=Rules(bias=bias, anything=True)).ids
    assert (ids == core.PAD).all()


def test_the_first_token_of_each_row():
    ids = jax.numpy.array([[7, 8, 2], [9, 2, 0]])
    assert shift_right(ids, jax.numpy.array([3, 4])).tolist() == [[3, 7, 8], [4, 9, 2]]
