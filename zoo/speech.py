"""Speech in, text out: recordings of any length, by windows that move on with the timestamps.

    transcript = zoo.load(directory).predictions(["talk.flac"], timestamps="word")[0]
    transcript.text, transcript.language, transcript.segments[0].words

As Radford et al. 2022 have it (section 3.8). A window is read greedily or with beams; text that repeats itself or is improbable
is drawn again at higher and higher temperatures (section 4.5). Windows of several recordings are read together.

Departures from the released code: the average log-probability is the model's own, before tokens are forbidden; one output is
drawn at each temperature; a token ends where the attention that reads it begins, as in transformers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core import UserError
from zoo.decoding import Decoding
from zoo.nn.audio import HOP, RATE, WINDOW, frames_of
from zoo.predictor_base import PredictorBase
from zoo.pretrained_text import PretrainedTokenizer
from zoo.transcribe.settings import Transcription
from zoo.transcribe.sound import read_sound
from zoo.transcribe.timestamps import FRAMES, PRECISION
from zoo.transcribe.transcript import Transcript
from zoo.transcribe.windows import Recording, Run

WINDOWS = 16  # read together at most
PREPROCESSOR = "preprocessor_config.json"


@dataclasses.dataclass(frozen=True)
class SpeechPredictor(PredictorBase):
    """``zoo.load`` of a model that reads sound."""

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.target_tokenizer, PretrainedTokenizer) and PREPROCESSOR in self.target_tokenizer.files:
            check_preprocessor(self.target_tokenizer.json(PREPROCESSOR), self.model.config.mels, self.window)

    def predict(self, recordings: Sequence[str | Path | np.ndarray], **options: Any) -> list[str]:
        """The text of each recording, in order.

        Args:
          recordings: paths of sound files, or arrays of floats, -1 ... 1, one channel of 16,000 samples a second.
          **options: fields of ``Transcription`` and ``Decoding`` to change for this call.

        Raises:
          UserError: a recording that is none, or an unknown option.
        """
        return [transcript.text for transcript in self.predictions(recordings, **options)]

    def predictions(self, recordings: Sequence[str | Path | np.ndarray], **options: Any) -> list[Transcript]:
        """Like ``predict``, with the language, segments and, on request, times."""
        if isinstance(recordings, (str, Path, np.ndarray)):
            raise UserError("predict takes a list of recordings, not a single one: write [recording]")
        names = {field.name for field in dataclasses.fields(Transcription)}
        wanted = self.transcription({name: value for name, value in options.items() if name in names})
        decoding = self.settings({name: value for name, value in options.items() if name not in names})
        run = Run(self, wanted, decoding)
        states = [self.recording(recording) for recording in recordings]
        while waiting := [state for state in states if state.seek < state.frames]:
            for first in range(0, len(waiting), WINDOWS):
                run.read(waiting[first : first + WINDOWS])
        codes = {token: code for code, token in run.controls.languages.items()} if run.controls else {}
        return [
            Transcript(" ".join(s.text for s in state.segments), codes.get(state.language, ""), state.segments)
            for state in states
        ]

    def settings(self, options: dict[str, Any]) -> Decoding:
        """The defaults of the search with these options changed.

        Raises:
          UserError: an unknown option, or one that is not for speech.
        """
        decoding = super().settings(options)
        for name, only in {"sample": False, "n_best": 1, "risk": "none"}.items():
            if getattr(decoding, name) != only:
                raise UserError(f"{name} is {getattr(decoding, name)!r}: speech has one output, drawn by temperatures alone")
        return decoding

    def transcription(self, options: dict[str, Any]) -> Transcription:
        """What is wanted: by default what the model's generation_config.json says.

        Raises:
          UserError: a value that cannot be meant.
        """
        said = self.generation
        first, language = said.get("max_initial_timestamp_index"), said.get("language")
        default = Transcription(
            language=language.strip("<|>") if isinstance(language, str) else "",
            task=said["task"] if said.get("task") in ("transcribe", "translate") else "transcribe",
            max_initial_timestamp=first * PRECISION if type(first) is int else 1.0,
        )
        wanted = dataclasses.replace(default, **options)
        wanted.check()
        return wanted

    @property
    def generation(self) -> dict[str, Any]:
        """The generation_config.json that the model came with."""
        return (self.origin or {}).get("generation") or {}

    @property
    def window(self) -> int:
        """Frames of a window."""
        return FRAMES * self.model.config.max_source_len

    def recording(self, recording: str | Path | np.ndarray) -> Recording:
        """A recording before its first window: one that fits it is followed by silence, as in training."""
        samples_N = read_sound(recording) if isinstance(recording, (str, Path)) else np.asarray(recording)
        values_NM = frames_of(samples_N, self.model.config.mels, self.window)
        return Recording(values_NM, min(-(-len(samples_N) // HOP), len(values_NM)))


def check_preprocessor(data: dict[str, Any], mels: int, window: int) -> None:
    """Raises UserError if a preprocessor_config.json asks for other frames than ``zoo.nn.audio`` makes."""
    seconds = window * HOP // RATE
    ours = {"feature_size": mels, "sampling_rate": RATE, "n_fft": WINDOW, "hop_length": HOP, "chunk_length": seconds}
    for name, value in ours.items():
        if data.get(name, value) != value:
            raise UserError(
                f"{name} in {PREPROCESSOR} is {data[name]!r}, but this model reads {value!r}: it is of another model"
            )
