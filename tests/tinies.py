"""One tiny model of each family, with parameters under which outputs are diverse, and a ragged batch that all of them read."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from zoo import core, rnn, rnn_attention, transformer
from zoo.generate import Rules, generate

CONFIGS = {
    "sutskever": dataclasses.replace(rnn.PRESETS["sutskever-tiny"], num_layers=1),
    "luong": dataclasses.replace(rnn_attention.PRESETS["luong-tiny"], num_layers=1),
    "transformer": dataclasses.replace(transformer.PRESETS["tiny"], num_layers=1, share_embeddings="none", norm="pre"),
}
VOCAB = 32
SOURCE = CONFIGS["luong"].example(batch=5, source_len=9)[0]


@functools.cache
def tiny(family: str, seed: int = 0, source_vocab: int = VOCAB) -> tuple[core.Seq2Seq, core.PyTree]:
    """(model, params). A Transformer with larger token embeddings would say its last token again and again."""
    config = dataclasses.replace(CONFIGS[family], source_vocab_size=source_vocab)
    model = config.build()
    params = core.flatten_params(jax.jit(model.init)(jax.random.key(seed), *config.example())["params"])
    keep = ("embedding", "norm") if family == "transformer" else ()
    return model, core.unflatten_params({k: x if any(word in k for word in keep) else 3 * x for k, x in params.items()})


def ragged(model: core.Seq2Seq, params: core.PyTree, max_len: int) -> Rules:
    """Rules with the end token under which the greedy outputs of ``SOURCE`` have the most different lengths."""
    ids_BT = generate(model, params, SOURCE, max_len=max_len, rules=Rules(end_id=core.PAD)).ids

    def lengths(token: int) -> set[int]:
        return {int(np.argmax(row == token)) if (row == token).any() else max_len for row in ids_BT}

    return Rules(end_id=max(range(core.UNK, VOCAB), key=lambda token: len(lengths(token))))
