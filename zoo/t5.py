"""T5 and its kin: every task is text to text, told by a prefix such as "translate English to German: ".

Raffel et al. 2020 (arXiv:1910.10683); T5 v1.1 and mT5, Xue et al. 2021 (arXiv:2010.11934), with the gated unit of Shazeer 2020
(arXiv:2002.05202); Flan-T5, Chung et al. 2022 (arXiv:2210.11416); ByT5, Xue et al. 2022 (arXiv:2105.13626); CodeT5, Wang et al.
2021 (arXiv:2109.00859). They are one Transformer, and differ in

                       T5 v1.0, CodeT5                     T5 v1.1, Flan-T5, mT5, ByT5
    feed-forward       relu(x W1) W2                       (gelu(x W0) * x W1) W2, by the tanh approximation
    output product     the embedding's transpose,          a matrix of its own
                       x multiplied by 1 / sqrt(D)
    tokens             SentencePiece; CodeT5 byte pairs    SentencePiece; ByT5 bytes
    decoder            as deep as the encoder              the same; ByT5's has a third of the layers

and from Vaswani et al. 2017 in: a learned bias on the scores of self-attention for each head and bucket of distances, one
table a stack, instead of positions; scores that are not divided by sqrt(K), which the queries' initialisation makes up for;
heads whose width is free of the model's; root mean square normalisation before each sublayer and at the end of a stack; no
biases.

Departures from the papers and from transformers' code: one dropout rate, where T5 has it (the embeddings, between the two
products of a feed-forward network, each sublayer's output, a stack's) but for attention weights. A fresh output matrix is
initialised like the products, with 1 / sqrt(D). Weights that are loaded as float16 overflow in the larger models, there as
here: take bfloat16, in which transformers keeps no part in float32 either.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import normal
from jax.sharding import PartitionSpec as P

from zoo.checkpoint.fields import Architecture, Fields
from zoo.checkpoint.rules import Copy, Rule, Unused, embedding, linear
from zoo.core import BOS, EOS, PAD, AppendOnly, ModelConfig, Outputs, Seq2Seq, Tokens, UserError
from zoo.nn.activation import gelu_tanh
from zoo.nn.attention import MultiHeadAttention
from zoo.nn.cache import DecoderCache, KeyValue, Visible
from zoo.nn.dropout import Dropout
from zoo.nn.linear import Dense, Embed
from zoo.nn.norm import RMSNorm
from zoo.nn.position import by_distance, relative_bucket
from zoo.nn.sharding import BATCH, MODEL, constrain
from zoo.nn.stack import scan_layers

TASK = "text to text, pretrained"


@dataclasses.dataclass(frozen=True)
class T5Config(ModelConfig):
    """Sizes and choices; the table above says which model has which.

    Attributes:
      d_model: width D of every layer's input and output.
      d_kv: width K of an attention head.
      d_ff: width F between the products of a feed-forward sublayer.
      num_heads: attention heads H.
      encoder_layers, decoder_layers: how many.
      dropout: see the departures above.
      activation: "relu" (v1.0) or "gated-gelu" (v1.1).
      share_output: whether the output product is with the embedding's transpose.
      scale_output: whether what it reads is multiplied by 1 / sqrt(D).
      buckets: of distances, an even number of which the encoder takes half for what stands after a token.
      max_distance: the distance from which on all share a bucket.
      epsilon: of the normalisation.
      start_id, end_id, pad_id: see ``ModelConfig``.
    """

    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    dropout: float = 0.1
    activation: Literal["relu", "gated-gelu"] = "relu"
    share_output: bool = True
    scale_output: bool = True
    buckets: int = 32
    max_distance: int = 128
    epsilon: float = 1e-6
    start_id: int = BOS
    end_id: int = EOS
    pad_id: int = PAD

    PAPER: ClassVar = "Raffel et al. 2020"

    @property
    def wants_one_vocabulary(self) -> bool:
        return True

    def build(self) -> T5:
        if self.source_vocab_size != self.target_vocab_size:
            raise UserError(
                f"the vocabularies have {self.source_vocab_size} and {self.target_vocab_size} entries, but T5 has one: set "
                "tokenizers.shared"
            )
        if self.buckets < 4 or self.buckets % 2 or self.max_distance <= self.buckets // 2:
            raise UserError(
                f"model.buckets is {self.buckets} and model.max_distance {self.max_distance}: buckets must be even and at "
                "least 4, and max_distance more than half of them"
            )
        return T5(self)


SENTENCEPIECE, MT5, BYTES, CODE = 32_128, 250_112, 384, 32_100  # entries of the published vocabularies
V1_1 = {"activation": "gated-gelu", "share_output": False, "scale_output": False}


def _published(
    vocab_size: int, d_model: int, d_ff: int, heads: int, layers: int, decoder_layers: int = 0, d_kv: int = 64, **choices: Any
) -> T5Config:
    sizes = {"d_model": d_model, "d_kv": d_kv, "d_ff": d_ff, "num_heads": heads, "encoder_layers": layers}
    ids = {"start_id": 0, "end_id": 1, "pad_id": 0}
    return T5Config(vocab_size, vocab_size, **sizes, decoder_layers=decoder_layers or layers, **ids, **choices)


# The sizes of the published checkpoints. Flan-T5's are those of v1.1; the ids of CodeT5 are its tokenizer's.
PRESETS = {
    "tiny": T5Config(
        32, 32, d_model=32, d_kv=6, d_ff=64, num_heads=4, encoder_layers=2, decoder_layers=2, buckets=8, max_distance=12
    ),
    "t5-small": _published(SENTENCEPIECE, 512, 2048, 8, 6),
    "t5-base": _published(SENTENCEPIECE, 768, 3072, 12, 12),
    "t5-large": _published(SENTENCEPIECE, 1024, 4096, 16, 24),
    "t5-3b": _published(SENTENCEPIECE, 1024, 16_384, 32, 24, d_kv=128),
    "t5-11b": _published(SENTENCEPIECE, 1024, 65_536, 128, 24, d_kv=128),
    "t5-v1.1-small": _published(SENTENCEPIECE, 512, 1024, 6, 8, **V1_1),
    "t5-v1.1-base": _published(SENTENCEPIECE, 768, 2048, 12, 12, **V1_1),
    "t5-v1.1-large": _published(SENTENCEPIECE, 1024, 2816, 16, 24, **V1_1),
    "t5-v1.1-xl": _published(SENTENCEPIECE, 2048, 5120, 32, 24, **V1_1),
    "t5-v1.1-xxl": _published(SENTENCEPIECE, 4096, 10_240, 64, 24, **V1_1),
    "mt5-small": _published(MT5, 512, 1024, 6, 8, **V1_1),
    "mt5-base": _published(MT5, 768, 2048, 12, 12, **V1_1),
    "mt5-large": _published(MT5, 1024, 2816, 16, 24, **V1_1),
    "mt5-xl": _published(MT5, 2048, 5120, 32, 24, **V1_1),
    "mt5-xxl": _published(MT5, 4096, 10_240, 64, 24, **V1_1),
    "byt5-small": _published(BYTES, 1472, 3584, 6, 12, 4, **V1_1),
    "byt5-base": _published(BYTES, 1536, 3968, 12, 18, 6, **V1_1),
    "byt5-large": _published(BYTES, 1536, 3840, 16, 36, 12, **V1_1),
    "byt5-xl": _published(BYTES, 2560, 6720, 32, 36, 12, **V1_1),
    "byt5-xxl": _published(BYTES, 4672, 12_352, 64, 36, 12, **V1_1),
    "codet5-small": dataclasses.replace(_published(CODE, 512, 2048, 8, 6), end_id=2),
    "codet5-base": dataclasses.replace(_published(CODE, 768, 3072, 12, 12), end_id=2),
}


class Memory(NamedTuple):
    """What the decoder reads of the source: each decoder layer's cross-attention keys and values, projected once."""

    keys: tuple[KeyValue, ...]
    mask_BS: jax.Array
    attention: dict[str, jax.Array]


class Attention(MultiHeadAttention):
    """Multi-head attention without biases and without a scale, D to H * K and back."""

    K: int = 64

    def setup(self):
        dense = lambda size, inputs: Dense(size, use_bias=False, kernel_init=normal(inputs**-0.5))  # noqa: E731
        width = self.H * self.K
        self.query, self.key, self.value = dense(width, self.D * self.K), dense(width, self.D), dense(width, self.D)
        self.out = dense(self.D, width)


class FeedForward(nn.Module):
    """relu(x W1) W2, or (gelu(x W0) * x W1) W2."""

    config: T5Config

    def setup(self):
        c = self.config
        dense = lambda size, inputs: Dense(size, use_bias=False, kernel_init=normal(inputs**-0.5))  # noqa: E731
        if c.activation == "gated-gelu":
            self.gate, self.gated = dense(c.d_ff, c.d_model), dense(c.d_ff, c.d_model)
        else:
            self.inner = dense(c.d_ff, c.d_model)
        self.outer, self.drop = dense(c.d_model, c.d_ff), Dropout(c.dropout)

    def __call__(self, x_BND: jax.Array, train: bool) -> jax.Array:
        if self.config.activation == "gated-gelu":
            x_BNF = gelu_tanh(self.gate(x_BND)) * self.gated(x_BND)
        else:
            x_BNF = nn.relu(self.inner(x_BND))
        return self.outer(self.drop(constrain(x_BNF, BATCH, None, MODEL), deterministic=not train))


class Residual(nn.Module):
    """x + dropout(sublayer(norm(x)))."""

    config: T5Config

    def setup(self):
        self.norm, self.drop = RMSNorm(self.config.epsilon), Dropout(self.config.dropout)

    def __call__(self, x_BND: jax.Array, sublayer, train: bool) -> jax.Array:
        return constrain(x_BND + self.drop(sublayer(self.norm(x_BND)), deterministic=not train), BATCH)


class EncoderLayer(nn.Module):
    """Self-attention, then the feed-forward network."""

    config: T5Config
    kernel: str

    def setup(self):
        c = self.config
        self.attention = Attention(c.d_model, c.num_heads, self.kernel, scale=1.0, K=c.d_kv)
        self.feed_forward = FeedForward(c)
        self.attention_residual, self.feed_forward_residual = Residual(c), Residual(c)

    def __call__(self, x_BSD: jax.Array, visible: Visible, bias_1HSS: jax.Array, train: bool, attention: bool):
        """Returns x (B, S, D) and, on request, the weights {"self"}."""
        weights = {}

        def attend(x_BSD):
            keys = self.attention.project(x_BSD)
            x_BSD, weights["self"] = self.attention(x_BSD, keys, visible, weights=attention, bias=bias_1HSS)
            return x_BSD

        x_BSD = self.attention_residual(x_BSD, attend, train)
        x_BSD = self.feed_forward_residual(x_BSD, lambda x_BSD: self.feed_forward(x_BSD, train), train)
        return x_BSD, weights if attention else {}


class DecoderLayer(nn.Module):
    """Causal self-attention, attention over the source, then the feed-forward network."""

    config: T5Config
    kernel: str

    def setup(self):
        c = self.config
        self.attention = Attention(c.d_model, c.num_heads, self.kernel, scale=1.0, K=c.d_kv)
        self.cross_attention = Attention(c.d_model, c.num_heads, self.kernel, scale=1.0, K=c.d_kv)
        self.feed_forward = FeedForward(c)
        self.attention_residual, self.cross_attention_residual = Residual(c), Residual(c)
        self.feed_forward_residual = Residual(c)

    def __call__(
        self,
        x_RTD,
        source: KeyValue,
        seen: Visible,
        past: Visible,
        bias: jax.Array,
        cache: KeyValue | None,
        index,
        train: bool,
        attention: bool,
    ):
        """``seen`` is what of the source may be read, ``past`` what of the target: without a cache, and no later than oneself.

        Returns x (R, T, D), the cache with T more positions (or None), and, on request, the weights {"self", "cross"}.
        """
        weights, cached = {}, cache is not None

        def attend(x_RTD):
            nonlocal cache
            x_RTD, cache, weights["self"] = self.attention.read_past(x_RTD, past, cache, index, attention, bias=bias)
            return x_RTD

        def attend_source(x_RTD):
            x_RTD, weights["cross"] = self.cross_attention(x_RTD, source, seen, weights=attention, cached=cached)
            return x_RTD

        x_RTD = self.attention_residual(x_RTD, attend, train)
        x_RTD = self.cross_attention_residual(x_RTD, attend_source, train)
        x_RTD = self.feed_forward_residual(x_RTD, lambda x_RTD: self.feed_forward(x_RTD, train), train)
        return x_RTD, cache, weights if attention else {}


def _attention_rules(ours: str, theirs: str) -> tuple[Rule, ...]:
    names = {"query": "q", "key": "k", "value": "v", "out": "o"}
    return tuple(rule for a, b in names.items() for rule in linear(f"{ours}/{a}", f"{theirs}.{b}"))


def _feed_forward_rules(side: str, sublayer: int) -> tuple[Rule, ...]:
    names = {"inner": "wi", "gate": "wi_0", "gated": "wi_1", "outer": "wo"}
    theirs = rf"{side}.block.\1.layer.{sublayer}"
    dense = (
        rule for a, b in names.items() for rule in linear(rf"{side}_(\d+)/feed_forward/{a}", f"{theirs}.DenseReluDense.{b}")
    )
    return (*dense, Rule(rf"{side}_(\d+)/feed_forward_residual/norm/scale", f"{theirs}.layer_norm.weight"))


BIAS = "relative_attention_bias"

# The names of transformers' T5ForConditionalGeneration, whose first layer holds the bias that all share.
RULES = (
    *embedding("embedding", "shared"),
    *embedding(r"(encoder|decoder)_bias", rf"\1.block.0.layer.0.SelfAttention.{BIAS}"),
    *_attention_rules(r"(encoder|decoder)_(\d+)/attention", r"\1.block.\2.layer.0.SelfAttention"),
    *_attention_rules(r"decoder_(\d+)/cross_attention", r"decoder.block.\1.layer.1.EncDecAttention"),
    Rule(r"(encoder|decoder)_(\d+)/attention_residual/norm/scale", r"\1.block.\2.layer.0.layer_norm.weight"),
    Rule(r"decoder_(\d+)/cross_attention_residual/norm/scale", r"decoder.block.\1.layer.1.layer_norm.weight"),
    *_feed_forward_rules("encoder", 1),
    *_feed_forward_rules("decoder", 2),
    Rule(r"(encoder|decoder)_norm/scale", r"\1.final_layer_norm.weight"),
    *linear("output", "lm_head"),
    Copy(r"lm_head\.weight|(encoder|decoder)\.embed_tokens\.weight", "shared.weight"),
    Unused(rf"decoder\.block\.0\.layer\.1\.EncDecAttention\.{BIAS}\.weight"),  # of the checkpoints of T5 v1.0
)

# Megatron's split: the first product of a pair by columns, the second by rows; the other axis over fsdp.
SHARDING = (
    (r".*(query|key|value|inner|gate|gated)/kernel", P("fsdp", "model")),
    (r".*(out|outer)/kernel", P("model", "fsdp")),
    (r"embedding/embedding", P("model", "fsdp")),
    (r".*_bias/embedding", P(None, "model")),
    (r"output/kernel", P("fsdp", "model")),
    (r".*", P()),
)


class T5(Seq2Seq):
    """The model. Attention names are ``encoder_0/self``, ``decoder_0/self``, ``decoder_0/cross`` and so on."""

    config: T5Config

    RULES: ClassVar = RULES
    SHARDING: ClassVar = SHARDING
    SCANS: ClassVar = True

    def setup(self):
        c = self.config
        self.embedding = Embed(c.target_vocab_size, c.d_model, embedding_init=normal(1.0))
        if not c.share_output:
            self.output = Dense(c.target_vocab_size, use_bias=False, kernel_init=normal(c.d_model**-0.5))
        bias = lambda: Embed(c.buckets, c.num_heads, embedding_init=normal(c.d_model**-0.5))  # noqa: E731
        self.encoder_bias, self.decoder_bias = bias(), bias()
        self.encoder = [EncoderLayer(c, self.kernel) for _ in range(c.encoder_layers)]
        self.decoder = [DecoderLayer(c, self.kernel) for _ in range(c.decoder_layers)]
        self.encoder_norm, self.decoder_norm = RMSNorm(c.epsilon), RMSNorm(c.epsilon)
        self.drop = Dropout(c.dropout)

    def embed(self, ids_BN: jax.Array, train: bool) -> jax.Array:
        """Embeddings alone, (B, N, D): what a bias says of distances is all that a model knows of positions."""
        return constrain(self.drop(self.embedding(ids_BN), deterministic=not train), BATCH)

    def bias(self, side: str, T: int, S: int, index: jax.Array | int = 0, beams: int = 1) -> jax.Array:
        """(1, H, W*T, S*W), the bias of S keys, W of each position, for queries at positions index ... index + T-1."""
        c = self.config
        table = self.encoder_bias if side == "encoder" else self.decoder_bias
        bias_HTS = by_distance(
            lambda distance_N: table(relative_bucket(distance_N, side == "encoder", c.buckets, c.max_distance)), T, S, index
        )
        if beams > 1:
            shape = (c.num_heads, beams, T, S, beams)
            bias_HTS = jnp.broadcast_to(bias_HTS[:, None, :, :, None], shape).reshape(-1, beams * T, S * beams)
        return bias_HTS[None]

    def encode(self, source: Tokens, train: bool = False, attention: bool = False) -> Memory:
        visible, weights, S = Visible.real(source.mask, self.right_padded), {}, source.ids.shape[1]
        x_BSD, bias_1HSS = self.embed(source.ids, train), self.bias("encoder", S, S)

        def call(layer, x_BSD):
            return layer(x_BSD, visible, bias_1HSS, train, attention)

        if self.scans(attention):
            first = lambda layer, x_BSD, _: call(layer, x_BSD)[0]  # noqa: E731
            x_BSD = scan_layers(first, self.encoder, x_BSD, [None] * len(self.encoder), self.dropout_key(train), self.remat)
        else:
            call = self.rematerialised(call)
            for i, layer in enumerate(self.encoder):
                x_BSD, w = call(layer, x_BSD)
                weights |= {f"encoder_{i}/{name}": value for name, value in w.items()}
        x_BSD = self.drop(self.encoder_norm(x_BSD), deterministic=not train)
        keys = tuple(layer.cross_attention.project(x_BSD) for layer in self.decoder)
        return Memory(keys, source.mask, weights)

    def init_cache(self, memory: Memory, max_len: int, beams: int = 1) -> DecoderCache:
        B, H, _, K = memory.keys[0].value.shape
        return DecoderCache.zeros(self.config.decoder_layers, B, beams, H, max_len, K, memory.keys[0].key.dtype)

    def decode(
        self, tokens_BT, memory: Memory, cache: DecoderCache | None = None, train: bool = False, attention: bool = False
    ):
        T, seen = tokens_BT.shape[1], Visible.real(memory.mask_BS, self.right_padded)
        if cache is not None:
            return self.decode_cached(tokens_BT, memory, seen, cache, train, attention)
        x_BTD, bias_1HTT, past = self.embed(tokens_BT, train), self.bias("decoder", T, T), Visible(None)
        weights = dict(memory.attention) if attention else {}

        def call(layer, x_BTD, keys):
            return layer(x_BTD, keys, seen, past, bias_1HTT, None, None, train, attention)

        if self.scans(attention):
            first = lambda *args: call(*args)[0]  # noqa: E731
            x_BTD = scan_layers(first, self.decoder, x_BTD, memory.keys, self.dropout_key(train), self.remat)
        else:
            call = self.rematerialised(call)
            for i, layer in enumerate(self.decoder):
                x_BTD, _, w = call(layer, x_BTD, memory.keys[i])
                weights |= {f"decoder_{i}/{name}": value for name, value in w.items()}
        return self.outputs(x_BTD, weights, train), None

    def decode_cached(self, tokens_RT, memory: Memory, seen: Visible, cache: DecoderCache, train: bool, attention: bool):
        T, index, (beam_RN, mask) = tokens_RT.shape[1], cache.index, cache.read(tokens_RT.shape[1])
        W = 1 if beam_RN is None else mask.shape[2] // T
        x_RTD, bias = self.embed(tokens_RT, train), self.bias("decoder", T, mask.shape[3] // W, index, W)
        layers, weights = [], dict(memory.attention) if attention else {}
        for i, layer in enumerate(self.decoder):
            args = (memory.keys[i], seen, Visible(mask), bias, cache.layers.buffers[i], index, train, attention)
            x_RTD, new, w = layer(x_RTD, *args)
            layers.append(new)
            weights |= {f"decoder_{i}/{name}": value for name, value in w.items()}
        return self.outputs(x_RTD, weights, train), DecoderCache(AppendOnly(tuple(layers)), beam_RN, index + T)

    def outputs(self, x_BTD: jax.Array, weights: dict[str, jax.Array], train: bool) -> Outputs:
        x_BTD = self.drop(self.decoder_norm(x_BTD), deterministic=not train)
        return Outputs(self.logits(x_BTD), weights, x_BTD)

    def scans(self, attention: bool) -> bool:
        """Whether to loop over one compiled layer: parameters are there, and no layer has weights to hand out."""
        return self.scan_layers and not attention and not self.is_initializing()

    def dropout_key(self, train: bool) -> jax.Array | None:
        return self.make_rng("dropout") if train and self.config.dropout else None

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """The output product: (B, T, V)."""
        c = self.config
        hidden_BTD = hidden_BTD * c.d_model**-0.5 if c.scale_output else hidden_BTD
        logits_BTV = self.embedding.attend(hidden_BTD) if c.share_output else self.output(hidden_BTD)
        return constrain(logits_BTV, BATCH, None, MODEL)


def _read(fields: Fields, activation: str, layers: int, heads: int, size: int, **output: bool) -> T5Config:
    """What config.json of both model types has in common, with the defaults of one."""
    vocabulary, layers = fields.vocabulary("vocab_size", size), fields.layers("num_layers", layers)
    activation = fields.choice("feed_forward_proj", ("relu", "gated-gelu"), activation)
    fields.choice("dense_act_fn", ({"relu": "relu", "gated-gelu": "gelu_new"}[activation], None))
    return T5Config(
        vocabulary,
        vocabulary,
        d_model=fields.size("d_model", 512),
        d_kv=fields.size("d_kv", 64),
        d_ff=fields.size("d_ff", 2048 if activation == "relu" else 1024),
        num_heads=fields.size("num_heads", heads),
        encoder_layers=layers,
        decoder_layers=fields.layers("num_decoder_layers", layers),
        dropout=fields.rate("dropout_rate", 0.1),
        activation=activation,
        buckets=fields.size("relative_attention_num_buckets", 32),
        max_distance=fields.size("relative_attention_max_distance", 128),
        epsilon=fields.number("layer_norm_epsilon", 1e-6),
        start_id=fields.token("decoder_start_token_id", vocabulary, 0),
        end_id=fields.token("eos_token_id", vocabulary, 1),
        pad_id=fields.token("pad_token_id", vocabulary, 0),
        **output,
    )


def _shares(fields: Fields) -> bool:
    """Whether the output has no matrix of its own, which the tensors say: tie_word_embeddings means the scale there."""
    if fields.tensors is None:
        return fields.flag("tie_word_embeddings", True)
    return "lm_head.weight" not in fields.tensors


def _read_t5(fields: Fields) -> T5Config:
    scaled = fields.flag("scale_decoder_outputs", fields.flag("tie_word_embeddings", True))
    # Where outputs are scaled an lm_head.weight is a copy, as older files have it.
    return _read(fields, "relu", 6, 8, SENTENCEPIECE, scale_output=scaled, share_output=scaled or _shares(fields))


def _read_mt5(fields: Fields) -> T5Config:
    return _read(fields, "gated-gelu", 8, 6, MT5, scale_output=False, share_output=_shares(fields))


def _write(config: T5Config) -> dict[str, Any]:
    if config.scale_output and not config.share_output:
        raise UserError("model.scale_output is set and model.share_output is not, which config.json cannot say: change one")
    return {
        "vocab_size": config.target_vocab_size,
        "d_model": config.d_model,
        "d_kv": config.d_kv,
        "d_ff": config.d_ff,
        "num_heads": config.num_heads,
        "num_layers": config.encoder_layers,
        "num_decoder_layers": config.decoder_layers,
        "dropout_rate": config.dropout,
        "feed_forward_proj": config.activation,
        "dense_act_fn": "gelu_new" if config.activation == "gated-gelu" else "relu",
        "is_gated_act": config.activation == "gated-gelu",
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.max_distance,
        "layer_norm_epsilon": config.epsilon,
        "tie_word_embeddings": config.share_output,
        "scale_decoder_outputs": config.scale_output,
        "decoder_start_token_id": config.start_id,
        "eos_token_id": config.end_id,
        "pad_token_id": config.pad_id,
    }


HUGGINGFACE = {
    "T5ForConditionalGeneration": Architecture("t5", _read_t5, _write),
    "MT5ForConditionalGeneration": Architecture("mt5", _read_mt5, _write),
}
