"""Sequence-to-sequence models in JAX: one contract (``zoo.core``), one file a paper.

>>> from zoo import rnn_attention
>>> model = rnn_attention.PRESETS["bahdanau-tiny"].build()

``zoo.load(directory)`` gives a trained model with its parameters, tokenizers and ``predict``; ``zoo.save`` exports it.
"""

from zoo.checkpoint.directory import load, save
from zoo.core import Outputs, Seq2Seq, Tokens, UserError
from zoo.decoding import Decoding
from zoo.predictor import Predictor

__all__ = ["Decoding", "Outputs", "Predictor", "Seq2Seq", "Tokens", "UserError", "load", "save"]
