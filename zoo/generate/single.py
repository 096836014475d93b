"""Searches that follow one hypothesis a sentence."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zoo import core
from zoo.generate import result, select


class _State(NamedTuple):
    step: jax.Array
    last_B: jax.Array
    done_B: jax.Array
    ids_BT: jax.Array
    log_probs_BT: jax.Array
    length_B: jax.Array
    cache: core.PyTree


def greedy(
    decode: result.DecodeFn,
    memory: core.PyTree,
    cache: core.PyTree,
    batch: int,
    max_len: int,
    *,
    limit_B: jax.Array | int | None = None,
    min_len: jax.Array | int = 0,
    start_id: int = core.BOS,
    end_id: int = core.EOS,
    pad_id: int = core.PAD,
    attention: bool = False,
) -> result.Generated:
    """The most probable next token, again and again, in one loop that ends when every row has ended.

    The lowest id wins a tie; padding and the start token are never generated, NaN counts as impossible. A row that has not
    ended at its limit is cut there. Where no token is possible the row ends with the end token at log-probability -inf.

    Args:
      decode: see ``result.DecodeFn``.
      memory: whatever ``decode`` reads of the source.
      cache: the decoder's state before the first token, for one row a sentence and ``max_len`` tokens.
      batch: B, the number of sentences.
      max_len: T, the length of the buffers.
      limit_B: (B,) or () int, the most tokens of each row with the end token, at most ``max_len``, which is the default.
        0 gives an empty row.
      min_len: (B,) or () int, the fewest tokens with the end token; the limit goes first.
      start_id: what the decoder reads first.
      end_id: what ends a row.
      pad_id: what stands after the end.
      attention: whether to return the cross attention weights.

    Returns:
      The rows without an axis ``n_best``.

    Raises:
      UserError: ``max_len`` is below 1.
    """
    limit_B = result.row_limits(limit_B, batch, max_len)
    min_len_B = jnp.broadcast_to(jnp.asarray(min_len, jnp.int32), (batch,))

    def step(state: _State) -> _State:
        outputs, cache = decode(state.last_B[:, None], memory, state.cache)
        logits_BV = select.clean(outputs.logits[:, 0])
        allowed_BV = select.mask_tokens(logits_BV, state.step + 1 >= min_len_B, start_id, end_id, pad_id)
        best_B, token_B = select.argmax(allowed_BV)
        token_B = jnp.where(best_B == -jnp.inf, end_id, token_B)
        token_B = jnp.where(state.done_B, pad_id, token_B)
        log_prob_B = jnp.where(state.done_B, 0.0, select.log_prob(best_B, select.log_sum_exp(logits_BV)))
        return _State(
            step=state.step + 1,
            last_B=token_B,
            done_B=state.done_B | (token_B == end_id) | (state.step + 1 >= limit_B),
            ids_BT=lax.dynamic_update_slice_in_dim(state.ids_BT, token_B[:, None], state.step, axis=1),
            log_probs_BT=lax.dynamic_update_slice_in_dim(state.log_probs_BT, log_prob_B[:, None], state.step, axis=1),
            length_B=state.length_B + ~state.done_B,
            cache=cache,
        )

    start = _State(
        step=jnp.int32(0),
        last_B=jnp.full((batch,), start_id, jnp.int32),
        done_B=limit_B == 0,
        ids_BT=jnp.full((batch, max_len), pad_id, jnp.int32),
        log_probs_BT=jnp.zeros((batch, max_len), jnp.float32),
        length_B=jnp.zeros((batch,), jnp.int32),
        cache=cache,
    )
    end = lax.while_loop(lambda state: jnp.any(~state.done_B), step, start)
    return result.Generated(
        ids=end.ids_BT,
        log_probs=end.log_probs_BT,
        score=jnp.sum(end.log_probs_BT, axis=1),
        length=end.length_B,
        steps=end.step,
        attention=result.cross_attention(decode, memory, end.ids_BT, end.length_B, start_id) if attention else {},
    )
