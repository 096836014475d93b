"""How finished hypotheses of different lengths compare, and when a beam search stops: by the name of the system that does it.

    none, average, gnmt    the stop never changes the result, unless another is asked for
    huggingface            transformers' generate (version 5)
    fairseq                fairseq's SequenceGenerator
    marian                 Marian's translator

The last three reproduce that system's own scores and its own end of the search. Every field of a ``Penalty`` is a value that
the compiled search reads, so that another one, or another system's, compiles nothing.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo import core

EXACT, CURRENT, REACH, FULL, FIRST, EMPTY = range(6)


class Penalty(NamedTuple):
    """A rule that ranks hypotheses and one that ends the search: (sum - word * length) / divisor(length), all () values.

    Attributes:
      alpha: float, the exponent of the divisor.
      gnmt: bool, whether the divisor is ((5 + length) / 6) ** alpha rather than length ** alpha.
      word: float, subtracted for every token.
      stop: int, when a sentence is finished:
        EXACT    no live beam can still enter the n best, whatever follows;
        CURRENT  W hypotheses are kept, and the best live beam would not beat the worst of them if it ended as it is;
        REACH    the same, at the length that favours it most;
        FULL     W hypotheses are kept;
        FIRST    W hypotheses have ended, which are kept whatever others end with them; the limit forces the end token;
        EMPTY    every beam has ended: a hypothesis that ends keeps its place in the beam, which shrinks.
      free: bool, whether forced tokens cost nothing, and those of the prefix do not count in the length either.
    """

    alpha: np.float32
    gnmt: np.bool_ = np.bool_(False)
    word: np.float32 = np.float32(0)
    stop: np.int32 = np.int32(EXACT)
    free: np.bool_ = np.bool_(False)

    def __call__(self, total: jax.Array, length: jax.Array) -> jax.Array:
        """The scores, float32, of hypotheses with these sums of log-probabilities and lengths; shapes as they broadcast."""
        length = jnp.maximum(length, 1).astype(jnp.float32)
        base = jnp.where(self.gnmt, (5.0 + length) / 6.0, length)
        return (total - self.word * length) / base**self.alpha

    def finished(self, best_B, bank_BW, length, limit_B, keep: int, falls: jax.Array | bool = True) -> jax.Array:
        """Whether each sentence needs no further step, but for EMPTY, (B,) bool.

        Args:
          best_B: the greatest sum among its live beams.
          bank_BW: the scores of its finished hypotheses, best first, -inf where there is none.
          length: (B,) or () int32, tokens so far; ``limit_B`` the most.
          keep: how many hypotheses are wanted.
          falls: () bool, whether sums can only fall; where a bias may raise them, EXACT goes on to the limit.
        """
        full_B = bank_BW[:, -1] > -jnp.inf
        now_B, last_B = self(best_B, length), self(best_B, limit_B)
        reach_B = jnp.where((self.alpha > 0), last_B, now_B)
        # Sums only fall and the score is monotone in the length: the most that a beam can reach stands at one end or the other.
        bounded = falls & ((self.word == 0) | (self.alpha == 0))
        exact_B = bounded & (jnp.maximum(self(best_B, length + 1), last_B) <= bank_BW[:, keep - 1])
        rules_6B = jnp.stack(
            [
                exact_B,
                full_B & (now_B <= bank_BW[:, -1]),
                full_B & (reach_B <= bank_BW[:, -1]),
                full_B,
                full_B,
                jnp.zeros_like(full_B),
            ]
        )
        return rules_6B[self.stop]


def _stop(early_stopping: str | bool) -> np.int32:
    modes = {"exact": EXACT, False: CURRENT, "never": REACH, True: FULL}
    if early_stopping not in modes:
        raise core.UserError(f'early_stopping is {early_stopping!r}: choose "exact", "never", True or False')
    return np.int32(modes[early_stopping])


EarlyStopping = Literal["exact", "never", True, False]


def none(early_stopping: EarlyStopping = "exact") -> Penalty:
    """The plain sum of log-probabilities."""
    return Penalty(np.float32(0), stop=_stop(early_stopping))


def average(early_stopping: EarlyStopping = "exact") -> Penalty:
    """The mean log-probability of a token."""
    return Penalty(np.float32(1), stop=_stop(early_stopping))


def gnmt(alpha: float = 0.6, early_stopping: EarlyStopping = "exact") -> Penalty:
    """The sum over ((5 + length) / 6) ** alpha (Wu et al. 2016, arXiv:1609.08144, equation 14).

    >>> float(gnmt(1.0)(jnp.float32(-4), jnp.int32(7)))
    -2.0
    """
    return Penalty(np.float32(alpha), gnmt=np.bool_(True), stop=_stop(early_stopping))


def huggingface(alpha: float = 1.0, early_stopping: EarlyStopping = False) -> Penalty:
    """transformers: the sum over length ** alpha (its ``length_penalty``), ended by its ``early_stopping``."""
    return Penalty(np.float32(alpha), stop=_stop(early_stopping), free=np.bool_(True))


def fairseq(alpha: float = 1.0) -> Penalty:
    """fairseq: the sum over length ** alpha (its ``lenpen``); the first W hypotheses that end are the result."""
    return Penalty(np.float32(alpha), stop=np.int32(FIRST))


def marian(alpha: float = 0.0, word: float = 0.0) -> Penalty:
    """Marian: (sum - word * length) / length ** alpha (its ``word-penalty`` and ``normalize``), in a beam that shrinks."""
    return Penalty(np.float32(alpha), word=np.float32(word), stop=np.int32(EMPTY))


PENALTIES = {f.__name__: f for f in (none, average, gnmt, huggingface, fairseq, marian)}
