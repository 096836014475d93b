"""An encoder that is ready for use: texts in; vectors, labels or missing words out."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo.core import EncoderOnly, PyTree, Tokens, UserError
from zoo.generate.facade import bucket
from zoo.predictor_base import PredictorBase
from zoo.pretrained_text import PretrainedTokenizer

Text = str | tuple[str, str]  # or a pair, for models that compare two
Pooling = Literal["mean", "cls"]
MASK = "[MASK]"  # a missing token in a text, where the tokenizer is our own
FILLS = 5  # tokens listed for a masked one


class Classified(NamedTuple):
    """What a classifier says of a text.

    Attributes:
      label: the most probable one.
      probabilities: of each label, in the order of their ids.
    """

    label: str
    probabilities: dict[str, float]

    @property
    def text(self) -> str:
        return self.label


class Tagged(NamedTuple):
    """What a token classifier says of a text; the tokens that stand around every text are left out.

    Attributes:
      pieces: the tokens.
      labels: the most probable one of each.
      probabilities: of those.
    """

    pieces: list[str]
    labels: list[str]
    probabilities: list[float]

    @property
    def text(self) -> str:
        return " ".join(self.labels)


class Filled(NamedTuple):
    """What a masked language model makes of a text.

    Attributes:
      text: the most probable token in the place of each mask, the tokens joined to a text.
      fills: for each mask the most probable tokens with their probabilities, best first.
    """

    text: str
    fills: list[list[tuple[str, float]]]


class EncoderPredictor(PredictorBase):
    """The predictor of models without a decoder."""

    def embed(self, texts: Sequence[Text], pooling: Pooling = "mean") -> np.ndarray:
        """A vector of length 1 for each text, (N, D) float32, so that their products are cosines.

        Args:
          texts: any number of texts, or of pairs.
          pooling: "mean" of the last layer's hidden states, or "cls", the first token's: the model's publisher says which.

        Raises:
          UserError: ``texts`` is one string or holds something else, or an unknown pooling.
        """
        if pooling not in ("mean", "cls"):
            raise UserError(f"pooling is {pooling!r}: choose mean or cls")
        rows_ND = np.zeros((len(texts), self.model.config.d_model), np.float32)
        for rows, batch in self.read(texts):
            rows_ND[rows] = jax.device_get(embedded(self.model, pooling, self.params, self.place(batch)))[: len(rows)]
        return rows_ND

    def predict(self, texts: Sequence[Text]) -> list:
        """What the head says of each text, in order.

        Returns:
          Of a classifier each text's label; of a token classifier the list of its tokens' labels; of a masked language model
          the text with its masks filled in.

        Raises:
          UserError: ``texts`` is one string or holds something else, or the model has no head.
        """
        found = self.predictions(texts)
        return [prediction.labels if isinstance(prediction, Tagged) else prediction.text for prediction in found]

    def predictions(self, texts: Sequence[Text], **options: Any) -> list[Classified] | list[Tagged] | list[Filled]:
        """Like ``predict``, with probabilities. There are no ``options``: they are for models that generate."""
        if options:
            name = type(self.model).__name__
            raise UserError(f"{sorted(options)[0]} is for models that generate, which {name} does not: leave it out")
        heads = {
            "classification": self.classified,
            "token_classification": self.tagged,
            "masked_lm": self.filled,
        }
        head = getattr(self.model.config, "head", "none")
        if head not in heads:
            raise UserError("this model has no head that says anything of a text: use embed, or fine-tune it")
        results: list[Any] = [None] * len(texts)
        for rows, batch in self.read(texts):
            for row, prediction in zip(rows, heads[head](batch, len(rows)), strict=True):
                results[row] = prediction
        return results

    def classified(self, batch: Tokens, rows: int) -> Iterator[Classified]:
        names = self.target_tokenizer.names
        for p_1V in jax.device_get(probabilities(self.model, self.params, self.place(batch)))[:rows]:
            yield Classified(names[int(p_1V[0].argmax())], dict(zip(names, p_1V[0].tolist(), strict=True)))

    def tagged(self, batch: Tokens, rows: int) -> Iterator[Tagged]:
        names, wrapping = self.target_tokenizer.names, self.source_tokenizer.wrapping
        p_BSV = jax.device_get(probabilities(self.model, self.params, self.place(batch)))
        for ids_S, mask_S, p_SV in zip(batch.ids[:rows], batch.mask, p_BSV, strict=False):
            keep_S = mask_S & ~np.isin(ids_S, list(wrapping))
            labels = [names[i] for i in p_SV[keep_S].argmax(axis=-1)]
            yield Tagged(self.source_tokenizer.pieces(ids_S[keep_S]), labels, p_SV[keep_S].max(axis=-1).tolist())

    def filled(self, batch: Tokens, rows: int) -> Iterator[Filled]:
        tokenizer, pretrained = self.target_tokenizer, isinstance(self.target_tokenizer, PretrainedTokenizer)
        where_BS = (batch.ids == tokenizer.mask_id) & batch.mask
        counts = where_BS.sum(axis=1)
        if not counts[:rows].all():
            mask = tokenizer.pieces([tokenizer.mask_id])[0] if pretrained else MASK
            raise UserError(f"a text holds nothing to fill in: write {mask} where a word is missing")
        column_BM = np.argsort(~where_BS, axis=1, kind="stable")[:, : bucket(counts.max(), 1)].astype(np.int32)
        p_BMF, ids_BMF = jax.device_get(fills(self.model, FILLS, self.params, self.place(batch), column_BM))
        for row, count in enumerate(counts[:rows]):
            best = batch.ids[row].copy()
            best[column_BM[row, :count]] = ids_BMF[row, :count, 0]
            pairs = [
                list(zip(tokenizer.pieces(ids_F), p_F.tolist(), strict=True))
                for ids_F, p_F in zip(ids_BMF[row, :count], p_BMF[row, :count], strict=True)
            ]
            ids = best[batch.mask[row]].tolist()
            yield Filled(tokenizer.text(ids) if pretrained else tokenizer.decode(ids), pairs)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts. Our own tokenizers find no special token in one: for them a text is cut at each ``MASK``."""
        tokenizer = self.source_tokenizer
        if isinstance(tokenizer, PretrainedTokenizer):
            return tokenizer.encode_batch(texts)
        found = []
        for text in texts:
            first, *others = (tokenizer.encode(part.strip(" ")) for part in text.split(MASK))
            found.append([*first[:-1], *(i for ids in others for i in (tokenizer.mask_id, *ids[:-1])), first[-1]])
        return found

    def read(self, texts: Sequence[Text]) -> Iterator[tuple[list[int], Tokens]]:
        """Batches of the texts' tokens, cut to what the model can read, with the rows that they are of."""
        if isinstance(texts, str):
            raise UserError(f"a list of texts is wanted, not the single text {texts!r}: write [text]")
        for text in texts:
            pair = isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text)
            if not isinstance(text, str) and not pair:
                raise UserError(f"a list of texts is wanted, not {text!r} in it: convert it to a string")
        pairs = [text for text in texts if isinstance(text, tuple)]
        if pairs and len(pairs) < len(texts):
            raise UserError("the list holds texts and pairs of texts: give one or the other")
        most = min(self.decoding.max_source_len, self.model.config.max_len)
        encoded = self.source_tokenizer.encode_pairs(pairs) if pairs else [(ids, []) for ids in self.encode(texts)]
        for rows, batch in self.batches([self.cut(ids, most) for ids, _ in encoded]):
            if pairs:
                types_BS = np.zeros_like(batch.ids)
                for place, row in enumerate(rows):
                    types = self.cut(encoded[row][1], most)
                    types_BS[place, : len(types)] = types
                batch = batch._replace(types=types_BS)
            yield rows, batch


@functools.partial(jax.jit, static_argnames=("model", "pooling"))
def embedded(model: EncoderOnly, pooling: str, params: PyTree, source: Tokens) -> jax.Array:
    """(B, D) float32, each row of length 1."""
    hidden_BSD, mask_BS, _ = model.apply({"params": params}, source, method="encode")
    if pooling == "mean":
        pooled_BD = hidden_BSD.astype(jnp.float32).sum(axis=1) / jnp.maximum(mask_BS.sum(axis=1), 1)[:, None]
    else:
        pooled_BD = jnp.take_along_axis(hidden_BSD, mask_BS.argmax(axis=1)[:, None, None], axis=1)[:, 0].astype(jnp.float32)
    return pooled_BD / jnp.maximum(jnp.linalg.norm(pooled_BD, axis=1, keepdims=True), 1e-12)


@functools.partial(jax.jit, static_argnames="model")
def probabilities(model: EncoderOnly, params: PyTree, source: Tokens) -> jax.Array:
    """What the head says, (B, S or 1, V) float32."""
    return jax.nn.softmax(model.apply({"params": params}, source).logits.astype(jnp.float32))


@functools.partial(jax.jit, static_argnames=("model", "most"))
def fills(model: EncoderOnly, most: int, params: PyTree, source: Tokens, column_BM: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Probabilities and ids of the ``most`` probable tokens at these positions alone, (B, M, most)."""
    hidden_BSD = model.apply({"params": params}, source).hidden
    hidden_BMD = jnp.take_along_axis(hidden_BSD, column_BM[..., None], axis=1)
    logits_BMV = model.apply({"params": params}, hidden_BMD, method="logits").astype(jnp.float32)
    return jax.lax.top_k(jax.nn.softmax(logits_BMV), min(most, logits_BMV.shape[-1]))
