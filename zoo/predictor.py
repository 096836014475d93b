"""A model that is ready for use: text in, text out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo.core import UserError, pad_tokens
from zoo.decoding import Decoding
from zoo.generate import Generated, generate, minimum_bayes_risk, score, stream
from zoo.generate.facade import room
from zoo.predictor_base import PredictorBase
from zoo.pretrained_text import PretrainedTokenizer
from zoo.text import Encoder, encoders


class Prediction(NamedTuple):
    """One output.

    Attributes:
      text: what the model generated.
      score: its log-probability (a beam's is divided by the length penalty).
      source_pieces, target_pieces: labels of the tokens read and generated.
      log_probs: (target,) float32, the model's log-probability of each generated token.
      attention: on request, name -> weights (H, target, source) of each cross-attention; empty for models without any.
      n_best: all outputs asked for as (text, score), in the order in which the search ranks them.
    """

    text: str
    score: float
    source_pieces: list[str]
    target_pieces: list[str]
    log_probs: np.ndarray
    attention: dict[str, np.ndarray]
    n_best: list[tuple[str, float]]


@dataclasses.dataclass(frozen=True)
class Predictor(PredictorBase):
    """The predictor of models that generate text from text."""

    def predict(self, texts: Sequence[str], **options: Any) -> list[str]:
        """The model's output for each text, in order: of a decoder-only model, what it goes on with after the text.

        Args:
          texts: any number of texts.
          **options: fields of ``Decoding`` to change for this call.

        Raises:
          UserError: ``texts`` is one string or holds something else, or an unknown option.
        """
        return [prediction.text for prediction in self.predictions(texts, **options)]

    def predictions(self, texts: Sequence[str], attention: bool = False, **options: Any) -> list[Prediction]:
        """Like ``predict``, with scores, tokens and, on request, attention weights."""
        if isinstance(texts, str):
            raise UserError(f"predict takes a list of texts, not the single text {texts!r}: write [text]")
        for text in texts:
            if not isinstance(text, str):
                raise UserError(f"predict takes a list of texts, not {text!r} in it: convert it to a string")
        decoding = self.settings(options)
        if attention and decoding.risk != "none":
            raise UserError(f"attention is given for the output that the search ranks first, not by risk {decoding.risk!r}")
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(decoding.seed), jnp.arange(len(texts)))
        sources = self.sources(texts, decoding)
        results: list[Prediction | None] = [None] * len(texts)
        for rows, batch in self.batches(sources):
            found = generate(
                self.model,
                self.params,
                self.place(batch),
                max_len=decoding.max_len,
                search=decoding.search(keys[np.resize(rows, len(batch.ids))]),
                rules=decoding.rules(self.model.config.target_vocab_size),
                attention=attention,
            )
            for row, prediction in zip(rows, self.read(found, [sources[row] for row in rows], decoding.risk), strict=True):
                results[row] = prediction
        return results

    def between(self, source: str, target: str) -> Predictor:
        """The predictor that translates from one language to another, for models of many that are told so by a token.

        Args:
          source, target: codes as the model's publisher uses them: "en" in M2M-100, "eng_Latn" in NLLB, "en_XX" in mBART.

        Raises:
          UserError: the model has no such language, or is not told languages.
        """
        if not isinstance(self.source_tokenizer, PretrainedTokenizer):
            raise UserError("this model is not told languages: predict with it as it is")
        tokenizers = {
            "source_tokenizer": self.source_tokenizer.with_language(source),
            "target_tokenizer": self.target_tokenizer.with_language(target),
        }
        language = self.target_tokenizer.language_id(target)
        if self.target_tokenizer.language_is_read:
            model = self.model.clone(config=dataclasses.replace(self.model.config, start_id=language))
            return dataclasses.replace(self, model=model, **tokenizers)
        return dataclasses.replace(self, decoding=dataclasses.replace(self.decoding, first_id=language), **tokenizers)

    def score(self, texts: Sequence[str], targets: Sequence[str]) -> list[float]:
        """How probable the model finds given outputs: the log-probability of each target, its end token included.

        A decoder-only model's targets go on after their texts as they stand: where a word begins, with its space.

        Raises:
          UserError: not one target for each text.
        """
        if isinstance(texts, str) or isinstance(targets, str) or len(texts) != len(targets):
            raise UserError(f"score takes a list of texts and as many targets, not {texts!r} and {targets!r}")
        sources, outputs = self.sources(texts, self.decoding), self.encoders[1].encode_batch(targets)
        results = [0.0] * len(texts)
        for rows, batch in self.batches(sources):
            longest = room(max(len(outputs[row]) for row in rows), (self.model,))
            target = pad_tokens([outputs[row] for row in rows] + [[]] * (len(batch.ids) - len(rows)), longest)
            most = self.model.config.most(batch)
            if most is not None and (np.asarray(most) < target.mask.sum(axis=1)).any():
                raise UserError("a text and its target have more tokens than the model's max_len positions: shorten them")
            sums_B, _ = score(self.model, self.params, self.place(batch), target)
            for row, value in zip(rows, jax.device_get(sums_B), strict=False):
                results[row] = float(value)
        return results

    def stream(self, text: str, **options: Any) -> Iterator[str]:
        """The output for one text, piece by piece as its tokens are made; together the pieces are ``predict``'s output.

        Greedy search and sampling only. A piece is held back while later tokens may still change it.

        Args:
          text: the source.
          **options: fields of ``Decoding`` to change for this call.

        Raises:
          UserError: beams or several outputs are asked for, or an unknown option.
        """
        decoding = self.settings({"beams": 1, "n_best": 1, "risk": "none", **options})
        if decoding.beams != 1 or decoding.n_best != 1:
            raise UserError("stream gives one output as it is made: leave beams and n_best at 1")
        ids = self.sources([text], decoding)[0]
        key = jax.random.fold_in(jax.random.key(decoding.seed), 0)
        steps = stream(
            self.model,
            self.params,
            pad_tokens([ids]),
            max_len=decoding.max_len,
            search=decoding.search(key[None]),
            rules=decoding.rules(self.model.config.target_vocab_size),
        )
        return self.pieces(int(step.token[0]) for step in steps)

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        """Text as tokens arrive: what two readings in a row agree on."""
        ids, said, before = [], "", ""
        for token in tokens:
            ids.append(token)
            now = self.target_tokenizer.decode(ids)
            agreed = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, now, strict=False)))
            if agreed > len(said):
                yield now[len(said) : agreed]
                said = now[:agreed]
            before = now
        if len(before) > len(said):
            yield before[len(said) :]

    @property
    def encoders(self) -> tuple[Encoder, Encoder]:
        """What makes sources and targets of texts."""
        return encoders(self.model.config, self.source_tokenizer, self.target_tokenizer)

    def sources(self, texts: Sequence[str], decoding: Decoding) -> list[list[int]]:
        """The ids of texts, cut to the longest that is read."""
        return [self.cut(ids, decoding.max_source_len) for ids in self.encoders[0].encode_batch(texts)]

    def cut(self, ids: list[int], length: int) -> list[int]:
        """As for every model, but of a prompt the last tokens are kept, which the output goes on after."""
        return ids[-length:] if self.model.config.decoder_only else super().cut(ids, length)

    def read(self, found: Generated, sources: list[list[int]], risk: str) -> Iterator[Prediction]:
        """Host arrays to text."""
        ids, log_probs, scores, lengths = (x if found.score.ndim == 2 else x[:, None] for x in found[:4])
        for row, source in enumerate(sources):
            outputs = [ids[row, n, : lengths[row, n]] for n in range(scores.shape[1])]
            texts = [self.target_tokenizer.decode(output) for output in outputs]
            first = 0 if risk == "none" else minimum_bayes_risk(texts, risk).index
            yield Prediction(
                texts[first],
                float(scores[row, first]),
                self.source_tokenizer.pieces(source),
                self.target_tokenizer.pieces(outputs[first]),
                log_probs[row, first, : len(outputs[first])],
                {name: weights[row, :, : len(outputs[0]), : len(source)] for name, weights in found.attention.items()},
                [(text, float(value)) for text, value in zip(texts, scores[row], strict=True)],
            )
