"""Attention: masked softmax, the dot-product and additive cores, and the multi-head module. ``zoo.nn.cache`` has its keys.

Everywhere below, R rows of queries may be W times the B rows of keys: rows b*W ... b*W + W-1 are the beams of sentence b, which
share its keys and values without a copy.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import xavier_uniform

from zoo.nn.cache import KeyValue, Visible, by_position, causal_mask, write
from zoo.nn.linear import Dense
from zoo.nn.sharding import BATCH, MODEL, constrain

logger = logging.getLogger("zoo")


def masked_softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax over the last axis among the positions where ``mask`` is True; all zeros where none is.

    In float32 whatever the dtype of the scores. Masked positions get exactly zero, and no gradient.

    >>> masked_softmax(jnp.zeros((2, 2)), jnp.array([[True, False], [False, False]])).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    scores = jnp.where(mask, scores.astype(jnp.float32), -jnp.inf)
    top = jax.lax.stop_gradient(jax.lax.reduce_max(scores, (scores.ndim - 1,)))  # -inf of no scores at all
    weights = jnp.exp(scores - jnp.maximum(top, -1e30)[..., None])
    return weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)


def dot_product_attention(
    q_RHTK: jax.Array,
    k_BHKS: jax.Array,
    v_BHSK: jax.Array,
    mask: jax.Array,
    bias: jax.Array | None = None,
    scale: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1).

    Args:
      q_RHTK: queries; R = B, or W beams for each of the B sentences.
      k_BHKS, v_BHSK: keys, transposed, and values; B and H may be one axis already, as in a cache.
      mask: bool of rank 4, broadcastable to (B, H, W*T, S) with the queries of a beam side by side; True where one may look.
      bias: added to the scores, of rank 4 and broadcastable like the mask.
      scale: what scores are multiplied by before; None for 1 / sqrt(K).

    Returns:
      The mixed values (R, H, T, K) and the weights (R, H, T, S), which are zero for a query that may look nowhere.
    """
    (R, H, T, K), S = q_RHTK.shape, k_BHKS.shape[-1]
    lead = k_BHKS.shape[:-2]  # (B, H), which a mesh can split, or one axis of both
    B = math.prod(lead) // H
    # The beams of a sentence stand side by side on the query axis: W*T queries against S keys.
    W = R // B
    if W != 1 and mask.shape[2] not in (1, W * T):
        raise ValueError(f"{W} beams of {T} queries share keys: the mask's axis 2 must be 1 or {W * T}, not {mask.shape[2]}")
    q = q_RHTK.reshape(B, W, H, T, K).swapaxes(1, 2).reshape(*lead, W * T, K)
    scores = jnp.einsum("...qk,...ks->...qs", q, k_BHKS, preferred_element_type=jnp.float32)
    scores_BHQS = scores.reshape(B, H, W * T, S) * (K**-0.5 if scale is None else scale)
    if bias is not None:
        scores_BHQS = scores_BHQS + jnp.broadcast_to(bias, scores_BHQS.shape)
    weights_BHQS = masked_softmax(scores_BHQS, mask)
    mixed = jnp.einsum("...qs,...sk->...qk", weights_BHQS.astype(v_BHSK.dtype).reshape(*lead, W * T, S), v_BHSK)

    def unfold(x, last):
        return x.reshape(B, H, W, T, last).swapaxes(1, 2).reshape(R, H, T, last)

    return unfold(mixed, K), unfold(weights_BHQS, S)


def joint_attention(
    q_RHTK: jax.Array, blocks: Sequence[KeyValue], masks: Sequence[jax.Array], scale: float | None = None
) -> tuple[jax.Array, list[jax.Array]]:
    """``dot_product_attention`` over several blocks of keys, one softmax over all of them, without joining them in memory.

    Args:
      q_RHTK: queries.
      blocks: keys and values; each block may have as many rows as the queries, or one for the beams of a sentence.
      masks: of each block, where one may look, as in ``dot_product_attention``.
      scale: as there.

    Returns:
      The mixed values (R, H, T, K) and each block's share of the weights, (R, H, T, S).
    """
    R, H, T, K = q_RHTK.shape

    def fold(x_RHTN, lead):  # the beams of a sentence side by side
        B = math.prod(lead) // H
        return x_RHTN.reshape(B, R // B, H, T, x_RHTN.shape[-1]).swapaxes(1, 2).reshape(*lead, R // B * T, x_RHTN.shape[-1])

    def unfold(x, lead):
        B = math.prod(lead) // H
        return x.reshape(B, H, R // B, T, x.shape[-1]).swapaxes(1, 2).reshape(R, H, T, x.shape[-1])

    def to_rows(mask, lead):
        B, (rows, heads, queries, S) = math.prod(lead) // H, mask.shape
        if queries != 1:
            mask = jnp.broadcast_to(mask, (B, heads, R // B * T, S)).reshape(B, heads, R // B, T, S)
            return mask.swapaxes(1, 2).reshape(R, heads, T, S)
        return mask if rows == 1 else jnp.repeat(mask, R // rows, axis=0)

    leads, scores, seen = [keys.key.shape[:-2] for keys in blocks], [], []
    for keys, mask, lead in zip(blocks, masks, leads, strict=True):
        q = fold(q_RHTK, lead)
        scores.append(unfold(jnp.einsum("...qk,...ks->...qs", q, keys.key, preferred_element_type=jnp.float32), lead))
        seen.append(jnp.broadcast_to(to_rows(mask, lead), (R, 1, T, mask.shape[-1])))
    scale = K**-0.5 if scale is None else scale
    weights_RHTN = masked_softmax(jnp.concatenate(scores, axis=-1) * scale, jnp.concatenate(seen, axis=-1))
    ends = [sum(x.shape[-1] for x in scores[:i]) for i in range(1, len(scores))]
    weights = jnp.split(weights_RHTN, ends, axis=-1)
    mixed = [
        unfold(jnp.einsum("...qs,...sk->...qk", fold(x.astype(keys.value.dtype), lead), keys.value), lead)
        for x, keys, lead in zip(weights, blocks, leads, strict=True)
    ]
    return sum(mixed), weights


def choose(
    kernel: str,
    gpu: float | None,
    dtype: jnp.dtype,
    q_shape: tuple,
    k_shape: tuple,
    weights: bool,
    cached: bool,
    biased: bool = False,
) -> tuple[str, str]:
    """Which implementation attends, "cudnn" or "xla", and why.

    Args:
      kernel: "auto", or "xla" to have it always.
      gpu: CUDA compute capability of the device, such as 8.0; None for other devices.
      dtype: of queries, keys and values.
      q_shape: (R, H, T, K); k_shape: (B, H, K, S).
      weights: whether the attention weights are wanted.
      cached: whether the keys stand in a cache.
      biased: whether scores have a bias.

    >>> choose("auto", 9.0, jnp.dtype("bfloat16"), (8, 4, 20, 64), (8, 4, 64, 32), False, False)[0]
    'cudnn'
    """
    (R, _, T, K), (B, *_, S) = q_shape, k_shape
    if kernel == "xla":  # also for an export, whose lengths are symbols that cannot be compared
        return "xla", "it was asked for"
    reasons = (
        (gpu is None or gpu < 8, "cuDNN's flash attention wants an NVIDIA GPU of compute capability 8.0 or more"),
        (dtype not in (jnp.bfloat16, jnp.float16), f"cuDNN wants bfloat16 or float16, not {dtype}"),
        (weights, "cuDNN gives no attention weights"),
        (biased, "a bias that is learned is added to the scores by XLA"),
        (cached or R != B, "keys in a cache, or shared by beams, are read by XLA"),
        (K % 8 or K > 128, f"cuDNN wants heads of a multiple of 8 and at most 128 numbers, not {K}"),
        (T < 2 or S < 2 or T % 2 or S % 2, f"cuDNN wants even lengths under a mask, not {T} and {S}"),
    )
    why = next((reason for true, reason in reasons if true), None)
    return ("xla", why) if why else ("cudnn", f"{dtype} heads of {K} on a GPU")


@functools.cache
def _capability() -> float | None:
    """The compute capability of this process's GPU; None without one."""
    return float(jax.devices()[0].compute_capability) if jax.default_backend() == "gpu" else None


@functools.cache  # so that each choice is logged once
def _log(implementation: str, why: str) -> None:
    logger.info("attention by %s: %s", {"xla": "XLA", "cudnn": "cuDNN"}[implementation], why)


def attend(
    q_RHTK: jax.Array,
    keys: KeyValue,
    visible: Visible,
    causal: bool = False,
    kernel: str = "auto",
    weights: bool = False,
    cached: bool = False,
    bias: jax.Array | None = None,
    scale: float | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Dot-product attention by the best implementation at hand (``choose``).

    Args:
      q_RHTK: queries.
      keys: keys and values.
      visible: where the queries may look.
      causal: query t may look at keys 0 ... t alone, besides.
      kernel, weights, cached: as in ``choose``.
      bias, scale: as in ``dot_product_attention``.

    Returns:
      The mixed values (R, H, T, K), zero for a query that may look nowhere, and the weights (R, H, T, S) or None.
    """
    shapes = q_RHTK.shape, keys.key.shape
    capability = None if kernel == "xla" else _capability()
    implementation, why = choose(kernel, capability, q_RHTK.dtype, *shapes, weights, cached, bias is not None)
    _log(implementation, why)
    if implementation == "cudnn":
        return fused(q_RHTK, keys, visible, causal, "cudnn", scale), None
    mask = visible.mask
    if causal:
        past = causal_mask(q_RHTK.shape[2], keys.value.shape[-2])
        mask = past if mask is None else mask & past
    mixed_RHTK, weights_RHTS = dot_product_attention(q_RHTK, *keys, mask, bias, scale)
    return mixed_RHTK, weights_RHTS if weights else None


def fused(
    q_BHTK: jax.Array, keys: KeyValue, visible: Visible, causal: bool, implementation: str, scale: float | None = None
) -> jax.Array:
    """``jax.nn.dot_product_attention``, which never holds the weights; (B, H, T, K), zero for a query that may look nowhere.

    As it is causal from the top left, T and S must be equal where ``causal``. A mask that lengths can say is not built.
    """
    (B, _, T, _), S = q_BHTK.shape, keys.value.shape[2]
    mask, length_B = visible
    some_BHTS = None  # whether a query may look anywhere
    if length_B is not None:
        mask, some_BHTS = None, (length_B > 0)[:, None, None, None]
        length_B = jnp.maximum(length_B, 1).astype(jnp.int32)
    elif mask is not None:
        some_BHTS = (mask & causal_mask(T, S) if causal else mask).any(axis=-1, keepdims=True)
        mask = jnp.broadcast_to(mask, (B, mask.shape[1], T, S))
    mixed_BTHK = jax.nn.dot_product_attention(
        q_BHTK.swapaxes(1, 2),
        keys.key.transpose(0, 3, 1, 2),
        keys.value.swapaxes(1, 2),
        mask=mask,
        scale=scale,
        is_causal=causal,
        key_value_seq_lengths=length_B,
        implementation=implementation,
    )
    mixed_BHTK = mixed_BTHK.swapaxes(1, 2)
    return mixed_BHTK if some_BHTS is None else jnp.where(some_BHTS, mixed_BHTK, 0)


def additive_scores(query_RA: jax.Array, key_BSA: jax.Array, v_A: jax.Array) -> jax.Array:
    """Additive attention's energies (Bahdanau et al. 2015, appendix A.1.2): v . tanh(query + key), (R, S)."""
    (R, A), (B, S, _) = query_RA.shape, key_BSA.shape
    query_BW1A = query_RA.reshape(B, R // B, 1, A)
    return (jnp.tanh(query_BW1A + key_BSA[:, None]) @ v_A).reshape(R, S)


def dot_scores(query_RD: jax.Array, key_BSD: jax.Array) -> jax.Array:
    """Dot-product energies without scaling (Luong et al. 2015, section 3.1): (R, S)."""
    (R, D), (B, S, _) = query_RD.shape, key_BSD.shape
    return jnp.einsum("bwd,bsd->bws", query_RD.reshape(B, R // B, D), key_BSD).reshape(R, S)


def mix(weights_RS: jax.Array, value_BSD: jax.Array) -> jax.Array:
    """The context vectors: each row's weighted sum of its sentence's values, (R, D)."""
    R, (B, S, D) = weights_RS.shape[0], value_BSD.shape
    return jnp.einsum("bws,bsd->bwd", weights_RS.astype(value_BSD.dtype).reshape(B, R // B, S), value_BSD).reshape(R, D)


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2).

    Attributes:
      D: model width; H: heads, each of width D / H.
      kernel: as in ``choose``.
      kernel_init, out_init: initializers of the kernels of query, key and value, and of that of the output.
      scale: as in ``dot_product_attention``.
      key_bias: whether keys have a bias, which changes no weight: it adds the same to all scores of a query.

    A subclass may have other projections in its ``setup``, and heads of another width.
    """

    D: int
    H: int
    kernel: str = "auto"
    kernel_init: Callable = xavier_uniform()
    out_init: Callable = xavier_uniform()
    scale: float | None = None
    key_bias: bool = True

    def setup(self):
        dense = lambda init, bias=True: Dense(self.D, use_bias=bias, kernel_init=init)  # noqa: E731
        self.query, self.value = dense(self.kernel_init), dense(self.kernel_init)
        self.key = dense(self.kernel_init, self.key_bias)
        self.out = dense(self.out_init)

    def split(self, x_BND: jax.Array) -> jax.Array:
        """(B, N, H * K) to (B, N, H, K)."""
        return constrain(x_BND.reshape(*x_BND.shape[:2], self.H, x_BND.shape[2] // self.H), BATCH, None, MODEL)

    def project(self, x_BSD: jax.Array) -> KeyValue:
        """The keys and values of x: for the source, computed once and kept in the memory."""
        return KeyValue(self.split(self.key(x_BSD)).transpose(0, 2, 3, 1), self.split(self.value(x_BSD)).swapaxes(1, 2))

    def __call__(
        self,
        x_RTD: jax.Array,
        keys: KeyValue,
        visible: Visible,
        causal: bool = False,
        weights: bool = False,
        cached: bool = False,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Attend from x (R, T, D) over ``keys``, as ``attend`` does: the output (R, T, D) and, if wanted, the weights."""
        q_RHTK = self.split(self.query(x_RTD)).swapaxes(1, 2)
        mixed_RHTK, weights_RHTS = attend(q_RHTK, keys, visible, causal, self.kernel, weights, cached, bias, self.scale)
        R, H, T, K = mixed_RHTK.shape
        return self.out(mixed_RHTK.swapaxes(1, 2).reshape(R, T, H * K)), weights_RHTS

    def read_past(
        self,
        x_RTD: jax.Array,
        past: Visible,
        cache: KeyValue | None = None,
        index: jax.Array | int = 0,
        weights: bool = False,
        prompt: tuple[KeyValue, Visible] | None = None,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, KeyValue | None, jax.Array | None]:
        """Causal self-attention: each token looks at itself and those before it.

        Args:
          x_RTD: the tokens; with a cache, those that come next.
          past: without a cache, where one may look besides; with one, all of it (``DecoderCache.read``).
          cache, index: the layer's share of a ``DecoderCache``, and how many positions are filled.
          weights: whether they are wanted.
          prompt: keys and values that come before the tokens, and which of them one may look at (``project``).
          bias: of the scores, for the queries and keys that the mask of ``past`` is for; without a prompt.

        Returns:
          The output (R, T, D), the cache with T more positions (or None), and, if wanted, the weights (R, H, T, N), those of
          the prompt first.
        """
        keys = self.project(x_RTD)
        if prompt is not None:
            return self.read_prompt_and_past(x_RTD, keys, past, cache, index, weights, *prompt)
        if cache is None:
            x_RTD, weights_RHTT = self(x_RTD, keys, past, causal=True, weights=weights, bias=bias)
            return x_RTD, None, weights_RHTT
        cache, T = write(cache, keys, index), x_RTD.shape[1]
        x_RTD, weights_RHTS = self(x_RTD, cache, past, weights=weights, cached=True, bias=bias)
        return x_RTD, cache, by_position(weights_RHTS, past.mask.shape[2] // T) if weights else None

    def read_prompt_and_past(
        self, x_RTD, keys: KeyValue, past: Visible, cache, index, weights: bool, prompt: KeyValue, seen: Visible
    ):
        """``read_past`` with a prompt: by XLA, for which two blocks of keys need not be joined."""
        T, beams = x_RTD.shape[1], 1
        if cache is None:
            mask = causal_mask(T, T) if past.mask is None else past.mask & causal_mask(T, T)
        else:
            keys = cache = write(cache, keys, index)
            mask, beams = past.mask, past.mask.shape[2] // T
        q_RHTK = self.split(self.query(x_RTD)).swapaxes(1, 2)
        mixed_RHTK, (before, own) = joint_attention(q_RHTK, (prompt, keys), (seen.mask, mask), self.scale)
        x_RTD = self.out(mixed_RHTK.swapaxes(1, 2).reshape(x_RTD.shape))
        return x_RTD, cache, jnp.concatenate([before, by_position(own, beams)], axis=-1) if weights else None
