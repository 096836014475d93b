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
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core import ModelConfig, UserError
from zoo.decoding import Decoding
from zoo.nn.audio import HOP, RATE, WINDOW, frames_of
from zoo.predictor_base import PredictorBase
from zoo.pretrained_text import PretrainedTokenizer
from zoo.text import Encoder
from zoo.transcribe.alignment import UNSPACED
from zoo.transcribe.controls import Controls
from zoo.transcribe.settings import Transcription
from zoo.transcribe.sound import find_sound, read_sound
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
            check_preprocessor(self.target_tokenizer.json(PREPROCESSOR), self.model.config.mels, self.seconds)

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
        for recording in recordings:
            if isinstance(recording, (str, Path)):
                find_sound(recording)  # now: a wrong name must not wait for the others
        run = Run(self, wanted, decoding)
        codes = {token: code for code, token in run.controls.languages.items()} if run.controls else {}
        results: list[Transcript | None] = [None] * len(recordings)
        left, heard = deque(range(len(recordings))), {}  # only those that are being read are in memory
        while left or heard:
            while left and len(heard) < WINDOWS:
                i = left.popleft()
                heard[i] = self.recording(recordings[i])
            if waiting := [state for state in heard.values() if state.seek < state.frames]:
                run.read(waiting)
            for i, state in list(heard.items()):
                if state.seek >= state.frames:
                    text = " ".join(segment.text for segment in state.segments)
                    results[i] = Transcript(text, codes.get(state.language, ""), state.segments)
                    del heard[i]
        return results

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

    def targets(self, language: str, task: str) -> Encoder:
        """What makes texts the targets that the model learns to say of a sound: all that follows the start token.

        <|en|> <|transcribe|> <|notimestamps|>, of a model of English alone the last of these, then the text and the end
        token. A text begins with a space, as the published models write it, in languages that have spaces. A model with a
        tokenizer of this zoo is told nothing, and has the text alone.

        Args:
          language: code of the language that is spoken, such as "en".
          task: whether the texts are in that language, "transcribe", or in English, "translate".

        Raises:
          UserError: the model has no such language or task, or is to be told and is not.
        """
        tokenizer, controls = self.target_tokenizer, self.controls
        if controls is None:
            if language or task != "transcribe":
                raise UserError(f"this model is told no language or task, such as {language or task!r}: leave them out")
            return Encoder(tokenizer.encode_batch, tokenizer.vocab_size)
        token = None
        if controls.languages:
            if not language:
                raise UserError(f"the model is told the language: set data.language to one of {', '.join(controls.languages)}")
            token = controls.language(language)
        elif language not in ("", "en") or task != "transcribe":
            raise UserError(f"language is {language!r} and task {task!r}, but this model writes down English alone")
        before, end = controls.prompt(token, task, stamped=False)[1:], self.model.config.end_id
        space = "" if task == "transcribe" and language in UNSPACED else " "

        def encode(texts: Sequence[str]) -> list[list[int]]:
            return [[*before, *ids, end] for ids in tokenizer.encode_plain(space + text.strip() for text in texts)]

        return Encoder(encode, tokenizer.vocab_size)

    @property
    def controls(self) -> Controls | None:
        """The model's control tokens; None if it has none."""
        return Controls.of(getattr(self.target_tokenizer, "ids", {}), self.generation)

    @property
    def generation(self) -> dict[str, Any]:
        """The generation_config.json that the model came with."""
        return (self.origin or {}).get("generation") or {}

    @property
    def window(self) -> int:
        """Frames of a window."""
        return window_of(self.model.config)

    @property
    def seconds(self) -> float:
        """Seconds of a window."""
        return self.window * HOP / RATE

    def recording(self, recording: str | Path | np.ndarray) -> Recording:
        """A recording before its first window: one that fits it is followed by silence, as in training."""
        samples_N = read_sound(recording) if isinstance(recording, (str, Path)) else np.asarray(recording)
        values_NM = frames_of(samples_N, self.model.config.mels, self.window)
        return Recording(values_NM, min(-(-len(samples_N) // HOP), len(values_NM)))


def window_of(config: ModelConfig) -> int:
    """How many frames a model of sound reads at once: two for each of its positions."""
    return FRAMES * config.max_source_len


def told(origin: dict[str, Any], language: str, task: str) -> dict[str, Any]:
    """A predictor's ``origin`` whose model is told this language and task unless a call says another; English alone: as is."""
    generation = origin.get("generation") or {}
    if not generation.get("is_multilingual", True):
        return origin
    kept = {name: value for name, value in generation.items() if name != "forced_decoder_ids"}  # the older way to say it
    return origin | {"generation": kept | {"language": f"<|{language}|>", "task": task}}


def check_preprocessor(data: dict[str, Any], mels: int, seconds: float) -> None:
    """Raises UserError if a preprocessor_config.json asks for other frames than ``zoo.nn.audio`` makes."""
    ours = {"feature_size": mels, "sampling_rate": RATE, "n_fft": WINDOW, "hop_length": HOP, "chunk_length": seconds}
    for name, value in ours.items():
        if data.get(name, value) != value:
            raise UserError(
                f"{name} in {PREPROCESSOR} is {data[name]!r}, but this model reads {value!r}: it is of another model"
            )
