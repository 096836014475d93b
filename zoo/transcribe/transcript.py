"""What was said, and when."""

from __future__ import annotations

from typing import Any, NamedTuple


class Word(NamedTuple):
    """A word, in seconds from the recording's beginning."""

    start: float
    end: float
    text: str


class Segment(NamedTuple):
    """A stretch of speech that the model took for one.

    Attributes:
      start, end: in seconds from the recording's beginning.
      text: what was said.
      tokens: with their timestamps.
      words: on request.
      temperature, log_prob, compression_ratio: of the attempt that was taken, and of its whole window.
    """

    start: float
    end: float
    text: str
    tokens: list[int]
    words: list[Word]
    temperature: float
    log_prob: float
    compression_ratio: float


class Transcript(NamedTuple):
    """What was said in a recording.

    Attributes:
      text: all of it.
      language: code of the language that was spoken; empty where the model does not tell.
      segments: one a window where there are no timestamps.
    """

    text: str
    language: str
    segments: list[Segment]

    def to_json(self, source: str) -> dict[str, Any]:
        """All of it, as JSON has it."""
        segments = [{**s._asdict(), "words": [word._asdict() for word in s.words]} for s in self.segments]
        return {"source": source, "prediction": self.text, "language": self.language, "segments": segments}

    def lines(self) -> list[str]:
        """A line for each word, or each segment, with its times in seconds."""
        timed = [word for s in self.segments for word in s.words] or self.segments
        return [f"[{x.start:.2f} --> {x.end:.2f}] {x.text}" for x in timed]
