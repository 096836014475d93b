"""What the tokenizers of pretrained models have in common."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Iterable
from itertools import count, product, takewhile
from typing import Any, ClassVar

from zoo.core import UserError
from zoo.text import in_range, printable

BINARY = (".spm", ".model")  # endings of the files that are no text


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
      language_is_read: whether a decoder reads the language of its output first, and does not generate it first.
    """

    kind: ClassVar[str]
    language: str | None = None
    language_is_read: bool = False

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

    @property
    def sentinels(self) -> list[int]:
        """The ids that stand for the first, second, ... span of a text that is taken away: T5's."""
        return [self.ids[name] for name in takewhile(self.ids.__contains__, map("<extra_id_{}>".format, count()))]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """``[encode(text) for text in texts]``."""
        return [self.encode(text) for text in texts]

    def encode_prompts(self, texts: Iterable[str]) -> list[list[int]]:
        """Texts to be gone on after: as a decoder-only model's own files have them, which add no end token."""
        return self.encode_batch(texts)

    def encode_continuations(self, texts: Iterable[str]) -> list[list[int]]:
        """What goes on after a prompt, up to the end token, which the files leave to whoever trains the model."""
        return [ids if ids[-1:] == [self.end_id] else [*ids, self.end_id] for ids in self.encode_batch(texts)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids up to the first end token. Raises UserError for an id outside the model's vocabulary."""
        ids = in_range(ids, self.vocab_size)
        return self.text(ids[: ids.index(self.end_id)] if self.end_id in ids else ids)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """One printable label a token, for the axes of a plot; of an id that the tokenizer does not have, its number."""
        return [printable(self.names.get(i, f"<{i}>")) for i in in_range(ids, self.vocab_size)]

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
