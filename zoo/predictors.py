"""Which predictor a model gets."""

from __future__ import annotations

from zoo.core import EncoderOnly, Seq2Seq
from zoo.encoder_predictor import EncoderPredictor
from zoo.predictor import Predictor
from zoo.predictor_base import PredictorBase
from zoo.speech import SpeechPredictor
from zoo.vectors import VectorPredictor


def predictor_for(model: Seq2Seq) -> type[PredictorBase]:
    """The class whose ``predict`` fits the model: all are built from the same fields."""
    if model.VECTORS:
        return VectorPredictor
    if isinstance(model, EncoderOnly):
        return EncoderPredictor
    return SpeechPredictor if model.SOUND else Predictor
