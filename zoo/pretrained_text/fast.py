"""tokenizer.json, by the ``tokenizers`` library."""

from __future__ import annotations

from collections.abc import Iterable

from zoo.core import UserError
from zoo.pretrained_text.base import PretrainedTokenizer
from zoo.text import without_surrogates

# Classes of transformers whose texts are marked with a language: whether it stands first, else after the end token.
LANGUAGE_FIRST = {"Nllb": True, "MBart50": True, "MBart": False}


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
        if self.class_name in ("MBart", "MBart50"):  # whose tokenizer.json may be of any language
            code = self.settings.get("src_lang") or "en_XX"
            self.language = self.settings.get("tgt_lang") or code if self.side == "target" else code
            self.language_is_read = self.class_name == "MBart"

    @property
    def class_name(self) -> str:
        """The class of transformers, without what its name ends with."""
        return str(self.settings.get("tokenizer_class", "")).removesuffix("Fast").removesuffix("Tokenizer")

    @property
    def wrapping(self) -> frozenset[int]:
        """The ids that stand around every text."""
        return frozenset(self.backend.encode("").ids)

    @property
    def mask_id(self) -> int:
        """The token that stands for a missing one. Raises UserError if there is none."""
        token = self.special("mask_token", "[MASK]" if "[MASK]" in self.ids else "<mask>")
        if token not in self.ids:
            raise UserError(f"the tokenizer has no {token}, which a masked language model wants: fetch the model again")
        return self.ids[token]

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        texts = list(map(without_surrogates, texts))
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=self.language is None)
        if self.language is None:
            return [encoding.ids for encoding in encodings]
        language = self.language_id(self.language)
        if LANGUAGE_FIRST[self.class_name]:
            return [[language, *encoding.ids, self.end_id] for encoding in encodings]
        return [[*encoding.ids, self.end_id, language] for encoding in encodings]

    def encode_plain(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of texts with nothing around them."""
        texts = list(map(without_surrogates, texts))
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_pairs(self, pairs: Iterable[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """For each pair the ids of both texts in one sequence, and which text each is of (``Tokens.types``)."""
        pairs = [tuple(map(without_surrogates, pair)) for pair in pairs]
        return [(encoding.ids, encoding.type_ids) for encoding in self.backend.encode_batch(pairs)]

    def language_token(self, code: str) -> str:
        if self.class_name not in LANGUAGE_FIRST or self.settings.get("legacy_behaviour"):
            raise UserError(f"this tokenizer is not told a language, such as {code!r}: leave it out")
        return code

    def text(self, ids: list[int]) -> str:
        text = self.backend.decode(ids, skip_special_tokens=True)
        # transformers does not either where the spaces are part of the tokens, whatever the settings say.
        wanted = self.settings.get("clean_up_tokenization_spaces") is True and type(self.backend.model).__name__ != "BPE"
        return clean_up(text) if wanted else text


def clean_up(text: str) -> str:
    """English punctuation without the spaces before it, as transformers does where tokenizer_config.json asks for it."""
    for mark in (".", "?", "!", ","):
        text = text.replace(f" {mark}", mark)
    text = text.replace(" ' ", "'")
    for ending in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {ending}", ending)
    return text
