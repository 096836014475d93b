"""Several models that vote on every token, as one model to every search.

Two ways to make one distribution of M models' p_i with weights w_i that sum to 1:

    "average"      p = sum_i w_i p_i        a mixture: likely is what one model finds likely (fairseq's ensembles)
    "log-average"  p ~ prod_i p_i ** w_i    a product of experts (Hinton 2002, equation 1): likely is what no model rules out
                                            (Marian's ensembles, which do not normalise it again)

Sutskever et al. 2014 (arXiv:1409.3215, table 1) gain most of their result in this way.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from zoo import core
from zoo.generate import select

HOW = ("log-average", "average")


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Models of any families that share a target vocabulary, behind the contract of ``zoo.core``.

    ``apply`` is a Linen module's, with the tuple of the models' parameters for ``params``; memory and cache are tuples with an
    entry for each model. Every model reads the same source, unless a ``list`` gives each its own, as different source
    vocabularies need: the batch is then the same in all, and ratios of ``Rules`` count the first one's tokens.

    The logits are log-probabilities already, in float32: a penalty for repetition meets them as such. Attention names carry the
    model's number, as in ``0/decoder_0/cross``.

    Attributes:
      models: the models, in the order of their parameters.
      how: "log-average" or "average"; this file's docstring has the equations.
      weights: how much each model's vote counts, above 0; they are scaled to sum to 1. None for all alike.

    Raises:
      UserError: there is no model, their target vocabularies differ, ``how`` is unknown, or the weights are not one a model.
    """

    models: tuple[core.Seq2Seq, ...]
    how: Literal["log-average", "average"] = "log-average"
    weights: tuple[float, ...] | None = None

    def __post_init__(self):
        if not self.models:
            raise core.UserError("models is empty: an ensemble needs at least 1 model")
        sizes = [model.config.target_vocab_size for model in self.models]
        if len(set(sizes)) > 1:
            raise core.UserError(f"the models have target vocabularies of {sizes} entries: an ensemble votes on one vocabulary")
        if self.how not in HOW:
            raise core.UserError(f"how is {self.how!r}: choose {' or '.join(map(repr, HOW))}")
        if self.weights is not None and (len(self.weights) != len(sizes) or not all(0 < w < math.inf for w in self.weights)):
            raise core.UserError(f"weights is {self.weights}: give each of the {len(sizes)} models a number above 0, or None")
        # jit takes the ensemble by its hash: lists would not do.
        object.__setattr__(self, "models", tuple(self.models))
        object.__setattr__(self, "weights", None if self.weights is None else tuple(self.weights))

    @property
    def config(self) -> core.ModelConfig:
        """The first model's, for what all share: the target vocabulary."""
        return self.models[0].config

    def apply(self, variables: dict[str, Any], *args, method: str | None = None, **kw) -> Any:
        """A method of the contract; ``method`` None is teacher forcing. Keywords go to every model.

        Raises:
          UserError: another number of parameter trees or of sources than of models, or no method of the contract.
        """
        params = variables["params"]
        if not isinstance(params, (tuple, list)) or len(params) != len(self.models):
            what = f"{len(params)} trees" if isinstance(params, (tuple, list)) else f"one {type(params).__name__}"
            raise core.UserError(f"params is {what}: give a tuple with the parameters of each of the {len(self.models)} models")
        methods = {None: self._call, "encode": self._encode, "init_cache": self._init_cache, "decode": self._decode}
        if method not in methods:
            raise core.UserError(f"method is {method!r}: an ensemble has {', '.join(filter(None, methods))} and None")
        return methods[method](params, *args, **kw)

    def _call(self, params, source, target, **kw) -> core.Outputs:
        return self._vote(self._each(params, None, [(x, target) for x in self._sources(source)], kw))

    def _encode(self, params, source, **kw) -> tuple:
        return tuple(self._each(params, "encode", [(x,) for x in self._sources(source)], kw))

    def _init_cache(self, params, memory, max_len, beams=1, **kw) -> tuple:
        return tuple(self._each(params, "init_cache", [(x, max_len, beams) for x in memory], kw))

    def _decode(self, params, tokens_RN, memory, cache=None, **kw) -> tuple[core.Outputs, tuple | None]:
        caches = [None] * len(self.models) if cache is None else cache
        given = [(tokens_RN, x, past) for x, past in zip(memory, caches, strict=True)]
        outputs, caches = zip(*self._each(params, "decode", given, kw), strict=True)
        return self._vote(outputs), None if cache is None else tuple(caches)

    def _each(self, params, method, given, kw) -> list:
        """What each model's method makes of its own arguments."""
        zipped = zip(self.models, params, given, strict=True)
        return [model.apply({"params": tree}, *args, method=method, **kw) for model, tree, args in zipped]

    def _sources(self, source: core.PyTree) -> list:
        if not isinstance(source, list):  # ``core.Tokens`` is a tuple: a list is what no source of one model is
            return [source] * len(self.models)
        if len(source) != len(self.models):
            raise core.UserError(f"there are {len(source)} sources for {len(self.models)} models: give each one, or all one")
        return source

    def _vote(self, outputs) -> core.Outputs:
        """One model's outputs of all: logits (B, T, V) float32, normalised."""
        weights = self.weights or (1.0,) * len(self.models)
        shares = [w / math.fsum(weights) for w in weights]
        logs = [log_probs(x.logits) for x in outputs]
        if self.how == "average":
            logits_BTV = functools.reduce(jnp.logaddexp, [x + math.log(w) for x, w in zip(logs, shares, strict=True)])
        else:
            logits_BTV = log_probs(sum(w * x for x, w in zip(logs, shares, strict=True)))
        return core.Outputs(logits_BTV, {f"{i}/{name}": w for i, x in enumerate(outputs) for name, w in x.attention.items()})


def log_probs(logits_BTV: jax.Array) -> jax.Array:
    """Logits normalised, (B, T, V) float32; NaN counts as impossible, and a row without a possible token stays all -inf."""
    logits_RV = select.clean(logits_BTV).reshape(-1, logits_BTV.shape[-1])
    return select.log_prob(logits_RV, select.log_sum_exp(logits_RV)[:, None]).reshape(logits_BTV.shape)
