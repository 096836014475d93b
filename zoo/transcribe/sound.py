"""Recordings from files."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core import UserError
from zoo.nn.audio import HOP, RATE, checked


def read_sound(path: str | Path, most: int | None = None) -> np.ndarray:
    """A sound file (WAV, FLAC and what else libsndfile reads) as one channel of 16,000 samples a second: (N,) float32.

    Channels are averaged; another rate is resampled by a polyphase filter.

    Args:
      path: the file.
      most: samples at most; what follows them is not read.

    Raises:
      UserError: there is no such file, or it holds no sound.
    """
    with opened(path) as file:
        wanted = -1 if most is None else math.ceil(most * file.samplerate / RATE)
        samples_NC = file.read(wanted, dtype="float32", always_2d=True)
        return resampled(samples_NC.mean(axis=1), file.samplerate)[:most]


def read_window(path: str | Path, frames: int) -> np.ndarray:
    """A recording as a model reads it at once: cut to so many frames, or followed by silence, (160 frames,) float32.

    Raises:
      UserError: as ``read_sound``, or a number in it is not finite.
    """
    samples_N = checked(read_sound(path, samples_of(frames)))
    return np.pad(samples_N, (0, samples_of(frames) - len(samples_N)))


def samples_of(frames: int) -> int:
    """How many samples so many frames are.

    >>> samples_of(3000)
    480000
    """
    return frames * HOP


def count_frames(path: str | Path) -> int:
    """How many frames a recording has, by what its file says at its beginning. Raises UserError as ``read_sound``."""
    with opened(path) as file:
        return -(-file.frames * RATE // (file.samplerate * HOP))


def find_sound(path: str | Path) -> None:
    """Raises UserError if there is no such file."""
    try:
        found = Path(path).is_file()
    except OSError as error:
        raise UserError(f"the sound file {path} cannot be looked up ({error}): check the path") from error
    if not found:
        raise UserError(f"there is no sound file {path}: give paths of WAV or FLAC files, or arrays")


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """A ``soundfile.SoundFile``. Raises UserError, also for what goes wrong inside the block."""
    import soundfile

    find_sound(path)
    try:
        with soundfile.SoundFile(path) as file:
            yield file
    except (RuntimeError, TypeError, OSError) as error:  # LibsndfileError is a RuntimeError
        raise UserError(f"{path} is not a readable sound file ({error}): convert it to WAV or FLAC") from error


def resampled(samples_N: np.ndarray, rate: int) -> np.ndarray:
    """Samples of any rate as 16,000 a second."""
    if rate == RATE:
        return samples_N
    from scipy.signal import resample_poly  # jax depends on scipy

    divisor = math.gcd(rate, RATE)
    return resample_poly(samples_N, RATE // divisor, rate // divisor).astype(np.float32)
