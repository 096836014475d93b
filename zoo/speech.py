"""Speech in, text out: recordings of any length, by windows that move on with the timestamps (Radford et al. 2022, section 3.8).

    transcript = zoo.load(directory).predictions(["talk.flac"], timestamps="word")[0]
    transcript.text, transcript.language, transcript.segments[0].words

A window is read greedily or with beams; if the text repeats itself or is improbable it is drawn again at higher and higher
temperatures (section 4.5). Windows of several recordings are read together.

Departures from the released code: the average log-probability is the model's own, before tokens are forbidden; one output is
drawn at each temperature; the compression ratio is the text's.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo.core import Frames, PyTree, Seq2Seq, UserError, pad_tokens
from zoo.decoding import Decoding
from zoo.generate import Rules, Sample, generate
from zoo.generate.facade import bucket
from zoo.nn.audio import HOP, RATE, WINDOW, frames_of
from zoo.predictor_base import PredictorBase
from zoo.pretrained_text import PretrainedTokenizer
from zoo.transcribe.alignment import token_ends, words_of
from zoo.transcribe.controls import Controls
from zoo.transcribe.sound import read_sound
from zoo.transcribe.timestamps import FRAMES, PRECISION, TimestampRules, spans

WINDOWS = 16  # read together at most
CALM = 0.5  # the temperature up to which a window's text is told to the next


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
      condition_on_previous: whether a window is told the text of the one before.
      max_initial_timestamp: seconds of a window in which the first segment begins.
    """

    language: str = ""
    task: Literal["transcribe", "translate"] = "transcribe"
    timestamps: Literal["none", "segment", "word"] = "none"
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio: float = 2.4
    log_prob: float = -1.0
    no_speech: float = 0.6
    condition_on_previous: bool = True
    max_initial_timestamp: float = 1.0

    def check(self) -> None:
        """Raises UserError for the first field that cannot be meant."""
        for name, options in {"task": ("transcribe", "translate"), "timestamps": ("none", "segment", "word")}.items():
            if (value := getattr(self, name)) not in options:
                raise UserError(f"{name} is {value!r}: choose one of {', '.join(options)}")
        if not self.temperatures or not all(isinstance(t, (int, float)) and 0 <= t < 1e4 for t in self.temperatures):
            raise UserError(f"temperatures is {self.temperatures!r}: give one or more numbers from 0 on")
        if not 0 <= self.max_initial_timestamp <= 1e4:
            raise UserError(f"max_initial_timestamp is {self.max_initial_timestamp!r}: it must be seconds, from 0 on")


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


class Attempt(NamedTuple):
    """One output for a window."""

    tokens: list[int]
    text: str
    temperature: float
    log_prob: float
    compression_ratio: float


@dataclasses.dataclass
class Recording:
    """One that is being transcribed.

    Attributes:
      values_NM: its log-mel frames; ``frames`` of them are its own, the others silence.
      seek: the first frame of the next window.
      language: its token, once known.
      said: the tokens that the next window is told.
      segments: so far.
    """

    values_NM: np.ndarray
    frames: int
    seek: int = 0
    language: int | None = None
    said: list[int] = dataclasses.field(default_factory=list)
    segments: list[Segment] = dataclasses.field(default_factory=list)


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
        run = Run(self, *self.settings(options))
        states = [self.recording(recording) for recording in recordings]
        while waiting := [state for state in states if state.seek < state.frames]:
            for first in range(0, len(waiting), WINDOWS):
                run.read(waiting[first : first + WINDOWS])
        codes = {token: code for code, token in run.controls.languages.items()} if run.controls else {}
        return [
            Transcript(" ".join(s.text for s in state.segments), codes.get(state.language, ""), state.segments)
            for state in states
        ]

    def settings(self, options: dict[str, Any]) -> tuple[Transcription, Decoding]:
        """The defaults with these options changed.

        Raises:
          UserError: an unknown option, or one that is not for speech.
        """
        kinds = {cls: {field.name for field in dataclasses.fields(cls)} for cls in (Transcription, Decoding)}
        unknown = [name for name in options if not any(name in names for names in kinds.values())]
        if unknown:
            raise UserError(f"predict has no option {unknown[0]!r}: {', '.join(sorted(set().union(*kinds.values())))} exist")
        chosen = [{name: x for name, x in options.items() if name in names} for names in kinds.values()]
        wanted = dataclasses.replace(self.transcription, **chosen[0])
        decoding = dataclasses.replace(self.decoding, **chosen[1])
        wanted.check()
        decoding.search(None)
        for name, only in {"sample": False, "n_best": 1, "risk": "none"}.items():
            if getattr(decoding, name) != only:
                raise UserError(f"{name} is {getattr(decoding, name)!r}: speech has one output, drawn by temperatures alone")
        return wanted, decoding

    @property
    def transcription(self) -> Transcription:
        """The defaults that the model's generation_config.json says."""
        said = self.generation
        first = said.get("max_initial_timestamp_index")
        language = said.get("language")
        return Transcription(
            language=language.strip("<|>") if isinstance(language, str) else "",
            task=said["task"] if said.get("task") in ("transcribe", "translate") else "transcribe",
            max_initial_timestamp=first * PRECISION if type(first) is int else 1.0,
        )

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

    def text(self, tokens: list[int], controls: Controls | None) -> str:
        """The text of tokens, without timestamps."""
        text_tokens = [token for token in tokens if controls is None or token < controls.start]
        return self.target_tokenizer.decode(text_tokens)


PREPROCESSOR = "preprocessor_config.json"


def check_preprocessor(data: dict[str, Any], mels: int, window: int) -> None:
    """Raises UserError if a preprocessor_config.json asks for other frames than ``zoo.nn.audio`` makes."""
    seconds = window * HOP // RATE
    ours = {"feature_size": mels, "sampling_rate": RATE, "n_fft": WINDOW, "hop_length": HOP, "chunk_length": seconds}
    for name, value in ours.items():
        if data.get(name, value) != value:
            raise UserError(
                f"{name} in {PREPROCESSOR} is {data[name]!r}, but this model reads {value!r}: it is of another model"
            )


@dataclasses.dataclass(frozen=True)
class Run:
    """Windows transcribed as one call wants them.

    Attributes:
      predictor: the model.
      wanted, decoding: the call's settings.
    """

    predictor: SpeechPredictor
    wanted: Transcription
    decoding: Decoding

    @functools.cached_property
    def controls(self) -> Controls | None:
        """The model's control tokens."""
        ids = getattr(self.predictor.target_tokenizer, "ids", {})
        controls = Controls.of(ids, self.predictor.generation)
        if controls is None and (self.wanted.timestamps != "none" or self.wanted.language):
            raise UserError("this model has no tokens for languages and timestamps: leave language and timestamps out")
        return controls

    def read(self, group: list[Recording]) -> None:
        """Transcribe each recording's next window."""
        p, window = self.predictor, self.predictor.window
        stamped = [self.wanted.timestamps != "none" or len(r.values_NM) > window for r in group]
        memory = encode(p.model, p.params, p.place(self.frames(group)))
        self.find_languages(group, memory)
        prompts = [self.prompt(r, marks) for r, marks in zip(group, stamped, strict=True)]
        attempts = self.attempts(memory, prompts, stamped, [r.seek for r in group])
        for row, (r, marks, attempt) in enumerate(zip(group, stamped, attempts, strict=True)):
            frames = min(window, r.frames - r.seek)
            if attempt is None:
                r.seek += frames
                continue
            self.take(r, attempt, frames, marks, self.ends(memory, row, prompts[row], attempt, frames))

    def frames(self, group: list[Recording]) -> Frames:
        """The windows as one batch, filled up to a power of two; beyond a long recording's end the frames are zero."""
        p, window = self.predictor, self.predictor.window
        rows = bucket(len(group), 1)
        rows += -rows % p.multiple_of
        values_BNM = np.zeros((rows, window, p.model.config.mels), np.float32)
        for row, r in enumerate(group):
            part_NM = r.values_NM[r.seek : r.seek + window]
            values_BNM[row, : len(part_NM)] = part_NM
        return Frames(values_BNM, np.broadcast_to((np.arange(rows) < len(group))[:, None], (rows, window)).copy())

    def find_languages(self, group: list[Recording], memory: PyTree) -> None:
        """Set the language of the recordings that have none yet: the one named, or the most probable first token."""
        controls = self.controls
        if controls is None or not controls.languages:
            return self.wanted.language and controls.language(self.wanted.language)
        if all(r.language is not None for r in group):
            return None
        tokens = list(controls.languages.values())
        if self.wanted.language:
            found = [controls.language(self.wanted.language)] * len(group)
        else:
            p, rows = self.predictor, rows_of(memory)
            start_B1 = np.full((rows, 1), controls.start, np.int32)
            scores = np.asarray(logits(p.model, p.params, memory, start_B1))[:, 0, tokens]
            found = [tokens[i] for i in scores.argmax(axis=1)]
        for r, language in zip(group, found, strict=False):
            r.language = language if r.language is None else r.language
        return None

    def prompt(self, r: Recording, stamped: bool) -> list[int]:
        """What the decoder is told of a window, from what it reads first on."""
        if self.controls is None:
            return [self.predictor.model.config.start_id]
        most = self.predictor.model.config.max_len // 2 - 1
        before = [self.controls.previous, *r.said[-most:]] if r.said and self.wanted.condition_on_previous else []
        return [*before, *self.controls.prompt(r.language, self.wanted.task, stamped)]

    def attempts(self, memory: PyTree, prompts: list[list[int]], stamped: list[bool], seeds: list[int]) -> list[Attempt | None]:
        """An output for each window, tried until one is good or the last temperature is reached; None for silence."""
        results: list[Attempt | None] = [None] * len(prompts)
        left = list(range(len(prompts)))
        for number, temperature in enumerate(self.wanted.temperatures):
            again = []
            for marks in sorted({stamped[row] for row in left}):
                rows = [row for row in left if stamped[row] == marks]
                found = self.search(memory, rows, prompts, marks, temperature, [seeds[row] for row in rows])
                for row, attempt in zip(rows, found, strict=True):
                    improbable = attempt.log_prob < self.wanted.log_prob
                    silent = improbable and self.is_silence(memory, row, prompts[row])
                    results[row] = None if silent else attempt
                    if not silent and (improbable or attempt.compression_ratio > self.wanted.compression_ratio):
                        again.append(row)
            left = sorted(again)
            if not left or number == len(self.wanted.temperatures) - 1:
                return results
        return results

    def search(
        self, memory: PyTree, rows: list[int], prompts: list[list[int]], stamped: bool, temperature: float, seeds: list[int]
    ) -> list[Attempt]:
        """One attempt at some of the windows."""
        p, config = self.predictor, self.predictor.model.config
        count = rows_of(memory) if len(rows) == len(prompts) else bucket(len(rows), 1)
        take = np.resize(rows, count)
        prompt = [prompts[row] for row in take]
        length = min(self.decoding.max_len, config.max_len - 1)
        search, rules = self.decoding.search(None), self.decoding.rules(config.target_vocab_size)
        if temperature:
            fold = jax.vmap(jax.random.fold_in, (None, 0))
            keys = fold(
                jax.random.fold_in(jax.random.key(self.decoding.seed), int(temperature * 1000)), np.resize(seeds, count)
            )
            search = Sample(keys, temperature=temperature)
        first = {tokens[0] for tokens in prompt}
        rules = rules._replace(
            start_id=first.pop() if len(first) == 1 else np.array([tokens[0] for tokens in prompt], np.int32),
            prefix=pad_tokens([tokens[1:] for tokens in prompt], max(len(tokens) for tokens in prompt) - 1),
            limit=np.where(np.arange(count) < len(rows), length, 0),
            processor=self.timestamp_rules() if stamped else None,
        )
        rules = rules if rules.prefix.ids.shape[1] else rules._replace(prefix=None)
        source = memory if list(take) == list(range(rows_of(memory))) else jax.tree.map(lambda x: x[take], memory)
        found = generate(p.model, p.params, source, max_len=length, search=search, rules=rules)
        return [self.attempt(found, i, len(prompts[row]) - 1, temperature) for i, row in enumerate(rows)]

    def timestamp_rules(self) -> TimestampRules:
        c, config = self.controls, self.predictor.model.config
        last = c.first_time + int(round(self.wanted.max_initial_timestamp / PRECISION))
        return TimestampRules(*(np.int32(x) for x in (c.first_time, config.end_id, c.unstamped, last)))

    def attempt(self, found, row: int, skip: int, temperature: float) -> Attempt:
        """A row of a search's result, without its first ``skip`` tokens."""
        tokens = found.ids[row, skip : found.length[row]].tolist()
        log_prob = float(np.mean(found.log_probs[row, skip : found.length[row]])) if tokens else -np.inf
        tokens = tokens[:-1] if tokens and tokens[-1] == self.predictor.model.config.end_id else tokens
        text = self.predictor.text(tokens, self.controls).strip()
        packed = text.encode("utf-8")
        return Attempt(tokens, text, temperature, log_prob, len(packed) / len(zlib.compress(packed)))

    def is_silence(self, memory: PyTree, row: int, prompt: list[int]) -> bool:
        """Whether the model finds it probable that nobody speaks in a window, where it reads the start token."""
        if self.controls is None:
            return False
        p = self.predictor
        before = prompt[: prompt.index(self.controls.start) + 1]
        read_1T = pad_tokens([before], bucket(len(before), 8)).ids
        one = jax.tree.map(lambda x: x[row : row + 1], memory)
        logits_V = np.asarray(logits(p.model, p.params, one, read_1T))[0, len(before) - 1]
        return bool(jax.nn.softmax(logits_V.astype(np.float32))[self.controls.no_speech] > self.wanted.no_speech)

    def ends(self, memory: PyTree, row: int, prompt: list[int], attempt: Attempt, frames: int) -> np.ndarray | None:
        """Where each token of an attempt ends, in steps of 0.02 s; None unless words are to have times."""
        if self.wanted.timestamps != "word" or not attempt.tokens:
            return None
        p = self.predictor
        read = [*prompt, *attempt.tokens]
        one = jax.tree.map(lambda x: x[row : row + 1], memory)
        weights_ATS = alignment(p.model, p.params, one, pad_tokens([read], p.model.config.max_len).ids, self.heads)
        return token_ends(np.asarray(weights_ATS)[:, len(prompt) : len(read), : max(frames // FRAMES, 1)])

    @functools.cached_property
    def heads(self) -> tuple[tuple[int, int], ...]:
        """(layer, head) of the attention that follows the sound: the model's own, or all of the upper half of the layers."""
        config = self.predictor.model.config
        given = self.predictor.generation.get("alignment_heads")
        if not given:
            layers = range(config.decoder_layers // 2, config.decoder_layers)
            return tuple((layer, head) for layer in layers for head in range(config.decoder_heads))
        inside = lambda n, most: type(n) is int and 0 <= n < most  # noqa: E731
        for pair in given:
            if len(pair) != 2 or not inside(pair[0], config.decoder_layers) or not inside(pair[1], config.decoder_heads):
                raise UserError(f"alignment_heads in generation_config.json has {pair!r}: a layer and a head of it are wanted")
        return tuple((layer, head) for layer, head in given)

    def take(self, r: Recording, attempt: Attempt, frames: int, stamped: bool, ends: np.ndarray | None) -> None:
        """Add a window's segments to its recording, and move on."""
        tokens, offset = attempt.tokens, r.seek / FRAMES
        if stamped:
            found, advance = spans(tokens, self.controls.first_time, frames)
        else:
            found, advance = spans(tokens, self.predictor.model.config.target_vocab_size, frames)
        for span in found:
            text = self.predictor.text(tokens[span.first : span.last], self.controls).strip()
            if text:
                start, end = ((offset + step) * PRECISION for step in (span.start, span.end))
                words = [] if ends is None else self.words(tokens, ends, span.first, span.last, r)
                facts = attempt.temperature, attempt.log_prob, attempt.compression_ratio
                segment = Segment(round(start, 2), round(end, 2), text, tokens[span.first : span.last], words, *facts)
                r.segments.append(segment)
            r.said += tokens[span.first : span.last]
        if attempt.temperature > CALM:
            r.said.clear()
        r.seek += max(advance, FRAMES)

    def words(self, tokens: list[int], ends: np.ndarray, first: int, last: int, r: Recording) -> list[Word]:
        """The words of a segment; each token begins where the one before it ends."""
        places = [i for i in range(first, last) if tokens[i] < self.controls.start]
        codes = {token: code for code, token in self.controls.languages.items()}
        decode = lambda ids: self.predictor.target_tokenizer.text(ids)  # noqa: E731
        seconds = lambda i: round(float((r.seek / FRAMES + (ends[i] if i >= 0 else 0)) * PRECISION), 2)  # noqa: E731
        pieces = words_of([tokens[i] for i in places], decode, codes.get(r.language, "en"))
        return [Word(seconds(places[i] - 1), seconds(places[j - 1]), text.strip()) for text, i, j in pieces]


def rows_of(memory: PyTree) -> int:
    """How many sources a memory is of."""
    return jax.tree.leaves(memory)[0].shape[0]


@functools.partial(jax.jit, static_argnames="model")
def encode(model: Seq2Seq, params: PyTree, source: PyTree) -> PyTree:
    """The memory of a batch of sources."""
    return model.apply({"params": params}, source, method="encode")


@functools.partial(jax.jit, static_argnames="model")
def logits(model: Seq2Seq, params: PyTree, memory: PyTree, tokens_BT: jax.Array) -> jax.Array:
    """What the model says after each token, (B, T, V)."""
    return model.apply({"params": params}, tokens_BT, memory, method="decode")[0].logits


@functools.partial(jax.jit, static_argnames=("model", "heads"))
def alignment(model: Seq2Seq, params: PyTree, memory: PyTree, tokens_1T: jax.Array, heads: tuple) -> jax.Array:
    """How some heads look at one sound as each token is read, (A, T, S)."""
    outputs, _ = model.apply({"params": params}, tokens_1T, memory, attention=True, method="decode")
    return jnp.stack([outputs.attention[f"decoder_{layer}/cross"][0, head] for layer, head in heads])
