"""What ``training.py`` runs of Flax's own building blocks: nn.RNN and nn.MultiHeadDotProductAttention, as users have them."""

from __future__ import annotations

import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from fresh import timed


class Layer(nn.Module):
    """A layer of the Transformer, normalised after each sum; with a memory one of the decoder."""

    @nn.compact
    def __call__(self, x, memory=None):
        def attend(x, keys, mask=None):
            attention = nn.MultiHeadDotProductAttention(8, dropout_rate=0.1, deterministic=False)
            return nn.LayerNorm()(x + nn.Dropout(0.1, deterministic=False)(attention(x, keys, mask=mask)))

        x = attend(x, x, None if memory is None else nn.make_causal_mask(jnp.ones(x.shape[:2])))
        x = x if memory is None else attend(x, memory)
        hidden = nn.Dense(x.shape[-1])(nn.relu(nn.Dense(2048)(x)))
        return nn.LayerNorm()(x + nn.Dropout(0.1, deterministic=False)(hidden))


class Transformer(nn.Module):
    vocab: int
    D: int = 512

    @nn.compact
    def __call__(self, source, target):
        embedding, drop = nn.Embed(self.vocab, self.D, embedding_init=nn.initializers.normal(self.D**-0.5)), nn.Dropout(0.1)
        angle = np.arange(512)[:, None] / 10_000 ** (np.arange(0, self.D, 2) / self.D)
        positions = np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(512, self.D).astype(np.float32)

        def embed(ids):
            return drop(embedding(ids) * self.D**0.5 + positions[None, : ids.shape[1]], deterministic=False)

        memory, x = embed(source), embed(target)
        for _ in range(6):
            memory = Layer()(memory)
        for _ in range(6):
            x = Layer()(x, memory)
        return embedding.attend(x)


class AttentionLSTM(nn.Module):
    vocab: int
    D: int = 512

    @nn.compact
    def __call__(self, source, target):
        drop = lambda x: nn.Dropout(0.1, deterministic=False)(x)  # noqa: E731
        memory, states = nn.Embed(self.vocab, self.D)(source), []
        for _ in range(2):
            carry, memory = nn.RNN(nn.OptimizedLSTMCell(self.D), return_carry=True)(drop(memory))
            states.append(carry)
        h = nn.Embed(self.vocab, self.D)(target)
        for carry in states:
            h = nn.RNN(nn.OptimizedLSTMCell(self.D))(drop(h), initial_carry=carry)
        keys = nn.Dense(self.D, use_bias=False)(memory)
        context = jax.nn.softmax(jnp.einsum("btd,bsd->bts", h, keys)) @ memory
        attentional = jnp.tanh(nn.Dense(self.D, use_bias=False)(jnp.concatenate([context, h], axis=-1)))
        return nn.Dense(self.vocab, use_bias=False)(drop(attentional))


def main() -> None:
    _, task, (rows, S, T, vocab), steps, _ = json.loads(sys.argv[sys.argv.index("--cell") + 1])
    model, rng, tx = (
        {"transformer": Transformer, "lstm": AttentionLSTM}[task](vocab),
        np.random.default_rng(0),
        optax.adam(1e-4),
    )
    source, target = (jnp.asarray(rng.integers(4, vocab, (rows, length))) for length in (S, T))
    shifted = jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=1)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    params = jax.jit(model.init)(keys, source, shifted)
    state = params, tx.init(params), jnp.int32(0)

    @jax.jit
    def step(state):
        params, opt_state, count = state

        def loss(params):
            key = jax.random.fold_in(jax.random.key(2), count)
            logits = model.apply(params, source, shifted, rngs={"dropout": key})
            return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state, count + 1

    def once():
        nonlocal state
        state = step(state)
        jax.block_until_ready(state)

    print(json.dumps(timed(once, steps) | {"parameters": sum(x.size for x in jax.tree.leaves(params))}))


if __name__ == "__main__":
    main()
