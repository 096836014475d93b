"""BART, mBART, Pegasus and Blenderbot: denoising, translation, summaries and dialogue, published with their weights.

BART (Lewis et al. 2020, arXiv:1910.13461), mBART (Liu et al. 2020, arXiv:2001.08210) and mBART-50 (Tang et al. 2020,
arXiv:2008.00401), Pegasus (Zhang et al. 2020, arXiv:1912.08777), Blenderbot and its small model (Roller et al. 2021,
arXiv:2004.13637). Each is a Transformer (Vaswani et al. 2017) with one embedding for source, target and output. They differ in

                      BART          mBART, mBART-50         Pegasus       Blenderbot    BlenderbotSmall
    norm              post          pre                     pre           pre           post
    positions         learned,      learned,                sinusoids     learned       learned
                      from row 2    from row 2
    embedding's norm  of the sum    of the sum              none          none          of the sum; in the decoder
                                                                                        of the words alone
    words x sqrt(D)   no            yes                     yes           yes           in the encoder
    activation        gelu          gelu, relu              relu          gelu          gelu
    first token read  </s>          target language; </s>   <pad>         <s>           __start__
    language          none          source: after </s>;     none          none          none
                                    first of both sides

"post" norms stand after each sublayer's sum; "pre" norms before each sublayer, and one more at the end of a stack. All of them
have a bias for each token of the output (``final_logits_bias``), which is zero where it is published. mBART's decoder reads
the target's language and mBART-50's generates it first: ``Predictor.between`` sets either. Which first and last token an
output is forced to have is a matter of ``Decoding``: BART's summaries begin with <s>, and all end with </s> at their limit.

Departures from the papers and from transformers' code: one dropout rate, on embeddings and sublayers; those of attention
weights, of activations and of whole layers are kept in config.json and not applied. Parameters begin as fairseq's
Transformers do, not at N(0, 0.02). Padding of the source is never seen, on either side, and has no position. The heads for
classes and for spans of an answer are not read.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import normal, zeros
from jax.sharding import PartitionSpec as P

from zoo.checkpoint.fields import Architecture, Fields
from zoo.checkpoint.rules import ROW, Constant, Copy, Renamed, Rule, embedding, linear, norm, projections
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

TASK = "denoising, summaries, translation and dialogue, pretrained"
ACTIVATIONS = {"gelu": gelu, "relu": nn.relu, "swish": nn.swish}
SIDES = ("encoder", "decoder")
OFFSET = {"offset": 2, "learned": 0}  # rows of a table of positions that no position has


@dataclasses.dataclass(frozen=True)
class BartConfig(ModelConfig):
    """Sizes and choices; the table above says which model has which.

    Attributes:
      d_model: width D of every layer's input and output.
      encoder_layers, decoder_layers: how many.
      encoder_heads, decoder_heads: attention heads H; divide d_model.
      encoder_d_ff, decoder_d_ff: width F between the two products of a feed-forward sublayer.
      dropout: on the sum of embedding and position, and on each sublayer's output before it is added.
      activation: of the feed-forward sublayers.
      norm: "post" or "pre".
      positions: "offset" (learned, from row 2 of their table), "learned" or "sinusoidal".
      embedding_norm: "sum" (of embedding and position), "words" (in the decoder, of the embedding alone) or "none".
      scale_embedding: whether embeddings are multiplied by sqrt(D).
      output_bias: whether each token has a bias.
      max_len: positions of the source, and of the target; of sinusoids, those that the published model was made for.
      start_id, end_id, pad_id: see ``ModelConfig``.
    """

    d_model: int = 768
    encoder_layers: int = 6
    decoder_layers: int = 6
    encoder_heads: int = 12
    decoder_heads: int = 12
    encoder_d_ff: int = 3072
    decoder_d_ff: int = 3072
    dropout: float = 0.1
    activation: Literal["gelu", "relu", "swish"] = "gelu"
    norm: Literal["post", "pre"] = "post"
    positions: Literal["offset", "learned", "sinusoidal"] = "offset"
    embedding_norm: Literal["sum", "words", "none"] = "sum"
    scale_embedding: bool = False
    output_bias: bool = True
    max_len: int = 1024
    start_id: int = BOS
    end_id: int = EOS
    pad_id: int = PAD

    PAPER: ClassVar[str] = "Lewis et al. 2020 and others"

    @property
    def wants_one_vocabulary(self) -> bool:
        return True

    def build(self) -> Bart:
        if self.d_model % self.encoder_heads or self.d_model % self.decoder_heads or self.d_model % 2:
            raise UserError(
                f"model.d_model is {self.d_model}: it must be even and a multiple of encoder_heads, {self.encoder_heads}, and "
                f"decoder_heads, {self.decoder_heads}"
            )
        if self.source_vocab_size != self.target_vocab_size:
            raise UserError(
                f"BART has one embedding for all but the vocabularies have {self.source_vocab_size} and "
                f"{self.target_vocab_size} entries: use one for both sides"
            )
        return Bart(self)

    def check_length(self, length: int, side: str, setting: str) -> None:
        """Raises UserError for more positions than the model has learned."""
        if self.positions != "sinusoidal" and length > self.max_len:
            raise UserError(
                f"a {side} of up to {length} tokens does not fit the model, which has learned max_len = {self.max_len} "
                f"positions: shorten it, or set {setting} to at most {self.max_len}"
            )


def sizes(D: int, layers: tuple[int, int], heads: int, F: int) -> dict[str, int]:
    """Sizes that both stacks have, but for the number of layers."""
    both = {f"{side}_{name}": size for side in SIDES for name, size in (("heads", heads), ("d_ff", F))}
    return {"d_model": D, "encoder_layers": layers[0], "decoder_layers": layers[1], **both}


BART = {"start_id": 2, "end_id": 2, "pad_id": 1}
MBART = {**BART, **sizes(1024, (12, 12), 16, 4096), "norm": "pre", "scale_embedding": True}
PEGASUS = {"start_id": 0, "end_id": 1, "pad_id": 0, "norm": "pre", "positions": "sinusoidal", "embedding_norm": "none"}
SMALL = {"start_id": 1, "end_id": 2, "pad_id": 0, "positions": "learned", "embedding_norm": "words", "scale_embedding": True}
BLENDERBOT = {**SMALL, "norm": "pre", "embedding_norm": "none", "max_len": 128}

# The sizes of the published checkpoints.
PRESETS = {
    "tiny": BartConfig(32, 32, **sizes(32, (2, 2), 4, 64), max_len=64),
    "bart-base": BartConfig(50_265, 50_265, **BART),
    "bart-large": BartConfig(50_265, 50_265, **sizes(1024, (12, 12), 16, 4096), **BART),
    "mbart-large-cc25": BartConfig(250_027, 250_027, **MBART),
    "mbart-large-50": BartConfig(250_054, 250_054, **MBART),
    "pegasus-large": BartConfig(
        96_103, 96_103, **sizes(1024, (16, 16), 16, 4096), **PEGASUS, activation="relu", scale_embedding=True
    ),
    "blenderbot-400m-distill": BartConfig(8008, 8008, **sizes(1280, (2, 12), 32, 5120), **BLENDERBOT),
    "blenderbot-3b": BartConfig(8008, 8008, **sizes(2560, (2, 24), 32, 10_240), **BLENDERBOT),
    "blenderbot-small-90m": BartConfig(54_944, 54_944, **sizes(512, (8, 8), 16, 2048), **SMALL, max_len=512),
}


class Memory(NamedTuple):
    """What the decoder reads of the source: each decoder layer's cross-attention keys and values, projected once."""

    keys: tuple[KeyValue, ...]
    mask_BS: jax.Array
    attention: dict[str, jax.Array]


class EncoderLayer(nn.Module):
    """Self-attention, then the feed-forward network."""

    config: BartConfig
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

    config: BartConfig
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


# The names of transformers' ...ForConditionalGeneration, which all five share; BartModel's have no "model." before them.
RULES = (
    *embedding("embedding", "model.shared"),
    Rule("output_bias", "final_logits_bias", ROW),
    *embedding(r"(encoder|decoder)_positions", r"model.\1.embed_positions"),
    *norm(r"(encoder|decoder)_embedding_norm", r"model.\1.layernorm_embedding"),
    *projections(r"(encoder|decoder)_(\d+)/attention", r"model.\1.layers.\2.self_attn"),
    *projections(r"decoder_(\d+)/cross_attention", r"model.decoder.layers.\1.encoder_attn"),
    *linear(r"(encoder|decoder)_(\d+)/feed_forward/inner", r"model.\1.layers.\2.fc1"),
    *linear(r"(encoder|decoder)_(\d+)/feed_forward/outer", r"model.\1.layers.\2.fc2"),
    *norm(r"(encoder|decoder)_(\d+)/attention_residual/norm", r"model.\1.layers.\2.self_attn_layer_norm"),
    *norm(r"decoder_(\d+)/cross_attention_residual/norm", r"model.decoder.layers.\1.encoder_attn_layer_norm"),
    *norm(r"(encoder|decoder)_(\d+)/feed_forward_residual/norm", r"model.\1.layers.\2.final_layer_norm"),
    *norm(r"(encoder|decoder)_norm", r"model.\1.layer_norm"),
    Renamed(r"((?:shared|encoder|decoder)\..+)", r"model.\1"),
    Copy(r"lm_head\.weight|model\.(encoder|decoder)\.embed_tokens\.weight", "model.shared.weight"),
    Copy(r"lm_head\.weight", "model.decoder.embed_tokens.weight"),
    Constant(r"model\.(encoder|decoder)\.embed_positions\.weight", table_of_sines_then_cosines),
)

# Megatron's split: the first product of a pair by columns, the second by rows; the other axis over fsdp.
SHARDING = (
    (r".*(query|key|value|inner)/kernel", P("fsdp", "model")),
    (r".*(query|key|value|inner)/bias", P("model")),
    (r".*(out|outer)/kernel", P("model", "fsdp")),
    (r"embedding/embedding", P("model", "fsdp")),
    (r"output_bias", P("model")),
    (r".*", P()),
)


class Bart(Seq2Seq):
    """The model. Attention names are ``encoder_0/self``, ``decoder_0/self``, ``decoder_0/cross`` and so on."""

    config: BartConfig

    RULES: ClassVar = RULES
    SHARDING: ClassVar = SHARDING

    def setup(self):
        c = self.config
        table = lambda rows: Embed(rows, c.d_model, embedding_init=normal(c.d_model**-0.5))  # noqa: E731
        layer_norm = lambda: LayerNorm(epsilon=1e-5)  # noqa: E731
        self.embedding = table(c.target_vocab_size)
        if c.positions != "sinusoidal":
            rows = c.max_len + OFFSET[c.positions]
            self.encoder_positions, self.decoder_positions = table(rows), table(rows)
        if c.embedding_norm != "none":
            self.encoder_embedding_norm, self.decoder_embedding_norm = layer_norm(), layer_norm()
        if c.output_bias:
            self.output_bias = self.param("output_bias", zeros, (c.target_vocab_size,))
        self.encoder = [EncoderLayer(c, self.kernel) for _ in range(c.encoder_layers)]
        self.decoder = [DecoderLayer(c, self.kernel) for _ in range(c.decoder_layers)]
        if c.norm == "pre":
            self.encoder_norm, self.decoder_norm = layer_norm(), layer_norm()
        self.drop = Dropout(c.dropout)

    def position(self, side: str, position_BN: jax.Array) -> jax.Array:
        """What is added to the embeddings: (B, N, D). Whether there are so many positions has been asked before."""
        c = self.config
        if c.positions == "sinusoidal":
            return sines_then_cosines(position_BN, c.d_model, c.d_model // 2)
        return getattr(self, f"{side}_positions")(jnp.minimum(position_BN, c.max_len - 1) + OFFSET[c.positions])

    def embed(self, side: str, ids_BN: jax.Array, position_BN: jax.Array, train: bool) -> jax.Array:
        """Embeddings, scaled, plus positions, normalised where the model does so: (B, N, D)."""
        c = self.config
        x_BND, words_alone = self.embedding(ids_BN), c.embedding_norm == "words" and side == "decoder"
        if words_alone:  # which makes up for a scale
            x_BND = self.decoder_embedding_norm(x_BND)
        elif c.scale_embedding:
            x_BND = x_BND * c.d_model**0.5
        x_BND = x_BND + self.position(side, position_BN).astype(x_BND.dtype)
        if c.embedding_norm != "none" and not words_alone:
            x_BND = getattr(self, f"{side}_embedding_norm")(x_BND)
        return constrain(self.drop(x_BND, deterministic=not train), BATCH)

    def encode(self, source: Tokens, train: bool = False, attention: bool = False) -> Memory:
        self.config.check_length(source.ids.shape[1], "source", "max_source_len")
        visible, weights = Visible.real(source.mask, self.right_padded), {}
        x_BSD = self.embed("encoder", source.ids, positions(source.mask), train)
        call = self.rematerialised(lambda layer, x_BSD: layer(x_BSD, visible, train, attention))
        for i, layer in enumerate(self.encoder):
            x_BSD, w = call(layer, x_BSD)
            weights |= {f"encoder_{i}/{name}": value for name, value in w.items()}
        if self.config.norm == "pre":
            x_BSD = self.encoder_norm(x_BSD)
        keys = tuple(layer.cross_attention.project(x_BSD) for layer in self.decoder)
        return Memory(keys, source.mask, weights)

    def init_cache(self, memory: Memory, max_len: int, beams: int = 1) -> DecoderCache:
        self.config.check_length(max_len, "target", "max_len")
        B, H, _, K = memory.keys[0].value.shape
        return DecoderCache.zeros(self.config.decoder_layers, B, beams, H, max_len, K, memory.keys[0].key.dtype)

    def decode(
        self, tokens_BT, memory: Memory, cache: DecoderCache | None = None, train: bool = False, attention: bool = False
    ):
        (R, T), seen = tokens_BT.shape, Visible.real(memory.mask_BS, self.right_padded)
        self.config.check_length(T, "target", "max_target_len")
        if cache is None:
            index, past, beam_RN, buffers = 0, Visible(None), None, [None] * len(self.decoder)
        else:
            index, (beam_RN, mask), buffers = cache.index, cache.read(T), cache.layers.buffers
            past = Visible(mask)
        x_BTD = self.embed("decoder", tokens_BT, jnp.broadcast_to(index + jnp.arange(T), (R, T)), train)
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
        """The product with the embedding's transpose, plus the bias of each token: (B, T, V)."""
        logits_BTV = self.embedding.attend(hidden_BTD)
        logits_BTV = logits_BTV + jnp.expand_dims(self.output_bias, (0, 1)) if self.config.output_bias else logits_BTV
        return constrain(logits_BTV, BATCH, None, MODEL)


class Family(NamedTuple):
    """What the classes of one model_type have in common.

    Attributes:
      choices: the fields of ``BartConfig`` that the class decides.
      fields: what CTranslate2's converter and older versions of transformers want to read of them.
      sizes: what a config.json that leaves them out means: entries, positions, layers (two), width, heads, F.
      ids: the same for the ids: start, end, pad.
    """

    choices: dict[str, Any]
    fields: dict[str, Any]
    sizes: tuple[int, int, int, int, int, int, int]
    ids: tuple[int, int, int]


def _fields(before: bool, embedding: bool, static: bool) -> dict[str, bool]:
    return {"normalize_before": before, "normalize_embedding": embedding, "static_position_embeddings": static}


LARGE = (50_265, 1024, 12, 12, 1024, 16, 4096)
FAMILIES = {
    "bart": Family(
        {"norm": "post", "positions": "offset", "embedding_norm": "sum"}, _fields(False, True, False), LARGE, (2, 2, 1)
    ),
    "mbart": Family(
        {"norm": "pre", "positions": "offset", "embedding_norm": "sum"}, _fields(True, True, False), LARGE, (0, 2, 1)
    ),
    "pegasus": Family(
        {"norm": "pre", "positions": "sinusoidal", "embedding_norm": "none"}, _fields(True, False, True), LARGE, (0, 1, 0)
    ),
    "blenderbot": Family(
        {"norm": "pre", "positions": "learned", "embedding_norm": "none"},
        _fields(True, False, False),
        (8008, 128, 2, 24, 2560, 32, 10_240),
        (1, 2, 0),
    ),
    "blenderbot-small": Family(
        {"norm": "post", "positions": "learned", "embedding_norm": "words"},
        _fields(False, True, False),
        (50_265, 512, 8, 8, 512, 16, 2048),
        (1, 2, 0),
    ),
}


def _read(family: Family, output_bias: bool, fields: Fields) -> BartConfig:
    V, N, *layers, D, H, F = family.sizes
    size = fields.vocabulary("vocab_size", V)
    fields.choice("tie_word_embeddings", (True,), True)
    for name, value in family.fields.items():
        fields.choice(name, (value,), value)
    return BartConfig(
        size,
        size,
        d_model=fields.size("d_model", D),
        **{f"{side}_layers": fields.layers(f"{side}_layers", count) for side, count in zip(SIDES, layers, strict=True)},
        **{f"{side}_heads": fields.size(f"{side}_attention_heads", H) for side in SIDES},
        **{f"{side}_d_ff": fields.size(f"{side}_ffn_dim", F) for side in SIDES},
        dropout=fields.rate("dropout", 0.1),
        activation=fields.choice("activation_function", tuple(ACTIVATIONS), "gelu"),
        scale_embedding=fields.flag("scale_embedding", False),
        max_len=fields.size("max_position_embeddings", N),
        output_bias=output_bias,
        **family.choices,
        **{ours: fields.token(theirs, size, default) for (ours, theirs), default in zip(IDS.items(), family.ids, strict=True)},
    )


def _write(family: Family, config: BartConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.source_vocab_size,
        "d_model": config.d_model,
        **{f"{side}_layers": getattr(config, f"{side}_layers") for side in SIDES},
        **{f"{side}_attention_heads": getattr(config, f"{side}_heads") for side in SIDES},
        **{f"{side}_ffn_dim": getattr(config, f"{side}_d_ff") for side in SIDES},
        "dropout": config.dropout,
        "activation_function": config.activation,
        "scale_embedding": config.scale_embedding,
        "max_position_embeddings": config.max_len,
        "tie_word_embeddings": True,
        **{theirs: getattr(config, ours) for ours, theirs in IDS.items()},
        **family.fields,
    }


def _architecture(model_type: str, output_bias: bool = True) -> Architecture:
    family = FAMILIES[model_type]
    return Architecture(model_type, partial(_read, family, output_bias), partial(_write, family))


IDS = {"start_id": "decoder_start_token_id", "end_id": "eos_token_id", "pad_id": "pad_token_id"}

# Which of them a configuration is, its choices tell. BART's first checkpoints are published without the output's bias.
HUGGINGFACE = {
    "BartForConditionalGeneration": _architecture("bart"),
    "BartModel": _architecture("bart", output_bias=False),
    "MBartForConditionalGeneration": _architecture("mbart"),
    "PegasusForConditionalGeneration": _architecture("pegasus"),
    "BlenderbotForConditionalGeneration": _architecture("blenderbot"),
    "BlenderbotSmallForConditionalGeneration": _architecture("blenderbot-small"),
}
