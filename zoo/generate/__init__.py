"""Decoding for any model: compiled searches over pure functions of (tokens, memory, cache) that name none.

    from zoo.generate import Beam, Rules, generate, penalty
    found = generate(model, params, source, max_len=64, search=Beam(4, penalty.gnmt(0.6)), rules=Rules(min_len=3))

With a model of your own, call a search with your functions: ``Beam(4)(decode, memory, cache, batch, max_len)``.
"""

from zoo.generate.beam import Beam
from zoo.generate.constrained import ConstrainedBeam, phrases
from zoo.generate.ensemble import Ensemble
from zoo.generate.facade import generate, score
from zoo.generate.penalty import PENALTIES, Penalty
from zoo.generate.result import Generated, alignment
from zoo.generate.risk import minimum_bayes_risk
from zoo.generate.rules import Rules, bias, stop_sequences
from zoo.generate.single import Greedy, Sample
from zoo.generate.speculative import speculative
from zoo.generate.stochastic import StochasticBeam
from zoo.generate.stream import stream

__all__ = [
    "PENALTIES",
    "Beam",
    "ConstrainedBeam",
    "Ensemble",
    "Generated",
    "Greedy",
    "Penalty",
    "Rules",
    "Sample",
    "StochasticBeam",
    "alignment",
    "bias",
    "generate",
    "minimum_bayes_risk",
    "phrases",
    "score",
    "speculative",
    "stop_sequences",
    "stream",
]
