"""What a model looked at while it wrote: all of its attention weights for one text, and the page that shows them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from zoo.core import PyTree, Seq2Seq, Tokens, UserError, pad_tokens
from zoo.decoding import Decoding
from zoo.encoder_predictor import EncoderPredictor
from zoo.generate import generate
from zoo.generate.facade import room
from zoo.page import document, escape
from zoo.predictor import Predictor
from zoo.predictor_base import PredictorBase

SCALE = 10_000  # weights are whole numbers in the page: four digits, and a third of the size

BODY = """<h1>Attention</h1>
<p class="lead">{model} read <q>{text}</q></p>
<section data-attention></section>
"""


def attend(predictor: PredictorBase, text: str, **options: Any) -> dict[str, Any]:
    """The output for a text, and the weights with which the model reads both, by teacher forcing on that output.

    Args:
      predictor: of any model; one that is an encoder alone has no output.
      text: the source.
      **options: fields of ``Decoding`` to change.

    Returns:
      What JSON can hold: ``text`` and ``output``; ``tokens``, for each of "source", "target" (written) and "read" (by the
      decoder, one behind) the labels; and ``maps``, a list, empty for a model without attention, of ``name``, ``queries`` and
      ``keys`` (of the three) and ``weights`` [head][query][key], in ten-thousandths.

    Raises:
      UserError: an unknown option, or a model that reads no text.
    """
    decoding, model = predictor.settings(options), predictor.model
    if isinstance(predictor, Predictor):
        [ids] = predictor.sources([text], decoding)
        output = written(predictor, ids, decoding)
        pieces, wrote = predictor.target_tokenizer.pieces(output), predictor.target_tokenizer.decode(output)
    elif isinstance(predictor, EncoderPredictor):
        ids, output, pieces, wrote = predictor.cut(predictor.encode([text])[0], decoding.max_source_len), [], [], ""
    else:
        raise UserError(f"{type(model).__name__} does not read text, so no page shows what it looked at: choose one that does")
    labels = {
        "source": predictor.source_tokenizer.pieces(ids),
        "target": pieces,
        "read": ["\N{OPEN BOX}", *pieces][: len(pieces)],  # what the decoder reads first has no text
    }
    # Padding is never read: few programs are compiled, and a map's shape tells what it is of if the two lengths differ.
    S, T = (room(len(tokens), (model,)) for tokens in (ids, output))
    source, target = pad_tokens([ids], S), pad_tokens([output], T + (T == S) if output else 0)
    maps = jax.device_get(weights(model, predictor.params, source, target))
    return {
        "text": text,
        "output": wrote,
        "tokens": labels,
        "maps": [map_of(name, array[0], source, target, labels) for name, array in in_order(maps)],
    }


def written(predictor: Predictor, ids: list[int], decoding: Decoding) -> list[int]:
    """The ids of the output that the search ranks first."""
    found = generate(
        predictor.model,
        predictor.params,
        pad_tokens([ids]),
        max_len=decoding.max_len,
        search=decoding.search(jax.random.fold_in(jax.random.key(decoding.seed), 0)[None]),
        rules=decoding.rules(predictor.model.config.target_vocab_size),
    )
    first = (0,) * (found.ids.ndim - 1)
    return found.ids[first][: found.length[first]].tolist()


@functools.partial(jax.jit, static_argnames="model")
def weights(model: Seq2Seq, params: PyTree, source: Tokens, target: Tokens) -> dict[str, jax.Array]:
    """Name -> weights (B, H, queries, keys) of every attention of the model."""
    return model.apply({"params": params}, source, target, attention=True).attention


def map_of(name: str, weights_HTS: np.ndarray, source: Tokens, target: Tokens, labels: dict[str, list[str]]) -> dict[str, Any]:
    """One entry of ``maps``, padding cut off."""
    of_target = bool(target.ids.size) and weights_HTS.shape[1] == target.ids.shape[1]
    queries = "target" if of_target else "source"
    keys = "read" if of_target and name.endswith("self") else "source"
    kept = weights_HTS[:, : len(labels[queries]), : len(labels[keys])]
    return {"name": name, "queries": queries, "keys": keys, "weights": np.rint(kept.astype(float) * SCALE).astype(int).tolist()}


def in_order(maps: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """What of the source was looked at comes first; layers as the model names them."""
    return sorted(maps.items(), key=lambda item: not item[0].endswith("cross"))


def page(predictor: PredictorBase, text: str, **options: Any) -> str:
    """The HTML page of one text.

    Raises:
      UserError: the model attends to nothing, or an unknown option.
    """
    found, model = attend(predictor, text, **options), type(predictor.model).__name__
    if not found["maps"]:
        raise UserError(f"{model} has no attention, so there is nothing to draw: choose a model that attends")
    body = BODY.format(model=escape(model), text=escape(text))
    return document(f"Attention of {model}", body, {"attention": [{"model": model, **found}]})
