"""``python onnx_peer.py DIRECTORY OUT``: exports a model as ONNX and decodes greedily with it in onnxruntime; prints "same".

By itself, since jax2onnx and onnxruntime may stand in another environment than the tests.
"""

from __future__ import annotations

import sys

import jax
import numpy as np

import zoo
from zoo.core import Tokens, pad_tokens, shift_right

STEPS = 6


def main(directory: str, out: str) -> None:
    import onnxruntime

    predictor = zoo.load(directory)
    zoo.save(predictor, out, format="onnx")
    encoder, decoder = (onnxruntime.InferenceSession(f"{out}/{name}.onnx") for name in ("encoder", "decoder"))
    for texts in (["The quick brown fox", "a", "Wie spät ist es?"], ["two", "words"]):
        source = pad_tokens(predictor.source_tokenizer.encode_batch(texts))
        ids_BT, logits_BTV = greedy(encoder, decoder, source, predictor.model.config.start_id)
        wanted_BTV = teacher_forced(predictor, source, ids_BT)
        assert np.abs(logits_BTV - wanted_BTV).max() <= 1e-5, np.abs(logits_BTV - wanted_BTV).max()
        assert len(np.unique(ids_BT)) > 2
    print("same")


def run(session, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    wanted = {given.name for given in session.get_inputs()}
    return dict(zip(names, session.run(None, {name: x for name, x in arrays.items() if name in wanted}), strict=True))


def greedy(encoder, decoder, source: Tokens, start: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens and the logits of STEPS steps."""
    state = run(encoder, {"ids": source.ids, "mask": source.mask})
    token_B1, ids, logits = np.full((len(source.ids), 1), start, np.int32), [], []
    for _ in range(STEPS):
        found = run(decoder, {"token": token_B1, **state})
        logits.append(found["logits"])
        token_B1 = logits[-1].argmax(axis=1).astype(np.int32)[:, None]
        ids.append(token_B1)
        state |= {name.removeprefix("next."): x for name, x in found.items() if name != "logits"}
    return np.concatenate(ids, axis=1), np.stack(logits, axis=1)


def teacher_forced(predictor: zoo.Predictor, source: Tokens, ids_BT: np.ndarray) -> jax.Array:
    tokens_BT = shift_right(ids_BT, predictor.model.config.start_id)
    apply = predictor.model.apply
    memory = apply({"params": predictor.params}, source, method="encode")
    return apply({"params": predictor.params}, tokens_BT, memory, method="decode")[0].logits


if __name__ == "__main__":
    main(*sys.argv[1:])
