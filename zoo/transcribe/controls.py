"""The tokens that tell Whisper's decoder what to do (Radford et al. 2022, section 2.3), as a tokenizer names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from zoo.core import UserError


class Controls(NamedTuple):
    """Ids of control tokens.

    Attributes:
      start: begins every output.
      previous: stands before the text of the window before.
      no_speech: says that nobody speaks.
      unstamped: says that no timestamps follow; the timestamp tokens are all those after it.
      languages: code -> token; empty for a model of English alone, which is not told a task either.
      tasks: "transcribe" and "translate" -> token.
    """

    start: int
    previous: int
    no_speech: int
    unstamped: int
    languages: dict[str, int]
    tasks: dict[str, int]

    @classmethod
    def of(cls, ids: Mapping[str, int], generation: Mapping[str, Any]) -> Controls | None:
        """Those of a tokenizer; None if it has none, as one that we have trained.

        Args:
          ids: token -> id.
          generation: the model's generation_config.json, which says whether it is of English alone.
        """
        names = ("startoftranscript", "startofprev", "notimestamps", "transcribe", "translate")
        if not all(f"<|{name}|>" in ids for name in names):
            return None
        start, previous, unstamped, *tasks = (ids[f"<|{name}|>"] for name in names)
        multilingual = generation.get("is_multilingual", True)
        inside = {i: token for token, i in ids.items() if start < i < min(tasks)}
        languages = {inside[i].strip("<|>"): i for i in sorted(inside)} if multilingual else {}
        # Files call it <|nocaptions|> or <|nospeech|>.
        return cls(start, previous, unstamped - 1, unstamped, languages, dict(zip(names[3:], tasks, strict=True)))

    @property
    def first_time(self) -> int:
        """The token that is 0.00 s."""
        return self.unstamped + 1

    def language(self, code: str) -> int:
        """The token of a language. Raises UserError if the model has none such."""
        if not self.languages:
            raise UserError(f"language is {code!r}, but this model knows English alone and is not told: leave language out")
        if code not in self.languages:
            raise UserError(f"language is {code!r}, which is not one of {', '.join(self.languages)}")
        return self.languages[code]

    def prompt(self, language: int | None, task: str, stamped: bool) -> list[int]:
        """What an output begins with."""
        told = [language, self.tasks[task]] if self.languages else []
        return [self.start, *told, *([] if stamped else [self.unstamped])]
