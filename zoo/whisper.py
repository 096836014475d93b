"""Whisper: speech recognition and translation into English, published with its weights.

Radford et al. 2022 (arXiv:2212.04356). A Transformer (Vaswani et al. 2017) with a norm before each sublayer that reads log-mel
frames of sound (``zoo.nn.audio``) through two convolutions, of which the second keeps every other position. They differ in

                     tiny, base, small, medium, large, large-v2    large-v3    large-v3-turbo
    mel bands        80                                            128         128
    decoder layers   as many as the encoder's                      the same    4 of 32
    vocabulary       51,865; English-only (".en") 51,864           51,866      51,866

and the decoder is told by its first tokens what to do: language, task, whether to write timestamps (``zoo.speech``).

Departures from the paper and from transformers' code: one dropout rate, on embeddings and sublayers (the published one is 0);
those of attention weights, of activations and of whole layers are kept in config.json and not applied. Masked frames are never
seen; the published models were trained to read 30 s in which silence follows the sound, and ``zoo.speech`` gives them that. The
sinusoids of the encoder are a parameter, as in transformers' files, that no gradient reaches.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.initializers import normal
from jax.sharding import PartitionSpec as P

from zoo.checkpoint.fields import Architecture, Fields
from zoo.checkpoint.rules import Copy, Layout, Rule, embedding, linear, norm, projections
from zoo.core import (
    BOS,
    EOS,
    PAD,
    AppendOnly,
    Frames,
    ModelConfig,
    Outputs,
    Seq2Seq,
    Sound,
    Tokens,
    UserError,
    random_tokens,
)
from zoo.nn.activation import gelu
from zoo.nn.attention import MultiHeadAttention
from zoo.nn.audio import log_mel
from zoo.nn.block import FeedForward, Residual
from zoo.nn.cache import DecoderCache, KeyValue, Visible
from zoo.nn.dropout import Dropout
from zoo.nn.linear import Embed
from zoo.nn.norm import LayerNorm
from zoo.nn.position import sines_then_cosines
from zoo.nn.sharding import BATCH, MODEL, by_rows, constrain

TASK = "speech recognition, pretrained"


@dataclasses.dataclass(frozen=True)
class WhisperConfig(ModelConfig):
    """Sizes; both vocabularies are the one of the text.

    Attributes:
      mels: M, numbers of a frame.
      d_model: width D of every layer's input and output.
      encoder_layers, decoder_layers: how many.
      encoder_heads, decoder_heads: attention heads H; divide d_model.
      encoder_d_ff, decoder_d_ff: width F between the two products of a feed-forward sublayer.
      dropout: on the sum of embedding and position, and on each sublayer's output before it is added.
      max_source_len: positions of the encoder, each of two frames.
      max_len: positions of the decoder.
      start_id, end_id, pad_id: see ``ModelConfig``.
    """

    PAPER: ClassVar[str] = "Radford et al. 2022"

    mels: int = 80
    d_model: int = 384
    encoder_layers: int = 4
    decoder_layers: int = 4
    encoder_heads: int = 6
    decoder_heads: int = 6
    encoder_d_ff: int = 1536
    decoder_d_ff: int = 1536
    dropout: float = 0.0
    max_source_len: int = 1500
    max_len: int = 448
    start_id: int = BOS
    end_id: int = EOS
    pad_id: int = PAD

    @property
    def wants_one_vocabulary(self) -> bool:
        return True

    def example(self, batch: int = 2, source_len: int = 7, target_len: int = 5, seed: int = 0) -> tuple[Frames, Tokens]:
        """Random frames, ragged and right-padded as the target is."""
        rng = np.random.default_rng(seed)
        mask_BN = random_tokens(rng, batch, source_len, self.target_vocab_size).mask
        values_BNM = rng.standard_normal((batch, source_len, self.mels)).astype(np.float32)
        return Frames(values_BNM, mask_BN), random_tokens(rng, batch, target_len, self.target_vocab_size)

    def build(self) -> Whisper:
        if self.d_model % self.encoder_heads or self.d_model % self.decoder_heads or self.d_model % 2:
            raise UserError(
                f"model.d_model is {self.d_model}: it must be even and a multiple of encoder_heads, {self.encoder_heads}, and "
                f"decoder_heads, {self.decoder_heads}"
            )
        return Whisper(self)


def _size(layers: int, d_model: int, heads: int, vocab_size: int = 51_865, **more: int) -> WhisperConfig:
    english = vocab_size == 51_864
    ids = {"start_id": 50_257 if english else 50_258, "end_id": 50_256 if english else 50_257}
    sides = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", layers), ("heads", heads))}
    widths = {"encoder_d_ff": 4 * d_model, "decoder_d_ff": 4 * d_model}
    sizes = sides | widths | ids | {"pad_id": ids["end_id"]} | more
    return WhisperConfig(vocab_size, vocab_size, d_model=d_model, **sizes)


SIZES = {"tiny": (4, 384, 6), "base": (6, 512, 8), "small": (12, 768, 12), "medium": (24, 1024, 16)}
LARGE = (32, 1280, 20)

# Table 1 of the paper, and what was published later.
PRESETS = {
    "tiny": WhisperConfig(
        32, 32, mels=8, d_model=32, encoder_layers=2, decoder_layers=2, encoder_heads=4, decoder_heads=4,
        encoder_d_ff=64, decoder_d_ff=64, dropout=0.1, max_source_len=64, max_len=64,
    ),
    **{f"whisper-{name}": _size(*size) for name, size in SIZES.items()},
    **{f"whisper-{name}.en": _size(*size, 51_864) for name, size in SIZES.items()},
    "whisper-large": _size(*LARGE),
    "whisper-large-v2": _size(*LARGE),
    "whisper-large-v3": _size(*LARGE, 51_866, mels=128),
    "whisper-large-v3-turbo": _size(*LARGE, 51_866, mels=128, decoder_layers=4),
}  # fmt: skip


class Memory(NamedTuple):
    """What the decoder reads of the source: each decoder layer's cross-attention keys and values, projected once."""

    keys: tuple[KeyValue, ...]
    mask_BS: jax.Array
    attention: dict[str, jax.Array]


class EncoderLayer(nn.Module):
    """Self-attention, then the feed-forward network."""

    config: WhisperConfig
    kernel: str

    def setup(self):
        c = self.config
        self.attention = MultiHeadAttention(c.d_model, c.encoder_heads, self.kernel, key_bias=False)
        self.feed_forward = FeedForward(c.d_model, c.encoder_d_ff, gelu)
        self.attention_residual, self.feed_forward_residual = Residual("pre", c.dropout), Residual("pre", c.dropout)

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

    config: WhisperConfig
    kernel: str

    def setup(self):
        c = self.config
        self.attention = MultiHeadAttention(c.d_model, c.decoder_heads, self.kernel, key_bias=False)
        self.cross_attention = MultiHeadAttention(c.d_model, c.decoder_heads, self.kernel, key_bias=False)
        self.feed_forward = FeedForward(c.d_model, c.decoder_d_ff, gelu)
        self.attention_residual, self.cross_attention_residual = Residual("pre", c.dropout), Residual("pre", c.dropout)
        self.feed_forward_residual = Residual("pre", c.dropout)

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


CONVOLUTION = Layout(lambda x: (x.transpose(2, 1, 0),), lambda x: x.transpose(2, 1, 0))

# The names of transformers' WhisperForConditionalGeneration.
RULES = (
    *embedding("embedding", "model.decoder.embed_tokens"),
    *embedding("(encoder|decoder)_positions", r"model.\1.embed_positions"),
    Rule(r"convolution_(\d)/kernel", r"model.encoder.conv\1.weight", CONVOLUTION),
    Rule(r"convolution_(\d)/bias", r"model.encoder.conv\1.bias"),
    *projections(r"(encoder|decoder)_(\d+)/attention", r"model.\1.layers.\2.self_attn"),
    *projections(r"decoder_(\d+)/cross_attention", r"model.decoder.layers.\1.encoder_attn"),
    *linear(r"(encoder|decoder)_(\d+)/feed_forward/inner", r"model.\1.layers.\2.fc1"),
    *linear(r"(encoder|decoder)_(\d+)/feed_forward/outer", r"model.\1.layers.\2.fc2"),
    *norm(r"(encoder|decoder)_(\d+)/attention_residual/norm", r"model.\1.layers.\2.self_attn_layer_norm"),
    *norm(r"decoder_(\d+)/cross_attention_residual/norm", r"model.decoder.layers.\1.encoder_attn_layer_norm"),
    *norm(r"(encoder|decoder)_(\d+)/feed_forward_residual/norm", r"model.\1.layers.\2.final_layer_norm"),
    *norm(r"(encoder|decoder)_norm", r"model.\1.layer_norm"),
    Copy(r"proj_out\.weight", "model.decoder.embed_tokens.weight"),
)

# Megatron's split: the first product of a pair by columns, the second by rows; the other axis over fsdp.
SHARDING = (
    (r".*(query|key|value|inner)/kernel", P("fsdp", "model")),
    (r".*(query|key|value|inner)/bias", P("model")),
    (r".*(out|outer)/kernel", P("model", "fsdp")),
    (r"embedding/embedding", P("model", "fsdp")),
    (r".*", P()),
)


def _sinusoids(key: jax.Array, shape: tuple[int, int], dtype=jnp.float32) -> jax.Array:
    """The encoder's positions: an initializer that draws nothing."""
    length, D = shape
    return sines_then_cosines(jnp.arange(length)[None], D, D // 2 - 1)[0].astype(dtype)


class Whisper(Seq2Seq):
    """The model. Attention names are ``encoder_0/self``, ``decoder_0/self``, ``decoder_0/cross`` and so on."""

    config: WhisperConfig

    RULES: ClassVar = RULES
    SHARDING: ClassVar = SHARDING
    SOUND: ClassVar = True

    def setup(self):
        c = self.config
        convolution = lambda stride: nn.Conv(c.d_model, (3,), stride, padding=((1, 1),))  # noqa: E731
        self.convolution_1, self.convolution_2 = convolution(1), convolution(2)
        self.embedding = Embed(c.target_vocab_size, c.d_model, embedding_init=normal(c.d_model**-0.5))
        self.encoder_positions = Embed(c.max_source_len, c.d_model, embedding_init=_sinusoids)
        self.decoder_positions = Embed(c.max_len, c.d_model, embedding_init=normal(0.02))
        self.encoder = [EncoderLayer(c, self.kernel) for _ in range(c.encoder_layers)]
        self.decoder = [DecoderLayer(c, self.kernel) for _ in range(c.decoder_layers)]
        self.encoder_norm, self.decoder_norm = LayerNorm(epsilon=1e-5), LayerNorm(epsilon=1e-5)
        self.drop = Dropout(c.dropout)

    def convolve(self, source: Frames) -> tuple[jax.Array, jax.Array]:
        """Both convolutions over the real frames, moved to the left: (B, S, D) and the mask (B, S) of half the frames."""
        order_BN = jnp.argsort(~source.mask, axis=1, stable=True)
        x_BNM = jnp.take_along_axis(source.values, order_BN[:, :, None], axis=1)
        mask_BN = jnp.take_along_axis(source.mask, order_BN, axis=1)
        # What follows the last frame is zero to both convolutions, as where the array ends.
        x_BNM = jnp.where(mask_BN[:, :, None], x_BNM, 0).astype(self.embedding.embedding.dtype)
        x_BND = jnp.where(mask_BN[:, :, None], gelu(self.convolution_1(x_BNM)), 0)
        return gelu(self.convolution_2(x_BND)), mask_BN[:, ::2]

    def encode(self, source: Sound | Frames | Memory, train: bool = False, attention: bool = False) -> Memory:
        """As every model's; a memory is given back, so that several searches over one sound encode it once."""
        if isinstance(source, Memory):
            return source
        c = self.config
        if isinstance(source, Sound):
            source = Frames(by_rows(lambda samples_BN: log_mel(samples_BN, c.mels), source.samples), source.mask)
        if -(-source.values.shape[1] // 2) > c.max_source_len:
            raise UserError(
                f"the source has {source.values.shape[1]} frames and the model reads at most {2 * c.max_source_len}: cut it "
                "into windows, as zoo.speech does"
            )
        x_BSD, mask_BS = self.convolve(source)
        positions_SD = jax.lax.stop_gradient(self.encoder_positions.embedding)[: x_BSD.shape[1]]
        x_BSD = constrain(self.drop(x_BSD + positions_SD[None], deterministic=not train), BATCH)
        visible, weights = Visible.real(mask_BS, right_padded=True), {}
        call = self.rematerialised(lambda layer, x_BSD: layer(x_BSD, visible, train, attention))
        for i, layer in enumerate(self.encoder):
            x_BSD, w = call(layer, x_BSD)
            weights |= {f"encoder_{i}/{name}": value for name, value in w.items()}
        x_BSD = self.encoder_norm(x_BSD)
        return Memory(tuple(layer.cross_attention.project(x_BSD) for layer in self.decoder), mask_BS, weights)

    def init_cache(self, memory: Memory, max_len: int, beams: int = 1) -> DecoderCache:
        self.check_length(max_len)
        B, H, _, K = memory.keys[0].value.shape
        return DecoderCache.zeros(self.config.decoder_layers, B, beams, H, max_len, K, memory.keys[0].key.dtype)

    def decode(
        self, tokens_BT, memory: Memory, cache: DecoderCache | None = None, train: bool = False, attention: bool = False
    ):
        T, seen = tokens_BT.shape[1], Visible.real(memory.mask_BS, right_padded=True)
        self.check_length(T)
        if cache is None:
            index, past, beam_RN, buffers = 0, Visible(None), None, [None] * len(self.decoder)
        else:
            index, (beam_RN, mask), buffers = cache.index, cache.read(T), cache.layers.buffers
            past = Visible(mask)
        x_BTD = self.embedding(tokens_BT) + self.decoder_positions(index + jnp.arange(T)[None])
        x_BTD = constrain(self.drop(x_BTD, deterministic=not train), BATCH)
        call = self.rematerialised(
            lambda layer, x_BTD, keys, buffer: layer(x_BTD, keys, seen, past, buffer, index, train, attention)
        )
        layers, weights = [], dict(memory.attention) if attention else {}
        for i, layer in enumerate(self.decoder):
            x_BTD, new, w = call(layer, x_BTD, memory.keys[i], buffers[i])
            layers.append(new)
            weights |= {f"decoder_{i}/{name}": value for name, value in w.items()}
        x_BTD = self.decoder_norm(x_BTD)
        new_cache = None if cache is None else DecoderCache(AppendOnly(tuple(layers)), beam_RN, index + T)
        return Outputs(self.logits(x_BTD), weights, x_BTD), new_cache

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """The product with the embedding's transpose: (B, T, V)."""
        return constrain(self.embedding.attend(hidden_BTD), BATCH, None, MODEL)

    def check_length(self, length: int) -> None:
        if length > self.config.max_len:
            raise UserError(f"{length} tokens do not fit the {self.config.max_len} positions of the decoder: ask for fewer")


SIDES = ("encoder", "decoder")


def _read(fields: Fields) -> WhisperConfig:
    size = fields.vocabulary("vocab_size", 51_865)
    fields.choice("tie_word_embeddings", (True,), True)
    fields.choice("scale_embedding", (False,), False)
    fields.choice("activation_function", ("gelu",), "gelu")
    return WhisperConfig(
        size,
        size,
        mels=fields.size("num_mel_bins", 80),
        d_model=fields.size("d_model", 384),
        **{f"{side}_layers": fields.layers(f"{side}_layers", 4) for side in SIDES},
        **{f"{side}_heads": fields.size(f"{side}_attention_heads", 6) for side in SIDES},
        **{f"{side}_d_ff": fields.size(f"{side}_ffn_dim", 1536) for side in SIDES},
        dropout=fields.rate("dropout", 0.0),
        max_source_len=fields.size("max_source_positions", 1500),
        max_len=fields.size("max_target_positions", 448),
        start_id=fields.token("decoder_start_token_id", size, 50_257),
        end_id=fields.token("eos_token_id", size, 50_256),
        pad_id=fields.token("pad_token_id", size, 50_256),
    )


def _write(config: WhisperConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.target_vocab_size,
        "num_mel_bins": config.mels,
        "d_model": config.d_model,
        **{f"{side}_layers": getattr(config, f"{side}_layers") for side in SIDES},
        **{f"{side}_attention_heads": getattr(config, f"{side}_heads") for side in SIDES},
        **{f"{side}_ffn_dim": getattr(config, f"{side}_d_ff") for side in SIDES},
        "dropout": config.dropout,
        "max_source_positions": config.max_source_len,
        "max_target_positions": config.max_len,
        "activation_function": "gelu",
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "decoder_start_token_id": config.start_id,
        "eos_token_id": config.end_id,
        "pad_token_id": config.pad_id,
    }


HUGGINGFACE = {"WhisperForConditionalGeneration": Architecture("whisper", _read, _write)}
