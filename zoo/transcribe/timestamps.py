"""Timestamp tokens: what may be generated around them, and the segments that they cut an output into."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

PRECISION = 0.02  # seconds from one timestamp token to the next
FRAMES = 2  # frames of sound in that time


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TimestampRules:
    """What Whisper may say where it marks times, as a ``Rules.processor`` (Radford et al. 2022, section 4.5, and its code).

    An output begins with a timestamp. Timestamps never fall, and stand in pairs, an end and the next beginning, but for the
    first and the last. Where all timestamps together are more probable than the most probable other token, it must be one.

    Attributes:
      begin: () int, the first timestamp token, 0.00 s; all that follow it are timestamps.
      end_id: () int, the end token; all below it are text.
      unstamped: () int, the token that says that there are no timestamps.
      last_first: () int, the last token that an output may begin with.
    """

    begin: jax.Array | int
    end_id: jax.Array | int
    unstamped: jax.Array | int
    last_first: jax.Array | int

    def __call__(self, logits_RV: jax.Array, ids_RT: jax.Array, step: jax.Array, prefix_R: jax.Array) -> jax.Array:
        said_R, id_1V = step - prefix_R, jnp.arange(logits_RV.shape[1])[None]
        is_time_1V = id_1V >= self.begin
        written_RT = (jnp.arange(ids_RT.shape[1])[None] < step) & (jnp.arange(ids_RT.shape[1])[None] >= prefix_R[:, None])

        def is_time(back: int) -> jax.Array:
            token_R = jax.lax.dynamic_index_in_dim(ids_RT, jnp.maximum(step - back, 0), axis=1, keepdims=False)
            return (said_R >= back) & (token_R >= self.begin)

        last_R, before_R = is_time(1), (said_R < 2) | is_time(2)
        latest_R = jnp.max(jnp.where(written_RT & (ids_RT >= self.begin), ids_RT, self.begin - 1), axis=1)
        opens_R = last_R & ~before_R  # a segment has ended, and nothing begun: the next may begin at the same time
        least_R = jnp.where(opens_R, latest_R, latest_R + 1)
        banned_RV = (id_1V == self.unstamped) | (is_time_1V & (id_1V < least_R[:, None]))
        banned_RV |= (last_R & before_R)[:, None] & is_time_1V
        banned_RV |= opens_R[:, None] & (id_1V < self.end_id)
        banned_RV |= (said_R == 0)[:, None] & (~is_time_1V | (id_1V > self.last_first))
        logits_RV = jnp.where(banned_RV, -jnp.inf, logits_RV)
        times_R = jax.nn.logsumexp(jnp.where(is_time_1V, logits_RV, -jnp.inf).astype(jnp.float32), axis=1)
        others_R = jnp.max(jnp.where(is_time_1V, -jnp.inf, logits_RV), axis=1)
        return jnp.where((times_R > others_R)[:, None] & ~is_time_1V, -jnp.inf, logits_RV)


class Span(NamedTuple):
    """A segment within a window.

    Attributes:
      start, end: in timestamp steps of 0.02 s from the window's beginning.
      first, last: its tokens are ``tokens[first:last]``.
    """

    start: int
    end: int
    first: int
    last: int


def spans(tokens: list[int], begin: int, frames: int) -> tuple[list[Span], int]:
    """The segments of a window's output, and by how many frames the window moves on (Radford et al. 2022, section 3.8).

    What ends within a segment is read again from where the last whole one ended; a single timestamp at the end says that
    nothing follows it.

    >>> spans([100, 7, 105, 105, 8], 100, 3000)
    ([Span(start=0, end=5, first=0, last=3)], 10)

    Args:
      tokens: without the end token.
      begin: the token that is 0.00 s.
      frames: of sound in the window.
    """
    is_time = [token >= begin for token in tokens]
    cuts = [i + 1 for i in range(len(tokens) - 1) if is_time[i] and is_time[i + 1]]
    closed = is_time[-2:] == [False, True]
    if not cuts:
        times = [token - begin for token in tokens if token >= begin]
        end = times[-1] if times and times[-1] else frames // FRAMES
        return [Span(0, end, 0, len(tokens))], frames
    ends = [*cuts, len(tokens)] if closed else cuts
    parts = [Span(tokens[i] - begin, tokens[j - 1] - begin, i, j) for i, j in zip([0, *ends], ends, strict=False)]
    return parts, frames if closed else parts[-1].end * FRAMES
