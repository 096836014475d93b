"""What every search takes and returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zoo import core

DecodeFn = Callable[..., tuple[core.Outputs, core.PyTree]]
"""``decode(tokens_RN, memory, cache) -> (outputs, cache)``, ``core.Seq2Seq.decode`` with its parameters bound.

R is the batch times the beams, sentence by sentence; axis 0 of every leaf of the cache is R long, scalar leaves are shared.
Only where attention is asked for is it also called as ``decode(tokens_BT, memory, None, attention=True)``.
"""


class Generated(NamedTuple):
    """What a search found. The axis ``n_best`` is there only when it was asked for; hypotheses come best first.

    Attributes:
      ids: (B, [n_best,] T) int32, T = ``max_len``, up to and with the end token, then padding.
      log_probs: (B, [n_best,] T) float32, the model's log-probability of each token, 0 on padding.
      score: (B, [n_best]) float32: greedy search the sum of ``log_probs``, beam search the sum over the length penalty.
        -inf where no token was possible any more, or no further hypothesis exists.
      length: (B, [n_best]) int32, the number of tokens with the end token; a row cut at its limit has none.
      steps: () int32, how often the decoder ran for this batch.
      attention: on request, name -> weights (B, H, T, S) float of every cross attention for the best hypothesis, row t the
        weights with which token t was predicted, 0 on padding. Empty otherwise.
    """

    ids: jax.Array
    log_probs: jax.Array
    score: jax.Array
    length: jax.Array
    steps: jax.Array
    attention: dict[str, jax.Array]


def row_limits(limit_B: jax.Array | int | None, batch: int, max_len: int) -> jax.Array:
    """Each row's own limit, (B,) int32 within 0 ... ``max_len``; ``max_len`` where none is given.

    Raises:
      UserError: ``max_len`` is below 1.
    """
    if max_len < 1:
        raise core.UserError(f"max_len is {max_len}: a search needs room for at least 1 token")
    limit_B = max_len if limit_B is None else limit_B
    return jnp.broadcast_to(jnp.clip(jnp.asarray(limit_B, jnp.int32), 0, max_len), (batch,))


def cross_attention(
    decode: DecodeFn, memory: core.PyTree, ids_BT: jax.Array, length_B: jax.Array, start_id: int
) -> dict[str, jax.Array]:
    """The weights with which each token of a finished hypothesis looked at the source: name -> (B, H, T, S).

    Read off one teacher-forced pass over the result, so that no search has to carry weights through its loop and its beams.
    """
    read_BT = jnp.pad(ids_BT[:, :-1], ((0, 0), (1, 0)), constant_values=start_id)
    outputs, _ = decode(read_BT, memory, None, attention=True)
    real_BT = jnp.arange(ids_BT.shape[1])[None] < length_B[:, None]
    return {
        name: jnp.where(real_BT[:, None, :, None], weights_BHTS, 0)
        for name, weights_BHTS in outputs.attention.items()
        if name.endswith("cross")
    }
