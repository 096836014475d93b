"""Recordings from files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from zoo.core import UserError
from zoo.nn.audio import RATE


def read_sound(path: str | Path) -> np.ndarray:
    """A sound file (WAV, FLAC and what else libsndfile reads) as one channel of 16,000 samples a second: (N,) float32.

    Channels are averaged; another rate is resampled by a polyphase filter.

    Raises:
      UserError: there is no such file, or it holds no sound.
    """
    import soundfile

    if not Path(path).is_file():
        raise UserError(f"there is no sound file {path}: give paths of WAV or FLAC files, or arrays")
    try:
        samples_NC, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (RuntimeError, TypeError) as error:  # LibsndfileError is a RuntimeError
        raise UserError(f"{path} is not a readable sound file ({error}): convert it to WAV or FLAC") from error
    return resampled(samples_NC.mean(axis=1), rate)


def resampled(samples_N: np.ndarray, rate: int) -> np.ndarray:
    """Samples of any rate as 16,000 a second."""
    if rate == RATE:
        return samples_N
    from scipy.signal import resample_poly  # jax depends on scipy

    divisor = math.gcd(rate, RATE)
    return resample_poly(samples_N, RATE // divisor, rate // divisor).astype(np.float32)
