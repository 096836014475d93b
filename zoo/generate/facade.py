"""The searches as one compiled call on a model of the zoo."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from zoo import core
from zoo.generate import beam, result, select, single


def generate(
    model: core.Seq2Seq,
    params: core.PyTree,
    source: core.PyTree,
    *,
    max_len: int,
    beams: int = 1,
    alpha: jax.Array | float = 1.0,
    n_best: int | None = None,
    limit_B: jax.Array | int | None = None,
    min_len: jax.Array | int = 0,
    start_id: int = core.BOS,
    end_id: int = core.EOS,
    pad_id: int = core.PAD,
    attention: bool = False,
) -> result.Generated:
    """Generate for a batch of sources: encode, then search, compiled as one program.

    There is one program for a model, a shape of the source, ``max_len``, ``beams`` and ``n_best``: another ``alpha``,
    ``limit_B`` or ``min_len`` compiles nothing.

    Args:
      model: any model of the contract.
      params: its parameters.
      source: a batch of what its ``encode`` takes.
      max_len: T, the length of the result; a few fixed values are better than each batch's own.
      beams: 1 searches greedily, unless ``n_best`` is given; more by ``beam_search``.
      alpha: () float, the exponent of the length penalty of beam search; greedy search has none.
      n_best: how many hypotheses of each sentence; None for the best without an axis.
      limit_B: (B,) or () int, the most tokens of each row with the end token, at most ``max_len``, which is the default.
      min_len: (B,) or () int, the fewest tokens with the end token.
      start_id: what the decoder reads first.
      end_id: what ends a hypothesis.
      pad_id: what stands after the end.
      attention: whether to return the cross attention weights of the best hypothesis.

    Returns:
      What the search found, see ``Generated``.

    Raises:
      UserError: ``max_len`` or ``beams`` is below 1, or ``n_best`` not within 1 ... ``beams``.
    """
    return _generate(
        model,
        params,
        source,
        jnp.asarray(alpha, jnp.float32),
        jnp.asarray(max_len if limit_B is None else limit_B, jnp.int32),
        jnp.asarray(min_len, jnp.int32),
        max_len=max_len,
        beams=beams,
        n_best=n_best,
        special=(start_id, end_id, pad_id),
        attention=attention,
    )


def score(model: core.Seq2Seq, params: core.PyTree, source: core.PyTree, target: core.Tokens) -> tuple[jax.Array, jax.Array]:
    """How probable the model finds given targets, by teacher forcing, compiled.

    Args:
      model: any model of the contract.
      params: its parameters.
      source: a batch of what its ``encode`` takes.
      target: the target tokens, with the end token where it is to count.

    Returns:
      (B,) float32 sums, and the (B, T) float32 log-probability of each token, 0 where ``target.mask`` is False.
    """
    return _score(model, params, source, target)


@functools.partial(jax.jit, static_argnames=("model", "max_len", "beams", "n_best", "special", "attention"))
def _generate(model, params, source, alpha, limit_B, min_len, *, max_len, beams, n_best, special, attention):
    variables = {"params": params}

    def decode(tokens_RN, memory, cache, attention=False):
        return model.apply(variables, tokens_RN, memory, cache, attention=attention, method="decode")

    memory = model.apply(variables, source, method="encode")
    cache = model.apply(variables, memory, max_len, beams, method="init_cache")
    batch = next(leaf.shape[0] for leaf in jax.tree.leaves(memory) if jnp.ndim(leaf))
    search = single.greedy
    if beams != 1 or n_best is not None:
        search = functools.partial(beam.beam_search, beams=beams, alpha=alpha, n_best=n_best)
    start_id, end_id, pad_id = special
    return search(
        decode,
        memory,
        cache,
        batch,
        max_len,
        limit_B=limit_B,
        min_len=min_len,
        start_id=start_id,
        end_id=end_id,
        pad_id=pad_id,
        attention=attention,
    )


@functools.partial(jax.jit, static_argnames="model")
def _score(model, params, source, target):
    logits_BTV = select.clean(model.apply({"params": params}, source, target).logits)
    batch, length, vocab = logits_BTV.shape
    normaliser_BT = select.log_sum_exp(logits_BTV.reshape(batch * length, vocab)).reshape(batch, length)
    logit_BT = jnp.take_along_axis(logits_BTV, target.ids[:, :, None], axis=2)[:, :, 0]
    log_probs_BT = jnp.where(target.mask, select.log_prob(logit_BT, normaliser_BT), 0.0)
    return jnp.sum(log_probs_BT, axis=1), log_probs_BT
