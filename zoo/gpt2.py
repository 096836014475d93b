"""GPT-2: a decoder alone, which goes on after a prompt.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2: the Transformer's decoder by itself, with
a norm before each sublayer, where Radford et al. 2018 had it after, and one more at the end; learned positions, byte-level BPE.
DistilGPT-2 (Sanh et al. 2019) is the same with half the layers.

              layers   width   heads   parameters
    gpt2          12     768      12      124,439,808
    medium        24    1024      16      354,823,168
    large         36    1280      20      774,030,080
    xl            48    1600      25    1,557,611,200
    distilgpt2     6     768      12       81,912,576

The source is the prompt. All of it but the last token is read once, into the memory: keys and values of each layer, which the
beams of a prompt share. The last token is what ``decode`` reads first, and the output is the continuation alone. An empty
prompt begins with ``start_id``, so that a model of plain text is trained on pairs of nothing and a text.

Departures from the paper and from transformers' code: one dropout rate, on embeddings and sublayers; that of attention weights
is kept in config.json and not applied. Each row counts its own positions, on whichever side it is padded. Scores are always
summed in float32, as ``reorder_and_upcast_attn`` wants it. Prompt and output share ``max_len`` positions: an output that comes
to their end is cut there.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.initializers import normal
from jax.sharding import PartitionSpec as P

from zoo.checkpoint.fields import Architecture, Fields
from zoo.checkpoint.rules import Constant, Copy, Renamed, Rule, embedding, norm
from zoo.core import BOS, EOS, PAD, AppendOnly, ModelConfig, Outputs, Seq2Seq, Tokens, UserError, per_beam, positions
from zoo.nn.activation import gelu, gelu_tanh
from zoo.nn.attention import MultiHeadAttention
from zoo.nn.cache import DecoderCache, KeyValue, Visible
from zoo.nn.dropout import Dropout
from zoo.nn.linear import Dense, Embed
from zoo.nn.norm import LayerNorm
from zoo.nn.sharding import BATCH, MODEL, constrain

TASK = "text, pretrained"
ACTIVATIONS = {"gelu_new": gelu_tanh, "gelu": gelu, "relu": nn.relu, "silu": nn.silu}


@dataclasses.dataclass(frozen=True)
class GPT2Config(ModelConfig):
    """Sizes and choices; the table above says which model has which.

    Attributes:
      d_model: width D of every layer's input and output.
      num_layers: how many.
      num_heads: attention heads H; divides d_model.
      d_ff: width F between the two products of a feed-forward sublayer.
      dropout: on the sum of embedding and position, and on each sublayer's output before it is added.
      activation: of the feed-forward sublayers; "gelu_new" is the approximation by tanh.
      norm_epsilon: what a norm adds to the variance.
      max_len: positions of a prompt and its continuation together.
      start_id: what an empty prompt begins with.
      end_id, pad_id: see ``ModelConfig``.
    """

    d_model: int = 768
    num_layers: int = 12
    num_heads: int = 12
    d_ff: int = 3072
    dropout: float = 0.1
    activation: Literal["gelu_new", "gelu", "relu", "silu"] = "gelu_new"
    norm_epsilon: float = 1e-5
    max_len: int = 1024
    start_id: int = BOS
    end_id: int = EOS
    pad_id: int = PAD

    PAPER: ClassVar[str] = "Radford et al. 2019"
    decoder_only: ClassVar[bool] = True

    @property
    def wants_one_vocabulary(self) -> bool:
        return True

    def first(self, source: Tokens | None) -> int | jax.Array:
        """The last token of each prompt, (B,); ``start_id`` where there is none."""
        if source is None or not source.ids.shape[1]:
            return self.start_id if source is None else jnp.full(source.ids.shape[:1], self.start_id, jnp.int32)
        place_B = last(source.mask)
        token_B = jnp.take_along_axis(jnp.asarray(source.ids), jnp.maximum(place_B, 0)[:, None], axis=1)[:, 0]
        return jnp.where(place_B < 0, self.start_id, token_B)

    def most(self, source: Tokens) -> jax.Array:
        """(B,) the positions that the prompt leaves: its last token, and each of the output but the last, is read at one."""
        return self.max_len + 1 - jnp.maximum(jnp.asarray(source.mask).sum(axis=1), 1)

    def build(self) -> GPT2:
        if self.d_model % self.num_heads:
            raise UserError(f"model.d_model is {self.d_model}: it must be a multiple of num_heads, {self.num_heads}")
        if self.source_vocab_size != self.target_vocab_size:
            raise UserError(
                f"the vocabularies have {self.source_vocab_size} and {self.target_vocab_size} entries, but a prompt and its "
                "continuation are one text: use one for both sides"
            )
        return GPT2(self)


OPENAI = {"start_id": 50_256, "end_id": 50_256, "pad_id": 50_256}

# Table 2 of the paper, whose parameter counts OpenAI corrected: the table above has those of the published files.
PRESETS = {
    "tiny": GPT2Config(32, 32, d_model=32, num_layers=2, num_heads=4, d_ff=64, max_len=64),
    "gpt2": GPT2Config(50_257, 50_257, **OPENAI),
    "medium": GPT2Config(50_257, 50_257, d_model=1024, num_layers=24, num_heads=16, d_ff=4096, **OPENAI),
    "large": GPT2Config(50_257, 50_257, d_model=1280, num_layers=36, num_heads=20, d_ff=5120, **OPENAI),
    "xl": GPT2Config(50_257, 50_257, d_model=1600, num_layers=48, num_heads=25, d_ff=6400, **OPENAI),
    "distilgpt2": GPT2Config(50_257, 50_257, num_layers=6, **OPENAI),
}


class Memory(NamedTuple):
    """What the decoder reads of the prompt.

    Attributes:
      keys: each layer's keys and values of the prompt.
      mask_BS: bool, True where they are of a real token that is not the last.
      length_B: int32, how many those are: the position of the token that is read first.
      attention: on request, name -> weights (B, H, S, S).
    """

    keys: tuple[KeyValue, ...]
    mask_BS: jax.Array
    length_B: jax.Array
    attention: dict[str, jax.Array]


def last(mask_BN: jax.Array) -> jax.Array:
    """The place of the last real token of each row, (B,) int32; -1 where there is none.

    >>> last(jnp.array([[True, True, False], [False, False, False]])).tolist()
    [1, -1]
    """
    return jnp.max(jnp.where(mask_BN, jnp.arange(mask_BN.shape[1])[None], -1), axis=1, initial=-1)


class Block(nn.Module):
    """Causal self-attention, then the feed-forward network, each x + dropout(sublayer(norm(x)))."""

    config: GPT2Config
    kernel: str

    def setup(self):
        c = self.config
        small = normal(0.02 / max(2 * c.num_layers, 1) ** 0.5)  # of what is added: section 2.3 of the paper
        layer_norm = lambda: LayerNorm(epsilon=c.norm_epsilon)  # noqa: E731
        self.attention_norm, self.feed_forward_norm = layer_norm(), layer_norm()
        self.attention = MultiHeadAttention(c.d_model, c.num_heads, self.kernel, normal(0.02), small)
        self.inner, self.outer = Dense(c.d_ff, kernel_init=normal(0.02)), Dense(c.d_model, kernel_init=small)
        self.drop = Dropout(c.dropout)

    def __call__(self, x_RTD: jax.Array, prompt, past: Visible, cache: KeyValue | None, index, train: bool, attention: bool):
        """``prompt`` is what came before and what of it may be read, or None; ``past`` what of these tokens' own past.

        Returns x (R, T, D), the cache with T more positions (or None), and, on request, the weights (R, H, T, S + N).
        """
        normed_RTD = self.attention_norm(x_RTD)
        out_RTD, cache, weights = self.attention.read_past(normed_RTD, past, cache, index, attention, prompt)
        return self.add(x_RTD, out_RTD, train), cache, weights

    def read_prompt(self, x_BSD: jax.Array, visible: Visible, train: bool, attention: bool):
        """Returns x (B, S, D), its keys and values, and, on request, the weights (B, H, S, S)."""
        normed_BSD = self.attention_norm(x_BSD)
        keys = self.attention.project(normed_BSD)
        out_BSD, weights = self.attention(normed_BSD, keys, visible, causal=True, weights=attention)
        return self.add(x_BSD, out_BSD, train), keys, weights

    def add(self, x_BND: jax.Array, attended_BND: jax.Array, train: bool) -> jax.Array:
        """What the attention gave, then the feed-forward network's output."""
        x_BND = constrain(x_BND + self.drop(attended_BND, deterministic=not train), BATCH)
        x_BNF = ACTIVATIONS[self.config.activation](self.inner(self.feed_forward_norm(x_BND)))
        out_BND = self.outer(constrain(x_BNF, BATCH, None, MODEL))
        return constrain(x_BND + self.drop(out_BND, deterministic=not train), BATCH)


def conv1d(ours: str, theirs: str, part: tuple[int, int] = (0, 1)) -> tuple[Rule, ...]:
    """A Dense and transformers' Conv1D, whose kernel lies as ours does; ``part`` of several that stand side by side."""
    return Rule(f"{ours}/kernel", f"{theirs}.weight", part=part, axis=1), Rule(f"{ours}/bias", f"{theirs}.bias", part=part)


# The names of transformers' GPT2LMHeadModel.
RULES = (
    *embedding("embedding", "transformer.wte"),
    *embedding("position_embedding", "transformer.wpe"),
    *norm(r"layers_(\d+)/attention_norm", r"transformer.h.\1.ln_1"),
    *norm(r"layers_(\d+)/feed_forward_norm", r"transformer.h.\1.ln_2"),
    *norm("norm", "transformer.ln_f"),
    *(
        rule
        for i, name in enumerate(("query", "key", "value"))
        for rule in conv1d(rf"layers_(\d+)/attention/{name}", r"transformer.h.\1.attn.c_attn", (i, 3))
    ),
    *conv1d(r"layers_(\d+)/attention/out", r"transformer.h.\1.attn.c_proj"),
    *conv1d(r"layers_(\d+)/inner", r"transformer.h.\1.mlp.c_fc"),
    *conv1d(r"layers_(\d+)/outer", r"transformer.h.\1.mlp.c_proj"),
    Copy(r"lm_head\.weight", "transformer.wte.weight"),
    # What older files hold: the causal mask, and the number that stood for minus infinity.
    Constant(r"transformer\.h\.\d+\.attn\.bias", lambda shape: np.tril(np.ones(shape, np.float32))),
    Constant(r"transformer\.h\.\d+\.attn\.masked_bias", lambda shape: np.full(shape, -1e4, np.float32)),
    Renamed(r"((h\.\d+|wte|wpe|ln_f)\..*)", r"transformer.\1"),  # a GPT2Model by itself
)

# Megatron's split: the first product of a pair by columns, the second by rows; the other axis over fsdp.
SHARDING = (
    (r".*(query|key|value|inner)/kernel", P("fsdp", "model")),
    (r".*(query|key|value|inner)/bias", P("model")),
    (r".*(out|outer)/kernel", P("model", "fsdp")),
    (r"embedding/embedding", P("model", "fsdp")),
    (r".*", P()),
)


class GPT2(Seq2Seq):
    """The model. Attention names are ``prompt_0/self`` of the prompt, ``layers_0/cross`` of the output over the prompt, and
    ``layers_0/self`` over itself, whose first position is the prompt's last token: a row of both together sums to 1.
    """

    config: GPT2Config

    RULES: ClassVar = RULES
    SHARDING: ClassVar = SHARDING

    def setup(self):
        c = self.config
        self.embedding = Embed(c.target_vocab_size, c.d_model, embedding_init=normal(0.02))
        self.position_embedding = Embed(c.max_len, c.d_model, embedding_init=normal(0.02))
        self.layers = [Block(c, self.kernel) for _ in range(c.num_layers)]
        self.norm = LayerNorm(epsilon=c.norm_epsilon)
        self.drop = Dropout(c.dropout)

    def embed(self, ids_BN: jax.Array, position_BN: jax.Array, train: bool) -> jax.Array:
        """Embeddings plus positions: (B, N, D). Beyond the last position stands padding alone, or what no search keeps."""
        position_BN = jnp.clip(position_BN, 0, self.config.max_len - 1)
        x_BND = self.embedding(ids_BN) + self.position_embedding(position_BN)
        return constrain(self.drop(x_BND, deterministic=not train), BATCH)

    def encode(self, source: Tokens, train: bool = False, attention: bool = False) -> Memory:
        mask_BS = jnp.asarray(source.mask)
        visible, weights, keys = Visible.real(mask_BS, self.right_padded), {}, []
        x_BSD = self.embed(source.ids, positions(mask_BS), train)
        call = self.rematerialised(lambda layer, x_BSD: layer.read_prompt(x_BSD, visible, train, attention))
        for i, layer in enumerate(self.layers):
            x_BSD, projected, w = call(layer, x_BSD)
            keys.append(projected)
            weights |= {f"prompt_{i}/self": w} if attention else {}
        mask_BS &= jnp.arange(mask_BS.shape[1])[None] != last(mask_BS)[:, None]
        return Memory(tuple(keys), mask_BS, mask_BS.sum(axis=1, dtype=jnp.int32), weights)

    def init_cache(self, memory: Memory, max_len: int, beams: int = 1) -> DecoderCache:
        B, H, _, K = memory.keys[0].value.shape
        return DecoderCache.zeros(self.config.num_layers, B, beams, H, max_len, K, memory.keys[0].key.dtype)

    def decode(
        self, tokens_BT, memory: Memory, cache: DecoderCache | None = None, train: bool = False, attention: bool = False
    ):
        (R, T), S = tokens_BT.shape, memory.mask_BS.shape[1]
        if train and T + max(S - 1, 0) > self.config.max_len:
            raise UserError(
                f"prompts of {S} tokens and continuations of {T} do not fit model.max_len = {self.config.max_len} together: "
                "raise it, or lower batching.max_source_len or batching.max_target_len"
            )
        if cache is None:
            index, past, beam_RN, buffers = 0, Visible(None), None, [None] * len(self.layers)
        else:
            index, (beam_RN, mask), buffers = cache.index, cache.read(T), cache.layers.buffers
            past = Visible(mask)
        seen = Visible.real(memory.mask_BS, self.right_padded)
        position_RT = per_beam(memory.length_B, R)[:, None] + index + jnp.arange(T)[None]
        x_BTD = self.embed(tokens_BT, position_RT, train)
        call = self.rematerialised(
            lambda layer, x_BTD, prompt, buffer: layer(x_BTD, prompt, past, buffer, index, train, attention)
        )
        layers, weights = [], dict(memory.attention) if attention else {}
        for i, layer in enumerate(self.layers):
            prompt = (memory.keys[i], seen) if S else None
            x_BTD, new, w = call(layer, x_BTD, prompt, buffers[i])
            layers.append(new)
            weights |= {f"layers_{i}/cross": w[..., :S], f"layers_{i}/self": w[..., S:]} if attention else {}
        x_BTD = self.norm(x_BTD)
        new_cache = None if cache is None else DecoderCache(AppendOnly(tuple(layers)), beam_RN, index + T)
        return Outputs(self.logits(x_BTD), weights, x_BTD), new_cache

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """The product with the embedding's transpose: (B, T, V)."""
        return constrain(self.embedding.attend(hidden_BTD), BATCH, None, MODEL)


def _read(fields: Fields) -> GPT2Config:
    size, width = fields.vocabulary("vocab_size", 50_257), fields.size("n_embd", 768)
    for name in ("tie_word_embeddings", "scale_attn_weights"):
        fields.choice(name, (True,), True)
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        fields.choice(name, (False,), False)
    fields.flag("reorder_and_upcast_attn", False)  # either way the same numbers in float32
    end = fields.token("eos_token_id", size, min(50_256, size - 1))
    return GPT2Config(
        size,
        size,
        d_model=width,
        num_layers=fields.layers("n_layer", 12),
        num_heads=fields.size("n_head", 12),
        d_ff=fields.size("n_inner", 4 * width),
        dropout=fields.rate("resid_pdrop", 0.1),
        activation=fields.choice("activation_function", tuple(ACTIVATIONS), "gelu_new"),
        norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
        max_len=fields.size("n_positions", 1024),
        start_id=fields.token("bos_token_id", size, end),
        end_id=end,
        pad_id=fields.token("pad_token_id", size, end),
    )


def _write(config: GPT2Config) -> dict[str, Any]:
    return {
        "vocab_size": config.target_vocab_size,
        "n_embd": config.d_model,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.d_ff,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "activation_function": config.activation,
        "layer_norm_epsilon": config.norm_epsilon,
        "n_positions": config.max_len,
        "bos_token_id": config.start_id,
        "eos_token_id": config.end_id,
        "pad_token_id": config.pad_id,
        "tie_word_embeddings": True,
    }


HUGGINGFACE = {
    "GPT2LMHeadModel": Architecture("gpt2", _read, _write),
    "GPT2Model": Architecture("gpt2", _read, _write),
}
