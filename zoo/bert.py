"""BERT, RoBERTa and DistilBERT: encoders that are published with their weights, pre-trained to fill in masked words.

Devlin et al. 2019 (arXiv:1810.04805); Liu et al. 2019 (arXiv:1907.11692); Sanh et al. 2019 (arXiv:1910.01108). Sentence
encoders of the same layout, such as MiniLM (Wang et al. 2020), are read as ``BertModel``, and XLM-R (Conneau et al. 2020,
arXiv:1911.02116) is RoBERTa with another tokenizer. Each is the encoder of a Transformer
(Vaswani et al. 2017) that normalises after each sublayer's sum and once more after the embeddings. They differ in

                        BERT                         RoBERTa                      DistilBERT
    positions           learned, from 0              learned, from pad_id + 1     learned, from 0
    token types         2: the first and the         1                            none
                        second text of a pair
    pooled for a        tanh of a dense layer, the   tanh of a dense layer of     relu of a dense layer of
    classification      pooler of the pre-training   the head                     the head
    masked LM's         as everywhere                gelu                         as everywhere
    activation
    norm's epsilon      1e-12                        1e-5                         1e-12

A source is one text, or a pair in one row: then ``Tokens.types`` is 0 for the tokens of the first text and 1 for those of the
second, each with the special tokens that follow it. What a head reads of the whole source is the first real token.

Heads: none (the hidden states), a masked language model, a label for the text, a label for each token.

Departures from the papers and from transformers' code: one dropout rate, on embeddings, sublayers and what a head reads; those
of attention weights and of classifiers are kept in config.json and not applied. Dense layers start from Glorot's distribution,
embeddings from a normal one of deviation 0.02, which is the papers' for both. Padding is never seen, on either side;
transformers counts it in BERT's positions. Next-sentence prediction of the pre-training is kept and not trained.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.initializers import normal, xavier_uniform, zeros
from jax.sharding import PartitionSpec as P

from zoo.checkpoint.fields import Architecture, Fields
from zoo.checkpoint.rules import Constant, Copy, Renamed, Rule, embedding, linear, norm
from zoo.core import PAD, Encoded, EncoderOnly, ModelConfig, PyTree, Tokens, UserError, positions, random_tokens
from zoo.labels import Labels
from zoo.nn.activation import gelu, gelu_tanh
from zoo.nn.attention import MultiHeadAttention
from zoo.nn.cache import Visible
from zoo.nn.dropout import Dropout
from zoo.nn.linear import Dense, Embed
from zoo.nn.norm import LayerNorm
from zoo.nn.sharding import BATCH, MODEL, constrain

TASK = "classification, sentence embedding, masked words"
ACTIVATIONS = {"gelu": gelu, "gelu_new": gelu_tanh, "relu": nn.relu}
Layout = Literal["bert", "roberta", "distilbert"]
Head = Literal["none", "masked_lm", "classification", "token_classification"]


@dataclasses.dataclass(frozen=True)
class BertConfig(ModelConfig):
    """Sizes and choices; the table above says which model has which.

    Attributes:
      layout: "bert", "roberta" or "distilbert".
      head: "none", "masked_lm", "classification" (a label for the text) or "token_classification" (one for each token).
      d_model: width D of every layer's input and output.
      num_layers: how many.
      num_heads: attention heads H; divides d_model.
      d_ff: width F between the two products of a feed-forward sublayer.
      dropout: see the departures.
      activation: of the feed-forward sublayers.
      norm_eps: added to a variance before the root is taken.
      max_len: tokens that a row may have: as many positions are learned.
      type_vocab_size: token types; 0 for a model without them.
      pooler: whether there is BERT's dense layer over the first token, read by its "classification" alone.
      next_sentence: whether there is BERT's second pre-training head, which nothing reads.
      pad_id: see ``ModelConfig``.
    """

    layout: Layout = "bert"
    head: Head = "none"
    d_model: int = 768
    num_layers: int = 12
    num_heads: int = 12
    d_ff: int = 3072
    dropout: float = 0.1
    activation: Literal["gelu", "gelu_new", "relu"] = "gelu"
    norm_eps: float = 1e-12
    max_len: int = 512
    type_vocab_size: int = 2
    pooler: bool = False
    next_sentence: bool = False
    pad_id: int = PAD

    @property
    def PAPER(self) -> str:  # noqa: N802
        return {"bert": "Devlin et al. 2019", "roberta": "Liu et al. 2019", "distilbert": "Sanh et al. 2019"}[self.layout]

    @property
    def wants_labels(self) -> bool:
        return self.head in ("classification", "token_classification")

    @property
    def wants_one_vocabulary(self) -> bool:
        return not self.wants_labels

    @property
    def first_position(self) -> int:
        """The row of the position table that the first token reads."""
        return self.pad_id + 1 if self.layout == "roberta" else 0

    def build(self) -> Bert:
        if self.d_model % self.num_heads:
            raise UserError(f"model.d_model is {self.d_model}: it must be a multiple of num_heads, {self.num_heads}")
        if self.wants_one_vocabulary and self.source_vocab_size != self.target_vocab_size:
            raise UserError(
                f'model.head is "{self.head}" but the vocabularies have {self.source_vocab_size} and {self.target_vocab_size} '
                "entries: use one for both sides"
            )
        if self.layout == "bert" and self.head == "classification" and not self.pooler:
            raise UserError('model.head is "classification", which reads the pooler in this layout: set model.pooler')
        return {"bert": Bert, "roberta": Roberta, "distilbert": DistilBert}[self.layout](self)

    def example(self, batch: int = 2, source_len: int = 7, target_len: int = 5, seed: int = 0) -> tuple[PyTree, Tokens]:
        """As the base's, but the target has a label for the source, or an id for each of its tokens."""
        rng = np.random.default_rng(seed)
        source = random_tokens(rng, batch, source_len, self.source_vocab_size)
        shape, mask = source.ids.shape, source.mask
        if self.head == "classification":
            shape, mask = (batch, 1), np.ones((batch, 1), bool)
        return source, Tokens(rng.integers(self.target_vocab_size, size=shape, dtype=np.int32), mask)


TINY = {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_ff": 64, "max_len": 64}
LARGE = {"d_model": 1024, "num_layers": 24, "num_heads": 16, "d_ff": 4096}
ROBERTA = {"layout": "roberta", "norm_eps": 1e-5, "type_vocab_size": 1, "pad_id": 1}

# The sizes of the published checkpoints.
PRESETS = {
    "tiny": BertConfig(32, 32, **TINY),
    "minilm-l6": BertConfig(30_522, 30_522, d_model=384, num_layers=6, d_ff=1536, pooler=True),
    "base-uncased": BertConfig(30_522, 30_522, pooler=True),
    "large-uncased": BertConfig(30_522, 30_522, **LARGE, pooler=True),
    "roberta-base": BertConfig(50_265, 50_265, **ROBERTA, pooler=True),
    "roberta-large": BertConfig(50_265, 50_265, **ROBERTA, **LARGE, pooler=True),
    "distilbert-base": BertConfig(30_522, 30_522, layout="distilbert", num_layers=6, type_vocab_size=0),
}


def dense(width: int) -> Dense:
    return Dense(width, kernel_init=xavier_uniform())


class EncoderLayer(nn.Module):
    """Self-attention, then the feed-forward network: each is added to what it reads, and the sum normalised."""

    config: BertConfig
    kernel: str

    def setup(self):
        c = self.config
        self.attention = MultiHeadAttention(c.d_model, c.num_heads, self.kernel)
        self.inner, self.outer = dense(c.d_ff), dense(c.d_model)
        self.attention_norm, self.feed_forward_norm = LayerNorm(c.norm_eps), LayerNorm(c.norm_eps)
        self.drop = Dropout(c.dropout)

    def __call__(self, x_BSD: jax.Array, visible: Visible, train: bool, attention: bool):
        """Returns x (B, S, D) and, on request, the attention weights (B, H, S, S)."""
        mixed_BSD, weights = self.attention(x_BSD, self.attention.project(x_BSD), visible, weights=attention)
        x_BSD = constrain(self.attention_norm(x_BSD + self.drop(mixed_BSD, deterministic=not train)), BATCH)
        x_BSF = constrain(ACTIVATIONS[self.config.activation](self.inner(x_BSD)), BATCH, None, MODEL)
        x_BSD = x_BSD + self.drop(self.outer(x_BSF), deterministic=not train)
        return constrain(self.feed_forward_norm(x_BSD), BATCH), weights


def _older(prefix: str, parts: str) -> tuple[Renamed, ...]:
    """Names of TensorFlow's norms, and those without a prefix: a model without a head has none."""
    return (
        Renamed(rf"(?:{prefix}\.)?({parts})\.(.*)\.gamma", rf"{prefix}.\1.\2.weight"),
        Renamed(rf"(?:{prefix}\.)?({parts})\.(.*)\.beta", rf"{prefix}.\1.\2.bias"),
        Renamed(rf"({parts})\.(.*)", rf"{prefix}.\1.\2"),
        Renamed(r"(.*)\.gamma", r"\1.weight"),
        Renamed(r"(.*)\.beta", r"\1.bias"),
    )


def _embedding_rules(prefix: str) -> tuple:
    theirs = f"{prefix}.embeddings"
    return (
        *embedding("embedding", f"{theirs}.word_embeddings"),
        *embedding("positions", f"{theirs}.position_embeddings"),
        *embedding("types", f"{theirs}.token_type_embeddings"),
        *norm("embedding_norm", f"{theirs}.LayerNorm"),
        Constant(rf"{prefix}\.embeddings\.position_ids", lambda shape: np.arange(shape[-1])[None]),
    )


def _encoder_rules(prefix: str) -> tuple:
    """What BERT and RoBERTa have in common."""
    theirs = rf"{prefix}.encoder.layer.\1"
    return (
        *_embedding_rules(prefix),
        *linear(r"encoder_(\d+)/attention/(query|key|value)", rf"{theirs}.attention.self.\2"),
        *linear(r"encoder_(\d+)/attention/out", f"{theirs}.attention.output.dense"),
        *norm(r"encoder_(\d+)/attention_norm", f"{theirs}.attention.output.LayerNorm"),
        *linear(r"encoder_(\d+)/inner", f"{theirs}.intermediate.dense"),
        *linear(r"encoder_(\d+)/outer", f"{theirs}.output.dense"),
        *norm(r"encoder_(\d+)/feed_forward_norm", f"{theirs}.output.LayerNorm"),
        *linear("pooler", f"{prefix}.pooler.dense"),
        *_older(prefix, "embeddings|encoder|pooler"),
    )


# The names of transformers' BertForMaskedLM and so on.
BERT_RULES = (
    *_encoder_rules("bert"),
    *linear("transform", "cls.predictions.transform.dense"),
    *norm("transform_norm", "cls.predictions.transform.LayerNorm"),
    Rule("output_bias", "cls.predictions.bias"),
    *linear("next_sentence", "cls.seq_relationship"),
    *linear("(?:token_)?classifier", "classifier"),
    Copy(r"cls\.predictions\.decoder\.weight", "bert.embeddings.word_embeddings.weight"),
    Copy(r"cls\.predictions\.decoder\.bias", "cls.predictions.bias"),
)
ROBERTA_RULES = (
    *_encoder_rules("roberta"),
    *linear("transform", "lm_head.dense"),
    *norm("transform_norm", "lm_head.layer_norm"),
    Rule("output_bias", "lm_head.bias"),
    *linear("classifier_transform", "classifier.dense"),
    *linear("classifier", "classifier.out_proj"),
    *linear("token_classifier", "classifier"),
    Copy(r"lm_head\.decoder\.weight", "roberta.embeddings.word_embeddings.weight"),
    Copy(r"lm_head\.decoder\.bias", "lm_head.bias"),
)
_LAYER = r"distilbert.transformer.layer.\1"
DISTILBERT_RULES = (
    *_embedding_rules("distilbert"),
    *(
        rule
        for ours, theirs in {"query": "q_lin", "key": "k_lin", "value": "v_lin", "out": "out_lin"}.items()
        for rule in linear(rf"encoder_(\d+)/attention/{ours}", f"{_LAYER}.attention.{theirs}")
    ),
    *norm(r"encoder_(\d+)/attention_norm", f"{_LAYER}.sa_layer_norm"),
    *linear(r"encoder_(\d+)/inner", f"{_LAYER}.ffn.lin1"),
    *linear(r"encoder_(\d+)/outer", f"{_LAYER}.ffn.lin2"),
    *norm(r"encoder_(\d+)/feed_forward_norm", f"{_LAYER}.output_layer_norm"),
    *linear("transform", "vocab_transform"),
    *norm("transform_norm", "vocab_layer_norm"),
    Rule("output_bias", "vocab_projector.bias"),
    *linear("classifier_transform", "pre_classifier"),
    *linear("(?:token_)?classifier", "classifier"),
    Copy(r"vocab_projector\.weight", "distilbert.embeddings.word_embeddings.weight"),
    *_older("distilbert", "embeddings|transformer"),
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


class Bert(EncoderOnly):
    """The model. Attention names are ``encoder_0/self`` and so on."""

    config: BertConfig

    RULES: ClassVar = BERT_RULES
    SHARDING: ClassVar = SHARDING

    def setup(self):
        c = self.config
        embed = lambda size: Embed(size, c.d_model, embedding_init=normal(0.02))  # noqa: E731
        self.embedding, self.positions = embed(c.source_vocab_size), embed(c.first_position + c.max_len)
        if c.type_vocab_size:
            self.types = embed(c.type_vocab_size)
        self.embedding_norm = LayerNorm(c.norm_eps)
        self.encoder = [EncoderLayer(c, self.kernel) for _ in range(c.num_layers)]
        self.drop = Dropout(c.dropout)
        if c.pooler:
            self.pooler = dense(c.d_model)
        if c.next_sentence:
            self.next_sentence = dense(2)
        if c.head == "masked_lm":
            self.transform, self.transform_norm = dense(c.d_model), LayerNorm(c.norm_eps)
            self.output_bias = self.param("output_bias", zeros, (c.target_vocab_size,))
        elif c.head == "classification":
            if c.layout != "bert":
                self.classifier_transform = dense(c.d_model)
            self.classifier = dense(c.target_vocab_size)
        elif c.head == "token_classification":
            self.token_classifier = dense(c.target_vocab_size)

    def encode(self, source: Tokens, train: bool = False, attention: bool = False) -> Encoded:
        c, visible, weights = self.config, Visible.real(source.mask, self.right_padded), {}
        x_BSD = self.embedding(source.ids) + self.positions(positions(source.mask) + c.first_position)
        if c.type_vocab_size:
            x_BSD = x_BSD + self.types(jnp.zeros_like(source.ids) if source.types is None else source.types)
        x_BSD = constrain(self.drop(self.embedding_norm(x_BSD), deterministic=not train), BATCH)
        call = self.rematerialised(lambda layer, x_BSD: layer(x_BSD, visible, train, attention))
        for i, layer in enumerate(self.encoder):
            x_BSD, weights[f"encoder_{i}/self"] = call(layer, x_BSD)
        x_BSD = jnp.where(source.mask[..., None], x_BSD, 0)
        if self.is_initializing():  # what is kept beside the head has parameters too
            for kept in ("pooler", "next_sentence"):
                if getattr(c, kept):
                    getattr(self, kept)(x_BSD)
        return Encoded(x_BSD, source.mask, weights if attention else {})

    def pool(self, memory: Encoded, train: bool = False) -> jax.Array:
        c, x_BSD, drop = self.config, memory.hidden_BSD, functools.partial(self.drop, deterministic=not train)
        if c.head == "masked_lm":
            activation = ACTIVATIONS["gelu" if c.layout == "roberta" else c.activation]
            return self.transform_norm(activation(self.transform(x_BSD)))
        if c.head == "token_classification":
            return drop(x_BSD)
        if c.head == "classification":
            first_B11 = jnp.argmax(memory.mask_BS, axis=1)[:, None, None]
            first_B1D = jnp.take_along_axis(x_BSD, first_B11, axis=1)
            if c.layout == "bert":
                return drop(jnp.tanh(self.pooler(first_B1D)))
            if c.layout == "roberta":
                return drop(jnp.tanh(self.classifier_transform(drop(first_B1D))))
            return drop(nn.relu(self.classifier_transform(first_B1D)))
        return x_BSD

    def logits(self, hidden_BND: jax.Array) -> jax.Array:
        """What the head says: (B, N, V) over tokens or labels; the hidden states themselves without a head."""
        c = self.config
        if c.head == "masked_lm":
            logits_BNV = self.embedding.attend(hidden_BND) + jnp.expand_dims(self.output_bias, (0, 1))
            return constrain(logits_BNV, BATCH, None, MODEL)
        if c.head == "none":
            return hidden_BND
        return (self.classifier if c.head == "classification" else self.token_classifier)(hidden_BND)


class Roberta(Bert):
    """Bert under RoBERTa's names."""

    RULES: ClassVar = ROBERTA_RULES


class DistilBert(Bert):
    """Bert under DistilBERT's names."""

    RULES: ClassVar = DISTILBERT_RULES


# Our name of a size -> theirs.
NAMES = {
    **{"d_model": "hidden_size", "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"},
    **{"d_ff": "intermediate_size", "dropout": "hidden_dropout_prob", "activation": "hidden_act"},
}
DISTILBERT_NAMES = {
    **{"d_model": "dim", "num_layers": "n_layers", "num_heads": "n_heads"},
    **{"d_ff": "hidden_dim", "dropout": "dropout", "activation": "activation"},
}


def _read(layout: Layout, head: Head, fields: Fields) -> BertConfig:
    names, distil = DISTILBERT_NAMES if layout == "distilbert" else NAMES, layout == "distilbert"
    size = fields.vocabulary("vocab_size", 50_265 if layout == "roberta" else 30_522)
    pad = fields.token("pad_token_id", size, 1 if layout == "roberta" else 0)
    if not distil:
        fields.choice("position_embedding_type", ("absolute",), "absolute")
        fields.choice("is_decoder", (False,), False)
    if head == "masked_lm":
        fields.choice("tie_word_embeddings", (True,), True)
    if head == "classification":
        fields.choice("problem_type", ("single_label_classification",), "single_label_classification")
    labels = Labels.from_config(fields.data, fields.where).vocab_size if head.endswith("classification") else size
    before = pad + 1 if layout == "roberta" else 0
    return BertConfig(
        size,
        labels,
        layout=layout,
        head=head,
        d_model=fields.size(names["d_model"], 768),
        num_layers=fields.layers(names["num_layers"], 6 if distil else 12),
        num_heads=fields.size(names["num_heads"], 12),
        d_ff=fields.size(names["d_ff"], 3072),
        dropout=fields.rate(names["dropout"], 0.1),
        activation=fields.choice(names["activation"], tuple(ACTIVATIONS), "gelu"),
        norm_eps=1e-12 if distil else fields.number("layer_norm_eps", 1e-12),
        max_len=fields.integer("max_position_embeddings", 512, before + 1) - before,
        type_vocab_size=0 if distil else fields.size("type_vocab_size", 2),
        pooler=not distil and fields.holds(r"(.*\.)?pooler\.dense\.weight", _pooled(layout, head)),
        next_sentence=layout == "bert" and fields.holds(r"cls\.seq_relationship\.weight", False),
        pad_id=pad,
    )


def _pooled(layout: Layout, head: Head) -> bool:
    """Whether transformers' class has a pooler."""
    return head == "none" or (layout == "bert" and head == "classification")


def _write(layout: Layout, config: BertConfig) -> dict[str, Any]:
    names = DISTILBERT_NAMES if layout == "distilbert" else NAMES
    return {
        "vocab_size": config.source_vocab_size,
        **{theirs: getattr(config, ours) for ours, theirs in names.items()},
        "max_position_embeddings": config.first_position + config.max_len,
        **({} if layout == "distilbert" else {"type_vocab_size": config.type_vocab_size, "layer_norm_eps": config.norm_eps}),
        "pad_token_id": config.pad_id,
        **({"num_labels": config.target_vocab_size} if config.wants_labels else {}),
    }


def _architectures(layout: Layout, name: str, model_type: str = "") -> dict[str, Architecture]:
    heads: dict[str, Head] = {
        "Model": "none",
        "ForMaskedLM": "masked_lm",
        "ForSequenceClassification": "classification",
        "ForTokenClassification": "token_classification",
    }
    write: Callable = functools.partial(_write, layout)
    return {
        name + ending: Architecture(model_type or layout, functools.partial(_read, layout, head), write)
        for ending, head in heads.items()
    }


HUGGINGFACE = {
    **_architectures("bert", "Bert"),
    **_architectures("roberta", "Roberta"),
    **_architectures("roberta", "XLMRoberta", "xlm-roberta"),
    **_architectures("distilbert", "DistilBert"),
}
