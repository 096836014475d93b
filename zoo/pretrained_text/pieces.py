"""SentencePiece, by its own library."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from zoo.core import UserError
from zoo.pretrained_text.base import PretrainedTokenizer
from zoo.text import without_surrogates

LANGUAGES = (  # M2M-100's codes, in the order of their ids after the vocabulary
    "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht hu "
    "hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps pt "
    "ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu"
)


class PieceTokenizer(PretrainedTokenizer):
    """SentencePiece whose pieces have other ids in the model, which a table gives; special tokens stand between the pieces.

    Attributes:
      splitter: finds special tokens in a text.
      reader, writer: the SentencePiece models that cut a text and that join pieces.
      unknown: the token for what the table does not have, where the files say nothing.
    """

    unknown = "<unk>"

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
        unknown, found = self.ids[self.special("unk_token", self.unknown)], []
        for part in self.splitter.split(without_surrogates(text)):
            if part:
                found += [part] if part in self.special_tokens else self.cut(part)
        return [self.ids.get(piece, unknown) for piece in found]

    def joined(self, ids: list[int]) -> str:
        """The text of the pieces among the ids."""
        pieces = [self.names[i] for i in ids if i in self.names and self.names[i] not in self.special_tokens]
        return self.writer.decode_pieces(pieces)

    def piece_model(self, name: str) -> Any:
        """A SentencePiece file."""
        import sentencepiece

        if name not in self.files:
            raise UserError(f"the tokenizer lacks {name}: fetch the model again")
        try:
            return sentencepiece.SentencePieceProcessor(model_proto=self.files[name])
        except (RuntimeError, OSError, ValueError) as error:
            raise UserError(f"the tokenizer's {name} is no SentencePiece model ({error}): fetch the model again") from error


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
        return self.joined(ids).replace("▁", " ").strip()

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
        unknown, said = self.special("unk_token", "<unk>"), ""
        for known, run in [(known, list(run)) for known, run in groupby(ids, key=lambda i: i in self.names)]:
            said += self.joined(run) if known else unknown * len(run)
        return said.strip()

    def language_token(self, code: str) -> str:
        return f"__{code}__"
