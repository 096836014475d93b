"""Marian, M2M-100 and NLLB: translation models that are published with their weights.

Junczys-Dowmunt et al. 2018 (arXiv:1804.00344) with OPUS-MT's models (Tiedemann and Thottingal 2020); Fan et al. 2020
(arXiv:2010.11125); NLLB Team 2022 (arXiv:2207.04672). Each is a Transformer (Vaswani et al. 2017), and they differ in

                       Marian                              M2M-100, NLLB (dense)
    norm               after each sublayer's sum           before each sublayer, one more at the end of a stack
    positions          sines then cosines, from 0          the same with another step between wavelengths, from pad_id + 1
    activation         swish, or relu                      relu
    output             a bias for each token               none
    first token read   the padding token                   the end token
    language           a token that the source begins with a token that the source begins with, and the target's own
                       (models of several languages)       as the first that is generated (``Decoding.first_id``)

Departures from the papers and from transformers' code: one dropout rate, on embeddings and sublayers; those of attention
weights, of activations and of whole layers are kept in config.json and not applied. Padding of the source is never seen, on
either side; transformers' Marian counts it in the positions. NLLB's mixtures of experts are not read.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import normal, zeros
from jax.sharding import PartitionSpec as P

from zoo.checkpoint.fields import Architecture, Fields
from zoo.checkpoint.rules import ROW, Constant, Copy, Rule, embedding, linear, norm, projections
from zoo.core import BOS, EOS, PAD, AppendOnly, ModelConfig, Outputs, Seq2Seq, Tokens, UserError, positions
from zoo.nn.activation import gelu
from zoo.nn.attention import MultiHeadAttention
from zoo.nn.block import FeedForward, Residual
from zoo.nn.cache import DecoderCache, KeyValue, Visible
from zoo.nn.dropout import Dropout
from zoo.nn.linear import Embed
from zoo.nn.norm import LayerNorm
from zoo.nn.position import sines_then_cosines, table_of_sines_then_cosines
from zoo.nn.sharding import BATCH, MODEL, constrain

TASK = "translation, pretrained"
ACTIVATIONS = {"swish": nn.swish, "relu": nn.relu, "gelu": gelu}


@dataclasses.dataclass(frozen=True)
class MarianConfig(ModelConfig):
    """Sizes and choices; the table above says which model has which.

    Attributes:
      d_model: width D of every layer's input and output.
      encoder_layers, decoder_layers: how many.
      encoder_heads, decoder_heads: attention heads H; divide d_model.
      encoder_d_ff, decoder_d_ff: width F between the two products of a feed-forward sublayer.
      dropout: on the sum of embedding and position, and on each sublayer's output before it is added.
      activation: of the feed-forward sublayers.
      norm: "post" (Marian) or "pre" (M2M-100).
      positions: "marian" or "fairseq" (M2M-100).
      scale_embedding: whether embeddings are multiplied by sqrt(D).
      share_embeddings: whether source and target have one embedding; the output's is the target's in any case.
      output_bias: whether each token has a bias.
      max_len: positions that the published model was made for; sinusoids have no limit.
      start_id, end_id, pad_id: see ``ModelConfig``.
    """

    d_model: int = 512
    encoder_layers: int = 6
    decoder_layers: int = 6
    encoder_heads: int = 8
    decoder_heads: int = 8
    encoder_d_ff: int = 2048
    decoder_d_ff: int = 2048
    dropout: float = 0.1
    activation: Literal["swish", "relu", "gelu"] = "swish"
    norm: Literal["post", "pre"] = "post"
    positions: Literal["marian", "fairseq"] = "marian"
    scale_embedding: bool = True
    share_embeddings: bool = True
    output_bias: bool = True
    max_len: int = 512
    start_id: int = BOS
    end_id: int = EOS
    pad_id: int = PAD

    @property
    def PAPER(self) -> str:  # noqa: N802
        return "Fan et al. 2020" if self.positions == "fairseq" else "Junczys-Dowmunt et al. 2018"

    @property
    def wants_one_vocabulary(self) -> bool:
        return self.share_embeddings

    def build(self) -> Marian:
        if self.d_model % self.encoder_heads or self.d_model % self.decoder_heads or self.d_model % 2:
            raise UserError(
                f"model.d_model is {self.d_model}: it must be even and a multiple of encoder_heads, {self.encoder_heads}, and "
                f"decoder_heads, {self.decoder_heads}"
            )
        if self.share_embeddings and self.source_vocab_size != self.target_vocab_size:
            raise UserError(
                f"model.share_embeddings is set but the vocabularies have {self.source_vocab_size} and "
                f"{self.target_vocab_size} entries: use one for both sides, or unset it"
            )
        return Marian(self)


OPUS = {"start_id": 58_100, "end_id": 0, "pad_id": 58_100}
M2M = {
    **{"d_model": 1024, "encoder_layers": 12, "decoder_layers": 12, "encoder_heads": 16, "decoder_heads": 16},
    **{"activation": "relu", "norm": "pre", "positions": "fairseq", "output_bias": False, "max_len": 1024},
    **{"start_id": 2, "end_id": 2, "pad_id": 1},
}
TINY = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in (("layers", 2), ("heads", 4), ("d_ff", 64))}

# The sizes of the published checkpoints.
PRESETS = {
    "tiny": MarianConfig(32, 32, d_model=32, **TINY),
    "opus-mt": MarianConfig(58_101, 58_101, **OPUS),
    "m2m100-418m": MarianConfig(128_112, 128_112, encoder_d_ff=4096, decoder_d_ff=4096, **M2M),
    "nllb-200-600m": MarianConfig(256_206, 256_206, encoder_d_ff=4096, decoder_d_ff=4096, **M2M),
}


class Memory(NamedTuple):
    """What the decoder reads of the source: each decoder layer's cross-attention keys and values, projected once."""

    keys: tuple[KeyValue, ...]
    mask_BS: jax.Array
    attention: dict[str, jax.Array]


class EncoderLayer(nn.Module):
    """Self-attention, then the feed-forward network."""

    config: MarianConfig
    kernel: str

    def setup(self):
        c = self.config
        self.attention = MultiHeadAttention(c.d_model, c.encoder_heads, self.kernel)
        self.feed_forward = FeedForward(c.d_model, c.encoder_d_ff, ACTIVATIONS[c.activation])
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
    """Causal self-attention, attention over the source, then the feed-forward network."""

    config: MarianConfig
    kernel: str

    def setup(self):
        c = self.config
        self.attention = MultiHeadAttention(c.d_model, c.decoder_heads, self.kernel)
        self.cross_attention = MultiHeadAttention(c.d_model, c.decoder_heads, self.kernel)
        self.feed_forward = FeedForward(c.d_model, c.decoder_d_ff, ACTIVATIONS[c.activation])
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


# The names of transformers' MarianMTModel and M2M100ForConditionalGeneration.
RULES = (
    *embedding("embedding", "model.shared"),
    *embedding("source_embedding", "model.encoder.embed_tokens"),
    *embedding("target_embedding", "model.decoder.embed_tokens"),
    Rule("output_bias", "final_logits_bias", ROW),
    *projections(r"(encoder|decoder)_(\d+)/attention", r"model.\1.layers.\2.self_attn"),
    *projections(r"decoder_(\d+)/cross_attention", r"model.decoder.layers.\1.encoder_attn"),
    *linear(r"(encoder|decoder)_(\d+)/feed_forward/inner", r"model.\1.layers.\2.fc1"),
    *linear(r"(encoder|decoder)_(\d+)/feed_forward/outer", r"model.\1.layers.\2.fc2"),
    *norm(r"(encoder|decoder)_(\d+)/attention_residual/norm", r"model.\1.layers.\2.self_attn_layer_norm"),
    *norm(r"decoder_(\d+)/cross_attention_residual/norm", r"model.decoder.layers.\1.encoder_attn_layer_norm"),
    *norm(r"(encoder|decoder)_(\d+)/feed_forward_residual/norm", r"model.\1.layers.\2.final_layer_norm"),
    *norm(r"(encoder|decoder)_norm", r"model.\1.layer_norm"),
    Copy(r"lm_head\.weight|model\.(encoder|decoder)\.embed_tokens\.weight", "model.shared.weight"),
    Copy(r"lm_head\.weight", "model.decoder.embed_tokens.weight"),
    Constant(r"model\.(encoder|decoder)\.embed_positions\.weight", table_of_sines_then_cosines),
)

# Megatron's split: the first product of a pair by columns, the second by rows; the other axis over fsdp.
SHARDING = (
    (r".*(query|key|value|inner)/kernel", P("fsdp", "model")),
    (r".*(query|key|value|inner)/bias", P("model")),
    (r".*(out|outer)/kernel", P("model", "fsdp")),
    (r".*embedding", P("model", "fsdp")),
    (r"output_bias", P("model")),
    (r".*", P()),
)


class Marian(Seq2Seq):
    """The model. Attention names are ``encoder_0/self``, ``decoder_0/self``, ``decoder_0/cross`` and so on."""

    config: MarianConfig

    RULES: ClassVar = RULES
    SHARDING: ClassVar = SHARDING

    def setup(self):
        c = self.config
        embed = lambda size: Embed(size, c.d_model, embedding_init=normal(c.d_model**-0.5))  # noqa: E731
        if c.share_embeddings:
            self.embedding = embed(c.target_vocab_size)
        else:
            self.source_embedding, self.target_embedding = embed(c.source_vocab_size), embed(c.target_vocab_size)
        if c.output_bias:
            self.output_bias = self.param("output_bias", zeros, (c.target_vocab_size,))
        self.encoder = [EncoderLayer(c, self.kernel) for _ in range(c.encoder_layers)]
        self.decoder = [DecoderLayer(c, self.kernel) for _ in range(c.decoder_layers)]
        if c.norm == "pre":
            self.encoder_norm, self.decoder_norm = LayerNorm(epsilon=1e-5), LayerNorm(epsilon=1e-5)
        self.drop = Dropout(c.dropout)

    def table(self, side: str) -> Embed:
        return self.embedding if self.config.share_embeddings else getattr(self, f"{side}_embedding")

    def embed(self, side: str, ids_BN: jax.Array, position_BN: jax.Array, train: bool) -> jax.Array:
        """Embeddings, scaled, plus positions: (B, N, D)."""
        c = self.config
        x_BND = self.table(side)(ids_BN) * (c.d_model**0.5 if c.scale_embedding else 1)
        if c.positions == "marian":
            sinusoids_BND = sines_then_cosines(position_BN, c.d_model, c.d_model // 2)
        else:
            sinusoids_BND = sines_then_cosines(position_BN + c.pad_id + 1, c.d_model, c.d_model // 2 - 1)
        return constrain(self.drop(x_BND + sinusoids_BND.astype(x_BND.dtype), deterministic=not train), BATCH)

    def encode(self, source: Tokens, train: bool = False, attention: bool = False) -> Memory:
        visible, weights = Visible.real(source.mask, self.right_padded), {}
        x_BSD = self.embed("source", source.ids, positions(source.mask), train)
        call = self.rematerialised(lambda layer, x_BSD: layer(x_BSD, visible, train, attention))
        for i, layer in enumerate(self.encoder):
            x_BSD, w = call(layer, x_BSD)
            weights |= {f"encoder_{i}/{name}": value for name, value in w.items()}
        if self.config.norm == "pre":
            x_BSD = self.encoder_norm(x_BSD)
        keys = tuple(layer.cross_attention.project(x_BSD) for layer in self.decoder)
        return Memory(keys, source.mask, weights)

    def init_cache(self, memory: Memory, max_len: int, beams: int = 1) -> DecoderCache:
        B, H, _, K = memory.keys[0].value.shape
        return DecoderCache.zeros(self.config.decoder_layers, B, beams, H, max_len, K, memory.keys[0].key.dtype)

    def decode(
        self, tokens_BT, memory: Memory, cache: DecoderCache | None = None, train: bool = False, attention: bool = False
    ):
        (R, T), seen = tokens_BT.shape, Visible.real(memory.mask_BS, self.right_padded)
        if cache is None:
            index, past, beam_RN, buffers = 0, Visible(None), None, [None] * len(self.decoder)
        else:
            index, (beam_RN, mask), buffers = cache.index, cache.read(T), cache.layers.buffers
            past = Visible(mask)
        x_BTD = self.embed("target", tokens_BT, jnp.broadcast_to(index + jnp.arange(T), (R, T)), train)
        call = self.rematerialised(
            lambda layer, x_BTD, keys, buffer: layer(x_BTD, keys, seen, past, buffer, index, train, attention)
        )
        layers, weights = [], dict(memory.attention) if attention else {}
        for i, layer in enumerate(self.decoder):
            x_BTD, new, w = call(layer, x_BTD, memory.keys[i], buffers[i])
            layers.append(new)
            weights |= {f"decoder_{i}/{name}": value for name, value in w.items()}
        if self.config.norm == "pre":
            x_BTD = self.decoder_norm(x_BTD)
        new_cache = None if cache is None else DecoderCache(AppendOnly(tuple(layers)), beam_RN, index + T)
        return Outputs(self.logits(x_BTD), weights, x_BTD), new_cache

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """The product with the target embedding's transpose, plus the bias of each token: (B, T, V)."""
        logits_BTV = self.table("target").attend(hidden_BTD)
        logits_BTV = logits_BTV + jnp.expand_dims(self.output_bias, (0, 1)) if self.config.output_bias else logits_BTV
        return constrain(logits_BTV, BATCH, None, MODEL)


def _read(fields: Fields, vocabularies: tuple[int, int], **choices: Any) -> MarianConfig:
    """What the two families' config.json have in common."""
    sides = ("encoder", "decoder")
    return MarianConfig(
        *vocabularies,
        d_model=fields.size("d_model", 1024),
        **{f"{side}_layers": fields.layers(f"{side}_layers", 12) for side in sides},
        **{f"{side}_heads": fields.size(f"{side}_attention_heads", 16) for side in sides},
        **{f"{side}_d_ff": fields.size(f"{side}_ffn_dim", 4096) for side in sides},
        dropout=fields.rate("dropout", 0.1),
        max_len=fields.size("max_position_embeddings", 1024),
        **choices,
    )


def _write(config: MarianConfig) -> dict[str, Any]:
    sides = ("encoder", "decoder")
    return {
        "vocab_size": config.source_vocab_size,
        "d_model": config.d_model,
        **{f"{side}_layers": getattr(config, f"{side}_layers") for side in sides},
        **{f"{side}_attention_heads": getattr(config, f"{side}_heads") for side in sides},
        **{f"{side}_ffn_dim": getattr(config, f"{side}_d_ff") for side in sides},
        "dropout": config.dropout,
        "max_position_embeddings": config.max_len,
        "activation_function": config.activation,
        "scale_embedding": config.scale_embedding,
        "decoder_start_token_id": config.start_id,
        "eos_token_id": config.end_id,
        "pad_token_id": config.pad_id,
    }


def _read_marian(fields: Fields) -> MarianConfig:
    shared, source = fields.flag("share_encoder_decoder_embeddings", True), fields.vocabulary("vocab_size", 58_101)
    target = source if shared else fields.vocabulary("decoder_vocab_size", source)
    fields.choice("tie_word_embeddings", (True,), True)
    fields.choice("normalize_before", (False,), False)
    fields.choice("normalize_embedding", (False,), False)
    fields.choice("static_position_embeddings", (True,), True)
    return _read(
        fields,
        (source, target),
        activation=fields.choice("activation_function", tuple(ACTIVATIONS), "gelu"),
        scale_embedding=fields.flag("scale_embedding", False),
        share_embeddings=shared,
        start_id=fields.token("decoder_start_token_id", target, 58_100),
        end_id=fields.token("eos_token_id", target, 0),
        pad_id=fields.token("pad_token_id", target, 58_100),
    )


def _write_marian(config: MarianConfig) -> dict[str, Any]:
    return _write(config) | {
        "decoder_vocab_size": config.target_vocab_size,
        "share_encoder_decoder_embeddings": config.share_embeddings,
        "tie_word_embeddings": True,
    }


def _read_m2m(fields: Fields) -> MarianConfig:
    size = fields.vocabulary("vocab_size", 128_112)
    fields.choice("tie_word_embeddings", (True,), True)
    return _read(
        fields,
        (size, size),
        activation=fields.choice("activation_function", tuple(ACTIVATIONS), "relu"),
        norm="pre",
        positions="fairseq",
        scale_embedding=fields.flag("scale_embedding", True),
        output_bias=False,
        start_id=fields.token("decoder_start_token_id", size, 2),
        end_id=fields.token("eos_token_id", size, 2),
        pad_id=fields.token("pad_token_id", size, 1),
    )


# An M2M-100 is told from a Marian by its choices, which both ways keep.
HUGGINGFACE = {
    "MarianMTModel": Architecture("marian", _read_marian, _write_marian),
    "M2M100ForConditionalGeneration": Architecture("m2m_100", _read_m2m, _write),
}
