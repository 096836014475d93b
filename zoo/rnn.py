"""Encoder-decoders whose only bridge is a vector of fixed size: Elman's network, Sutskever's LSTM and Cho's GRU.

  Elman      the simple recurrent network of Elman 1990 ("Finding Structure in Time"), as encoder and as decoder.
  Sutskever  "Sequence to Sequence Learning with Neural Networks", Sutskever et al. 2014 (arXiv:1409.3215): deep LSTMs,
             the source read backwards, the final states passed layer by layer.
  Cho        "Learning Phrase Representations using RNN Encoder-Decoder", Cho et al. 2014 (arXiv:1406.1078): one GRU each
             way; a summary c of the source enters every decoder step and the output layer, which is maxout.

Departures from the papers:
  - Recurrent matrices start orthogonal, the others Glorot-uniform, an LSTM's forget bias at one (Sutskever: all uniform
    in +-0.08).
  - Dropout between layers, never along time (Zaremba et al. 2014, arXiv:1409.2329); 0 is the papers'.
  - Cho: output embeddings are of full rank (the paper factors the last matrix, G = Gl Gr, for its 15,000 words).
  - Elman's own network had no encoder; it is wired like Sutskever's.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax.linen.initializers import normal, xavier_uniform
from jax.sharding import PartitionSpec as P

from zoo.checkpoint.rules import TRANSPOSED, Rule, cell, embedding, linear
from zoo.core import ModelConfig, Outputs, Seq2Seq, Tokens, per_beam
from zoo.nn.dropout import Dropout
from zoo.nn.linear import Dense, Embed
from zoo.nn.recurrent import CELLS, Carry, Cell, cudnn_gru_step, input_gates, maxout, scan_cell
from zoo.nn.sharding import BATCH, MODEL, constrain

TASK = "text to text, through one vector"


@dataclasses.dataclass(frozen=True)
class SutskeverConfig(ModelConfig):
    """Sutskever et al. 2014, section 3.4.

    Attributes:
      embed_dim: width of the word embeddings.
      hidden_dim: width D of every layer's state.
      num_layers: layers of the encoder, and of the decoder.
      reverse_source: read the source from its last token to its first, which brings its start next to the target's.
      dropout: on the input of every layer and of the output product.
    """

    embed_dim: int = 1000
    hidden_dim: int = 1000
    num_layers: int = 4
    reverse_source: bool = True
    dropout: float = 0.0

    PAPER: ClassVar = "Sutskever et al. 2014"
    CELL: ClassVar = "lstm"

    def build(self) -> Sutskever:
        return Sutskever(self)


@dataclasses.dataclass(frozen=True)
class ElmanConfig(SutskeverConfig):
    """Elman 1990: the same wiring around h' = tanh(W x + U h + b)."""

    hidden_dim: int = 256
    embed_dim: int = 256
    num_layers: int = 1
    reverse_source: bool = False

    PAPER: ClassVar = "Elman 1990"
    CELL: ClassVar = "elman"


@dataclasses.dataclass(frozen=True)
class ChoConfig(ModelConfig):
    """Cho et al. 2014, section 4.1.

    Attributes:
      embed_dim: width of the word embeddings.
      hidden_dim: width D of the state and of the summary c.
      maxout_dim: width of the maxout layer, after the maximum of each pair.
      dropout: on the embeddings and on the maxout layer.
    """

    embed_dim: int = 100
    hidden_dim: int = 1000
    maxout_dim: int = 500
    dropout: float = 0.0

    PAPER: ClassVar = "Cho et al. 2014"

    def build(self) -> Cho:
        return Cho(self)


PRESETS = {
    "elman-tiny": ElmanConfig(32, 32, embed_dim=16, hidden_dim=32),
    "sutskever-tiny": SutskeverConfig(32, 32, embed_dim=16, hidden_dim=32, num_layers=2),
    "cho-tiny": ChoConfig(32, 32, embed_dim=16, hidden_dim=32, maxout_dim=16),
    # Section 3.4: 4 layers of 1,000 cells, 160,000 source and 80,000 target words, "a total of 384M parameters".
    "sutskever-2014": SutskeverConfig(160_000, 80_000),
    # Section 4.1: 1,000 hidden units, embeddings of 100, 500 maxout units, 15,000 words.
    "cho-2014": ChoConfig(15_000, 15_000),
}


class Memory(NamedTuple):
    """The fixed vector, as a state for each layer of the decoder."""

    state: tuple[Carry, ...]


class Sutskever(Seq2Seq):
    """Deep recurrent encoder and decoder; the decoder's cache is its layers' states."""

    config: SutskeverConfig

    def setup(self):
        c = self.config
        self.source_embedding = Embed(c.source_vocab_size, c.embed_dim, embedding_init=normal(0.1))
        self.target_embedding = Embed(c.target_vocab_size, c.embed_dim, embedding_init=normal(0.1))
        widths = [c.embed_dim] + [c.hidden_dim] * (c.num_layers - 1)
        self.encoder = [Cell(c.CELL, width, c.hidden_dim, remat=self.remat) for width in widths]
        self.decoder = [Cell(c.CELL, width, c.hidden_dim, remat=self.remat) for width in widths]
        self.output = Dense(c.target_vocab_size, kernel_init=xavier_uniform())
        self.drop = Dropout(c.dropout)

    def encode(self, source: Tokens, train: bool = False, attention: bool = False) -> Memory:
        x_BSD, state = self.source_embedding(source.ids), []
        for layer in self.encoder:
            x_BSD = self.drop(x_BSD, deterministic=not train)
            carry, x_BSD = layer(x_BSD, source.mask, reverse=self.config.reverse_source)
            state.append(carry)
        return Memory(tuple(state))

    def init_cache(self, memory: Memory, max_len: int, beams: int = 1) -> tuple[Carry, ...]:
        return jax.tree.map(lambda x_BD: per_beam(x_BD, x_BD.shape[0] * beams), memory.state)

    def decode(self, tokens_BT, memory: Memory, cache=None, train: bool = False, attention: bool = False):
        cache = self.init_cache(memory, tokens_BT.shape[1]) if cache is None else cache
        x_BTD, state = self.target_embedding(tokens_BT), []
        for layer, carry in zip(self.decoder, cache, strict=True):
            x_BTD = self.drop(x_BTD, deterministic=not train)
            carry, x_BTD = layer(x_BTD, carry=carry)
            state.append(carry)
        x_BTD = self.drop(x_BTD, deterministic=not train)
        return Outputs(self.logits(x_BTD), {}, x_BTD), tuple(state)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        return constrain(self.output(hidden_BTD), BATCH, None, MODEL)

    # The names of torch.nn.RNN or torch.nn.LSTM (as ``encoder`` and ``decoder``) beside Embedding and Linear.
    RULES: ClassVar = (
        *embedding(r"(source|target)_embedding", r"\1_embedding"),
        *cell(r"(encoder|decoder)_(\d+)", r"\1", r"_l\2"),
        *linear("output", "output"),
    )
    # Gates lie side by side on the last axis: over ``model`` it would put different gates of a unit on different devices.
    SHARDING: ClassVar = (
        (r".*(input_kernel|recurrent_kernel|gates/kernel)", P("fsdp")),
        (r".*embedding", P("model", "fsdp")),
        (r"output/kernel", P("fsdp", "model")),
        (r".*", P()),
    )


class Summary(NamedTuple):
    """Cho's memory: the summary c of the source."""

    c_BD: jax.Array


class Cho(Seq2Seq):
    """GRU encoder-decoder (the paper's appendix A); the decoder's cache is its state h."""

    config: ChoConfig

    def setup(self):
        c = self.config
        dense = lambda width, **kw: Dense(width, kernel_init=xavier_uniform(), **kw)  # noqa: E731
        self.source_embedding = Embed(c.source_vocab_size, c.embed_dim, embedding_init=normal(0.1))
        self.target_embedding = Embed(c.target_vocab_size, c.embed_dim, embedding_init=normal(0.1))
        self.encoder = Cell("gru", c.embed_dim, c.hidden_dim, remat=self.remat)
        self.decoder = Cell("gru", c.embed_dim, c.hidden_dim, remat=self.remat)
        self.summary = dense(c.hidden_dim)  # V: c = tanh(V h_S)
        self.initial = dense(c.hidden_dim)  # V': h_0 = tanh(V' c)
        self.summary_gates = dense(CELLS["gru"].gates * c.hidden_dim, use_bias=False)  # C, C_z and C_r
        self.readout_state = dense(2 * c.maxout_dim)  # O_h
        self.readout_token = dense(2 * c.maxout_dim, use_bias=False)  # O_y
        self.readout_summary = dense(2 * c.maxout_dim, use_bias=False)  # O_c
        self.output = dense(c.target_vocab_size)  # G
        self.drop = Dropout(c.dropout)

    def encode(self, source: Tokens, train: bool = False, attention: bool = False) -> Summary:
        x_BSD = self.drop(self.source_embedding(source.ids), deterministic=not train)
        h_BD, _ = self.encoder(x_BSD, source.mask)
        return Summary(jnp.tanh(self.summary(h_BD)))

    def init_cache(self, memory: Summary, max_len: int, beams: int = 1) -> jax.Array:
        return per_beam(jnp.tanh(self.initial(memory.c_BD)), memory.c_BD.shape[0] * beams)

    def decode(self, tokens_BT, memory: Summary, cache=None, train: bool = False, attention: bool = False):
        h_BD = self.init_cache(memory, tokens_BT.shape[1]) if cache is None else cache
        c_B1D = per_beam(memory.c_BD, tokens_BT.shape[0])[:, None]
        y_BTD = self.drop(self.target_embedding(tokens_BT), deterministic=not train)
        # Appendix A.1.2: the decoder's candidate is tanh(W y + r (U h + C c)), so C c stands where cuDNN's GRU has a bias.
        r_and_z, candidate_BD = jnp.split(self.summary_gates(c_B1D[:, 0]), [2 * h_BD.shape[-1]], axis=-1)
        weights = self.decoder.weights._replace(recurrent_bias=candidate_BD)
        gates_BTG = input_gates(y_BTD, weights) + jnp.pad(r_and_z, ((0, 0), (0, h_BD.shape[-1])))[:, None]
        run = functools.partial(scan_cell, cudnn_gru_step)
        carry, h_BTD = (jax.checkpoint(run) if self.remat else run)(weights, gates_BTG, h_BD)
        readout_BTF = self.readout_state(h_BTD) + self.readout_token(y_BTD) + self.readout_summary(c_B1D)
        s_BTF = self.drop(maxout(readout_BTF), deterministic=not train)
        return Outputs(self.logits(s_BTF), {}, s_BTF), carry

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        return constrain(self.output(hidden_BTD), BATCH, None, MODEL)

    # No torch module has this GRU; the names are those of a port made of Embedding, Linear and bare matrices.
    RULES: ClassVar = (
        *embedding(r"(source|target)_embedding", r"\1_embedding"),
        Rule(r"(encoder|decoder)/(input|recurrent)_kernel", r"\1.\2.weight", TRANSPOSED),
        Rule(r"(encoder|decoder)/bias", r"\1.input.bias"),
        *linear(r"(summary|initial|summary_gates|readout_state|readout_token|readout_summary|output)", r"\1"),
    )
    SHARDING: ClassVar = Sutskever.SHARDING
