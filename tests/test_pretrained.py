"""Every family against transformers: the directories in golden/, tiny pretrained models with what it computes of them.

golden/families/reference.py says what a golden.npz holds. A new directory is tested the day it is added.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from reference import GOLDEN, close, close_gradients, compiled, names, part, read, rolled, same_directory
from strings import strings

import zoo
from zoo.checkpoint.rules import to_reference
from zoo.core import Tokens
from zoo.generate import generate

CASES = names("golden.npz")

each_case = pytest.mark.parametrize("name", CASES)


@functools.cache
def case_of(name: str) -> SimpleNamespace:
    """A model as ``zoo.load`` gives it, and the golden arrays."""
    case = read(name, "golden.npz")
    golden = case.golden
    case.batch = [Tokens(golden[f"in:{side}_ids"], golden[f"in:{side}_mask"]) for side in ("source", "target")]
    return case


@each_case
@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_layers_and_gradients(name, side):
    case = case_of(name)
    source, target = case.batch
    if side == "left":
        source = Tokens(rolled(source.ids, source.mask), rolled(source.mask, source.mask))
    logits, hidden, gradient, stepwise = compiled(case.model)(case.params, source, target)
    for x, what in ((logits, "logits"), (stepwise, "logits step by step")):
        close(x * target.mask[..., None], case.golden["out:logits"], what)
    wanted_layers = part(case.golden, "out:hidden:")
    assert set(wanted_layers) <= set(hidden)
    for layer, wanted in wanted_layers.items():
        mask = source.mask if layer.startswith("encoder") else target.mask
        wanted = rolled(wanted, case.batch[0].mask) if layer.startswith("encoder") and side == "left" else wanted
        close(hidden[layer] * mask[..., None], wanted, layer)
    buffers = close_gradients(to_reference(gradient, case.model.RULES), case.golden)  # what the reference does not train
    assert buffers <= {"final_logits_bias"}


@each_case
@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_generation_by_the_models_own_defaults(name, search):
    case = case_of(name)
    said = json.loads(str(case.golden["text:json"]))
    # A padding token that stands in the text itself has no position in transformers' M2M-100, and one here.
    kept = [row for row, text in enumerate(said["sources"]) if "<pad>" not in text]
    texts, wanted = ([said[key][row] for row in kept] for key in ("sources", search))
    assert len(kept) >= len(said["sources"]) - 1
    assert case.predictor.predict(texts, beams={"greedy": 1, "beam": 4}[search]) == wanted
    ids_BT = case.golden[f"out:{search}"][kept]
    sources = case.predictor.source_tokenizer.encode_batch(texts)
    length = max(map(len, sources))
    mask = np.arange(length) < np.array(list(map(len, sources)))[:, None]
    padded = np.array([row + [0] * (length - len(row)) for row in sources], np.int32)
    source = Tokens(rolled(padded, mask), rolled(mask, mask))  # on the left
    decoding = case.predictor.decoding
    found = generate(
        case.model,
        case.params,
        source,
        max_len=decoding.max_len,
        search=dataclasses.replace(decoding, beams={"greedy": 1, "beam": 4}[search]).search(None),
        rules=decoding.rules(case.model.config.target_vocab_size),
    )
    pad = case.model.config.pad_id
    assert (found.ids[:, ids_BT.shape[1] :] == pad).all()
    np.testing.assert_array_equal(found.ids[:, : ids_BT.shape[1]], ids_BT)


@each_case
def test_tokenizers_agree(name):
    case = case_of(name)
    for side in ("source", "target"):
        tokenizer = getattr(case.predictor, f"{side}_tokenizer")
        same = side if f"tokens:{side}" in case.golden else "source"  # one tokenizer for both
        flat, lengths = case.golden[f"tokens:{same}"], case.golden[f"tokens:{same}_lengths"]
        wanted = np.split(flat, np.cumsum(lengths)[:-1])
        for text, ours, theirs in zip(strings(), tokenizer.encode_batch(strings()), wanted, strict=True):
            assert ours == theirs.tolist(), repr(text)
    said = json.loads(str(case.golden["decode:json"]))
    end = case.model.config.end_id
    for ids, text in zip(said["ids"], said["texts"], strict=True):
        assert case.predictor.target_tokenizer.text(ids) == text, ids
        before = ids[: ids.index(end)] if end in ids else ids
        assert case.predictor.target_tokenizer.decode(ids) == case.predictor.target_tokenizer.text(before)
    tokenizer = case.predictor.source_tokenizer
    assert tokenizer.encode("half a pair \ud83d") == tokenizer.encode("half a pair \ufffd")


@each_case
def test_round_trips(name, tmp_path):
    """Out again as it came in: at once, and by way of this zoo's own format."""
    predictor = case_of(name).predictor
    zoo.save(predictor, tmp_path / "hf", format="huggingface")
    same_directory(tmp_path / "hf", GOLDEN / name)
    zoo.save(predictor, tmp_path / "zoo")
    again = zoo.load(tmp_path / "zoo")
    assert (again.decoding, again.model.config) == (predictor.decoding, predictor.model.config)
    zoo.save(again, tmp_path / "hf2", format="huggingface")
    same_directory(tmp_path / "hf2", GOLDEN / name)


def test_a_model_of_many_languages_is_told_which(tmp_path):
    """By the first token of the source, and of what is generated; saved with the model."""
    predictor = case_of("m2m_100").predictor
    other = predictor.between("fr", "de")
    french, german = (predictor.target_tokenizer.language_id(code) for code in ("fr", "de"))
    assert (predictor.source_tokenizer.encode("a")[0], predictor.decoding.first_id) == (german, french)
    assert (other.source_tokenizer.encode("a")[0], other.decoding.first_id) == (french, german)
    assert other.source_tokenizer.encode("a")[1:] == predictor.source_tokenizer.encode("a")[1:]
    zoo.save(other, tmp_path / "out")
    again = zoo.load(tmp_path / "out")
    assert again.source_tokenizer.encode("a") == other.source_tokenizer.encode("a")
    assert again.decoding == other.decoding
    with pytest.raises(zoo.UserError, match="no language 'xx'"):
        predictor.between("xx", "de")
    with pytest.raises(zoo.UserError, match=">>fra<<"):
        case_of("marian").predictor.between("fr", "de")
