"""Encoders against transformers: the directories in golden/ that hold an encoder.npz.

golden/families/bert.py says what is in it. A new directory is tested the day it is added.
"""

from __future__ import annotations

import functools
import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from strings import strings
from test_pretrained import GRADIENT, close, rolled, same_directory

import zoo
from zoo.checkpoint.rules import to_reference
from zoo.core import Tokens, UserError
from zoo.encoder_predictor import EncoderPredictor

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/encoder.npz"))

each_case = pytest.mark.parametrize("name", CASES)


@functools.cache
def case_of(name: str) -> SimpleNamespace:
    """A model as ``zoo.load`` gives it, and the golden arrays."""
    predictor = zoo.load(GOLDEN / name)
    with np.load(GOLDEN / name / "encoder.npz", allow_pickle=False) as arrays:
        golden = dict(arrays)
    source = Tokens(golden["in:ids"], golden["in:mask"], types=golden.get("in:types"))
    target = Tokens(golden["in:labels"], golden["in:labels_mask"])
    return SimpleNamespace(predictor=predictor, model=predictor.model, golden=golden, source=source, target=target)


@functools.cache
def compiled(name: str):
    """(params, source, target) -> logits, each layer's output, the gradient of the reference's loss."""
    model = case_of(name).model

    def loss(params, source, target):
        outputs, seen = model.apply({"params": params}, source, target, capture_intermediates=True, mutable=["intermediates"])
        log_p_BNV = jax.nn.log_softmax(outputs.logits)
        log_p_BN = jnp.take_along_axis(log_p_BNV, target.ids[..., None], axis=-1)[..., 0]
        hidden = {name: layer["__call__"][0][0] for name, layer in seen["intermediates"].items() if name[-1].isdigit()}
        return -(log_p_BN * target.mask).sum(), (outputs.logits, hidden)

    @jax.jit
    def run(params, source, target):
        (_, (logits, hidden)), gradient = jax.value_and_grad(loss, has_aux=True)(params, source, target)
        return logits, hidden, gradient

    return run


def test_every_architecture_has_a_golden_directory():
    from zoo.bert import HUGGINGFACE

    named = {case_of(name).predictor.origin["architecture"] for name in CASES}
    assert set(HUGGINGFACE) == named


@each_case
@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_layers_and_gradients(name, side):
    case = case_of(name)
    source, target, whole = case.source, case.target, case.target.ids.shape[1] == 1
    move = functools.partial(rolled, mask_BN=case.source.mask) if side == "left" else lambda x: x
    source = jax.tree.map(move, source)
    target = target if whole else jax.tree.map(move, target)
    logits, hidden, gradient = compiled(name)(case.predictor.params, source, target)
    real = 1 if whole else source.mask[..., None]
    close(logits * real, case.golden["out:logits"] if whole else move(case.golden["out:logits"]), "logits")
    if side == "left" and "out:left" in case.golden:
        close(logits * real, case.golden["out:left"], "logits of a batch that the reference read padded on the left")
    names = {key.removeprefix("out:hidden:") for key in case.golden if key.startswith("out:hidden:")}
    assert names == set(hidden)
    for layer in names:
        close(hidden[layer] * source.mask[..., None], move(case.golden[f"out:hidden:{layer}"]), layer)
    ours = to_reference(gradient, case.model.RULES)
    wanted = {key.removeprefix("grad:"): x for key, x in case.golden.items() if key.startswith("grad:")}
    without = case.golden.keys() & {"out:embed:cls"}  # a model without a head, whose tensors have no prefix
    prefix = f"{case.model.config.layout}." if without else ""
    for key, x in wanted.items():
        assert np.abs(x).max() > 10 * GRADIENT or np.abs(x).max() < 1e-12, f"the golden gradient of {key} says little"
        close(ours[prefix + key], x, f"gradient of {key}", GRADIENT)
    unread = {key for key in ours if key.removeprefix(prefix) not in wanted}
    assert all("pooler" in key for key in unread), unread


@each_case
def test_what_the_predictor_says(name):
    """Vectors, labels and missing words as the library's pipelines give them; each text the same whatever stands beside it."""
    case = case_of(name)
    assert isinstance(case.predictor, EncoderPredictor)
    head, said = case.model.config.head, json.loads(str(case.golden["text:json"]))
    # A padding token that stands in the text itself has no position in transformers' RoBERTa, and one here.
    kept = [row for row, text in enumerate(said["texts"]) if "<pad>" not in text]
    assert len(kept) >= len(said["texts"]) - 1
    texts = [said["texts"][row] for row in kept]
    if head == "none":
        for pooling in ("mean", "cls"):
            rows_ND = case.predictor.embed(texts, pooling)
            assert rows_ND.dtype == np.float32
            close(rows_ND, case.golden[f"out:embed:{pooling}"][kept], pooling)
            close(case.predictor.embed(texts[3:4], pooling), rows_ND[3:4], "a text alone")
        with pytest.raises(UserError, match="no head"):
            case.predictor.predict(texts)
        return
    wanted = [said["predictions"][row] for row in kept]
    found = case.predictor.predictions(texts)
    if head == "classification":
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.label == max(theirs, key=theirs.get)
            assert ours.probabilities == pytest.approx(theirs, abs=1e-5)
        assert case.predictor.predict(texts) == [ours.label for ours in found]
    elif head == "token_classification":
        for ours, theirs in zip(found, wanted, strict=True):
            assert [list(row) for row in zip(ours.labels, ours.probabilities, strict=True)] == [
                [label, pytest.approx(p, abs=1e-5)] for _, label, p in theirs
            ]
        assert case.predictor.predict(texts) == [ours.labels for ours in found]
    else:
        tokenizer = case.predictor.target_tokenizer
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.text == theirs["text"]
            assert [token for token, _ in ours.fills[0]] == tokenizer.pieces([token for token, _ in theirs["fills"]])
            assert [p for _, p in ours.fills[0]] == pytest.approx([p for _, p in theirs["fills"]], abs=1e-5)
        assert case.predictor.predict(texts) == [ours.text for ours in found]
        with pytest.raises(UserError, match="nothing to fill in"):
            case.predictor.predict(["no mask"])


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


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith("_mlm") and not name.startswith("distil")])
def test_tokenizers_agree(name):
    """On every string, and on pairs with what tells the texts apart."""
    case, tokenizer = case_of(name), case_of(name).predictor.source_tokenizer
    check_tokens(tokenizer, case.golden)


def check_tokens(tokenizer, golden) -> None:
    some = strings()[:400]
    pairs = tokenizer.encode_pairs(list(pairwise(some)))
    found = {"single": tokenizer.encode_batch(strings()), "pairs": [ids for ids, _ in pairs]}
    for kind, ours in found.items():
        wanted = np.split(golden[f"tokens:{kind}"], np.cumsum(golden[f"tokens:{kind}_lengths"])[:-1])
        for i, (mine, theirs) in enumerate(zip(ours, wanted, strict=True)):
            assert mine == theirs.tolist(), (kind, i)
    if "tokens:types" in golden:
        assert [t for _, types in pairs for t in types] == golden["tokens:types"].tolist()
