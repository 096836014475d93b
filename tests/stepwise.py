"""Decoding a given target a token at a time, for comparison with reading it all at once."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from zoo.core import PyTree, Seq2Seq, Tokens, shift_right


def step_by_step(model: Seq2Seq, params: PyTree, source: PyTree, target: Tokens) -> jax.Array:
    """The logits (B, T, V) that ``decode`` gives with a cache, one token after the other."""
    apply = functools.partial(model.apply, {"params": params})
    memory = apply(source, method="encode")
    cache = apply(memory, target.ids.shape[1], method="init_cache")

    def step(cache, token_B):
        outputs, cache = apply(token_B[:, None], memory, cache, method="decode")
        return cache, outputs.logits[:, 0]

    tokens_BT = shift_right(target.ids, model.config.first(source))
    return jnp.swapaxes(jax.lax.scan(step, cache, tokens_BT.T)[1], 0, 1)
