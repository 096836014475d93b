"""What may be generated: lengths, forced and forbidden tokens, repetition. Every search applies the same rules.

Each field is a value that the compiled search reads: another minimum length, penalty or bias compiles nothing. Only whether a
field that may be None is given at all makes another program, and without it the step pays nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zoo import core
from zoo.generate import select

NEVER = -1  # no token: fills the rows of ``stop`` from the left
ROUNDING = 1e-6  # relative: 0.3 of 50 tokens are 15, though in float32 they come out a little above


class Rules(NamedTuple):
    """What every search keeps to. A field of shape (B,) may be () for all rows; lengths count the end token.

    Attributes:
      start_id: () int, what the decoder reads first; never generated, unless it ends sequences as well. Or (B,) int, the
        last tokens of the prompts that a decoder continues. None for the model's own, as are the next two.
      end_id: () int, what ends a sequence.
      pad_id: () int, what stands after the end; never generated, unless it ends sequences as well.
      min_len: (B,) int, the fewest tokens of a row; the limit goes first.
      limit: (B,) int, the most tokens of a row, at most the search's ``max_len``, which is the default. 0 gives an empty row.
      min_ratio: () float, the fewest tokens for each token of the source; needs ``relative_to``.
      limit_ratio: () float, the most tokens for each token of the source; needs ``relative_to``.
      total: () int, the most tokens of a row and its source together; needs ``relative_to``.
      end_at_limit: () bool, whether the last token that fits must be the end token (fairseq; BART's ``forced_eos``).
      prefix: ``core.Tokens`` of shape (B, P), right-padded: the first tokens of each row.
      first_id: () int, the one token that may follow the prefix (mBART's and M2M-100's language), or -1.
      bias: (V,) or (B, V) float, added to the scores; -inf suppresses a token (see ``bias``).
      first_bias: (V,) float, the same for the first token after the prefix alone.
      repetition: () float, the penalty of Keskar et al. 2019 (arXiv:1909.05858, section 4.1): a token that stands in the
        sequence already has its positive score divided by it, its negative score multiplied.
      ngram: () int, no n-gram of this size stands twice in a sequence (Paulus et al. 2018, arXiv:1705.04304, section 2.5).
      source_ngram: () int, no n-gram of this size stands in the source and in its output (Roller et al. 2021,
        arXiv:2004.13637, section 4.1.2); needs ``source``.
      stop: (N, L) int32, sequences that end a row like the end token does, filled from the left with -1 (see
        ``stop_sequences``); they stay in the row.
      anything: () bool, whether the start and padding tokens may be generated after all, as other systems let them.
      prompt: ``core.Tokens`` of shape (B, S) that rows go on after, which repetition and n-grams count too: a decoder-only
        model's source, as ``generate`` fills it in.
      source: ``core.Tokens`` of shape (B, S), the source where a rule reads it, as ``generate`` fills it in.
      processor: a rule of one's own, for which the next token hangs on those before it: a function of the logits (R, V) that
        all of the above have changed, the tokens (R, T), the step () and how many tokens of each row are a prefix (R,), to
        logits that are nowhere higher. A JAX tree (``jax.tree_util.register_dataclass``) whose values all rows share.
    """

    start_id: jax.Array | int | None = None
    end_id: jax.Array | int | None = None
    pad_id: jax.Array | int | None = None
    min_len: jax.Array | int = 0
    limit: jax.Array | int | None = None
    min_ratio: jax.Array | float | None = None
    limit_ratio: jax.Array | float | None = None
    total: jax.Array | int | None = None
    end_at_limit: jax.Array | bool = False
    prefix: core.Tokens | None = None
    first_id: jax.Array | int = NEVER
    bias: jax.Array | None = None
    first_bias: jax.Array | None = None
    repetition: jax.Array | float | None = None
    ngram: jax.Array | int | None = None
    source_ngram: jax.Array | int | None = None
    stop: jax.Array | None = None
    anything: jax.Array | bool = False
    prompt: core.Tokens | None = None
    source: core.Tokens | None = None
    processor: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array] | None = None

    def of(self, config: core.ModelConfig, source: core.PyTree = None) -> Rules:
        """The rules with the ids that are not given taken from a model's configuration, and what that says of a source."""
        most = None if source is None else config.most(source)
        if most is not None:
            most = most if self.limit is None else jnp.minimum(most, self.limit)
        return self._replace(
            limit=self.limit if most is None else most,
            start_id=config.first(source) if self.start_id is None else self.start_id,
            end_id=config.end_id if self.end_id is None else self.end_id,
            pad_id=config.pad_id if self.pad_id is None else self.pad_id,
        )

    def first(self, rows: int) -> jax.Array:
        """What the decoder reads first in each row, (rows,) int32."""
        start = jnp.asarray(self.start_id, jnp.int32)
        return core.per_beam(start, rows) if start.ndim else jnp.full((rows,), start)

    def relative_to(self, source_len_B: jax.Array) -> Rules:
        """The rules with what is relative to the source turned into lengths; a limit given as well goes on holding."""
        rules = self
        if self.min_ratio is not None:
            fewest_B = jnp.ceil(self.min_ratio * source_len_B * (1 - ROUNDING)).astype(jnp.int32)
            rules = rules._replace(min_len=jnp.maximum(rules.min_len, fewest_B), min_ratio=None)
        if self.limit_ratio is not None:
            most_B = jnp.floor(self.limit_ratio * source_len_B * (1 + ROUNDING)).astype(jnp.int32)
            most_B = most_B if rules.limit is None else jnp.minimum(rules.limit, most_B)
            rules = rules._replace(limit=most_B, limit_ratio=None)
        if self.total is not None:
            most_B = self.total - source_len_B
            most_B = most_B if rules.limit is None else jnp.minimum(rules.limit, most_B)
            rules = rules._replace(limit=most_B, total=None)
        return rules

    def limits(self, batch: int, max_len: int) -> jax.Array:
        """Each row's own limit, (B,) int32 within 0 ... ``max_len``.

        Raises:
          UserError: ``max_len`` is below 1, or a ratio is left.
        """
        if max_len < 1:
            raise core.UserError(f"max_len is {max_len}: a search needs room for at least 1 token")
        if self.relative:
            raise core.UserError("min_ratio, limit_ratio and total need the source's lengths: call rules.relative_to(lengths)")
        limit = max_len if self.limit is None else self.limit
        return jnp.broadcast_to(jnp.clip(jnp.asarray(limit, jnp.int32), 0, max_len), (batch,))

    @property
    def relative(self) -> bool:
        """Whether a length is relative to the source's."""
        return any(field is not None for field in (self.min_ratio, self.limit_ratio, self.total))

    def prefix_length(self, batch: int) -> jax.Array:
        """How many tokens of each row the prefix forces, (B,) int32."""
        if self.prefix is None:
            return jnp.zeros((batch,), jnp.int32)
        return jnp.broadcast_to(self.prefix.mask.sum(axis=1).astype(jnp.int32), (batch,))

    def forced(self, batch: int, step: jax.Array, limit_B: jax.Array) -> jax.Array:
        """The one token that each row must have at this step, (B,) int32; -1 where it is free."""
        length_B = self.prefix_length(batch)
        token_B = jnp.where(step == length_B, jnp.asarray(self.first_id, jnp.int32), NEVER)
        token_B = jnp.where(jnp.asarray(self.end_at_limit) & (step + 1 >= limit_B), self.end_id, token_B)
        if self.prefix is None:
            return token_B
        ids_BP = jnp.broadcast_to(self.prefix.ids, (batch, self.prefix.ids.shape[1]))
        prefix_B = lax.dynamic_index_in_dim(ids_BP, jnp.minimum(step, ids_BP.shape[1] - 1), axis=1, keepdims=False)
        return jnp.where(step < length_B, prefix_B, token_B)

    def change(self, logits_RV: jax.Array, ids_RT: jax.Array, step: jax.Array, normaliser_R: jax.Array | None) -> jax.Array:
        """The logits as repetition, n-grams, biases and the processor leave them; the very same array where none is asked for.

        Args:
          logits_RV: what the decoder says.
          ids_RT: what stands in each row so far, ``step`` tokens.
          step: () int32.
          normaliser_R: given, the penalty for repetition sees log-probabilities, as in transformers' beam search; None for
            the logits themselves, as in its greedy search and sampling.
        """
        R = logits_RV.shape[0]
        read_RN = jnp.pad(ids_RT, ((0, 0), (1, 0)))  # what the decoder has read
        read_RN = jnp.where(jnp.arange(read_RN.shape[1])[None] == 0, self.first(R)[:, None], read_RN)
        last = step  # the place of the newest token
        if self.prompt is not None:
            before_BN = _all_but_last(self.prompt)
            read_RN = jnp.concatenate([jnp.repeat(before_BN, R // before_BN.shape[0], axis=0), read_RN], axis=1)
            last = step + before_BN.shape[1]
        if self.repetition is not None:
            shift_R1 = 0.0 if normaliser_R is None else normaliser_R[:, None]
            logits_RV = _penalise_repetition(logits_RV, read_RN, last, self.repetition, shift_R1)
        if self.ngram is not None:
            logits_RV = _block_ngrams(logits_RV, read_RN, last, self.ngram)
        if self.source_ngram is not None:
            logits_RV = _block_source_ngrams(logits_RV, self.source, read_RN, last, self.source_ngram)
        if self.bias is not None:
            logits_RV = logits_RV + (self.bias[None] if self.bias.ndim == 1 else core.per_beam(self.bias, R))
        if self.first_bias is None and self.processor is None:
            return logits_RV
        length_B = self.prefix_length(1 if self.prefix is None else self.prefix.mask.shape[0])
        length_R = jnp.broadcast_to(length_B, (R,)) if length_B.shape[0] == 1 else core.per_beam(length_B, R)
        if self.first_bias is not None:
            logits_RV = jnp.where((step == length_R)[:, None], logits_RV + self.first_bias[None], logits_RV)
        return logits_RV if self.processor is None else self.processor(logits_RV, ids_RT, step, length_R)

    @property
    def changes(self) -> bool:
        """Whether ``change`` changes anything."""
        rules = (self.repetition, self.ngram, self.source_ngram, self.bias, self.first_bias, self.processor)
        return any(rule is not None for rule in rules)

    @property
    def falls(self) -> jax.Array | bool:
        """Whether a hypothesis's sum can only fall as it grows: () bool, False where a bias raises scores."""
        falls = True
        for bias in (self.bias, self.first_bias):
            falls &= True if bias is None else jnp.all(bias <= 0)
        return falls

    def banned(self, step: jax.Array, batch: int, rows: int) -> select.Banned:
        """What ``rows`` rows may not have: padding, the start token, and the end token before the minimum length."""
        early_B = jnp.broadcast_to(step + 1 < jnp.asarray(self.min_len), (batch,))
        # The last token of a prompt is a token like any other.
        never = [self.pad_id] if jnp.ndim(self.start_id) else [self.start_id, self.pad_id]
        masked = [(token, jnp.asarray((token != self.end_id) & ~jnp.asarray(self.anything))) for token in never]
        return (*masked, (self.end_id, core.per_beam(early_B, rows)))

    def forbid(self, scores_RV: jax.Array, step: jax.Array, batch: int) -> jax.Array:
        """Set to -inf what is ``banned``."""
        return select.mask_tokens(scores_RV, self.banned(step, batch, scores_RV.shape[0]))

    def ends(self, token: jax.Array, ids_xT: jax.Array, step: jax.Array) -> jax.Array:
        """Whether a row ends with this token, bool of ``token``'s shape.

        Args:
          token: int32 of any shape, the token at position ``step``.
          ids_xT: the same shape and T: the row's tokens, ``token`` at its place among them.
          step: () int32.
        """
        ended = token == self.end_id
        if self.stop is None:
            return ended
        L = self.stop.shape[1]
        padded = jnp.concatenate([jnp.full((*ids_xT.shape[:-1], L), NEVER - 1, ids_xT.dtype), ids_xT], axis=-1)
        tail_xL = lax.dynamic_slice_in_dim(padded, step + 1, L, axis=-1)
        for stop_L in self.stop:
            wanted_L = jnp.expand_dims(stop_L, tuple(range(tail_xL.ndim - 1)))
            ended |= jnp.all((tail_xL == wanted_L) | (wanted_L == NEVER), axis=-1) & jnp.any(stop_L != NEVER)
        return ended

    def canonical(self, batch: int, rows: int) -> Rules:
        """The same rules as host arrays of fixed dtypes, for ``rows`` rows, of which those added have limit 0.

        Raises:
          UserError: a field of another shape, or a value that cannot be meant.
        """
        check(self, batch)
        pad = lambda x, fill: np.concatenate([x, np.full((rows - batch, *x.shape[1:]), fill, x.dtype)])  # noqa: E731
        row = lambda x, fill: pad(np.broadcast_to(np.asarray(x, np.int32), (batch,)), fill)  # noqa: E731
        number = lambda x: None if x is None else np.float32(x)  # noqa: E731
        limit, prefix, bias = self.limit, self.prefix, self.bias
        ids = self.of(core.ModelConfig())
        limit = row(np.iinfo(np.int32).max if limit is None else limit, 0)
        if prefix is not None:
            token, mask = np.asarray(prefix.ids, np.int32), np.asarray(prefix.mask, bool)
            more = (1 << max(token.shape[1] - 1, 0).bit_length()) - token.shape[1]
            token, mask = (np.pad(np.broadcast_to(x, (batch, x.shape[1])), ((0, 0), (0, more))) for x in (token, mask))
            prefix = core.Tokens(pad(token, core.PAD), pad(mask, False))
        if bias is not None:
            bias = np.asarray(bias, np.float32)
            bias = bias if bias.ndim == 1 else pad(bias, 0)
        start_id = np.asarray(ids.start_id, np.int32)
        return Rules(
            pad(start_id, 0) if start_id.ndim else start_id[()],
            *(np.int32(x) for x in (ids.end_id, ids.pad_id)),
            min_len=row(self.min_len, 0),
            limit=row(np.iinfo(np.int32).max if self.limit is None else self.limit, 0),
            min_ratio=number(self.min_ratio),
            limit_ratio=number(self.limit_ratio),
            total=None if self.total is None else np.int32(self.total),
            end_at_limit=np.bool_(self.end_at_limit),
            prefix=prefix,
            first_id=np.int32(self.first_id),
            bias=bias,
            first_bias=None if self.first_bias is None else np.asarray(self.first_bias, np.float32),
            repetition=number(self.repetition),
            ngram=None if self.ngram is None else np.int32(self.ngram),
            source_ngram=None if self.source_ngram is None else np.int32(self.source_ngram),
            stop=None if self.stop is None else np.asarray(self.stop, np.int32),
            anything=np.bool_(self.anything),
            processor=self.processor,
        )


def check(rules: Rules, batch: int) -> None:
    """Refuse what cannot be meant.

    Raises:
      UserError: names the field, its value and the way out.
    """
    for name in ("min_len", "limit"):
        shape = np.shape(getattr(rules, name)) if getattr(rules, name) is not None else ()
        if shape not in ((), (batch,)):
            raise core.UserError(f"rules.{name} has the shape {shape}: give one number, or one for each of the {batch} rows")
    if rules.repetition is not None and not rules.repetition > 0:
        raise core.UserError(f"rules.repetition is {rules.repetition}: it must be above 0; 1 changes nothing")
    for name in ("ngram", "source_ngram"):
        if getattr(rules, name) is not None and getattr(rules, name) < 1:
            raise core.UserError(f"rules.{name} is {getattr(rules, name)}: n-grams have at least 1 token; None blocks nothing")
    for name in ("min_ratio", "limit_ratio"):
        if getattr(rules, name) is not None and not getattr(rules, name) >= 0:
            raise core.UserError(f"rules.{name} is {getattr(rules, name)}: it must not be negative")
    if rules.prefix is not None and rules.prefix.ids.shape[0] not in (1, batch):
        raise core.UserError(f"rules.prefix has {rules.prefix.ids.shape[0]} rows: give 1, or one for each of the {batch} rows")


def bias(vocab_size: int, suppress: Iterable[int] = (), add: Mapping[int, float] | None = None) -> np.ndarray:
    """A bias vector, (V,) float32: ``add`` by token id, and -inf for the tokens to suppress.

    >>> bias(4, suppress=[3], add={1: 0.5}).tolist()
    [0.0, 0.5, 0.0, -inf]

    Raises:
      UserError: an id outside the vocabulary.
    """
    bias_V = np.zeros(vocab_size, np.float32)
    for token, value in {**(add or {}), **dict.fromkeys(suppress, -np.inf)}.items():
        if not 0 <= token < vocab_size:
            raise core.UserError(f"token {token} cannot be biased: the vocabulary has the ids 0 to {vocab_size - 1}")
        bias_V[token] = value
    return bias_V


def stop_sequences(sequences: Sequence[Sequence[int]]) -> np.ndarray | None:
    """``Rules.stop`` of a list of token sequences; None of an empty list.

    >>> stop_sequences([[5, 6], [7]]).tolist()
    [[5, 6], [-1, 7]]

    Raises:
      UserError: an empty sequence.
    """
    if not sequences:
        return None
    if not all(map(len, sequences)):
        raise core.UserError("a stop sequence is empty: it would end every output at once")
    longest = max(map(len, sequences))
    return np.array([[NEVER] * (longest - len(s)) + list(s) for s in sequences], np.int32)


def _all_but_last(prompt: core.Tokens) -> jax.Array:
    """The tokens of each row but its last, which is what a decoder reads first: on the right, with -1 before them."""
    order_BN = jnp.argsort(prompt.mask, axis=1, stable=True)
    ids_BN = jnp.take_along_axis(jnp.where(prompt.mask, prompt.ids, NEVER), order_BN, axis=1)
    return ids_BN[:, :-1]


def _penalise_repetition(logits_RV, read_RN, step, penalty, shift_R1):
    """Keskar et al. 2019, equation for I(c) as transformers applies it, on ``logits - shift``: to each token read so far."""
    score_RN = jnp.take_along_axis(logits_RV, jnp.maximum(read_RN, 0), axis=1) - shift_R1
    penalised_RN = jnp.where(score_RN > 0, score_RN / penalty, score_RN * penalty) + shift_R1
    # A token that stands twice is written twice, with the same value; positions yet unread, or of no token, are sent outside.
    known_RN = (jnp.arange(read_RN.shape[1])[None] <= step) & (read_RN != NEVER)
    where_RN = jnp.where(known_RN, read_RN, logits_RV.shape[1])
    return _put(logits_RV, where_RN, penalised_RN)


def _block_source_ngrams(logits_RV, source, read_RN, step, size):
    """Set to -inf every token that would complete an n-gram of the source."""
    (B, S), R = source.ids.shape, read_RN.shape[0]
    # Between source and output stands what is no token, so that no n-gram reaches over both.
    source_BN = jnp.pad(jnp.where(source.mask, source.ids, NEVER), ((0, 0), (0, 1)), constant_values=NEVER)
    both_RN = jnp.concatenate([jnp.repeat(source_BN, R // B, axis=0), read_RN], axis=1)
    return _block_ngrams(logits_RV, both_RN, S + 1 + step, size, until=S)


def _block_ngrams(logits_RV, read_RN, step, size, until=None):
    """Set to -inf every token that would complete an n-gram already read: those whose ``size - 1`` predecessors recur now.

    ``until`` is the last place at which such an n-gram may end, if not ``step``.
    """
    position_N = jnp.arange(read_RN.shape[1])
    padded_RN = jnp.pad(read_RN, ((0, 0), (read_RN.shape[1], 0)), constant_values=NEVER)

    def back(j):  # the token j places before each position, and before the one to come
        earlier_RN = lax.dynamic_slice_in_dim(padded_RN, read_RN.shape[1] - j, read_RN.shape[1], axis=1)
        now_R1 = lax.dynamic_slice_in_dim(padded_RN, read_RN.shape[1] + step + 1 - j, 1, axis=1)
        return (earlier_RN == now_R1) & (now_R1 != NEVER)

    repeats_RN = jnp.broadcast_to((position_N <= (step if until is None else until))[None], read_RN.shape)
    repeats_RN = lax.fori_loop(1, jnp.minimum(size, step + 2), lambda j, same_RN: same_RN & back(j), repeats_RN)
    repeats_RN &= (size <= step + 1) & (read_RN != NEVER)  # the sequence is as long as the n-gram's beginning
    return _put(logits_RV, jnp.where(repeats_RN, read_RN, logits_RV.shape[1]), jnp.full(read_RN.shape, -jnp.inf))


def _put(logits_RV, index_RN, value_RN):
    row_R1 = jnp.arange(logits_RV.shape[0])[:, None]
    return logits_RV.at[row_R1, index_RN].set(value_RN.astype(logits_RV.dtype), mode="drop")
