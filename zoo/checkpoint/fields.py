"""A Hugging Face config.json as a variant reads it: every value checked for type and size, an error names the field."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from zoo.core import ModelConfig, UserError

WIDEST, LARGEST = 1 << 20, 1 << 27  # of a layer, and of a vocabulary


class Fields:
    """The fields of a config.json.

    >>> Fields({"d_model": 512}, "config.json").size("d_model")
    512

    Attributes:
      where: the file, for messages.
      tensors: the names of what the checkpoint holds: no model has more layers. None where there is no checkpoint.
    """

    def __init__(self, data: Mapping[str, Any], where: str, tensors: Collection[str] | None = None):
        self.data, self.where, self.tensors = data, where, tensors

    def holds(self, pattern: str, default: bool) -> bool:
        """Whether the checkpoint has a tensor whose whole name matches; ``default`` where there is none."""
        return default if self.tensors is None else any(re.fullmatch(pattern, name) for name in self.tensors)

    def get(self, name: str, default: Any, right: Callable[[Any], bool], wanted: str) -> Any:
        """A value that is ``right``; ``default`` where the field is missing or null, unless that is None too."""
        value = self.data.get(name)
        value = default if value is None else value
        if not right(value):
            raise UserError(f"{name} in {self.where} is {value!r}: {wanted} is wanted")
        return value

    def integer(self, name: str, default: int | None = None, least: int = 0, most: int = LARGEST) -> int:
        return self.get(
            name, default, lambda x: type(x) is int and least <= x <= most, f"a whole number from {least} to {most}"
        )

    def size(self, name: str, default: int | None = None) -> int:
        """A width, a number of heads or of positions."""
        return self.integer(name, default, 1, WIDEST)

    def vocabulary(self, name: str = "vocab_size", default: int | None = None) -> int:
        """The number of entries of a vocabulary."""
        return self.integer(name, default, 1)

    def layers(self, name: str, default: int | None = None) -> int:
        """A number of layers."""
        return self.integer(name, default, 0, 10_000 if self.tensors is None else len(self.tensors))

    def token(self, name: str, vocab_size: int, default: int | None = None) -> int:
        """A token id; the first of a list of one."""
        value = self.data.get(name)
        if isinstance(value, list) and len(value) == 1:
            return Fields({name: value[0]}, self.where).token(name, vocab_size)
        return self.integer(name, default, 0, vocab_size - 1)

    def rate(self, name: str, default: float | None = None) -> float:
        """A dropout rate."""
        return float(self.get(name, default, lambda x: type(x) in (int, float) and 0 <= x < 1, "a number from 0 to below 1"))

    def number(self, name: str, default: float | None = None) -> float:
        """A number that is finite."""
        return float(self.get(name, default, lambda x: type(x) in (int, float) and abs(x) < 1e30, "a finite number"))

    def flag(self, name: str, default: bool | None = None) -> bool:
        return self.get(name, default, lambda x: isinstance(x, bool), "true or false")

    def choice(self, name: str, options: tuple, default: Any = None) -> Any:
        """One of the values that this zoo computes."""
        return self.get(name, default, lambda x: x in options, " or ".join(map(repr, options)))


class Architecture(NamedTuple):
    """A model of the reference that a variant reads and writes: an entry of its ``HUGGINGFACE``, under the class's name there.

    Attributes:
      model_type: what config.json calls the family.
      read: the configuration of a config.json.
      write: the fields of config.json that ``read`` reads.
    """

    model_type: str
    read: Callable[[Fields], ModelConfig]
    write: Callable[[Any], dict[str, Any]]
