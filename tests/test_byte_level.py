"""Byte-level BPE from vocab.json and merges.txt; tests/golden/gpt2_model holds what transformers makes of 5,000 strings."""

from __future__ import annotations

import json

import pytest
from tokenizers import pre_tokenizers

import zoo
from zoo import pretrained_text
from zoo.pretrained_text import KINDS, kind_of

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
