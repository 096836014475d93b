"""What every search takes and returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zoo import core

DecodeFn = Callable[..., tuple[core.Outputs, core.PyTree]]
"""``decode(tokens_RN, memory, cache) -> (outputs, cache)``, ``core.Seq2Seq.decode`` with its parameters bound.

R is the batch times the beams, sentence by sentence; axis 0 of every leaf of the cache is R long, scalar leaves are shared, and
what stands in ``core.AppendOnly`` is left where it is. Only where attention is asked for is it also called with
``attention=True``, teacher-forced (cache None) on the result.
"""


class Generated(NamedTuple):
    """What a search found. The axis ``n_best`` is there only when several were asked for; hypotheses come best first.

    Attributes:
      ids: (B, [n_best,] T) int32, T = ``max_len``, up to and with the end token, then padding.
      log_probs: (B, [n_best,] T) float32, the model's own log-probability of each token, 0 on padding.
      score: (B, [n_best]) float32, what the search ranks by: greedy search and sampling the sum of ``log_probs``, beam search
        the sum of its scores under the length penalty, stochastic beam search the perturbed sum. -inf where no token was
        possible, or no further hypothesis exists.
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


def cross_attention(
    decode: DecodeFn, memory: core.PyTree, ids_BT: jax.Array, length_B: jax.Array, first_B: jax.Array
) -> dict[str, jax.Array]:
    """The weights with which each token of a finished hypothesis looked at the source: name -> (B, H, T, S).

    Read off one teacher-forced pass over the result, so that no search has to carry weights through its loop and its beams.
    """
    outputs, _ = decode(core.shift_right(ids_BT, first_B), memory, None, attention=True)
    real_BT = jnp.arange(ids_BT.shape[1])[None] < length_B[:, None]
    return {
        name: jnp.where(real_BT[:, None, :, None], weights_BHTS, 0)
        for name, weights_BHTS in outputs.attention.items()
        if name.endswith("cross")
    }


def alignment(attention: dict[str, jax.Array], name: str | None = None, head: int | None = None) -> jax.Array:
    """The source position that each generated token looked at most, (B, T) int32; -1 on padding.

    >>> alignment({"cross": jnp.array([[[[0.1, 0.9], [0.7, 0.3], [0.0, 0.0]]]])}).tolist()
    [[1, 0, -1]]

    Args:
      attention: ``Generated.attention``.
      name: one of its keys, such as the layer that was trained to align; None for the mean of all.
      head: one head of them; None for the mean over heads.

    Raises:
      UserError: no attention is given, or no such name.
    """
    if not attention or (name is not None and name not in attention):
        raise core.UserError(f"no attention {'was asked for' if name is None else repr(name)}: there is {sorted(attention)}")
    chosen = list(attention.values()) if name is None else [attention[name]]
    weights_BTS = sum(w.mean(axis=1) if head is None else w[:, head] for w in chosen)
    looks_BT = jnp.max(weights_BTS, axis=2) > 0
    return jnp.where(looks_BT, jnp.argmax(weights_BTS, axis=2), -1).astype(jnp.int32)
