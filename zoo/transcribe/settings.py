"""How speech is transcribed, as plain settings."""

from __future__ import annotations

import dataclasses
from typing import Literal

from zoo.core import UserError


@dataclasses.dataclass(frozen=True)
class Transcription:
    """What is wanted of a recording, beside ``Decoding``.

    Attributes:
      language: code of the language that is spoken, such as "en"; empty: the model finds out.
      task: write what is said, or its translation into English.
      timestamps: of nothing, of each segment, or of each word as well.
      temperatures: of the attempts at a window, the first of which is usually 0: no draw.
      compression_ratio: text that zlib packs tighter repeats itself, and is tried again.
      log_prob: text of a lower average log-probability is tried again.
      no_speech: improbable text is silence, where the model finds silence more probable than this.
      independent: whether a window is not told the text of the one before.
      max_initial_timestamp: seconds of a window in which the first segment begins.
    """

    language: str = ""
    task: Literal["transcribe", "translate"] = "transcribe"
    timestamps: Literal["none", "segment", "word"] = "none"
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio: float = 2.4
    log_prob: float = -1.0
    no_speech: float = 0.6
    independent: bool = False
    max_initial_timestamp: float = 1.0

    def check(self) -> None:
        """Raises UserError for the first field that cannot be meant."""
        for name, options in {"task": ("transcribe", "translate"), "timestamps": ("none", "segment", "word")}.items():
            if (value := getattr(self, name)) not in options:
                raise UserError(f"{name} is {value!r}: choose one of {', '.join(options)}")
        if not self.temperatures or not all(isinstance(t, (int, float)) and 0 <= t < 1e4 for t in self.temperatures):
            raise UserError(f"temperatures is {self.temperatures!r}: give one or more numbers from 0 on")
        if not isinstance(self.language, str):
            raise UserError(f"language is {self.language!r}: give a code, such as en, or nothing")
        if not 0 <= self.max_initial_timestamp <= 1e4:
            raise UserError(f"max_initial_timestamp is {self.max_initial_timestamp!r}: it must be seconds, from 0 on")
