"""A model that is ready for use: text in, text out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from zoo.core import PyTree, Seq2Seq, Tokens, UserError, pad_tokens
from zoo.generate import generate
from zoo.text import Tokenizer

ROWS = 64  # sentences decoded together at most


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How a model's texts are generated, unless told otherwise; saved beside its weights.

    Attributes:
      beams: hypotheses kept a sentence; 1 is greedy search.
      length_penalty: alpha of the GNMT length penalty ((5 + length) / 6) ** alpha that a beam's scores are divided by.
      max_len: most tokens of an output, the end token included.
      max_source_len: longer sources are cut to this many tokens.
    """

    beams: int = 1
    length_penalty: float = 1.0
    max_len: int = 64
    max_source_len: int = 512


class Prediction(NamedTuple):
    """One output.

    Attributes:
      text: what the model generated.
      score: its log-probability (a beam's is divided by the length penalty).
      source_pieces, target_pieces: labels of the tokens read and generated.
      attention: on request, name -> weights (H, target, source) of each cross-attention; empty for models without any.
    """

    text: str
    score: float
    source_pieces: list[str]
    target_pieces: list[str]
    attention: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Predictor:
    """What ``zoo.load`` returns.

    Attributes:
      model: the Linen module; ``model.apply({"params": params}, ...)``.
      params: its parameters, a plain dict of arrays.
      source_tokenizer, target_tokenizer: between text and ids; may be one object.
      decoding: the defaults of ``predict``.
      place: puts a batch of sources on devices; the identity leaves that to JAX.
      multiple_of: the rows of each batch are a multiple of this, so that devices can share them.
    """

    model: Seq2Seq
    params: PyTree
    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    decoding: Decoding = Decoding()
    place: Callable[[Tokens], Any] = lambda source: source
    multiple_of: int = 1

    def __post_init__(self):
        for side in ("source", "target"):
            tokenizer, size = getattr(self, f"{side}_tokenizer"), getattr(self.model.config, f"{side}_vocab_size")
            if tokenizer.vocab_size != size:
                raise UserError(
                    f"the {side} vocabulary does not fit: its tokenizer has {tokenizer.vocab_size} entries, the model {size}; "
                    "use the tokenizer that the model was trained with"
                )

    def predict(self, texts: Sequence[str], **options: Any) -> list[str]:
        """The model's output for each text, in order.

        Args:
          texts: any number of texts.
          **options: fields of ``Decoding`` to change for this call.

        Raises:
          UserError: ``texts`` is one string, or an unknown option.
        """
        return [prediction.text for prediction in self.predictions(texts, **options)]

    def predictions(self, texts: Sequence[str], attention: bool = False, **options: Any) -> list[Prediction]:
        """Like ``predict``, with scores, tokens and, on request, attention weights."""
        if isinstance(texts, str):
            raise UserError(f"predict takes a list of texts, not the single text {texts!r}: write [text]")
        unknown = set(options) - {field.name for field in dataclasses.fields(Decoding)}
        if unknown:
            raise UserError(f"predict has no option {sorted(unknown)[0]!r}: {', '.join(Decoding.__dataclass_fields__)} exist")
        decoding = dataclasses.replace(self.decoding, **options)
        if decoding.max_source_len < 1:
            raise UserError(f"max_source_len is {decoding.max_source_len}: it must be at least 1")
        sources = [self.cut(ids, decoding.max_source_len) for ids in self.source_tokenizer.encode_batch(texts)]
        results: list[Prediction | None] = [None] * len(texts)
        for rows, batch in self.batches(sources):
            found = generate(
                self.model,
                self.params,
                self.place(batch),
                max_len=decoding.max_len,
                beams=decoding.beams,
                alpha=decoding.length_penalty,
                attention=attention,
            )
            for row, prediction in zip(rows, self.read(jax.device_get(found), [sources[row] for row in rows]), strict=True):
                results[row] = prediction
        return results

    def cut(self, ids: list[int], length: int) -> list[int]:
        """At most ``length`` ids, the end token kept."""
        return ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]

    def batches(self, sources: list[list[int]]) -> Iterator[tuple[list[int], Tokens]]:
        """Sentences of similar length together, rows and lengths rounded up, so that few programs compile."""
        order = sorted(range(len(sources)), key=lambda row: len(sources[row]))
        rows = min(ROWS, 1 << max(len(order) - 1, 0).bit_length())
        rows += -rows % self.multiple_of
        for start in range(0, len(order), rows):
            chosen = order[start : start + rows]
            length = 8 << max((len(sources[chosen[-1]]) - 1) // 8, 0).bit_length()
            yield chosen, pad_tokens([sources[row] for row in chosen] + [[]] * (rows - len(chosen)), length)

    def read(self, found, sources: list[list[int]]) -> Iterator[Prediction]:
        """Host arrays to text."""
        for row, source in enumerate(sources):
            ids = found.ids[row, : found.length[row]]
            yield Prediction(
                self.target_tokenizer.decode(ids),
                float(found.score[row]),
                self.source_tokenizer.pieces(source),
                self.target_tokenizer.pieces(ids),
                {name: weights[row, :, : len(ids), : len(source)] for name, weights in found.attention.items()},
            )
