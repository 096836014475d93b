"""The contract: one pure function family behind which every sequence-to-sequence model of the zoo lives.

    encode(source, train)              -> memory          everything the decoder needs from the source, computed once
    init_cache(memory, max_len, ...)   -> cache           a plain pytree that decoding carries along
    decode(tokens, memory, cache=None) -> outputs, cache  all tokens teacher-forced, or one (or n) more with a cache
    logits(hidden)                     -> logits          the product over the vocabulary, which decode ends with
    __call__(source, target)           =  decode(shift_right(target), encode(source))

A model is a Flax Linen module with nothing but the ``params`` collection and the ``dropout`` rng, so that

    outputs = model.apply({"params": params}, source, target)
    memory = model.apply({"params": params}, source, method="encode")

are pure functions: what a trainer, a search or an export needs to know of a model is this page and no more.

Arrays carry their shape in their name. The legend, for all files:

    B  batch             S  source length      T  target length     N  any length
    D  model width       H  attention heads    K  head width        F  feed-forward width
    V  vocabulary        L  layers             G  gates x width     W  beams of a sentence
    M  numbers a frame

Batch rules. Axis 0 of every leaf of a memory or a cache is the batch; a scalar leaf counts positions and is shared by all rows.
``decode`` accepts W rows of tokens for each row of memory (rows b*W ... b*W + W-1 continue sentence b): memory is never copied
per beam. A search gives each row the leaves of the row that it continues, but what stands in ``AppendOnly`` never moves.

Two kinds of model have one half only, and keep to the same page:

    decoder-only   the source is the prompt. ``encode`` reads all of it but each row's last token into the memory, as keys and
                   values (prefill: ragged, padded on either side, never copied per beam); ``config.first(source)`` is that last
                   token, with which ``decode`` goes on at each row's own position. An empty prompt begins with ``start_id``,
                   so that training on plain text is ``__call__`` with sources of no length.
    encoder-only   ``encode`` gives the hidden states as its memory (``EncoderOnly``), of which ``logits`` is the head; there is
                   nothing to decode.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
LONGEST_MESSAGE = 2000  # characters of a UserError

PyTree = Any


class UserError(ValueError):
    """Bad input: one sentence that names the thing and the way out. Commands print it and exit with 2.

    As text it is one line that a terminal can show, whatever a file or another library's message put into it.

    >>> print(UserError("there is no file a\\nb"))
    there is no file a b
    """

    def __str__(self) -> str:
        text = "".join(c if c.isprintable() else " " for c in super().__str__())
        return text if len(text) <= LONGEST_MESSAGE else f"{text[: LONGEST_MESSAGE // 2]} ... {text[-LONGEST_MESSAGE // 2 :]}"


def first_line(error: BaseException, most: int = 200) -> str:
    """What another library's exception says, for the middle of a sentence of ours: at most ``most`` characters of a line.

    >>> first_line(OSError("no such file.\\nTraceback ...")), first_line(KeyError())
    ('no such file', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".: ")[:most] if lines else type(error).__name__


class Tokens(NamedTuple):
    """A padded batch of token sequences.

    Attributes:
      ids: (B, N) int32 token ids; what stands at a masked position does not matter.
      mask: (B, N) bool, True where a token is real. Padding may stand on either side.
      segments: (B, N) int32, which of the row's sequences a token belongs to, counted from 1, each in one piece; 0 for padding.
        None where each row is one sequence.
      types: (B, N) int32, which text of a pair a token is of, 0 or 1, for models that read two texts in a row. None: the first.
      noise: (B, N, K) int32, of a target: the tokens that each is to be told from. None: from all of the vocabulary.
    """

    ids: jax.Array
    mask: jax.Array
    segments: jax.Array | None = None
    types: jax.Array | None = None
    noise: jax.Array | None = None


class Frames(NamedTuple):
    """A padded batch of real-valued series, such as sound.

    Attributes:
      values: (B, N, M) float32, M numbers at each of N times; what stands at a masked time does not matter.
      mask: (B, N) bool, True where a frame is real. Padding may stand on either side.
    """

    values: jax.Array
    mask: jax.Array


class Sound(NamedTuple):
    """A batch of recordings of one length, of which a model makes ``Frames`` by itself, on the device that it runs on.

    Attributes:
      samples: (B, N) float32, -1 ... 1, 16,000 a second; what is shorter is followed by silence.
      mask: (B, N // 160) bool, True for the frames of a real row: silence too is read.
    """

    samples: jax.Array
    mask: jax.Array


class AppendOnly(NamedTuple):
    """The part of a cache that a search leaves where it is: buffers in which each position is written once.

    Moving key and value buffers whenever beams change places would cost more than reading them. The model keeps an ordinary
    leaf beside them instead, which names the row that holds each position of a hypothesis; the search reorders that leaf alone.

    Attributes:
      buffers: any pytree; axis 0 runs over the sentences or rows, and may be folded together with others.
    """

    buffers: PyTree


class Outputs(NamedTuple):
    """What a decoder says of each position.

    Attributes:
      logits: (B, T, V) unnormalised log-probabilities of the next token.
      attention: on request, name -> weights (B, H, queries, keys); names end in ``self`` or ``cross``. Empty otherwise.
      hidden: (B, T, D) what the model's ``logits`` makes the logits of; None where no one model made them. Under jit, who reads
        ``hidden`` and not ``logits`` never computes the latter: a loss over large vocabularies takes them a chunk at a time.
    """

    logits: jax.Array
    attention: dict[str, jax.Array]
    hidden: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What every variant's Config shares.

    Attributes:
      source_vocab_size: ids of the source vocabulary; 0 until the tokenizer is known.
      target_vocab_size: ids of the target vocabulary; 0 until the tokenizer is known.
      start_id: what a decoder reads first.
      end_id: what ends every target.
      pad_id: what stands after the end. These three are fields of a variant whose pretrained models have their own.
      decoder_only: whether the source is a prompt, which the output goes on after.
    """

    source_vocab_size: int = 0
    target_vocab_size: int = 0
    start_id: ClassVar[int] = BOS
    end_id: ClassVar[int] = EOS
    pad_id: ClassVar[int] = PAD
    decoder_only: ClassVar[bool] = False

    def build(self) -> Seq2Seq:
        """The Linen module of this configuration."""
        raise NotImplementedError

    def first(self, source: PyTree) -> int | jax.Array:
        """What the decoder reads first: ``start_id``, or (B,) a token for each sentence (see decoder-only, above)."""
        return self.start_id

    def most(self, source: PyTree) -> jax.Array | None:
        """(B,) how many tokens may follow each source, where it takes up positions of the output's; None for any number."""
        return None

    @property
    def wants_one_vocabulary(self) -> bool:
        """Whether source and target must share their token ids."""
        return False

    @property
    def wants_labels(self) -> bool:
        """Whether a target is a label (``zoo.labels``), not text."""
        return False

    def example(self, batch: int = 2, source_len: int = 7, target_len: int = 5, seed: int = 0) -> tuple[PyTree, Tokens]:
        """A small random batch, ragged and right-padded: (source, target) as ``__call__`` takes them."""
        rng = np.random.default_rng(seed)
        return (
            random_tokens(rng, batch, source_len, self.source_vocab_size),
            random_tokens(rng, batch, target_len, self.target_vocab_size),
        )


class Seq2Seq(nn.Module):
    """Base of every model: the contract of this file. Subclasses define ``encode``, ``init_cache``, ``decode`` and ``logits``.

    ``RULES`` names each parameter in the reference implementation (``zoo.checkpoint.rules``); ``SHARDING`` lists
    ``(path regex, PartitionSpec)`` for a mesh with axes ``data``, ``fsdp`` and ``model``. In both the first match wins.
    ``PACKS`` says whether rows may hold several sequences (``Tokens.segments``), ``SCANS`` whether the layers are alike,
    ``SOUND`` whether the source is ``Sound``, or ``Frames`` of it. ``VECTORS`` is the path of the parameter whose rows are word
    vectors, where these are what a model is made for: it learns them by telling words from noise (``Tokens.noise``).

    Attributes:
      config: what is saved with a model, and all that its parameters depend on. The others are how a run computes the same
        numbers: ``config.build().clone(remat=True)``.
      remat: compute the layers' activations again for the gradient instead of keeping them.
      scan_layers: compile one layer and loop over it when reading all tokens at once; the parameters' tree stays as it is.
      kernel: "auto" takes cuDNN's attention where it can (``zoo.nn.attention.choose``), "xla" never.
      right_padded: a promise that padding stands on the right, which a kernel may use.
    """

    config: ModelConfig
    remat: bool = False
    scan_layers: bool = False
    kernel: Literal["auto", "xla"] = "auto"
    right_padded: bool = False

    RULES: ClassVar[tuple] = ()
    SHARDING: ClassVar[tuple] = ()
    PACKS: ClassVar[bool] = False
    SCANS: ClassVar[bool] = False
    SOUND: ClassVar[bool] = False
    VECTORS: ClassVar[str] = ""

    def __post_init__(self):
        if self.scan_layers and not self.SCANS:
            raise UserError(f"compute.scan_layers is on, but the layers of {type(self).__name__} are not alike: turn it off")
        super().__post_init__()

    def encode(self, source: PyTree, train: bool = False, attention: bool = False) -> PyTree:
        """Everything that the decoder needs from the source, computed once."""
        raise NotImplementedError

    def init_cache(self, memory: PyTree, max_len: int, beams: int = 1) -> PyTree:
        """The decoder's state before the first token, for ``beams`` rows a sentence and at most ``max_len`` tokens."""
        raise NotImplementedError

    def decode(
        self,
        tokens_BT: jax.Array,
        memory: PyTree,
        cache: PyTree | None = None,
        train: bool = False,
        attention: bool = False,
    ) -> tuple[Outputs, PyTree]:
        """Read T tokens and predict the one after each; with a cache, continue where it ended.

        A model that ``PACKS`` takes the tokens' ``segments_BT`` too, without a cache.
        """
        raise NotImplementedError

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """The logits (B, T, V) of ``Outputs.hidden``, or of some of its positions: the last thing that ``decode`` does."""
        raise NotImplementedError

    def rematerialised(self, call: Callable) -> Callable:
        """``call(layer, ...)``, its activations computed again for the gradient if the run wants that."""
        return nn.remat(call) if self.remat else call

    def __call__(self, source: PyTree, target: Tokens, train: bool = False, attention: bool = False) -> Outputs:
        """Teacher forcing: the logits of every target token given the tokens before it and the source."""
        first = self.config.first(source)
        if target.segments is None:
            memory = self.encode(source, train=train, attention=attention)
            return self.decode(shift_right(target.ids, first), memory, train=train, attention=attention)[0]
        if not self.PACKS:
            raise UserError(f"batching.pack is on, but {type(self).__name__} reads one pair a row: turn it off")
        memory = self.encode(source, train=train, attention=attention)
        tokens_BT, segments_BT = shift_right(target.ids, first, target.segments), target.segments
        return self.decode(tokens_BT, memory, train=train, attention=attention, segments_BT=segments_BT)[0]


class EncoderOnly(Seq2Seq):
    """Base of models without a decoder: ``encode(source)`` is an ``Encoded``, and ``logits`` the head's.

    ``__call__(source, target)`` gives as ``Outputs.logits`` what the head says: (B, S, V) of each position, such as a masked
    language model's, or (B, 1, V) of the whole source. The target is what a loss compares them with, where its mask is
    True; it is not read.
    """

    def __call__(self, source: PyTree, target: Tokens | None = None, train: bool = False, attention: bool = False) -> Outputs:
        if target is not None and target.segments is not None:
            raise UserError(f"batching.pack is on, but {type(self).__name__} reads one text or pair a row: turn it off")
        memory = self.encode(source, train=train, attention=attention)
        hidden = self.pool(memory, train=train)
        return Outputs(self.logits(hidden), memory.attention, hidden)

    def pool(self, memory: Encoded, train: bool = False) -> jax.Array:
        """What the head reads of the hidden states: (B, S, D), or (B, 1, D)."""
        return memory.hidden_BSD

    def init_cache(self, memory: PyTree, max_len: int, beams: int = 1) -> PyTree:
        raise UserError(f"{type(self).__name__} is an encoder alone and generates nothing: use its embed or predict")


class Encoded(NamedTuple):
    """What an encoder alone makes of a source.

    Attributes:
      hidden_BSD: the last layer's hidden states, zero for padding.
      mask_BS: bool, True where a token is real.
      attention: on request, name -> weights (B, H, S, S).
    """

    hidden_BSD: jax.Array
    mask_BS: jax.Array
    attention: dict[str, jax.Array]


def shift_right(ids_BT: jax.Array, first: int | jax.Array = BOS, segments_BT: jax.Array | None = None) -> jax.Array:
    """What a decoder reads when it is to predict ``ids_BT``: the first token, () or (B,), then all but the last.

    So for each segment, where there are several in a row.

    >>> shift_right(jnp.array([[7, 8, 2]])).tolist()
    [[1, 7, 8]]
    >>> shift_right(jnp.array([[7, 2, 8, 2]]), 1, jnp.array([[1, 1, 2, 2]])).tolist()
    [[1, 7, 1, 8]]
    """
    if not ids_BT.shape[1]:
        return ids_BT
    first_B1 = jnp.broadcast_to(jnp.asarray(first, ids_BT.dtype), ids_BT.shape[:1])[:, None]
    shifted_BT = jnp.concatenate([first_B1, ids_BT[:, :-1]], axis=1)
    return shifted_BT if segments_BT is None else jnp.where(starts(segments_BT), first_B1, shifted_BT)


def starts(segments_BN: jax.Array) -> jax.Array:
    """(B, N) bool: where a segment begins."""
    return segments_BN != jnp.pad(segments_BN[:, :-1], ((0, 0), (1, 0)), constant_values=-1)


def positions(mask_BN: jax.Array, segments_BN: jax.Array | None = None) -> jax.Array:
    """The index of each real token among the real ones of its row or segment, (B, N) int32: right whichever side is padded.

    >>> positions(jnp.array([[False, True, True]])).tolist()
    [[0, 0, 1]]
    >>> positions(jnp.array([[True, True, True]]), jnp.array([[1, 2, 2]])).tolist()
    [[0, 0, 1]]
    """
    count_BN = jnp.cumsum(mask_BN.astype(jnp.int32), axis=1)
    if segments_BN is not None:
        before_BN = jnp.where(starts(segments_BN), count_BN - mask_BN, 0)
        count_BN = count_BN - jax.lax.cummax(before_BN, axis=1)
    return jnp.maximum(count_BN - 1, 0)


def per_beam(x_B: jax.Array, rows: int) -> jax.Array:
    """Repeat each sentence's row for its beams, so that ``rows`` result: for vectors, never for keys and values.

    >>> per_beam(jnp.array([5, 6]), 4).tolist()
    [5, 5, 6, 6]
    """
    return x_B if x_B.shape[0] == rows else jnp.repeat(x_B, rows // x_B.shape[0], axis=0)


def pad_tokens(sequences: list[list[int]], length: int | None = None) -> Tokens:
    """Right-pad lists of ids to one length (the longest one's unless given), as host arrays.

    >>> pad_tokens([[5, 2], [2]]).ids.tolist()
    [[5, 2], [2, 0]]
    """
    length = max(map(len, sequences), default=0) if length is None else length
    ids = np.full((len(sequences), length), PAD, np.int32)
    mask = np.zeros((len(sequences), length), bool)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = True
    return Tokens(ids, mask)


def random_tokens(rng: np.random.Generator, batch: int, length: int, vocab_size: int) -> Tokens:
    """Ragged random sequences that end in the end token; the first row is full."""
    lengths = np.concatenate([[length], rng.integers(1, length + 1, batch - 1)]).astype(int)
    return pad_tokens([[*rng.integers(len(SPECIAL_TOKENS), vocab_size, n - 1), EOS] for n in lengths], length)


def flatten_params(params: PyTree) -> dict[str, jax.Array]:
    """The tree as ``{"encoder/layer_0/kernel": array}``: the names that every rule table matches.

    >>> flatten_params({"a": {"b": 1}, "c": 2})
    {'a/b': 1, 'c': 2}
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def unflatten_params(flat: dict[str, jax.Array]) -> PyTree:
    """The inverse of ``flatten_params``."""
    tree: dict = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree
