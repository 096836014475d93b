"""Labels as a classifier's target: a closed set of names in the place of a vocabulary, in which a target is one id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from zoo.checkpoint.fields import WIDEST, Fields
from zoo.core import UserError
from zoo.text import in_range, printable


class Labels:
    """Label names to ids and back, with the methods of a tokenizer: no special ids, no end token.

    >>> labels = Labels.train(["spam", "ham", "spam"])
    >>> labels.encode("spam"), labels.decode([0])
    ([1], 'ham')

    Attributes:
      names: the label of each id.
    """

    def __init__(self, names: Iterable[str], where: str = "the labels"):
        """Raises UserError unless there are two names or more, all different. ``where`` is for its message."""
        self.names = tuple(names)
        if not all(isinstance(name, str) for name in self.names) or not 2 <= len(set(self.names)) == len(self.names):
            raise UserError(f"{where} must be two names or more, each different, not {list(self.names)[:5]!r}: correct them")
        self.ids = {name: i for i, name in enumerate(self.names)}

    @classmethod
    def train(cls, texts: Iterable[str]) -> Labels:
        """The different texts, sorted."""
        return cls(sorted(set(texts)))

    @classmethod
    def from_config(cls, data: Mapping[str, Any], where: str) -> Labels:
        """Those of a Hugging Face config.json; without ``id2label`` they are LABEL_0, LABEL_1 and so on.

        Raises:
          UserError: its ids are not 0, 1, 2 and so on.
        """
        table = data.get("id2label")
        if table is None:
            count = Fields(data, where).integer("num_labels", 2, 2, WIDEST)
            return cls((f"LABEL_{i}" for i in range(count)), f"id2label in {where}")
        if not isinstance(table, Mapping) or set(table) != {str(i) for i in range(len(table))}:
            raise UserError(f"id2label in {where} is {table!r}: a label for each id from 0 on is wanted")
        return cls((table[str(i)] for i in range(len(table))), f"id2label in {where}")

    def to_config(self) -> dict[str, Any]:
        """The fields of a config.json that say them."""
        return {"id2label": {str(i): name for i, name in enumerate(self.names)}, "label2id": dict(self.ids)}

    @classmethod
    def from_json(cls, data: Any, where: str) -> Labels:
        """The inverse of ``to_json``. Raises UserError if ``data`` is no list of labels."""
        if not isinstance(data, dict) or set(data) != {"labels"} or not isinstance(data["labels"], list):
            raise UserError(f"{where} holds no labels: save it again")
        return cls(data["labels"], where)

    def to_json(self) -> Any:
        return {"labels": list(self.names)}

    @property
    def vocab_size(self) -> int:
        """How many labels."""
        return len(self.names)

    def encode(self, text: str) -> list[int]:
        """The id of a label, alone in its list. Raises UserError if there is no such label."""
        if text not in self.ids:
            raise UserError(f"{text!r} is not one of the labels {', '.join(self.names[:20])}: correct it")
        return [self.ids[text]]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """``[encode(text) for text in texts]``."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The labels of the ids, spaces between. Raises UserError for an id that none has."""
        return " ".join(self.names[i] for i in in_range(ids, self.vocab_size))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """One printable label an id."""
        return [printable(self.names[i]) for i in in_range(ids, self.vocab_size)]
