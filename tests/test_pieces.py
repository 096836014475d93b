"""Tokenizers without a tokenizer.json whose tokens are spelled or numbered in a way of their own; golden/pieces has what others
make of them (golden/families/pieces.py).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from strings import plain, strings

import zoo
from zoo import pretrained_text
from zoo.pretrained_text import KINDS, kind_of, read_files
from zoo.pretrained_text.blenderbot_small import joined_pairs

GOLDEN = Path(__file__).parent / "golden"
PIECES = GOLDEN / "pieces"
FAIRSEQ = {name: (PIECES / "xlm_roberta" / name).read_bytes() for name in ("sentencepiece.bpe.model",)}


def tokenizer_of(name: str, size: int = 400, side: str = "source"):
    files = read_files(PIECES / name)
    return KINDS[kind_of(files, PIECES / name)](files, side, size, {"pegasus": 1}.get(name, 2))


def named(side: str = "source", model_type: str = "", **settings):
    """XLM-R's file under other settings."""
    files = FAIRSEQ | {"tokenizer_config.json": json.dumps(settings).encode()}
    return KINDS[kind_of(files, "here", model_type)](files, side, 300, 2)


@pytest.mark.parametrize("kind", ["xlm_roberta", "mbart50", "pegasus", "blenderbot_small"])
def test_ids_and_texts_are_those_of_transformers(kind):
    with np.load(PIECES / "tokens.npz", allow_pickle=False) as arrays:
        flat, lengths, said = (arrays[f"{kind}{more}"] for more in ("", "_lengths", ":decode"))
    tokenizer = tokenizer_of(kind)
    assert tokenizer.kind == kind
    texts = strings(len(lengths)) if kind == "blenderbot_small" else list(map(plain, strings(len(lengths))))
    for text, ours, theirs in zip(texts, tokenizer.encode_batch(texts), np.split(flat, np.cumsum(lengths)[:-1]), strict=True):
        assert ours == theirs.tolist(), repr(text)
    said = json.loads(str(said))
    assert [tokenizer.text(ids).strip() for ids in said["ids"]] == [text.strip() for text in said["texts"]]
    again = pretrained_text.from_json(json.loads(json.dumps(tokenizer.to_json())), "here")
    assert (type(again), again.encode(" a\ud83d b"), again.ids) == (
        type(tokenizer),
        tokenizer.encode(" a\ufffd b"),
        tokenizer.ids,
    )


def test_pegasus_has_the_numbers_of_the_released_code():
    """Of which the library's differ where tokenizer_config.json names the masks."""
    tokenizer = tokenizer_of("pegasus")
    assert [tokenizer.ids[token] for token in ("<pad>", "</s>", "<mask_1>", "<mask_2>")] == [0, 1, 2, 3]
    assert [tokenizer.ids[token] for token in ("<unk_2>", "<unk_102>", "<unk>")] == [4, 104, 105]
    assert (tokenizer.mask_id, tokenizer.wrapping) == (3, {1})
    assert tokenizer.encode("<mask_1> a") == [2, *tokenizer.encode("a")]


def test_mbart_is_told_languages():
    """By codes behind the pieces: mBART's after the end of a text, mBART-50's before it."""
    mbart, mbart50 = named(tokenizer_class="MBartTokenizer", src_lang="de_DE", tgt_lang="fr_XX"), tokenizer_of("mbart50")
    a = mbart.encode("the fox")
    assert a[-2:] == [2, mbart.ids["de_DE"]]
    assert mbart50.encode("the fox") == [mbart50.ids["en_XX"], *a[:-1]]
    assert (mbart.language_is_read, mbart50.language_is_read) == (True, False)
    assert named("target", tokenizer_class="MBartTokenizer", tgt_lang="fr_XX").language == "fr_XX"
    first, count = mbart.ids["ar_AR"], mbart.reader.get_piece_size()
    assert (first, mbart.ids["zh_CN"], mbart.ids["<mask>"], max(mbart.ids.values())) == (
        count + 1,
        *[count + 25] * 1,
        *[count + 26] * 2,
    )
    assert (mbart50.ids["ar_AR"], mbart50.ids["sl_SI"], mbart50.ids["<mask>"]) == (count + 1, count + 52, count + 53)
    assert mbart.with_language("ro_RO").encode("the fox") == [*a[:-1], mbart.ids["ro_RO"]]
    for wrong in ("xx", "the"):
        with pytest.raises(zoo.UserError, match=f"no language '{wrong}'"):
            mbart.with_language(wrong)
    with pytest.raises(zoo.UserError, match="is not told a language"):
        named(model_type="xlm-roberta").with_language("de_DE")


def test_which_files_are_whose():
    """The class that tokenizer_config.json names goes first, then config.json's type; of others one error."""
    assert named(model_type="mbart").kind == "mbart"
    assert named(model_type="mbart", tokenizer_class="MBart50TokenizerFast").kind == "mbart50"
    assert named(model_type="xlm-roberta").kind == "xlm_roberta"
    piece, words = {"spiece.model": b""}, {"vocab.json": b"", "merges.txt": b""}
    assert [kind_of(piece, "here", of) for of in ("pegasus", "t5", "mt5")] == ["pegasus", "t5", "t5"]
    assert [kind_of(words, "here", of) for of in ("blenderbot-small", "blenderbot")] == ["blenderbot_small", "byte_level"]
    for settings in ({}, {"tokenizer_class": "CamembertTokenizer"}):
        with pytest.raises(zoo.UserError, match=r"here/tokenizer_config\.json is '.*save a tokenizer\.json beside it"):
            named(**settings)


def test_an_xlm_roberta_is_read_and_written(tmp_path):
    """RoBERTa's layout under another name, with XLM-R's tokenizer; pairs too, and missing words."""
    shutil.copytree(GOLDEN / "roberta_mlm", tmp_path / "in", ignore=shutil.ignore_patterns("tokenizer*", "*.npz"))
    for path in (PIECES / "xlm_roberta").iterdir():
        shutil.copy(path, tmp_path / "in")
    path = tmp_path / "in" / "config.json"
    config = json.loads(path.read_text()) | {"architectures": ["XLMRobertaForMaskedLM"], "model_type": "xlm-roberta"}
    path.write_text(json.dumps(config))
    predictor = zoo.load(tmp_path / "in")
    assert predictor.model.config == zoo.load(GOLDEN / "roberta_mlm").model.config
    tokenizer = predictor.source_tokenizer
    start, *a, end = tokenizer.encode("the fox")
    assert (start, end, tokenizer.mask_id) == (0, 2, max(tokenizer.ids.values()))
    assert tokenizer.encode_pairs([("the fox", "the fox")]) == [([0, *a, 2, 2, *a, 2], [0] * (2 * len(a) + 4))]
    assert tokenizer.encode("the <mask>")[-2:] == [tokenizer.mask_id, 2]
    zoo.save(predictor, tmp_path / "out", format="huggingface")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config
    assert (tmp_path / "out" / "sentencepiece.bpe.model").read_bytes() == FAIRSEQ["sentencepiece.bpe.model"]
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "in"))
    assert {name: x.tobytes() for name, x in ours.items()} == {name: x.tobytes() for name, x in theirs.items()}


def test_a_mask_that_no_settings_name():
    """RoBERTa's first files have a tokenizer.json and a tokenizer_config.json that says next to nothing."""
    for name, mask in {"roberta_mlm": "<mask>", "bert_mlm": "[MASK]"}.items():
        files = {"tokenizer.json": (GOLDEN / name / "tokenizer.json").read_bytes()}
        tokenizer = KINDS["fast"](files, "source", 500, 2)
        assert tokenizer.pieces([tokenizer.mask_id]) == [mask]


def test_blenderbots_words():
    tokenizer = tokenizer_of("blenderbot_small")
    assert tokenizer.encode("__start__ THE, the") == [
        1,
        *tokenizer.encode("the"),
        *tokenizer.encode(","),
        *tokenizer.encode("the"),
    ]
    assert tokenizer.encode("a\nb") == tokenizer.encode("a __newln__ b") != tokenizer.encode("a b")
    assert tokenizer.text([*tokenizer.encode("quick"), 399]) == "quick __unk__"
    assert joined_pairs(["a", "a", "a"], ("a", "a")) == ["aa", "a"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sentencepiece.bpe.model": b"\xff"}, r"sentencepiece\.bpe\.model is no SentencePiece model"),
        ({"added_tokens.json": b'{"[X]": 250}'}, r"'\[X\]' the id 250, which .* does not: save a tokenizer\.json"),
        ({"tokenizer_config.json": b'{"added_tokens_decoder": {"0": {"content": "<pad>"}}}'}, "'<pad>' the id 0, which"),
        ({"tokenizer_config.json": b'{"unk_token": "e"}'}, "has a piece twice"),
    ],
)
def test_files_that_cannot_be(change, words):
    files = FAIRSEQ | change
    with pytest.raises(zoo.UserError, match=words):
        KINDS["xlm_roberta"](files, "source", 300, 2)


@pytest.mark.parametrize(
    ("file", "words"), [("vocab.json", "vocab.json lacks __start__"), ("merges.txt", r"merge 1 .* is no pair")]
)
def test_blenderbots_files_that_cannot_be(file, words):
    files = read_files(PIECES / "blenderbot_small") | {file: b'{"a": 0}' if file == "vocab.json" else b"a b c"}
    with pytest.raises(zoo.UserError, match=words):
        KINDS["blenderbot_small"](files, "source", 400, 2)
