"""Positional encodings."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def sinusoidal(position_BN: jax.Array, D: int) -> jax.Array:
    """Sinusoids of geometrically growing wavelength (Vaswani et al. 2017, section 3.5): (B, N, D) float32.

    Dimension 2 i holds sin(position / 10000^(2 i / D)), dimension 2 i + 1 the cosine. Any position is defined, so that a
    model can read sequences longer than those it was trained on.

    Args:
      position_BN: int32 positions.
      D: even model width.
    """
    rate_D = jnp.expand_dims(10_000.0 ** (-jnp.arange(0, D, 2) / D), (0, 1))
    angle_BND = position_BN[..., None].astype(jnp.float32) * rate_D
    return jnp.stack([jnp.sin(angle_BND), jnp.cos(angle_BND)], axis=-1).reshape(*position_BN.shape, D)


def sines_then_cosines(position_BN: jax.Array, D: int, last: int) -> jax.Array:
    """Sinusoids whose first half is all sines, the second all cosines, as Marian and fairseq have them: (B, N, D) float32.

    Args:
      position_BN: int32 positions.
      D: even model width.
      last: the i at which the wavelength would be 10000 times the first: D / 2 in transformers' Marian, D / 2 - 1 in fairseq.
    """
    rate_D = jnp.expand_dims(10_000.0 ** (-jnp.arange(D // 2) / last), (0, 1))
    angle_BND = position_BN[..., None].astype(jnp.float32) * rate_D
    return jnp.concatenate([jnp.sin(angle_BND), jnp.cos(angle_BND)], axis=-1)


def table_of_sines_then_cosines(shape: tuple[int, int]) -> np.ndarray:
    """The rows 0 ... N-1 of ``sines_then_cosines`` with ``last`` = D / 2, as published files hold them: (N, D) float32."""
    N, D = shape
    angle_ND = np.arange(N)[:, None] / 10_000 ** (2 * np.arange(D // 2) / D)
    return np.concatenate([np.sin(angle_ND), np.cos(angle_ND)], axis=1).astype(np.float32)


def relative_bucket(distance: jax.Array, bidirectional: bool, buckets: int = 32, max_distance: int = 128) -> jax.Array:
    """The bucket of each distance from a query to a key, int32 of the same shape (Raffel et al. 2020, section 2.1).

    Half of the buckets hold one distance each, the other half ever more of them, in even steps of the logarithm, up to
    ``max_distance``; the last bucket holds all that lie beyond.

    Args:
      distance: int32, position of the key less that of the query.
      bidirectional: whether keys after the query have buckets of their own, the upper half; else they share bucket 0.
      buckets: how many there are, at least 4 (2 if not bidirectional).
      max_distance: more than the number of buckets that hold one distance each.

    >>> relative_bucket(jnp.array([-200, -20, -2, 0, 2, 20, 200]), bidirectional=True).tolist()
    [15, 10, 2, 0, 18, 26, 31]
    >>> relative_bucket(jnp.array([-200, -20, -2, 0, 2]), bidirectional=False).tolist()
    [31, 17, 2, 0, 0]
    """
    above = 0
    if bidirectional:
        buckets //= 2
        above = buckets * (distance > 0)
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(-distance, 0)
    exact = buckets // 2
    # In numpy's float32 rather than the device's, whose logarithm may round a distance on the edge into the next bucket.
    far = np.log(np.arange(exact, max_distance, dtype=np.float32) / np.float32(exact))
    far = far / np.float32(np.log(max_distance / exact)) * np.float32(buckets - exact)
    far = np.minimum(exact + far.astype(np.int32), buckets - 1)
    table = np.concatenate([np.arange(exact), far, [buckets - 1]]).astype(np.int32)
    return above + jnp.asarray(table)[jnp.minimum(distance, max_distance)]


def by_distance(values: Callable[[jax.Array], jax.Array], T: int, S: int, index: jax.Array | int = 0) -> jax.Array:
    """An array of queries and keys whose entries depend on the distance from one to the other alone: (H, T, S).

    ``values`` is asked once for each distance. A table looked up for each pair instead would get its gradient by T * S
    scattered additions.

    Args:
      values: distances (N,), position of the key less that of the query -> (N, H).
      T: queries, at positions index ... index + T-1; S: keys, at positions 0 ... S-1.

    >>> by_distance(lambda distance_N: distance_N[:, None], T=2, S=3, index=1)[0].tolist()
    [[-1, 0, 1], [-2, -1, 0]]
    """
    N = max(T, 1) + S
    place_N = jnp.arange(N)
    distance_N = jnp.where(place_N < S, place_N, place_N - N) - index
    values_HN = values(distance_N).T
    H = values_HN.shape[0]
    # Repeated end to end and cut one shorter than the period, each row begins one further back.
    rows_HTN = jnp.broadcast_to(values_HN[:, None], (H, T, N))
    return rows_HTN.reshape(H, T * N)[:, : T * (N - 1)].reshape(H, T, N - 1)[:, :, :S]
