"""Recurrent encoder-decoders with attention: every step looks at the whole source through a soft alignment.

  Bahdanau  "Neural Machine Translation by Jointly Learning to Align and Translate", Bahdanau et al. 2015 (arXiv:1409.0473),
            as in its appendix A: bidirectional GRU encoder, additive attention before the GRU step, maxout readout.
  Luong     "Effective Approaches to Attention-based Neural Machine Translation", Luong et al. 2015 (arXiv:1508.04025): stacked
            LSTMs, attention after the step, global or local, with three scores, with or without input feeding.

Departures from the papers:
  - Recurrent matrices start orthogonal, the others Glorot-uniform, an LSTM's forget bias at one (Bahdanau: Gaussian, 0.01;
    Luong: uniform in +-0.1).
  - Bahdanau: the update gate z keeps the old state, as in Cho et al. 2014 (the paper's z is 1 - z).
  - Dropout between layers, never along time; Luong's LSTMs read the source backwards only if ``reverse_source``.
  - Luong, local-p: S counts the real tokens, and the window is cut at real numbers, |s - p_t| <= window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import normal, xavier_uniform
from jax.sharding import PartitionSpec as P

from zoo.checkpoint.rules import SAME, TRANSPOSED, Rule, cell, embedding, linear
from zoo.core import ModelConfig, Outputs, Seq2Seq, Tokens, per_beam, positions
from zoo.nn.attention import additive_scores, dot_scores, masked_softmax, mix
from zoo.nn.dropout import Dropout
from zoo.nn.linear import Dense, Embed
from zoo.nn.recurrent import CELLS, Carry, Cell, Weights, gru_step, input_gates, lstm_step, maxout
from zoo.nn.sharding import BATCH, MODEL, constrain

TASK = "text to text, with alignments"


@dataclasses.dataclass(frozen=True)
class BahdanauConfig(ModelConfig):
    """Bahdanau et al. 2015, appendix A.2.3.

    Attributes:
      embed_dim: width of the word embeddings, m.
      hidden_dim: width D of the decoder's state and of each direction of the encoder, n.
      attention_dim: width A of the alignment network's hidden layer, n'.
      maxout_dim: width of the readout after the maximum of each pair, l.
      dropout: on the embeddings and on the readout.
    """

    embed_dim: int = 620
    hidden_dim: int = 1000
    attention_dim: int = 1000
    maxout_dim: int = 500
    dropout: float = 0.0

    PAPER: ClassVar = "Bahdanau et al. 2015"

    def build(self) -> Bahdanau:
        return Bahdanau(self)


@dataclasses.dataclass(frozen=True)
class LuongConfig(ModelConfig):
    """Luong et al. 2015, section 4.1.

    Attributes:
      embed_dim: width of the word embeddings.
      hidden_dim: width D of every layer's state and of the attentional vector.
      num_layers: layers of the encoder, and of the decoder.
      score: "dot", "general" or "concat" (equation 8).
      alignment: "global"; "local-m", a window around the target's position; "local-p", around a predicted position.
      window: positions on each side of the window's centre, the paper's D.
      input_feeding: give the last attentional vector to the next step (section 3.3).
      reverse_source: read the source from its last token to its first.
      dropout: on the input of every layer and of the output product.
    """

    embed_dim: int = 1000
    hidden_dim: int = 1000
    num_layers: int = 4
    score: Literal["dot", "general", "concat"] = "general"
    alignment: Literal["global", "local-m", "local-p"] = "global"
    window: int = 10
    input_feeding: bool = True
    reverse_source: bool = False
    dropout: float = 0.2

    PAPER: ClassVar = "Luong et al. 2015"

    def build(self) -> Luong:
        return Luong(self)


PRESETS = {
    "bahdanau-tiny": BahdanauConfig(32, 32, embed_dim=16, hidden_dim=32, attention_dim=16, maxout_dim=16),
    "luong-tiny": LuongConfig(32, 32, embed_dim=16, hidden_dim=32, num_layers=2),
    # Appendix A.2.3: RNNsearch, 1,000 hidden units, embeddings of 620, 500 maxout units, 30,000 words.
    "bahdanau-2015": BahdanauConfig(30_000, 30_000),
    # Section 4.1: 4 layers of 1,000 cells, embeddings of 1,000, 50,000 words.
    "luong-2015": LuongConfig(50_000, 50_000),
}


class BahdanauMemory(NamedTuple):
    """Annotations h (B, S, 2 D), their share U_a h of the alignment network (B, S, A), and the decoder's first state."""

    annotations: jax.Array
    keys: jax.Array
    initial: jax.Array
    mask: jax.Array


class Bahdanau(Seq2Seq):
    """RNNsearch; the decoder's cache is its state s. Attention name: ``cross``, with one head."""

    config: BahdanauConfig

    def setup(self):
        c = self.config
        dense = lambda width, **kw: Dense(width, kernel_init=xavier_uniform(), **kw)  # noqa: E731
        self.source_embedding = Embed(c.source_vocab_size, c.embed_dim, embedding_init=normal(0.1))
        self.target_embedding = Embed(c.target_vocab_size, c.embed_dim, embedding_init=normal(0.1))
        self.forward = Cell("gru", c.embed_dim, c.hidden_dim, remat=self.remat)
        self.backward = Cell("gru", c.embed_dim, c.hidden_dim, remat=self.remat)
        self.initial = dense(c.hidden_dim)  # W_s: s_0 = tanh(W_s <-h_1)
        self.decoder = Cell("gru", c.embed_dim, c.hidden_dim)
        self.context_gates = Matrix(2 * c.hidden_dim, CELLS["gru"].gates * c.hidden_dim)  # C, C_z and C_r
        self.query = Matrix(c.hidden_dim, c.attention_dim)  # W_a
        self.keys = dense(c.attention_dim)  # U_a
        self.energy = self.param("energy", normal(c.attention_dim**-0.5), (c.attention_dim,))  # v_a
        self.readout_state = dense(2 * c.maxout_dim)  # U_o
        self.readout_token = dense(2 * c.maxout_dim, use_bias=False)  # V_o
        self.readout_context = dense(2 * c.maxout_dim, use_bias=False)  # C_o
        self.output = dense(c.target_vocab_size)  # W_o
        self.drop = Dropout(c.dropout)

    def encode(self, source: Tokens, train: bool = False, attention: bool = False) -> BahdanauMemory:
        x_BSD = self.drop(self.source_embedding(source.ids), deterministic=not train)
        _, forward_BSD = self.forward(x_BSD, source.mask)
        first_BD, backward_BSD = self.backward(x_BSD, source.mask, reverse=True)
        annotations = jnp.concatenate([forward_BSD, backward_BSD], axis=-1)
        return BahdanauMemory(annotations, self.keys(annotations), jnp.tanh(self.initial(first_BD)), source.mask)

    def init_cache(self, memory: BahdanauMemory, max_len: int, beams: int = 1) -> jax.Array:
        return per_beam(memory.initial, memory.initial.shape[0] * beams)

    def decode(self, tokens_BT, memory: BahdanauMemory, cache=None, train: bool = False, attention: bool = False):
        s_BD = self.init_cache(memory, tokens_BT.shape[1]) if cache is None else cache
        y_BTD = self.drop(self.target_embedding(tokens_BT), deterministic=not train)
        weights, C, W_a, v_a = self.decoder.weights, self.context_gates.kernel, self.query.kernel, self.energy
        mask_RS = per_beam(memory.mask, tokens_BT.shape[0])

        def step(s_BD, gates_BG):
            """One step reads s_{i-1}: alignment, context c_i, then s_i; the readout wants s_{i-1} and c_i."""
            alpha_BS = masked_softmax(additive_scores(s_BD @ W_a, memory.keys, v_a), mask_RS)
            c_BD = mix(alpha_BS, memory.annotations)
            new_BD, _ = gru_step(s_BD, gates_BG + c_BD @ C, weights)
            return new_BD, (s_BD, c_BD, alpha_BS)

        gates_TBG = jnp.swapaxes(input_gates(y_BTD, weights), 0, 1)
        step = jax.checkpoint(step, prevent_cse=False) if self.remat else step
        s_BD, over_time = jax.lax.scan(step, s_BD, gates_TBG)
        s_BTD, c_BTD, alpha_BTS = (constrain(jnp.swapaxes(x, 0, 1), BATCH) for x in over_time)
        readout_BTF = self.readout_state(s_BTD) + self.readout_token(y_BTD) + self.readout_context(c_BTD)
        t_BTF = self.drop(maxout(readout_BTF), deterministic=not train)
        return Outputs(self.logits(t_BTF), {"cross": alpha_BTS[:, None]} if attention else {}, t_BTF), s_BD

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        return constrain(self.output(hidden_BTD), BATCH, None, MODEL)

    # The names of a port made of torch.nn.Embedding, Linear and bare matrices.
    RULES: ClassVar = (
        *embedding(r"(source|target)_embedding", r"\1_embedding"),
        Rule(r"(forward|backward|decoder)/(input|recurrent)_kernel", r"\1_cell.\2.weight", TRANSPOSED),
        Rule(r"(forward|backward|decoder)/bias", r"\1_cell.input.bias"),
        Rule(r"energy", r"energy", SAME),
        *linear(r"(initial|context_gates|query|keys|readout_state|readout_token|readout_context|output)", r"\1"),
    )
    # Gates lie side by side on the last axis: over ``model`` it would put different gates of a unit on different devices.
    SHARDING: ClassVar = (
        (r".*(input_kernel|recurrent_kernel|gates/kernel)", P("fsdp")),
        (r"(query|keys|predict_hidden|combine|output)/kernel", P("fsdp", "model")),
        (r".*embedding", P("model", "fsdp")),
        (r".*", P()),
    )


class Matrix(nn.Module):
    """A bare matrix that a scan multiplies by: (inputs, features)."""

    inputs: int
    features: int

    def setup(self):
        self.kernel = self.param("kernel", xavier_uniform(), (self.inputs, self.features))


class LuongMemory(NamedTuple):
    """The encoder's top states (B, S, D), what the score compares the query with, and each layer's final state."""

    values: jax.Array
    keys: jax.Array
    state: tuple[Carry, ...]
    mask: jax.Array


class LuongCache(NamedTuple):
    """Each layer's (c, h), the last attentional vector h~ (R, D), and the position t of the next token (R,) int32."""

    state: tuple[Carry, ...]
    attentional: jax.Array
    position: jax.Array


class Luong(Seq2Seq):
    """Stacked LSTMs with attention after the step. Attention name: ``cross``, with one head."""

    config: LuongConfig

    def setup(self):
        c = self.config
        D = c.hidden_dim
        self.source_embedding = Embed(c.source_vocab_size, c.embed_dim, embedding_init=normal(0.1))
        self.target_embedding = Embed(c.target_vocab_size, c.embed_dim, embedding_init=normal(0.1))
        self.encoder = [Cell("lstm", c.embed_dim if i == 0 else D, D, remat=self.remat) for i in range(c.num_layers)]
        self.decoder = [Cell("lstm", c.embed_dim if i == 0 else D, D) for i in range(c.num_layers)]
        if c.input_feeding:
            self.feed_gates = Matrix(D, CELLS["lstm"].gates * D)
        if c.score != "dot":
            self.keys = Dense(D, use_bias=False, kernel_init=xavier_uniform())  # W_a, or its half that reads h_s
        if c.score == "concat":
            self.query = Matrix(D, D)  # the half of W_a that reads h_t
            self.energy = self.param("energy", normal(D**-0.5), (D,))  # v_a
        if c.alignment == "local-p":
            self.predict_hidden = Matrix(D, D)  # W_p
            self.predict_energy = self.param("predict_energy", normal(D**-0.5), (D,))  # v_p
        self.combine = Matrix(2 * D, D)  # W_c
        self.output = Dense(c.target_vocab_size, use_bias=False, kernel_init=xavier_uniform())  # W_s
        self.drop = Dropout(c.dropout)

    def encode(self, source: Tokens, train: bool = False, attention: bool = False) -> LuongMemory:
        x_BSD, state = self.source_embedding(source.ids), []
        for layer in self.encoder:
            x_BSD = self.drop(x_BSD, deterministic=not train)
            carry, x_BSD = layer(x_BSD, source.mask, reverse=self.config.reverse_source)
            state.append(carry)
        keys_BSD = x_BSD if self.config.score == "dot" else self.keys(x_BSD)
        return LuongMemory(x_BSD, keys_BSD, tuple(state), source.mask)

    def init_cache(self, memory: LuongMemory, max_len: int, beams: int = 1) -> LuongCache:
        R = memory.mask.shape[0] * beams
        state = jax.tree.map(lambda x_BD: per_beam(x_BD, R), memory.state)
        attentional_RD = jnp.zeros((R, self.config.hidden_dim), memory.values.dtype)
        return LuongCache(state, attentional_RD, jnp.zeros((R,), jnp.int32))

    def align(self, memory: LuongMemory):
        """The function from (h_t (R, D), t (R,)) to the weights a_t (R, S): equations 7 to 10."""
        c = self.config
        W_q, v_a = (self.query.kernel, self.energy) if c.score == "concat" else (None, None)
        W_p, v_p = (self.predict_hidden.kernel, self.predict_energy) if c.alignment == "local-p" else (None, None)
        length_B1, source_BS = memory.mask.sum(axis=1, keepdims=True), positions(memory.mask)

        def align(h_RD, t_R):
            mask_RS = per_beam(memory.mask, h_RD.shape[0])
            scores = additive_scores(h_RD @ W_q, memory.keys, v_a) if c.score == "concat" else dot_scores(h_RD, memory.keys)
            if c.alignment == "global":
                return masked_softmax(scores, mask_RS)
            centre_R1 = t_R[:, None].astype(jnp.float32)
            if c.alignment == "local-p":
                share_R1 = nn.sigmoid((jnp.tanh(h_RD @ W_p) @ v_p)[:, None].astype(jnp.float32))
                centre_R1 = per_beam(length_B1, h_RD.shape[0]) * share_R1
            distance_RS = per_beam(source_BS, h_RD.shape[0]) - centre_R1
            weights_RS = masked_softmax(scores, mask_RS & (jnp.abs(distance_RS) <= c.window))
            if c.alignment == "local-p":  # a Gaussian of deviation window / 2 around the predicted position
                weights_RS = weights_RS * jnp.exp(-(distance_RS**2) / (2 * (c.window / 2) ** 2))
            return weights_RS

        return align

    def decode(self, tokens_BT, memory: LuongMemory, cache=None, train: bool = False, attention: bool = False):
        cache = self.init_cache(memory, tokens_BT.shape[1]) if cache is None else cache
        y_BTD = self.drop(self.target_embedding(tokens_BT), deterministic=not train)
        read = self.read_fed if self.config.input_feeding else self.read
        cache, attentional_BTD, a_BTS = read(y_BTD, memory, cache, train)
        hidden_BTD = self.drop(constrain(attentional_BTD, BATCH), deterministic=not train)
        return Outputs(self.logits(hidden_BTD), {"cross": a_BTS[:, None]} if attention else {}, hidden_BTD), cache

    def read(self, x_BTD: jax.Array, memory: LuongMemory, cache: LuongCache, train: bool):
        """All tokens at once, a layer after the other, since no step waits for the attention of the one before."""
        (R, T, _), state = x_BTD.shape, []
        for i, (layer, carry) in enumerate(zip(self.decoder, cache.state, strict=True)):
            carry, x_BTD = layer(self.drop(x_BTD, deterministic=not train) if i else x_BTD, carry=carry)
            state.append(carry)
        # To the alignment the positions of a row are what the beams of a sentence are: rows that share its keys.
        h_ND, t_N = x_BTD.reshape(R * T, -1), (cache.position[:, None] + jnp.arange(T)[None]).reshape(-1)
        attentional_ND, a_NS = self.attend(memory)(h_ND, t_N)
        attentional_BTD = attentional_ND.reshape(R, T, -1)
        return LuongCache(tuple(state), attentional_BTD[:, -1], cache.position + T), attentional_BTD, a_NS.reshape(R, T, -1)

    def read_fed(self, y_BTD: jax.Array, memory: LuongMemory, cache: LuongCache, train: bool):
        """A token at a time, each reading the attentional vector of the one before (section 3.3)."""
        layers: list[Weights] = [layer.weights for layer in self.decoder]
        attend, W_f = self.attend(memory), self.feed_gates.kernel
        masks = self.dropout_masks(y_BTD.shape[:2], y_BTD.dtype, train)

        def step(cache: LuongCache, inputs):
            gates_BG, keep = inputs
            carry, h_BD = lstm_step(cache.state[0], gates_BG + cache.attentional @ W_f, layers[0])
            state = [carry]
            for weights, carry, keep_BD in zip(layers[1:], cache.state[1:], keep, strict=True):
                carry, h_BD = lstm_step(carry, (h_BD * keep_BD) @ weights.input + weights.bias[None], weights)
                state.append(carry)
            attentional_BD, a_BS = attend(h_BD, cache.position)
            return LuongCache(tuple(state), attentional_BD, cache.position + 1), (attentional_BD, a_BS)

        gates_TBG = jnp.swapaxes(input_gates(y_BTD, layers[0]), 0, 1)
        step = jax.checkpoint(step, prevent_cse=False) if self.remat else step
        cache, over_time = jax.lax.scan(step, cache, (gates_TBG, masks))
        attentional_BTD, a_BTS = (jnp.swapaxes(x, 0, 1) for x in over_time)
        return cache, attentional_BTD, a_BTS

    def attend(self, memory: LuongMemory) -> Callable:
        """The function from (h_t (R, D), t (R,)) to h~_t = tanh(W_c [c_t; h_t]), equation 5, and the weights (R, S) of c_t."""
        align, W_c = self.align(memory), self.combine.kernel

        def attend(h_RD, t_R):
            a_RS = align(h_RD, t_R)
            context_RD = mix(a_RS, memory.values)
            return jnp.tanh(jnp.concatenate([context_RD, h_RD], axis=-1) @ W_c), a_RS

        return attend

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        return constrain(self.output(hidden_BTD), BATCH, None, MODEL)

    def dropout_masks(self, shape: tuple[int, int], dtype, train: bool) -> list[jax.Array]:
        """Scaled masks between the decoder's layers, drawn before the scan: (T, B, D) each, or ones (T, 1, 1)."""
        (B, T), c = shape, self.config
        if not train or c.dropout == 0:
            return [jnp.ones((T, 1, 1), dtype)] * (c.num_layers - 1)
        return [self.drop(jnp.ones((T, B, c.hidden_dim), dtype), deterministic=False) for _ in range(c.num_layers - 1)]

    # The names of torch.nn.LSTM (``encoder`` and ``decoder``) beside Embedding, Linear and bare matrices.
    RULES: ClassVar = (
        *embedding(r"(source|target)_embedding", r"\1_embedding"),
        *cell(r"(encoder|decoder)_(\d+)", r"\1", r"_l\2"),
        Rule(r"((?:predict_)?energy)", r"\1", SAME),
        *linear(r"(feed_gates|keys|query|predict_hidden|combine|output)", r"\1"),
    )
    SHARDING: ClassVar = Bahdanau.SHARDING
