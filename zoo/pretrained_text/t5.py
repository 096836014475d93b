"""The tokenizers of T5 without a tokenizer.json: a SentencePiece model with further tokens, and ByT5's bytes."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Iterator

from zoo.core import UserError
from zoo.pretrained_text.base import PretrainedTokenizer
from zoo.pretrained_text.fast import FastTokenizer
from zoo.text import without_surrogates

CONTROL, USER_DEFINED = 3, 4  # kinds of a piece
SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def extra_tokens(settings: dict, usual: int) -> list[str]:
    """The sentinels <extra_id_0> ... beyond the vocabulary. Raises UserError for an impossible number of them."""
    count = settings.get("extra_ids", usual)
    if type(count) is not int or not 0 <= count <= 10_000:
        raise UserError(f"extra_ids in tokenizer_config.json is {count!r}: a whole number up to 10,000 is wanted")
    return [f"<extra_id_{i}>" for i in range(count)]


class T5Tokenizer(FastTokenizer):
    """spiece.model, its pieces found by the ``tokenizers`` library as transformers has it, then the sentinels from the last on.

    Texts are split at white space first, so that a literal "▁" and runs of spaces come out differently from SentencePiece.
    """

    kind = "t5"

    def prepare(self) -> None:
        import tokenizers

        pieces, kinds, charsmap = self.pieces_of("spiece.model")
        special = [self.special(name, default) for name, default in SPECIAL.items()]
        extra = extra_tokens(self.settings, 100)
        vocabulary = [*pieces, *((token, 0.0) for token in reversed(extra))]
        ids = {token: number for number, (token, _) in enumerate(vocabulary)}
        if lacking := [token for token in special if token not in ids]:
            raise UserError(f"the tokenizer's spiece.model lacks {lacking[0]}: fetch the model again")
        control, own = (
            {piece for (piece, _), kind in zip(pieces, kinds) if kind == wanted} for wanted in (CONTROL, USER_DEFINED)
        )
        found = sorted({*special, *extra, *control, *own}, key=ids.get)
        plain = own - {*special, *extra, *control}
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
        normalizer = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode("ascii")}
        end = special[1]
        description = {
            "added_tokens": [{"id": ids[token], "content": token, **flags, "special": token not in plain} for token in found],
            "normalizer": normalizer if charsmap else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, space]},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": end, "type_id": 0}}],
                "pair": [],
                "special_tokens": {end: {"id": end, "ids": [ids[end]], "tokens": [end]}},
            },
            "decoder": space,
            "model": {"type": "Unigram", "unk_id": ids[special[2]], "vocab": vocabulary, "byte_fallback": False},
        }
        try:
            self.backend = tokenizers.Tokenizer.from_str(json.dumps(description))
        except Exception as error:  # the library raises plain Exception for anything it cannot read
            raise UserError(f"the tokenizer's spiece.model is not readable ({error}): fetch the model again") from error
        self.ids = self.backend.get_vocab(with_added_tokens=True)

    def pieces_of(self, name: str) -> tuple[list[tuple[str, float]], list[int], bytes]:
        """Of a SentencePiece file the pieces with their scores, the kind of each, and the table of its normalisation."""
        if name not in self.files:
            raise UserError(f"the tokenizer lacks {name}: fetch the model again")
        pieces, kinds, charsmap = [], [], b""
        try:
            for number, value in fields(self.files[name]):
                if number == 1:
                    piece = dict(fields(value))
                    pieces.append((piece[1].decode("utf-8"), struct.unpack("<f", piece.get(2, bytes(4)))[0]))
                    kinds.append(piece.get(3, 1))
                elif number == 3:
                    charsmap = dict(fields(value)).get(2, b"")
        except (IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
            raise UserError(f"the tokenizer's {name} is no SentencePiece model ({error}): fetch the model again") from error
        return pieces, kinds, charsmap


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The numbered values of a message in the encoding of protocol buffers, in which SentencePiece's files are written.

    >>> list(fields(b"\\x08\\x96\\x01\\x12\\x02hi"))
    [(1, 150), (2, b'hi')]
    """
    at = 0

    def varint() -> int:
        nonlocal at
        total = shift = 0
        while True:
            byte = message[at]
            at, total, shift = at + 1, total | (byte & 127) << shift, shift + 7
            if byte < 128:
                return total

    while at < len(message):
        tag = varint()
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            yield number, varint()
            continue
        size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        if at + size > len(message):
            raise ValueError("it ends in the middle of a field")
        yield number, message[at : at + size]
        at += size


class ByT5Tokenizer(PretrainedTokenizer):
    """The bytes of a text, each with the number of the special tokens added (Xue et al. 2022), and the sentinels after them.

    White space around <pad>, </s> and <unk> belongs to them. A text that spells its own end gets no second one.
    """

    kind = "byt5"

    def prepare(self) -> None:
        special = [self.special(name, default) for name, default in SPECIAL.items()]
        extra = extra_tokens(self.settings | {"extra_ids": self.settings.get("extra_ids") or 125}, 125)
        self.offset, self.end = len(special), 1
        self.words = {token: i for i, token in enumerate(special)}
        self.words |= {token: self.offset + 256 + i for i, token in enumerate(extra)}
        self.ids = {chr(byte): self.offset + byte for byte in range(256)} | self.words
        strip, keep = ("|".join(map(re.escape, tokens)) for tokens in (special, extra))
        self.splitter = re.compile(rf"\s*({strip})\s*|({keep})")

    def encode(self, text: str) -> list[int]:
        ids = []
        for part in self.splitter.split(without_surrogates(text)):
            if part in self.words:
                ids.append(self.words[part])
            elif part:
                ids += [byte + self.offset for byte in part.encode("utf-8")]
        return ids if ids and ids[-1] == self.end else [*ids, self.end]

    def text(self, ids: list[int]) -> str:
        return bytes(i - self.offset for i in ids if 0 <= i - self.offset < 256).decode("utf-8", errors="ignore")
