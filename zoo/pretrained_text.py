"""Text to token ids and back by the tokenizers that pretrained models come with, as ``zoo.text.Tokenizer`` does it by ours.

    fast             tokenizer.json, by the ``tokenizers`` library
    marian           source.spm, target.spm and vocab.json, by SentencePiece: pieces that have other ids in the model
    m2m_100          sentencepiece.bpe.model and vocab.json, and a token for each language beyond them

Unlike ours, these find special tokens that are spelled out in a text ("</s>"), as the reference does. A tokenizer keeps
the files that it was made from, so that nothing in them is lost when the model is saved.
"""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Iterable
from itertools import groupby, product
from pathlib import Path
from typing import Any, ClassVar

from zoo.core import UserError
from zoo.text import Tokenizer, printable, without_surrogates

# What a directory may hold of a tokenizer: all of it is kept and written back.
FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt"),
    *("merges.txt", "source.spm", "target.spm", "target_vocab.json", "spiece.model", "sentencepiece.bpe.model"),
    *("tokenizer.model", "normalizer.json", "preprocessor_config.json"),
)
BINARY = (".spm", ".model")
LANGUAGES = (  # M2M-100's codes, in the order of their ids after the vocabulary
    "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht hu "
    "hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps pt "
    "ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu"
)


class PretrainedTokenizer:
    """Base of all: subclasses define ``prepare``, ``encode`` and ``text``.

    Attributes:
      kind: its name in the table above.
      files: name -> content of what it was made from.
      side: "source" or "target"; models may cut the two differently.
      vocab_size: the model's, which may have more entries than the tokenizer.
      end_id: where the text of an output ends.
      settings: what tokenizer_config.json says.
      ids: token -> id.
      language: of the texts, for a model that wants to be told; see ``with_language``.
    """

    kind: ClassVar[str]
    language: str | None = None

    def __init__(self, files: dict[str, bytes], side: str, vocab_size: int, end_id: int):
        self.files, self.side, self.vocab_size, self.end_id = files, side, vocab_size, end_id
        self.settings = self.json("tokenizer_config.json") if "tokenizer_config.json" in files else {}
        self.ids: dict[str, int] = {}
        self.prepare()
        self.names = {number: token for token, number in self.ids.items()}
        if self.names and max(self.names) >= vocab_size:
            raise UserError(
                f"the {side} tokenizer has ids up to {max(self.names)}, but the model a vocabulary of {vocab_size}: "
                "use the files that belong together"
            )

    def prepare(self) -> None:
        """Read the files: sets ``ids`` and whatever else the subclass needs."""
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        """Token ids of a text with the special tokens that the model wants around it."""
        raise NotImplementedError

    def text(self, ids: list[int]) -> str:
        """The text of ids, special tokens left out."""
        raise NotImplementedError

    def with_language(self, code: str | None) -> PretrainedTokenizer:
        """The tokenizer for texts in a language, by the code that the model's publisher uses; None as it is.

        Raises:
          UserError: the model has no such language.
        """
        if code is None:
            return self
        self.language_id(code)
        other = copy.copy(self)
        other.language = code
        return other

    def language_id(self, code: str) -> int:
        """The token that stands for a language. Raises UserError if the model has no such language."""
        token = self.language_token(code)
        if token not in self.ids:
            raise UserError(f"this model has no language {code!r}: use one of its own codes")
        return self.ids[token]

    def language_token(self, code: str) -> str:
        """How the vocabulary spells a language."""
        return code

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """``[encode(text) for text in texts]``."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids up to the first end token. Raises UserError for an id outside the model's vocabulary."""
        ids = self.in_range(ids)
        return self.text(ids[: ids.index(self.end_id)] if self.end_id in ids else ids)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """One printable label a token, for the axes of a plot; of an id that the tokenizer does not have, its number."""
        return [printable(self.names.get(i, f"<{i}>")) for i in self.in_range(ids)]

    def in_range(self, ids: Iterable[int]) -> list[int]:
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise UserError(
                    f"token id {i} is outside the vocabulary of {self.vocab_size}: use the tokenizer of the same model"
                )
        return ids

    def to_json(self) -> dict[str, Any]:
        """All of it, its files included."""
        files = {
            name: {"base64": base64.b64encode(content).decode("ascii")} if name.endswith(BINARY) else content.decode("utf-8")
            for name, content in self.files.items()
        }
        facts = {"kind": self.kind, "side": self.side, "vocab_size": self.vocab_size, "end_id": self.end_id}
        return {**facts, "language": self.language, "files": files}

    def json(self, name: str) -> dict[str, Any]:
        """A file's content. Raises UserError if it is missing or no JSON object."""
        if name not in self.files:
            raise UserError(f"the tokenizer lacks {name}: fetch the model again")
        try:
            data = json.loads(self.files[name].decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"the tokenizer's {name} is not readable JSON ({error}): fetch the model again") from error
        if not isinstance(data, dict):
            raise UserError(f"the tokenizer's {name} holds no JSON object: fetch the model again")
        return data

    def vocabulary(self, name: str) -> dict[str, int]:
        """A JSON file of tokens and ids."""
        data = self.json(name)
        if not data or not all(type(number) is int and number >= 0 for number in data.values()):
            raise UserError(f"the tokenizer's {name} is no table of tokens and ids: fetch the model again")
        return data

    def special(self, name: str, default: str) -> str:
        """A special token's text in tokenizer_config.json: ``unk_token`` and so on."""
        value = self.settings.get(name, default)
        value = value.get("content") if isinstance(value, dict) else value
        return value if isinstance(value, str) else default

    def added_special(self) -> list[str]:
        """The special tokens that the files add to the usual ones."""
        older = self.json("special_tokens_map.json") if "special_tokens_map.json" in self.files else {}
        for data, name in product((self.settings, older), ("extra_special_tokens", "additional_special_tokens")):
            if more := data.get(name):
                more = more.values() if isinstance(more, dict) else more
                return [token.get("content", "") if isinstance(token, dict) else str(token) for token in more]
        return []

    def piece_model(self, name: str) -> Any:
        """A SentencePiece file."""
        import sentencepiece

        if name not in self.files:
            raise UserError(f"the tokenizer lacks {name}: fetch the model again")
        try:
            return sentencepiece.SentencePieceProcessor(model_proto=self.files[name])
        except (RuntimeError, OSError, ValueError) as error:
            raise UserError(f"the tokenizer's {name} is no SentencePiece model ({error}): fetch the model again") from error


class FastTokenizer(PretrainedTokenizer):
    """A tokenizer.json: its own rules say everything, those for special tokens too."""

    kind = "fast"

    def prepare(self) -> None:
        import tokenizers

        if "tokenizer.json" not in self.files:
            raise UserError("the tokenizer lacks tokenizer.json: fetch the model again")
        try:
            self.backend = tokenizers.Tokenizer.from_str(self.files["tokenizer.json"].decode("utf-8"))
        except Exception as error:  # the library raises plain Exception for anything it cannot read
            raise UserError(f"tokenizer.json is not a readable tokenizer ({error}): fetch the model again") from error
        self.backend.no_padding()
        self.backend.no_truncation()
        self.ids = self.backend.get_vocab(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        texts = list(map(without_surrogates, texts))
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=self.language is None)
        if self.language is None:
            return [encoding.ids for encoding in encodings]
        return [[self.language_id(self.language), *encoding.ids, self.end_id] for encoding in encodings]

    def language_token(self, code: str) -> str:
        if not str(self.settings.get("tokenizer_class", "")).startswith("Nllb") or self.settings.get("legacy_behaviour"):
            raise UserError(f"this tokenizer is not told a language, such as {code!r}: leave it out")
        return code

    def text(self, ids: list[int]) -> str:
        text = self.backend.decode(ids, skip_special_tokens=True)
        return clean_up(text) if self.settings.get("clean_up_tokenization_spaces") is True else text


class PieceTokenizer(PretrainedTokenizer):
    """SentencePiece whose pieces have other ids in the model, which a table gives; special tokens stand between the pieces.

    Attributes:
      splitter: finds special tokens in a text.
      reader, writer: the SentencePiece models that cut a text and that join pieces.
    """

    def split_at(self, special: Iterable[str]) -> None:
        """Set what ``encode`` looks for, longest first, and what ``text`` leaves out."""
        self.special_tokens = [token for token in special if token in self.ids]
        longest = sorted(self.special_tokens, key=len, reverse=True)
        self.splitter = re.compile("({})".format("|".join(map(re.escape, longest))) if longest else r"(?!)")

    def cut(self, text: str) -> list[str]:
        """The pieces of a text without special tokens."""
        return self.reader.encode(text, out_type=str)

    def numbers(self, text: str) -> list[int]:
        """The ids of a text without any token around it."""
        unknown, found = self.ids[self.special("unk_token", "<unk>")], []
        for part in self.splitter.split(without_surrogates(text)):
            if part:
                found += [part] if part in self.special_tokens else self.cut(part)
        return [self.ids.get(piece, unknown) for piece in found]

    def text(self, ids: list[int]) -> str:
        pieces = [self.names[i] for i in ids if i in self.names and self.names[i] not in self.special_tokens]
        return self.writer.decode_pieces(pieces).strip()


class MarianTokenizer(PieceTokenizer):
    """A piece model a side over one table of ids, or two; the language of a text may stand before it as ">>fra<<".

    As in transformers, one table means that source.spm joins the pieces of outputs too. Punctuation is left as it is;
    transformers does not normalise it either.
    """

    kind = "marian"

    def prepare(self) -> None:
        separate = self.settings.get("separate_vocabs") is True
        self.ids = self.vocabulary("target_vocab.json" if separate and self.side == "target" else "vocab.json")
        self.reader = self.piece_model(f"{self.side}.spm")
        self.writer = self.piece_model("target.spm" if separate else "source.spm")
        defaults = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}
        special = [self.special(name, default) for name, default in defaults.items()]
        for token in special[:2]:
            if token not in self.ids:
                raise UserError(f"the tokenizer's vocab.json lacks {token}: fetch the model again")
        self.split_at([*special, *self.added_special()])

    def cut(self, text: str) -> list[str]:
        language = re.match(r">>.*?<<", text, re.DOTALL)
        code, text = ([language[0]], text[language.end() :]) if language else ([], text)
        return code + super().cut(text)

    def encode(self, text: str) -> list[int]:
        return [*self.numbers(text), self.ids[self.special("eos_token", "</s>")]]

    def text(self, ids: list[int]) -> str:
        return super().text(ids).replace("▁", " ").strip()

    def language_token(self, code: str) -> str:
        raise UserError(f"a Marian model finds the target's language in the text, such as >>fra<<: leave {code!r} out")


class M2M100Tokenizer(PieceTokenizer):
    """One piece model over a table of ids; a text begins with its language's token, English unless told otherwise."""

    kind = "m2m_100"

    def prepare(self) -> None:
        self.ids = self.vocabulary("vocab.json")
        self.reader = self.writer = self.piece_model("sentencepiece.bpe.model")
        if self.settings.get("language_codes", "m2m100") != "m2m100":
            raise UserError(f"the tokenizer's languages are {self.settings['language_codes']!r}: only m2m100's are known")
        languages = [self.language_token(code) for code in LANGUAGES.split()]
        self.ids = {**{token: len(self.ids) + i for i, token in enumerate(languages)}, **self.ids}
        defaults = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
        special = [self.special(name, default) for name, default in defaults.items()]
        for token in special:
            if token not in self.ids:
                raise UserError(f"the tokenizer's vocab.json lacks {token}: fetch the model again")
        self.split_at([*special, *self.added_special()])
        code = self.settings.get("src_lang" if self.side == "source" else "tgt_lang")
        self.language = code if isinstance(code, str) else "en"

    def encode(self, text: str) -> list[int]:
        return [self.language_id(self.language), *self.numbers(text), self.ids[self.special("eos_token", "</s>")]]

    def text(self, ids: list[int]) -> str:
        """Ids that the table does not have, which fill the model's vocabulary up, are unknown words as in the reference."""
        runs = groupby(ids, key=lambda i: i in self.names)
        unknown = self.special("unk_token", "<unk>")
        return "".join(
            super(M2M100Tokenizer, self).text(list(run)) if known else unknown * len(list(run)) for known, run in runs
        )

    def language_token(self, code: str) -> str:
        return f"__{code}__"


KINDS = {cls.kind: cls for cls in (FastTokenizer, MarianTokenizer, M2M100Tokenizer)}


def clean_up(text: str) -> str:
    """English punctuation without the spaces before it, as transformers does where tokenizer_config.json asks for it."""
    for mark in (".", "?", "!", ","):
        text = text.replace(f" {mark}", mark)
    text = text.replace(" ' ", "'")
    for ending in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {ending}", ending)
    return text


def read_files(directory: Path) -> dict[str, bytes]:
    """The tokenizer files of a directory. Raises UserError for one that should be text and is not."""
    files = {name: (directory / name).read_bytes() for name in FILES if (directory / name).is_file()}
    for name, content in files.items():
        try:
            content if name.endswith(BINARY) else content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{directory / name} is not UTF-8 ({error.reason}): fetch the model again") from error
    return files


def kind_of(files: dict[str, bytes], where: Path | str) -> str:
    """Which kind the files are. Raises UserError if they are none of them."""
    if "tokenizer.json" in files:
        return "fast"
    if {"source.spm", "target.spm", "vocab.json"} <= set(files):
        return "marian"
    if {"sentencepiece.bpe.model", "vocab.json"} <= set(files):
        return "m2m_100"
    raise UserError(
        f"{where} holds no tokenizer that this zoo reads: tokenizer.json is wanted, or source.spm, target.spm and vocab.json; "
        f"there is {', '.join(files) or 'none of its files'}"
    )


def from_json(data: Any, where: str) -> Tokenizer | PretrainedTokenizer:
    """A tokenizer of either sort from what its ``to_json`` gave.

    Raises:
      UserError: it is none.
    """
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
