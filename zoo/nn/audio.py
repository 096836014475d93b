"""From sound to log-mel frames, as Whisper reads them (Radford et al. 2022, section 2.2).

16,000 samples a second; windows of 25 ms each 10 ms; the power in 80 or 128 mel bands, its logarithm to base 10, at most 8
below the loudest band of the whole recording, moved and scaled to about -1 ... 1.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from zoo.core import UserError

RATE = 16_000  # samples a second
WINDOW = 400  # samples that one frame looks at
HOP = 160  # samples from one frame to the next
CHUNK = 3000  # frames of a long recording that are computed together
FLOOR = 1e-10  # the least power
RANGE = 8.0  # tenfold steps of power between the loudest band and the least


def mel(frequency_Hz: np.ndarray) -> np.ndarray:
    """Slaney's mel scale (Auditory Toolbox, 1998): linear up to 1000 Hz, logarithmic above.

    >>> mel(np.array([0.0, 500.0, 1000.0, 6400.0])).tolist()
    [0.0, 7.5, 15.0, 42.0]
    """
    above = 15 + 27 * np.log(np.maximum(frequency_Hz, 1000) / 1000) / np.log(6.4)
    return np.where(frequency_Hz < 1000, frequency_Hz * 3 / 200, above)


def hertz(mels: np.ndarray) -> np.ndarray:
    """The inverse of ``mel``."""
    return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(np.log(6.4) * (np.maximum(mels, 15) - 15) / 27))


@functools.cache
def mel_filters(bands: int) -> np.ndarray:
    """Triangles over the frequencies of a frame, of equal area, equally spaced in mel: (201, bands) float32.

    Args:
      bands: how many, 80 or 128 in Whisper's models.
    """
    corner_Hz = hertz(np.linspace(0.0, float(mel(np.array(RATE / 2))), bands + 2))
    bin_Hz = np.linspace(0, RATE / 2, WINDOW // 2 + 1)[:, None]
    low, middle, high = corner_Hz[:-2], corner_Hz[1:-1], corner_Hz[2:]
    triangle = np.minimum((bin_Hz - low) / (middle - low), (high - bin_Hz) / (high - middle))
    return (np.maximum(triangle, 0) * 2 / (high - low)).astype(np.float32)


def log_mel(samples_BN: jax.Array, bands: int) -> jax.Array:
    """Log-mel frames of recordings of one length, (B, N // 160, bands) float32; each row's range hangs on its own maximum.

    Under ``jax.jit``; for recordings of many lengths see ``frames_of``.

    Args:
      samples_BN: float, -1 ... 1, 16,000 a second, more than 200.
      bands: of ``mel_filters``.
    """
    padded_BN = jnp.pad(samples_BN.astype(jnp.float32), ((0, 0), (WINDOW // 2, WINDOW // 2)), mode="reflect")
    return scaled(log_power(padded_BN, samples_BN.shape[1] // HOP, bands))


def log_power(padded_BN: jax.Array, frames: int, bands: int) -> jax.Array:
    """The logarithm to base 10 of the power in each band: (B, frames, bands); frame i begins at sample 160 i."""
    window = jnp.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW), jnp.float32)
    where = HOP * np.arange(frames)[:, None] + np.arange(WINDOW)[None]
    spectrum = jnp.fft.rfft(padded_BN[:, where] * jnp.expand_dims(window, (0, 1)))
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    # Some devices would take the product's operands with fewer digits.
    return jnp.log10(jnp.maximum(jnp.matmul(power, mel_filters(bands), precision="highest"), FLOOR))


def scaled(log_BNM: jax.Array) -> jax.Array:
    """max(x, max x - 8) / 4 + 1 for each recording."""
    return (jnp.maximum(log_BNM, log_BNM.max(axis=(1, 2), keepdims=True) - RANGE) + 4.0) / 4.0


_log_power = functools.partial(jax.jit, static_argnames=("frames", "bands"))(log_power)


def frames_of(samples_N: np.ndarray, bands: int, least: int = 0) -> np.ndarray:
    """``log_mel`` of one recording of any length, as a host array: (frames, bands) float32. One program serves all lengths.

    Args:
      samples_N: float, -1 ... 1, 16,000 a second.
      bands: of ``mel_filters``.
      least: shorter recordings are filled up with silence to this many frames.

    Raises:
      UserError: the samples are no numbers or none that are finite, or more than one channel.
    """
    samples_N = checked(samples_N)
    samples_N = np.pad(samples_N, (0, max(0, least * HOP - len(samples_N), WINDOW // 2 + 1 - len(samples_N))))
    frames = len(samples_N) // HOP
    padded_N = np.pad(samples_N, WINDOW // 2, mode="reflect")
    span = (CHUNK - 1) * HOP + WINDOW
    parts = []
    for first in range(0, frames, CHUNK):
        part_N = padded_N[first * HOP : first * HOP + span]
        part_N = np.pad(part_N, (0, span - len(part_N)))
        parts.append(np.asarray(_log_power(part_N[None], CHUNK, bands))[0, : frames - first])
    return np.asarray(scaled(np.concatenate(parts)[None]))[0]


def checked(samples_N: np.ndarray) -> np.ndarray:
    """A recording as float32. Raises UserError if it is none."""
    samples_N = np.asarray(samples_N)
    if samples_N.ndim != 1 or samples_N.dtype.kind != "f":
        raise UserError(
            f"a recording is an array of {samples_N.dtype} of shape {samples_N.shape}: give one channel of floats, -1 to 1"
        )
    if not np.isfinite(samples_N).all():
        raise UserError("a recording holds numbers that are not finite: leave them out")
    return samples_N.astype(np.float32)
