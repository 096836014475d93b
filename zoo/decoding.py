"""How a model's texts are generated, as plain settings: what a config file, a command line and a saved model say."""

from __future__ import annotations

import dataclasses
import numbers
from typing import Literal, get_args, get_origin, get_type_hints

import jax

from zoo.core import UserError
from zoo.generate import PENALTIES, Beam, Greedy, Rules, Sample, bias

NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical": 1.0}  # what leaves a distribution as it is

# The least and the most of each number: beyond these lie mistakes, and searches that no memory holds.
BOUNDS = {
    "beams": (1, 1024),
    "length_penalty": (-100.0, 100.0),
    "n_best": (1, 1024),
    "temperature": (1e-4, 1e4),
    "top_k": (0, 2**24),
    "top_p": (1e-9, 1.0),
    "min_p": (0.0, 1.0),
    "typical": (1e-9, 1.0),
    "seed": (0, 2**32 - 1),
    "repetition_penalty": (1e-4, 1e4),
    "no_repeat_ngram": (0, 2**20),
    "no_repeat_source_ngram": (0, 2**20),
    "min_len": (0, 2**20),
    "max_len": (1, 2**20),
    "max_len_ratio": (0.0, 1e4),
    "max_total_len": (0, 2**20),
    "max_source_len": (1, 2**20),
    "first_id": (-1, 2**31 - 1),
}


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How a model's texts are generated, unless told otherwise; saved beside its weights.

    Attributes:
      beams: hypotheses kept a sentence; 1 is greedy search.
      penalty: how beam search compares lengths and when it stops, by the system that does it so (``zoo.generate.penalty``).
      length_penalty: alpha of that penalty, where it has one.
      early_stopping: what transformers calls so, for a penalty that can stop in several ways; by default the penalty decides.
      n_best: how many outputs of each text.
      sample: draw outputs instead of searching for the most probable; the next five fields shape the distribution.
      temperature: below 1 sharper than the model's, above 1 flatter.
      top_k: keep the k most probable tokens; 0 keeps all.
      top_p: keep the most probable tokens up to this mass; 1 keeps all.
      min_p: keep tokens at least this many times as probable as the most probable one; 0 keeps all.
      typical: keep the tokens nearest to the entropy up to this mass; 1 keeps all.
      seed: of the draws; the same seed gives the same outputs.
      risk: of ``n_best`` outputs, give the one of minimum Bayes risk under this metric.
      repetition_penalty: above 1 discourages tokens that an output has already; 1 does nothing.
      no_repeat_ngram: no n-gram of this size twice in an output; 0 for any.
      no_repeat_source_ngram: no n-gram of this size in a source and in its output; 0 for any.
      min_len: fewest tokens of an output, the end token included.
      max_len: most tokens of an output, the end token included.
      max_len_ratio: most tokens of an output for each token of its source; 0 for no such limit.
      max_total_len: most tokens of an output and its source together, as some systems count; 0 for no such limit.
      max_source_len: longer sources are cut to this many tokens, of a prompt the last ones.
      first_id: the one token id that an output begins with, such as a language; -1 for any.
      end_at_limit: whether the last token of an output that is as long as allowed must be the end token.
      suppress: token ids that no output may hold.
      suppress_first: token ids that no output may begin with.
      anything: whether the start and padding tokens may be generated, as some systems let them.
    """

    beams: int = 1
    penalty: Literal["none", "average", "gnmt", "huggingface", "fairseq", "marian"] = "gnmt"
    length_penalty: float = 1.0
    early_stopping: Literal["default", "no", "yes", "never"] = "default"
    n_best: int = 1
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical: float = 1.0
    seed: int = 0
    risk: Literal["none", "chrf", "bleu"] = "none"
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    no_repeat_source_ngram: int = 0
    min_len: int = 0
    max_len: int = 64
    max_len_ratio: float = 0.0
    max_total_len: int = 0
    max_source_len: int = 512
    first_id: int = -1
    end_at_limit: bool = False
    suppress: tuple[int, ...] = ()
    suppress_first: tuple[int, ...] = ()
    anything: bool = False

    def search(self, keys: jax.Array | None) -> Greedy | Sample | Beam:
        """The search that these settings describe, with a PRNG key for each text should it sample.

        Raises:
          UserError: a value that cannot be meant, or settings that contradict each other.
        """
        self.check()
        if self.risk != "none" and self.n_best < 2:
            raise UserError(f"risk is {self.risk!r} but n_best is {self.n_best}: minimum Bayes risk chooses among several")
        several = self.n_best if self.n_best > 1 else None
        if self.sample:
            if self.beams != 1:
                raise UserError(f"sample is set and beams is {self.beams}: draw outputs, or search for them with beams")
            return Sample(
                keys,
                temperature=self.temperature,
                top_k=self.top_k or None,
                top_p=None if self.top_p == 1 else self.top_p,
                min_p=self.min_p or None,
                typical=None if self.typical == 1 else self.typical,
                samples=several,
            )
        for name, neutral in NEUTRAL.items():
            if getattr(self, name) != neutral:
                raise UserError(f"{name} is {getattr(self, name)} but sample is off: it shapes draws alone, so set sample")
        if self.n_best > self.beams:
            raise UserError(f"n_best is {self.n_best} but beams is {self.beams}: raise beams, or set sample")
        if self.beams == 1:
            return Greedy()
        make = PENALTIES[self.penalty]
        alpha = () if self.penalty in ("none", "average") else (self.length_penalty,)
        if self.early_stopping != "default" and self.penalty in ("fairseq", "marian"):
            raise UserError(f"early_stopping is {self.early_stopping!r} but {self.penalty!r} has its own end: leave it out")
        stop = {"default": {}, "no": {"early_stopping": False}, "yes": {"early_stopping": True}}
        stop["never"] = {"early_stopping": "never"}
        return Beam(self.beams, make(*alpha, **stop[self.early_stopping]), n_best=several)

    def check(self) -> None:
        """Raises UserError for the first field whose value no search can be given."""
        for name, hint in get_type_hints(Decoding).items():
            value = getattr(self, name)
            if name in BOUNDS:
                low, high = BOUNDS[name]
                whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
                if not (whole or (hint is float and isinstance(value, numbers.Real))) or not low <= value <= high:
                    raise UserError(f"{name} is {value!r}: it must be {low} to {high}{', a whole number' * (hint is int)}")
            elif hint is bool and not isinstance(value, bool):
                raise UserError(f"{name} is {value!r}: it must be True or False")
            elif get_origin(hint) is tuple:
                if not isinstance(value, tuple) or not all(type(token) is int for token in value):
                    raise UserError(f"{name} is {value!r}: it must be token ids, whole numbers")
            elif get_args(hint) and value not in get_args(hint):
                raise UserError(f"{name} is {value!r}: choose one of {', '.join(get_args(hint))}")

    def rules(self, vocab_size: int) -> Rules:
        """What may be generated of a vocabulary.

        Raises:
          UserError: an id to suppress that is outside of it.
        """
        return Rules(
            min_len=self.min_len,
            limit_ratio=self.max_len_ratio or None,
            total=self.max_total_len or None,
            repetition=None if self.repetition_penalty == 1 else self.repetition_penalty,
            ngram=self.no_repeat_ngram or None,
            source_ngram=self.no_repeat_source_ngram or None,
            first_id=self.first_id,
            end_at_limit=self.end_at_limit,
            bias=bias(vocab_size, self.suppress) if self.suppress else None,
            first_bias=bias(vocab_size, self.suppress_first) if self.suppress_first else None,
            anything=self.anything,
        )
