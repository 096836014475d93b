"""Transformer: "Attention Is All You Need", Vaswani et al. 2017 (arXiv:1706.03762).

Encoder and decoder are stacks of attention and feed-forward sublayers, each inside a residual connection with layer
normalisation; order is carried by positional encodings alone, so that training reads all positions at once.

Departures from the paper:
  - ``norm="pre"`` normalises the input of each sublayer instead of its sum, with one more normalisation at the end of
    each stack (Xiong et al. 2020, arXiv:2002.04745): trains without a long warm-up. "post" is the paper's.
  - ``positions="learned"`` is the paper's table 3, row E; it cannot read past ``max_len``.
  - Projections have biases, as in torch.nn.Transformer (the authors' own code had none in attention).
  - ``share_embeddings``: "all" is the paper's section 3.4 (source, target and output are one matrix) and wants one
    vocabulary for both sides; "target" shares target and output; "none" keeps three.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import normal, xavier_uniform
from jax.sharding import PartitionSpec as P

from zoo.checkpoint.rules import Rule, embedding, linear, norm, packed
from zoo.core import AppendOnly, ModelConfig, Outputs, Seq2Seq, Tokens, UserError, positions
from zoo.nn.attention import MultiHeadAttention
from zoo.nn.block import FeedForward, Residual
from zoo.nn.cache import DecoderCache, KeyValue, Visible
from zoo.nn.dropout import Dropout
from zoo.nn.linear import Dense, Embed
from zoo.nn.norm import LayerNorm
from zoo.nn.position import sinusoidal
from zoo.nn.sharding import BATCH, MODEL, constrain
from zoo.nn.stack import scan_layers

TASK = "translation and any text to text"


@dataclasses.dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """The paper's hyper-parameters, table 3.

    Attributes:
      d_model: width D of every layer's input and output.
      d_ff: width F between the two products of the feed-forward sublayer.
      num_heads: attention heads H; divides d_model.
      num_layers: layers of the encoder, and of the decoder.
      dropout: on the sum of embedding and position, and on each sublayer's output before it is added.
      norm: "post" as published, or "pre".
      positions: "sinusoidal" as published, or "learned".
      max_len: rows of the learned position tables; sinusoids have no limit.
      share_embeddings: "all", "target" or "none".
    """

    d_model: int = 512
    d_ff: int = 2048
    num_heads: int = 8
    num_layers: int = 6
    dropout: float = 0.1
    norm: Literal["post", "pre"] = "post"
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    max_len: int = 512
    share_embeddings: Literal["all", "target", "none"] = "all"

    PAPER: ClassVar = "Vaswani et al. 2017"

    @property
    def wants_one_vocabulary(self) -> bool:
        return self.share_embeddings == "all"

    def build(self) -> Transformer:
        if self.d_model % self.num_heads or self.d_model % 2:
            raise UserError(f"model.d_model is {self.d_model}: it must be even and a multiple of num_heads, {self.num_heads}")
        if self.wants_one_vocabulary and self.source_vocab_size != self.target_vocab_size:
            raise UserError(
                f'model.share_embeddings is "all" but the vocabularies have {self.source_vocab_size} and '
                f'{self.target_vocab_size} entries: use one for both sides, or set share_embeddings to "target"'
            )
        return Transformer(self)


# The paper's table 3. Its parameter counts, in millions: base 65, big 213 (37,000 shared byte pairs).
PRESETS = {
    "tiny": TransformerConfig(32, 32, d_model=32, d_ff=64, num_heads=4, num_layers=2, dropout=0.1),
    "base": TransformerConfig(37_000, 37_000),
    "big": TransformerConfig(37_000, 37_000, d_model=1024, d_ff=4096, num_heads=16, dropout=0.3),
}


class Memory(NamedTuple):
    """What the decoder reads of the source: each decoder layer's cross-attention keys and values, projected once."""

    keys: tuple[KeyValue, ...]
    mask_BS: jax.Array
    attention: dict[str, jax.Array]
    segments_BS: jax.Array | None = None


class EncoderLayer(nn.Module):
    """Self-attention, then the feed-forward network (figure 1, left)."""

    config: TransformerConfig
    kernel: str

    def setup(self):
        c = self.config
        self.attention = MultiHeadAttention(c.d_model, c.num_heads, self.kernel)
        self.feed_forward = FeedForward(c.d_model, c.d_ff)
        self.attention_residual, self.feed_forward_residual = Residual(c.norm, c.dropout), Residual(c.norm, c.dropout)

    def __call__(self, x_BSD: jax.Array, visible: Visible, train: bool, attention: bool):
        """Returns x (B, S, D) and, on request, the weights {"self"}."""
        weights = {}

        def attend(x_BSD):
            x_BSD, weights["self"] = self.attention(x_BSD, self.attention.project(x_BSD), visible, weights=attention)
            return x_BSD

        x_BSD = self.attention_residual(x_BSD, attend, train)
        return self.feed_forward_residual(x_BSD, self.feed_forward, train), weights if attention else {}


class DecoderLayer(nn.Module):
    """Causal self-attention, attention over the source, then the feed-forward network (figure 1, right)."""

    config: TransformerConfig
    kernel: str

    def setup(self):
        c = self.config
        self.attention = MultiHeadAttention(c.d_model, c.num_heads, self.kernel)
        self.cross_attention = MultiHeadAttention(c.d_model, c.num_heads, self.kernel)
        self.feed_forward = FeedForward(c.d_model, c.d_ff)
        self.attention_residual, self.cross_attention_residual = Residual(c.norm, c.dropout), Residual(c.norm, c.dropout)
        self.feed_forward_residual = Residual(c.norm, c.dropout)

    def __call__(
        self, x_RTD, source: KeyValue, seen: Visible, past: Visible, cache: KeyValue | None, index, train: bool, attention: bool
    ):
        """``seen`` is what of the source may be read, ``past`` what of the target: without a cache, and no later than oneself.

        Returns x (R, T, D), the cache with T more positions (or None), and, on request, the weights {"self", "cross"}.
        """
        weights, cached = {}, cache is not None

        def attend(x_RTD):
            nonlocal cache
            x_RTD, cache, weights["self"] = self.attention.read_past(x_RTD, past, cache, index, attention)
            return x_RTD

        def attend_source(x_RTD):
            x_RTD, weights["cross"] = self.cross_attention(x_RTD, source, seen, weights=attention, cached=cached)
            return x_RTD

        x_RTD = self.attention_residual(x_RTD, attend, train)
        x_RTD = self.cross_attention_residual(x_RTD, attend_source, train)
        return self.feed_forward_residual(x_RTD, self.feed_forward, train), cache, weights if attention else {}


def same_segment(segments_BT: jax.Array, segments_BS: jax.Array) -> jax.Array:
    """(B, 1, T, S) bool: whether two tokens belong to one pair."""
    return segments_BT[:, None, :, None] == segments_BS[:, None, None, :]


def _attention_rules(ours: str, theirs: str) -> tuple[Rule, ...]:
    return (
        *packed([f"{ours}/{name}" for name in ("query", "key", "value")], rf"{theirs}.in_proj_"),
        *linear(f"{ours}/out", f"{theirs}.out_proj"),
    )


# The names of torch.nn.Transformer (as ``transformer``) beside torch.nn.Embedding and torch.nn.Linear.
RULES = (
    *embedding(r"(|source_|target_)(embedding|positions)", r"\1\2"),
    *linear("output", "output"),
    *_attention_rules(r"(encoder|decoder)_(\d+)/attention", r"transformer.\1.layers.\2.self_attn"),
    *_attention_rules(r"decoder_(\d+)/cross_attention", r"transformer.decoder.layers.\1.multihead_attn"),
    *linear(r"(encoder|decoder)_(\d+)/feed_forward/inner", r"transformer.\1.layers.\2.linear1"),
    *linear(r"(encoder|decoder)_(\d+)/feed_forward/outer", r"transformer.\1.layers.\2.linear2"),
    *norm(r"(encoder|decoder)_(\d+)/attention_residual/norm", r"transformer.\1.layers.\2.norm1"),
    *norm(r"encoder_(\d+)/feed_forward_residual/norm", r"transformer.encoder.layers.\1.norm2"),
    *norm(r"decoder_(\d+)/cross_attention_residual/norm", r"transformer.decoder.layers.\1.norm2"),
    *norm(r"decoder_(\d+)/feed_forward_residual/norm", r"transformer.decoder.layers.\1.norm3"),
    *norm(r"(encoder|decoder)_norm", r"transformer.\1.norm"),
)

# Megatron's split: the first product of a pair by columns, the second by rows; the other axis over fsdp.
SHARDING = (
    (r".*(query|key|value|inner)/kernel", P("fsdp", "model")),
    (r".*(query|key|value|inner)/bias", P("model")),
    (r".*(out|outer)/kernel", P("model", "fsdp")),
    (r".*embedding", P("model", "fsdp")),
    (r"output/kernel", P("fsdp", "model")),
    (r".*", P()),
)


class Transformer(Seq2Seq):
    """The model. Attention names are ``encoder_0/self``, ``decoder_0/self``, ``decoder_0/cross`` and so on."""

    config: TransformerConfig

    RULES: ClassVar = RULES
    SHARDING: ClassVar = SHARDING
    PACKS: ClassVar = True
    SCANS: ClassVar = True

    def setup(self):
        c = self.config
        embed = lambda size: Embed(size, c.d_model, embedding_init=normal(c.d_model**-0.5))  # noqa: E731
        if c.share_embeddings == "all":
            self.embedding = embed(c.target_vocab_size)
        else:
            self.source_embedding = embed(c.source_vocab_size)
            self.target_embedding = embed(c.target_vocab_size)
        if c.share_embeddings == "none":
            self.output = Dense(c.target_vocab_size, use_bias=False, kernel_init=xavier_uniform())
        if c.positions == "learned":
            self.source_positions = Embed(c.max_len, c.d_model, embedding_init=normal(c.d_model**-0.5))
            self.target_positions = Embed(c.max_len, c.d_model, embedding_init=normal(c.d_model**-0.5))
        self.encoder = [EncoderLayer(c, self.kernel) for _ in range(c.num_layers)]
        self.decoder = [DecoderLayer(c, self.kernel) for _ in range(c.num_layers)]
        if c.norm == "pre":
            self.encoder_norm, self.decoder_norm = LayerNorm(epsilon=1e-5), LayerNorm(epsilon=1e-5)
        self.drop = Dropout(c.dropout)

    def embed(self, side: str, ids_BN: jax.Array, position_BN: jax.Array, train: bool) -> jax.Array:
        """Embeddings times sqrt(D), plus positions (sections 3.4 and 3.5): (B, N, D)."""
        c = self.config
        table = self.embedding if c.share_embeddings == "all" else getattr(self, f"{side}_embedding")
        # The table's width is split for storage alone: gathered first, or the partitioner would gather every device's rows.
        rows_BND = jnp.take(constrain(table.embedding, MODEL), ids_BN, axis=0)
        x_BND = constrain(rows_BND, BATCH) * c.d_model**0.5
        if c.positions == "sinusoidal":
            x_BND = x_BND + sinusoidal(position_BN, c.d_model).astype(x_BND.dtype)
        else:
            x_BND = x_BND + getattr(self, f"{side}_positions")(position_BN)
        return constrain(self.drop(x_BND, deterministic=not train), BATCH)

    def encode(self, source: Tokens, train: bool = False, attention: bool = False) -> Memory:
        self.check_length(source.ids.shape[1])
        visible = self.visible(source.mask, source.segments, source.segments)
        x_BSD = self.embed("source", source.ids, positions(source.mask, source.segments), train)
        weights = {}
        if self.scans(attention):
            call = lambda layer, x_BSD, _: layer(x_BSD, visible, train, False)[0]  # noqa: E731
            x_BSD = scan_layers(call, self.encoder, x_BSD, [None] * len(self.encoder), self.dropout_key(train), self.remat)
        else:
            call = self.rematerialised(lambda layer, x_BSD: layer(x_BSD, visible, train, attention))
            for i, layer in enumerate(self.encoder):
                x_BSD, w = call(layer, x_BSD)
                weights |= {f"encoder_{i}/{name}": value for name, value in w.items()}
        if self.config.norm == "pre":
            x_BSD = self.encoder_norm(x_BSD)
        keys = tuple(layer.cross_attention.project(x_BSD) for layer in self.decoder)
        return Memory(keys, source.mask, weights, source.segments)

    def init_cache(self, memory: Memory, max_len: int, beams: int = 1) -> DecoderCache:
        self.check_length(max_len)
        B, H, _, K = memory.keys[0].value.shape
        return DecoderCache.zeros(self.config.num_layers, B, beams, H, max_len, K, memory.keys[0].key.dtype)

    def decode(
        self,
        tokens_BT,
        memory: Memory,
        cache: DecoderCache | None = None,
        train: bool = False,
        attention: bool = False,
        segments_BT: jax.Array | None = None,
    ):
        seen = self.visible(memory.mask_BS, segments_BT, memory.segments_BS)
        if cache is not None:
            return self.decode_cached(tokens_BT, memory, seen, cache, train, attention)
        self.check_length(tokens_BT.shape[1])
        past, position_BT = Visible(None), jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        if segments_BT is not None:
            past = Visible(same_segment(segments_BT, segments_BT))
            position_BT = positions(jnp.ones(tokens_BT.shape, bool), segments_BT)
        x_BTD = self.embed("target", tokens_BT, position_BT, train)
        weights = dict(memory.attention) if attention else {}

        def call(layer, x_BTD, keys):
            return layer(x_BTD, keys, seen, past, None, None, train, attention)

        if self.scans(attention):
            first = lambda *args: call(*args)[0]  # noqa: E731
            x_BTD = scan_layers(first, self.decoder, x_BTD, memory.keys, self.dropout_key(train), self.remat)
        else:
            call = self.rematerialised(call)
            for i, layer in enumerate(self.decoder):
                x_BTD, _, w = call(layer, x_BTD, memory.keys[i])
                weights |= {f"decoder_{i}/{name}": value for name, value in w.items()}
        return self.outputs(x_BTD, weights), None

    def decode_cached(self, tokens_RT, memory: Memory, seen: Visible, cache: DecoderCache, train: bool, attention: bool):
        (R, T), index = tokens_RT.shape, cache.index
        beam_RN, mask = cache.read(T)
        x_RTD = self.embed("target", tokens_RT, jnp.broadcast_to(index + jnp.arange(T), (R, T)), train)
        layers, weights = [], dict(memory.attention) if attention else {}
        for i, layer in enumerate(self.decoder):
            args = (memory.keys[i], seen, Visible(mask), cache.layers.buffers[i], index, train, attention)
            x_RTD, new, w = layer(x_RTD, *args)
            layers.append(new)
            weights |= {f"decoder_{i}/{name}": value for name, value in w.items()}
        return self.outputs(x_RTD, weights), DecoderCache(AppendOnly(tuple(layers)), beam_RN, index + T)

    def outputs(self, x_BTD: jax.Array, weights: dict[str, jax.Array]) -> Outputs:
        if self.config.norm == "pre":
            x_BTD = self.decoder_norm(x_BTD)
        return Outputs(self.logits(x_BTD), weights, x_BTD)

    def visible(self, mask_BS: jax.Array, segments_BT: jax.Array | None, segments_BS: jax.Array | None) -> Visible:
        """What of the source may be read: the real tokens, of one's own pair where a row holds several."""
        if segments_BT is None or segments_BS is None:
            return Visible.real(mask_BS, self.right_padded)
        return Visible(mask_BS[:, None, None, :] & same_segment(segments_BT, segments_BS))

    def scans(self, attention: bool) -> bool:
        """Whether to loop over one compiled layer: parameters are there, and no layer has weights to hand out."""
        return self.scan_layers and not attention and not self.is_initializing()

    def dropout_key(self, train: bool) -> jax.Array | None:
        return self.make_rng("dropout") if train and self.config.dropout else None

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """The output product, with the target embedding's transpose where it is shared: (B, T, V)."""
        if self.config.share_embeddings == "none":
            logits_BTV = self.output(hidden_BTD)
        else:
            table = self.embedding if self.config.share_embeddings == "all" else self.target_embedding
            logits_BTV = table.attend(hidden_BTD)
        return constrain(logits_BTV, BATCH, None, MODEL)

    def check_length(self, length: int) -> None:
        if self.config.positions == "learned" and length > self.config.max_len:
            raise UserError(
                f"a sequence of {length} tokens does not fit model.max_len = {self.config.max_len}: "
                'shorten it, raise max_len, or set model.positions to "sinusoidal"'
            )
