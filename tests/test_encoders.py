"""Encoders against transformers: the directories in golden/ that hold an encoder.npz.

golden/families/bert.py says what is in it. A new directory is tested the day it is added.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from reference import GOLDEN, close, close_gradients, compiled, names, part, read, rolled, same_directory
from strings import strings

import zoo
from zoo import pretrained_text
from zoo.__main__ import main
from zoo.checkpoint.rules import to_reference
from zoo.checkpoint.tensors import Shape, Tensors, write
from zoo.core import Tokens, UserError
from zoo.encoder_predictor import EncoderPredictor
from zoo.labels import Labels

CASES = names("encoder.npz")

each_case = pytest.mark.parametrize("name", CASES)


@functools.cache
def case_of(name: str) -> SimpleNamespace:
    """A model as ``zoo.load`` gives it, and the golden arrays."""
    case = read(name, "encoder.npz")
    golden = case.golden
    case.source = Tokens(golden["in:ids"], golden["in:mask"], types=golden.get("in:types"))
    case.target = Tokens(golden["in:labels"], golden["in:labels_mask"])
    return case


def test_every_architecture_has_a_golden_directory():
    from zoo.bert import HUGGINGFACE

    named = {case_of(name).predictor.origin["architecture"] for name in CASES}
    assert {name for name in HUGGINGFACE if not name.startswith("XLM")} == named  # these are RoBERTa's (test_pieces.py)


@each_case
@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_layers_and_gradients(name, side):
    case = case_of(name)
    source, target, whole = case.source, case.target, case.target.ids.shape[1] == 1
    move = functools.partial(rolled, mask_BN=case.source.mask) if side == "left" else lambda x: x
    source = jax.tree.map(move, source)
    target = target if whole else jax.tree.map(move, target)
    logits, hidden, gradient, _ = compiled(case.model, decodes=False)(case.params, source, target)
    real = 1 if whole else source.mask[..., None]
    close(logits * real, case.golden["out:logits"] if whole else move(case.golden["out:logits"]), "logits")
    if side == "left" and "out:left" in case.golden:
        close(logits * real, case.golden["out:left"], "logits of a batch that the reference read padded on the left")
    wanted = part(case.golden, "out:hidden:")
    assert set(wanted) == set(hidden)
    for layer, x in wanted.items():
        close(hidden[layer] * source.mask[..., None], move(x), layer)
    without = case.golden.keys() & {"out:embed:cls"}  # a model without a head, whose tensors have no prefix
    prefix = f"{case.model.config.layout}." if without else ""
    ours = {key.removeprefix(prefix): x for key, x in to_reference(gradient, case.model.RULES).items()}
    unread = close_gradients(ours, case.golden)
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


@pytest.mark.parametrize("cut_by", ["vocab.txt", "vocab.json"])
def test_tokenizers_from_the_time_before_tokenizer_json(cut_by):
    """The same ids from the older files, built by hand from the newer one."""
    name = {"vocab.txt": "bert_mlm", "vocab.json": "roberta_mlm"}[cut_by]
    model = json.loads((GOLDEN / name / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    if cut_by == "vocab.txt":
        files = {"vocab.txt": "\n".join(tokens) + "\n", "tokenizer_config.json": json.dumps({"do_lower_case": True})}
    else:
        files = {"vocab.json": json.dumps(model["vocab"]), "merges.txt": "\n".join(map(" ".join, model["merges"]))}
        files["tokenizer_config.json"] = json.dumps({"tokenizer_class": "RobertaTokenizer"})
    files = {file: content.encode() for file, content in files.items()}
    kind = pretrained_text.KINDS[pretrained_text.kind_of(files, "here")]
    check_tokens(kind(files, "source", len(tokens), 2), case_of(name).golden)


def word_piece(tokens: list[str], **settings) -> pretrained_text.WordPieceTokenizer:
    files = {"vocab.txt": "\n".join(tokens).encode(), "tokenizer_config.json": json.dumps(settings).encode()}
    return pretrained_text.WordPieceTokenizer(files, "source", len(tokens), 2)


def test_word_pieces_by_their_settings():
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "E", "É", "e", "é", "##t", "我", "##我"]
    cut = lambda text, **settings: word_piece(tokens, **settings).pieces(word_piece(tokens, **settings).encode(text)[1:-1])  # noqa: E731
    assert cut("Ét 我我") == ["e", "##t", "我", "我"]
    assert cut("Ét", strip_accents=False) == ["é", "##t"]
    assert cut("Ét", do_lower_case=False) == ["É", "##t"]
    assert cut("Ét", do_lower_case=False, strip_accents=True) == ["E", "##t"]
    assert cut("我我", tokenize_chinese_chars=False) == ["我", "##我"]
    assert cut("e [MASK] x") == ["e", "[MASK]", "[UNK]"]
    with pytest.raises(UserError, match="lacks \\[SEP\\]"):
        word_piece(["[PAD]", "[UNK]", "[CLS]"])
    with pytest.raises(UserError, match="do_lower_case"):
        word_piece(tokens, do_lower_case="yes")


def changed(name: str, directory: Path, rename=lambda name: name, more=(), files=()) -> Path:
    """A golden directory with tensors renamed or added, and with other files beside."""
    shutil.copytree(GOLDEN / name, directory)
    held = {rename(key): np.array(x) for key, x in Tensors.open(directory).items()} | dict(more)
    write(directory, {key: Shape(x.dtype, x.shape) for key, x in held.items()}, held.__getitem__)
    for file, content in dict(files).items():
        (directory / file).parent.mkdir(exist_ok=True)
        (directory / file).write_text(content, encoding="utf-8")
    return directory


def test_names_and_tensors_of_older_checkpoints(tmp_path):
    """TensorFlow's names of the norms, the buffer of positions, ties written out, the heads that pre-training had."""

    def older(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    rng = np.random.default_rng(0)
    tensors = Tensors.open(GOLDEN / "bert_mlm")
    shapes = {"bert.pooler.dense.weight": (16, 16), "bert.pooler.dense.bias": (16,)}
    shapes |= {"cls.seq_relationship.weight": (2, 16), "cls.seq_relationship.bias": (2,)}
    more = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
    more["bert.embeddings.position_ids"] = np.arange(40)[None]
    more["cls.predictions.decoder.weight"] = np.array(tensors["bert.embeddings.word_embeddings.weight"])
    more["cls.predictions.decoder.bias"] = np.array(tensors["cls.predictions.bias"])
    directory = changed("bert_mlm", tmp_path / "older", older, more)
    predictor = zoo.load(directory)
    assert predictor.model.config.pooler
    assert predictor.model.config.next_sentence
    texts = ["the [MASK] fox"]
    assert predictor.predict(texts) == case_of("bert_mlm").predictor.predict(texts)
    zoo.save(predictor, tmp_path / "out", format="huggingface")
    (tmp_path / "older" / "encoder.npz").unlink()
    same_directory(tmp_path / "out", directory)


def test_a_directory_of_sentence_transformers_is_one_of_bert(tmp_path):
    """Whose further files say how to pool; its tensors may have the buffer of positions."""
    files = {"modules.json": "[]", "1_Pooling/config.json": "{}", "sentence_bert_config.json": "{}"}
    more = {"embeddings.position_ids": np.arange(40)[None]}
    predictor = zoo.load(changed("bert", tmp_path / "model", more=more, files=files))
    texts = ["a", "the quick brown fox", ""]
    rows_ND = predictor.embed(texts)
    np.testing.assert_array_equal(rows_ND, case_of("bert").predictor.embed(texts))
    np.testing.assert_allclose(np.linalg.norm(rows_ND, axis=1), 1, atol=1e-6)
    assert predictor.embed([]).shape == (0, 16)


def test_pairs_are_told_apart():
    """The second text's tokens have another type; the order of the texts matters, and a pair alone is the same."""
    predictor = case_of("bert_classifier").predictor
    pairs = [("the fox", "a dog"), ("a dog", "the fox"), ("the quick brown fox jumps", "a")]
    found = predictor.predictions(pairs)
    assert found[0].probabilities != pytest.approx(found[1].probabilities, abs=1e-4)
    assert predictor.predictions(pairs[2:])[0].probabilities == pytest.approx(found[2].probabilities, abs=1e-6)
    _, source = next(predictor.read(pairs[:1]))
    assert source.types[0].sum() == len(predictor.source_tokenizer.encode("a dog")) - 1
    for texts, words in (("a", "write \\[text\\]"), (["a", 1], "convert it"), (["a", ("a", "b")], "one or the other")):
        with pytest.raises(UserError, match=words):
            predictor.predict(texts)


def test_labels():
    labels = Labels.from_config({"id2label": {"1": "b", "0": "a"}}, "config.json")
    assert (labels.encode("b"), labels.decode([0, 1]), labels.vocab_size) == ([1], "a b", 2)
    again = pretrained_text.from_json(json.loads(json.dumps(labels.to_json())), "here")
    assert again.names == labels.names
    assert Labels.from_config({}, "config.json").names == ("LABEL_0", "LABEL_1")
    for data in (
        {"id2label": {"1": "b"}},
        {"id2label": {"0": "a", "1": "a"}},
        {"num_labels": 10**12},
        {"id2label": {"0": "a"}},
    ):
        with pytest.raises(UserError):
            Labels.from_config(data, "config.json")
    with pytest.raises(UserError, match="'c' is not one of the labels a, b"):
        labels.encode("c")


def test_other_labels_are_written(tmp_path):
    predictor = dataclasses.replace(case_of("bert_classifier").predictor, target_tokenizer=Labels(["x", "y", "z"]))
    zoo.save(predictor, tmp_path / "out", format="huggingface")
    data = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert (data["id2label"], data["label2id"]) == ({"0": "x", "1": "y", "2": "z"}, {"x": 0, "y": 1, "z": 2})
    assert zoo.load(tmp_path / "out").predict(["a"])[0] in "xyz"


def test_the_command_line_of_a_classifier(capsys):
    name = str(GOLDEN / "bert_classifier")
    assert main(["predict", name, "a fox", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["label"] == max(said["probabilities"], key=said["probabilities"].get)
    assert main(["predict", name, "a fox"]) == 0
    assert capsys.readouterr().out.strip() == said["label"]
    assert main(["predict", name, "a fox", "--beams", "2"]) == 2
    assert "leave it out" in capsys.readouterr().err
    assert main(["predict", name, "a fox", "--stream"]) == 2
    assert main(["predict", str(GOLDEN / "bert"), "a fox"]) == 2
    assert "use embed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"problem_type": "multi_label_classification"}, "problem_type"),
        ({"hidden_act": "silu"}, "hidden_act"),
        ({"is_decoder": True}, "is_decoder"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"id2label": {"0": "a"}}, "id2label"),
    ],
)
def test_what_is_not_computed_is_said(change, words, tmp_path):
    data = json.loads((GOLDEN / "bert_classifier" / "config.json").read_text(encoding="utf-8")) | change
    directory = changed("bert_classifier", tmp_path / "model", files={"config.json": json.dumps(data)})
    with pytest.raises(UserError, match=words):
        zoo.load(directory)
