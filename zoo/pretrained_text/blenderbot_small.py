"""BlenderbotSmall's vocab.json and merges.txt: a BPE of lower-case words; tokens that others follow in a word end with "@@"."""

from __future__ import annotations

import re
from itertools import pairwise

from zoo.core import UserError
from zoo.pretrained_text.byte_level import merges_of
from zoo.pretrained_text.pieces import PieceTokenizer

SPECIAL = {"bos_token": "__start__", "eos_token": "__end__", "unk_token": "__unk__", "pad_token": "__null__"}
GLUE = "@@"
# Unicode's white space, which is not quite what Python's \s finds.
BLANK = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


class BlenderbotSmallTokenizer(PieceTokenizer):
    """BPE (Sennrich et al. 2016) as ParlAI wrote it, with punctuation cut off and nothing around a text.

    The case of a text is lost, and the space before punctuation stays in what is generated, as in the reference.
    """

    kind = "blenderbot_small"
    unknown = SPECIAL["unk_token"]

    def prepare(self) -> None:
        self.ids = self.vocabulary("vocab.json")
        self.ranks = {pair: rank for rank, pair in enumerate(merges_of(self.files, "merges.txt"))}
        self.cache: dict[str, list[str]] = {}
        special = [self.special(name, default) for name, default in SPECIAL.items()]
        if lacking := [token for token in special if token not in self.ids]:
            raise UserError(f"the tokenizer's vocab.json lacks {lacking[0]}: fetch the model again")
        self.split_at([*special, *self.added_special()])

    def cut(self, text: str) -> list[str]:
        return [token for word in re.findall(rf"[^{BLANK}]+\n?", text) for token in self.pieces_of(word)]

    def pieces_of(self, word: str) -> list[str]:
        """The tokens of what stands between white space, a line feed after it included."""
        word = re.sub("([.,!?()])", r" \1", word)
        word = re.sub("(')", r" \1 ", word)
        word = re.sub(rf"[{BLANK}]{{2,}}", " ", word).replace("\n", " __newln__")
        return [token for part in word.split(" ") if part for token in self.merged(part.lower())]

    def merged(self, word: str) -> list[str]:
        """The tokens of a lower-case word: of all merges the first in the file is done first, wherever it can be."""
        if word not in self.cache:
            parts = [*word[:-1], word[-1] + "</w>"]
            while len(parts) > 1:
                pairs = list(pairwise(parts))
                best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
                if best not in self.ranks:
                    break
                parts = joined_pairs(parts, best)
            self.cache[word] = [part + GLUE for part in parts[:-1]] + [parts[-1].removesuffix("</w>")]
        return self.cache[word]

    def encode(self, text: str) -> list[int]:
        return self.numbers(text)

    def text(self, ids: list[int]) -> str:
        """Ids that the table does not have are unknown words, which the reference spells out."""
        unknown = self.special("unk_token", self.unknown)
        kept = [self.names.get(i, unknown) for i in ids if self.names.get(i) not in self.special_tokens]
        return " ".join(kept).replace(f"{GLUE} ", "").strip()

    def language_token(self, code: str) -> str:
        raise UserError(f"this tokenizer is not told a language, such as {code!r}: leave it out")


def joined_pairs(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """The parts with each occurrence of a pair made one, from left to right.

    >>> joined_pairs(["a", "b", "a", "b", "a"], ("a", "b"))
    ['ab', 'ab', 'a']
    """
    found, at = [], 0
    while at < len(parts):
        size = 2 if tuple(parts[at : at + 2]) == pair else 1
        found.append("".join(parts[at : at + size]))
        at += size
    return found
