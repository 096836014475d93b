"""What the predictors of all kinds of model share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from zoo.core import PyTree, Seq2Seq, Tokens, UserError, pad_tokens
from zoo.decoding import Decoding
from zoo.generate.facade import bucket, room
from zoo.labels import Labels
from zoo.pretrained_text import PretrainedTokenizer
from zoo.text import Tokenizer

ROWS = 64  # sentences read together at most


@dataclasses.dataclass(frozen=True)
class PredictorBase:
    """A model with its parameters and tokenizers: what ``zoo.load`` returns one of, by ``zoo.predictors``.

    Attributes:
      model: the Linen module; ``model.apply({"params": params}, ...)``.
      params: its parameters, a plain dict of arrays.
      source_tokenizer, target_tokenizer: between text and ids; may be one object. A classifier's targets are labels.
      decoding: the defaults of ``predict``.
      place: puts a batch of sources on devices; the identity leaves that to JAX.
      multiple_of: the rows of each batch are a multiple of this, so that devices can share them.
      origin: what the files of a pretrained model say beside all this, for writing it again; None for our own models.
    """

    model: Seq2Seq
    params: PyTree
    source_tokenizer: Tokenizer | PretrainedTokenizer
    target_tokenizer: Tokenizer | PretrainedTokenizer | Labels
    decoding: Decoding = Decoding()
    place: Callable[[Tokens], Any] = lambda source: source
    multiple_of: int = 1
    origin: dict[str, Any] | None = None

    def __post_init__(self):
        for side in ("source", "target"):
            tokenizer, size = getattr(self, f"{side}_tokenizer"), getattr(self.model.config, f"{side}_vocab_size")
            if tokenizer.vocab_size != size:
                raise UserError(
                    f"the {side} vocabulary does not fit: its tokenizer has {tokenizer.vocab_size} entries, the model {size}; "
                    "use the tokenizer that the model was trained with"
                )

    def settings(self, options: dict[str, Any]) -> Decoding:
        """The defaults with these options changed.

        Raises:
          UserError: an unknown option.
        """
        unknown = set(options) - {field.name for field in dataclasses.fields(Decoding)}
        if unknown:
            raise UserError(f"predict has no option {sorted(unknown)[0]!r}: {', '.join(Decoding.__dataclass_fields__)} exist")
        decoding = dataclasses.replace(self.decoding, **options)
        decoding.search(None)  # its checks, also when there is no text
        return decoding

    def cut(self, ids: list[int], length: int) -> list[int]:
        """At most ``length`` ids, the end token kept."""
        return ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]

    def batches(self, sources: list[list[int]]) -> Iterator[tuple[list[int], Tokens]]:
        """Sentences of similar length together, rows and lengths rounded up, so that few programs compile."""
        order = sorted(range(len(sources)), key=lambda row: len(sources[row]))
        rows = min(ROWS, bucket(len(order), 1))
        rows += -rows % self.multiple_of
        for start in range(0, len(order), rows):
            chosen = order[start : start + rows]
            length = room(len(sources[chosen[-1]]), (self.model,))
            yield chosen, pad_tokens([sources[row] for row in chosen] + [[]] * (rows - len(chosen)), length)
