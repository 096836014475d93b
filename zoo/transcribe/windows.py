"""Windows of sound, one after the other, and the attempts at each (Radford et al. 2022, sections 3.8 and 4.5)."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo.core import Frames, PyTree, Seq2Seq, UserError, pad_tokens
from zoo.decoding import Decoding
from zoo.generate import Sample, generate
from zoo.generate.facade import bucket, on_host
from zoo.transcribe.alignment import token_ends, words_of
from zoo.transcribe.controls import Controls
from zoo.transcribe.settings import Transcription
from zoo.transcribe.timestamps import FRAMES, PRECISION, TimestampRules, spans
from zoo.transcribe.transcript import Segment, Word

CALM = 0.5  # the temperature up to which a window's text is told to the next


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
class Run:
    """Windows transcribed as one call wants them.

    Attributes:
      predictor: the ``SpeechPredictor``.
      wanted, decoding: the call's settings.
    """

    predictor: Any
    wanted: Transcription
    decoding: Decoding

    @functools.cached_property
    def controls(self) -> Controls | None:
        """The model's control tokens."""
        controls = self.predictor.controls
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
        named = controls.language(self.wanted.language) if controls and self.wanted.language else None
        if controls is None or not controls.languages or all(r.language is not None for r in group):
            return
        tokens = list(controls.languages.values())
        if named is not None:
            found = [named] * len(group)
        else:
            p, rows = self.predictor, rows_of(memory)
            start_B1 = np.full((rows, 1), controls.start, np.int32)
            scores = on_host(logits(p.model, p.params, memory, start_B1))[:, 0, tokens]
            found = [tokens[i] for i in scores.argmax(axis=1)]
        for r, language in zip(group, found, strict=False):
            r.language = language if r.language is None else r.language

    def prompt(self, r: Recording, stamped: bool) -> list[int]:
        """What the decoder is told of a window, from what it reads first on."""
        if self.controls is None:
            return [self.predictor.model.config.start_id]
        most = self.predictor.model.config.max_len // 2 - 1
        before = [self.controls.previous, *r.said[-most:]] if r.said and not self.wanted.independent else []
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
        last = c.first_time + round(self.wanted.max_initial_timestamp / PRECISION)
        return TimestampRules(*(np.int32(x) for x in (c.first_time, config.end_id, c.unstamped, last)))

    def attempt(self, found, row: int, skip: int, temperature: float) -> Attempt:
        """A row of a search's result, without its first ``skip`` tokens."""
        tokens = found.ids[row, skip : found.length[row]].tolist()
        log_prob = float(np.mean(found.log_probs[row, skip : found.length[row]])) if tokens else -np.inf
        tokens = tokens[:-1] if tokens and tokens[-1] == self.predictor.model.config.end_id else tokens
        text = self.text(tokens)
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
        logits_V = on_host(logits(p.model, p.params, one, read_1T))[0, len(before) - 1]
        return bool(jax.nn.softmax(logits_V.astype(np.float32))[self.controls.no_speech] > self.wanted.no_speech)

    def ends(self, memory: PyTree, row: int, prompt: list[int], attempt: Attempt, frames: int) -> np.ndarray | None:
        """Where each token of an attempt ends, in steps of 0.02 s; None unless words are to have times."""
        if self.wanted.timestamps != "word" or not attempt.tokens:
            return None
        p = self.predictor
        read = [*prompt, *attempt.tokens]
        one = jax.tree.map(lambda x: x[row : row + 1], memory)
        weights_ATS = alignment(p.model, p.params, one, pad_tokens([read], p.model.config.max_len).ids, self.heads)
        return token_ends(on_host(weights_ATS)[:, len(prompt) : len(read), : max(frames // FRAMES, 1)])

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

    def text(self, tokens: list[int]) -> str:
        """The text of tokens, without timestamps."""
        kept = [token for token in tokens if self.controls is None or token < self.controls.start]
        return self.predictor.target_tokenizer.decode(kept).strip()

    def take(self, r: Recording, attempt: Attempt, frames: int, stamped: bool, ends: np.ndarray | None) -> None:
        """Add a window's segments to its recording, and move on."""
        tokens, offset = attempt.tokens, r.seek / FRAMES
        if stamped:
            found, advance = spans(tokens, self.controls.first_time, frames)
        else:
            found, advance = spans(tokens, self.predictor.model.config.target_vocab_size, frames)
        for span in found:
            text = self.text(tokens[span.first : span.last])
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
