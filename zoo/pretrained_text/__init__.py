"""Text to token ids and back by the tokenizers that pretrained models come with, as ``zoo.text.Tokenizer`` does it by ours.

    fast             tokenizer.json, by the ``tokenizers`` library
    byte_level       vocab.json and merges.txt: what GPT-2, RoBERTa, BART, Blenderbot and Whisper had before tokenizer.json
    word_piece       vocab.txt: what BERT and DistilBERT had
    t5               spiece.model and the sentinels after its pieces, as T5 and mT5 have them
    byt5             bytes: tokenizer_config.json says no more than that they are
    marian           source.spm, target.spm and vocab.json, by SentencePiece: pieces that have other ids in the model
    m2m_100          sentencepiece.bpe.model and vocab.json, and a token for each language beyond them
    xlm_roberta mbart mbart50    sentencepiece.bpe.model alone; which of them, tokenizer_config.json or config.json says
    pegasus          spiece.model, where these say so
    blenderbot_small vocab.json and merges.txt, where these say so

Unlike ours, these find special tokens that are spelled out in a text ("</s>"), as the reference does. A tokenizer keeps
the files that it was made from, so that nothing in them is lost when the model is saved.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from zoo.core import UserError
from zoo.labels import Labels
from zoo.pretrained_text.base import BINARY, PretrainedTokenizer
from zoo.pretrained_text.blenderbot_small import BlenderbotSmallTokenizer
from zoo.pretrained_text.byte_level import ByteLevelTokenizer
from zoo.pretrained_text.fast import FastTokenizer
from zoo.pretrained_text.pieces import M2M100Tokenizer, MarianTokenizer
from zoo.pretrained_text.shifted import KINDS_OF_CLASSES, shifted_kind
from zoo.pretrained_text.t5 import ByT5Tokenizer, T5Tokenizer
from zoo.pretrained_text.word_piece import WordPieceTokenizer
from zoo.text import Tokenizer

# What a directory may hold of a tokenizer: all of it is kept and written back.
FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt"),
    *("merges.txt", "source.spm", "target.spm", "target_vocab.json", "spiece.model", "sentencepiece.bpe.model"),
    *("tokenizer.model", "normalizer.json", "preprocessor_config.json"),
)
CLASSES = (
    *(FastTokenizer, ByteLevelTokenizer, WordPieceTokenizer, T5Tokenizer, ByT5Tokenizer),
    *(MarianTokenizer, M2M100Tokenizer, BlenderbotSmallTokenizer, *KINDS_OF_CLASSES.values()),
)
KINDS = {cls.kind: cls for cls in CLASSES}


def read_files(directory: Path) -> dict[str, bytes]:
    """The tokenizer files of a directory. Raises UserError for one that should be text and is not."""
    files = {name: (directory / name).read_bytes() for name in FILES if (directory / name).is_file()}
    for name, content in files.items():
        try:
            content if name.endswith(BINARY) else content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{directory / name} is not UTF-8 ({error.reason}): fetch the model again") from error
    return files


def kind_of(files: dict[str, bytes], where: Path | str, model_type: str = "") -> str:
    """Which kind the files are; ``model_type`` is config.json's. Raises UserError if they are none of them."""
    name = class_name(files)
    short = name.removesuffix("Fast").removesuffix("Tokenizer")
    if "tokenizer.json" in files:
        return "fast"
    if {"source.spm", "target.spm", "vocab.json"} <= set(files):
        return "marian"
    if {"sentencepiece.bpe.model", "vocab.json"} <= set(files):
        return "m2m_100"
    if {"vocab.json", "merges.txt"} <= set(files):
        return "blenderbot_small" if (short or model_type) in ("BlenderbotSmall", "blenderbot-small") else "byte_level"
    if "vocab.txt" in files:
        return "word_piece"
    shifted = shifted_kind(short, model_type)
    if shifted is not None and shifted.file in files:
        return shifted.kind
    if "spiece.model" in files and short in ("", "T5", "MT5"):
        return "t5"
    if name == "ByT5Tokenizer":
        return "byt5"
    if "sentencepiece.bpe.model" in files:
        raise UserError(
            f"tokenizer_class in {where}/tokenizer_config.json is {name!r}, but sentencepiece.bpe.model is read "
            f"for {', '.join(KINDS_OF_CLASSES)}: save a tokenizer.json beside it"
        )
    raise UserError(
        f"{where} holds no tokenizer that this zoo reads: tokenizer.json is wanted, or vocab.txt, spiece.model, "
        "sentencepiece.bpe.model, or vocab.json with merges.txt or with source.spm and target.spm; there is "
        f"{', '.join(files) or 'none of its files'}"
    )


def class_name(files: dict[str, bytes]) -> str:
    """The class that tokenizer_config.json names; nothing where it names none."""
    try:
        name = json.loads(files.get("tokenizer_config.json", b"{}"))["tokenizer_class"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return name if isinstance(name, str) else ""


def from_json(data: Any, where: str) -> Tokenizer | PretrainedTokenizer | Labels:
    """A tokenizer of any sort, or labels, from what its ``to_json`` gave.

    Raises:
      UserError: it is none.
    """
    if isinstance(data, dict) and "labels" in data:
        return Labels.from_json(data, where)
    if not isinstance(data, dict) or "files" not in data:
        return Tokenizer.from_json(data, where)
    right = {"kind": str, "side": str, "vocab_size": int, "end_id": int, "language": (str, type(None)), "files": dict}
    if set(data) != set(right) or not all(isinstance(data[name], hint) for name, hint in right.items()):
        raise UserError(f"{where} is not a readable tokenizer: save it again")
    if data["kind"] not in KINDS:
        raise UserError(f"{where} is a tokenizer of the kind {data['kind']!r}, which is not one of {', '.join(KINDS)}")
    try:
        files = {
            name: base64.b64decode(content["base64"], validate=True) if isinstance(content, dict) else content.encode("utf-8")
            for name, content in data["files"].items()
        }
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{where} is not a readable tokenizer ({error}): save it again") from error
    if not set(files) <= set(FILES):
        raise UserError(f"{where} holds the file {sorted(set(files) - set(FILES))[0]!r}, which no tokenizer has: save it again")
    return KINDS[data["kind"]](files, data["side"], data["vocab_size"], data["end_id"]).with_language(data["language"])
