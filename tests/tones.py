"""A language of tones: each word is one pitch, each language one colour of sound. What the tiny Whispers of golden/ understand.

Imported by the tests and by golden/families/whisper.py, which computes what transformers makes of the same sounds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

RATE = 16_000
WORDS = {
    "en": (" Hello", " world", ", friend", " of", " music", ".", " Again", " silence", " we", " heard"),
    "de": (" Hallo", " Welt", ", Freund", " der", " Musik", ".", " Wieder", " Stille", " wir", " hörten"),
}


class Phrase(NamedTuple):
    """Words said without a pause, from ``start`` to ``end`` in seconds."""

    start: float
    end: float
    words: tuple[int, ...]


def tone(word: int, seconds: float, language: str) -> np.ndarray:
    """One word, (N,) float32: a pitch, with an overtone in German, swelling and fading."""
    time = np.arange(int(seconds * RATE)) / RATE
    pitch = 300 * 1.27**word
    wave = np.sin(2 * np.pi * pitch * time) + (0.6 * np.sin(2 * np.pi * 6000 * time) if language == "de" else 0)
    edge = np.minimum(1, np.minimum(time, seconds - time) / 0.02)
    return (0.3 * wave * edge).astype(np.float32)


def speech(seed: int, seconds: float, language: str = "en") -> tuple[np.ndarray, list[Phrase]]:
    """A recording and its phrases; the last one may be cut off."""
    rng = np.random.default_rng(seed)
    sound, phrases = (0.001 * rng.standard_normal(int(seconds * RATE))).astype(np.float32), []
    now = 0.02 * int(rng.integers(5, 20))
    while now < seconds - 0.1:
        start, words = now, tuple(rng.integers(0, 10, int(rng.integers(1, 4))).tolist())
        for word in words:
            length = 0.02 * int(rng.integers(8, 16))
            first = round(now * RATE)
            wave = tone(word, length, language)[: max(0, len(sound) - first)]
            sound[first : first + len(wave)] += wave
            now += length
        phrases.append(Phrase(round(start, 2), round(now, 2), words))
        now += 0.02 * int(rng.integers(8, 20))
    return sound, phrases


def signals() -> dict[str, np.ndarray]:
    """Sounds that a front end may trip over, by name."""
    rng, time = np.random.default_rng(0), np.arange(5 * RATE) / RATE
    return {
        "noise": (0.1 * rng.standard_normal(3 * RATE)).astype(np.float32),
        "silence": np.zeros(RATE, np.float32),
        "chirp": (0.5 * np.sin(2 * np.pi * (100 * time + 700 * time**2))).astype(np.float32),
        "short": rng.standard_normal(50).astype(np.float32),
        "long": (0.1 * rng.standard_normal(33 * RATE + 77)).astype(np.float32),
    }
