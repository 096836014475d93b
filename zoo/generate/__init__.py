"""Greedy and beam search for any model: compiled loops over (tokens, memory, cache) that name none."""

from zoo.generate.beam import beam_search
from zoo.generate.facade import generate, score
from zoo.generate.result import Generated
from zoo.generate.single import greedy

__all__ = ["Generated", "beam_search", "generate", "greedy", "score"]
