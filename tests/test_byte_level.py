"""Byte-level BPE from vocab.json and merges.txt; tests/golden/gpt2_model holds what transformers makes of 5,000 strings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from strings import strings
from tokenizers import pre_tokenizers

import zoo
from zoo import pretrained_text
from zoo.pretrained_text import KINDS, kind_of

GOLDEN = Path(__file__).parent / "golden"
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
ROBERTA, GPT2 = ("<s>", "<pad>", "</s>", "<unk>"), ("<|endoftext|>",)


def tokenizer(special=GPT2, merges="#version: 0.2\na b\nĠ ab\n", more: dict | None = None, **settings):
    vocabulary = {token: i for i, token in enumerate([*special, *ALPHABET, "ab", "Ġab"])}
    files = {"vocab.json": vocabulary, "tokenizer_config.json": settings, **(more or {})}
    files = {name: json.dumps(content).encode() for name, content in files.items()} | {"merges.txt": merges.encode()}
    return KINDS[kind_of(files, "here")](files, "source", 300, 2)


def names(tokenizer, text: str) -> list[str]:
    return [tokenizer.names[i] for i in tokenizer.encode(text)]


@pytest.mark.parametrize(
    ("special", "settings", "wanted"),
    [
        (GPT2, {}, ["ab", "Ġab"]),
        (GPT2, {"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True}, ["Ġab", "Ġab"]),
        (GPT2, {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True}, ["<|endoftext|>", "ab", "Ġab"]),
        (ROBERTA, {}, ["<s>", "ab", "Ġab", "</s>"]),
        (ROBERTA, {"tokenizer_class": "BartTokenizer", "cls_token": "<unk>"}, ["<unk>", "ab", "Ġab", "</s>"]),
        (ROBERTA, {"tokenizer_class": "BlenderbotTokenizer"}, ["Ġab", "Ġab"]),
    ],
)
def test_what_stands_around_a_text(special, settings, wanted):
    made = tokenizer(special, **settings)
    assert made.kind == "byte_level"
    assert names(made, "ab ab") == wanted
    assert made.decode(made.encode("ab ab é")[: -1 if "</s>" in wanted else None]).strip() == "ab ab é"
    again = pretrained_text.from_json(json.loads(json.dumps(made.to_json())), "here")
    assert again.encode(" \ud83d ab") == made.encode(" \ufffd ab")


def test_tokens_that_are_found_before_a_text_is_cut():
    """By any of the files that may say them; a mask takes the space before it with it where its description says so."""
    mask = {"mask_token": {"content": "<mask>", "lstrip": True}}
    assert names(tokenizer(ROBERTA, more={"special_tokens_map.json": mask}), "a <mask>") == ["<s>", "a", "<mask>", "</s>"]
    assert names(tokenizer(ROBERTA), "a <mask>") == ["<s>", "a", "Ġ", "<mask>", "</s>"]
    first = len(GPT2) + len(ALPHABET) + 2
    made = tokenizer(more={"added_tokens.json": {"abab": first + 1, "[X]": first}})
    assert made.encode("abab[X]") == [first + 1, first]
    assert made.text([first]) == "[X]"  # no special token
    assert tokenizer(**{"pad_token": "[X]"}).text([first]) == ""
    assert tokenizer(added_tokens_decoder={str(first): {"content": "[X]", "special": True}}).text([first]) == ""


@pytest.mark.parametrize(("name", "settings"), [("whisper", {"tokenizer_class": "WhisperTokenizer"}), ("whisper_en", {})])
def test_whispers_older_files_are_as_its_tokenizer_json(name, settings):
    """Every string's ids and text, and the ids of the control tokens, which targets are made of."""
    config, fast = json.loads((GOLDEN / name / "config.json").read_text()), (GOLDEN / name / "tokenizer.json").read_bytes()
    data, tokenizers = json.loads(fast), {}
    added = {token["content"]: token["id"] for token in data["added_tokens"]}
    special = [token["content"] for token in data["added_tokens"] if token["special"]]
    end = "<|endoftext|>"
    files = {
        "vocab.json": data["model"]["vocab"] | {end: added[end]},
        "added_tokens.json": {token: number for token, number in added.items() if token != end},
        "special_tokens_map.json": dict.fromkeys(("bos_token", "eos_token", "unk_token"), end)
        | {"additional_special_tokens": special},
        "normalizer.json": {"colour": "color"},
        "tokenizer_config.json": settings,
    }
    files = {file: json.dumps(content).encode() for file, content in files.items()}
    files["merges.txt"] = "".join(f"{a} {b}\n" for a, b in data["model"]["merges"]).encode()
    for read in ({"tokenizer.json": fast}, files):
        kind = kind_of(read, "here")
        tokenizers[kind] = KINDS[kind](read, "target", config["vocab_size"], config["eos_token_id"])
    old, new = tokenizers["byte_level"], tokenizers["fast"]
    assert old.ids == new.ids
    texts = [*strings()[::4], "a<|en|>b <|endoftext|> c", " <|0.02|>d<|notimestamps|>"]
    encoded = new.encode_batch(texts)
    assert old.encode_batch(texts) == encoded
    assert old.encode_plain(texts) == new.encode_plain(texts)
    assert [old.text(ids) for ids in encoded] == [new.text(ids) for ids in encoded]
    again = pretrained_text.from_json(json.loads(json.dumps(old.to_json())), "here")
    assert again.encode_batch(texts[:9]) == encoded[:9]


def test_what_whisper_is_told_around_a_text():
    """As tokenizer_config.json has it; a token that is missing is said."""
    tokens = ["<|startoftranscript|>", "<|de|>", "<|translate|>", "<|notimestamps|>"]
    more = {"added_tokens.json": {token: len(GPT2) + len(ALPHABET) + 2 + i for i, token in enumerate(tokens)}}
    made = lambda **settings: tokenizer(more=more, tokenizer_class="WhisperTokenizer", **settings)  # noqa: E731
    assert names(made(), "ab") == ["<|startoftranscript|>", "<|notimestamps|>", "ab", "<|endoftext|>"]
    assert names(made(language="de", task="translate"), "ab") == [*tokens, "ab", "<|endoftext|>"]
    assert names(made(language="german", predict_timestamps=True), "ab") == ["<|startoftranscript|>", "ab", "<|endoftext|>"]
    with pytest.raises(zoo.UserError, match=r"lacks <\|startoftranscript\|>"):
        tokenizer(tokenizer_class="WhisperTokenizer")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"merges": "a b c"}, "merge 1 of the tokenizer's merges.txt is no pair"),
        ({"merges": "a bb"}, "vocab.json and merges.txt do not fit"),
        ({"tokenizer_class": "LukeTokenizer"}, "tokenizer_class in tokenizer_config.json is 'LukeTokenizer'"),
        ({"special": ROBERTA, "cls_token": None}, "cls_token in tokenizer_config.json is null"),
        ({"more": {"added_tokens.json": {"[X]": 4000}}}, "id 4000, which is not the next"),
        ({"pad_token": 5}, "name the token 5"),
        ({"more": {"vocab.json": {"a": "b"}}}, "vocab.json is no table of tokens and ids"),
    ],
)
def test_files_that_cannot_be(change, words):
    with pytest.raises(zoo.UserError, match=words):
        tokenizer(**change)
