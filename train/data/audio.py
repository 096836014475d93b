"""Where recordings and what is said in them come from, and how they become batches of sound.

Files name the recordings, each with its text. A batch holds samples, each row as long as the model's window; the model makes
frames of them on the device (``zoo.core.Sound``). Recordings are decoded, by a few threads, when their batch is made, and kept
nowhere: what decides on batches is the length that a file's header says, and the number of the text's tokens.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from train.data.buckets import Batching, Shape, bucket_shapes, shape_of
from train.data.pipeline import Tokenized
from train.data.sources import Example, Files, Split, Table
from zoo.core import Sound, Tokens, UserError
from zoo.text import Encoder
from zoo.transcribe.sound import count_frames, find_sound, read_window, samples_of

THREADS = 8  # that decode the recordings of a batch, at most


@dataclasses.dataclass(frozen=True)
class Recordings:
    """Recordings and what is said in each: TSV, JSON lines or Parquet files of paths and texts; .tsv and .jsonl also as .gz.

    WAV, FLAC and what else libsndfile reads; any rate and number of channels. A path is relative to the file that it stands in.
    """

    train: str = ""
    """File to train on: a path and a text in each line."""
    validation: str = ""
    """File to evaluate on during training; empty: 5 % of the training file (at most 2,000 paths), chosen by their hash."""
    test: str = ""
    """File for the final score; empty: another 5 % of the training file, chosen alike."""
    format: Literal["auto", "tsv", "jsonl", "parquet"] = "auto"
    """Format of the files; auto tells it by the ending: .tsv, .jsonl or .parquet."""
    source: str = "audio"
    """Key or column of the paths; in a TSV without a header it is the first column."""
    target: str = "text"
    """Key or column of the texts, or of lists of texts that are all right; in a TSV without a header the second column."""
    language: str = ""
    """Code of the language that is spoken, such as en: what a model of many languages is told."""
    task: Literal["transcribe", "translate"] = "transcribe"
    """Whether the texts are in that language, or in English."""

    def load(self, split: Split) -> Named:
        """The examples of a split, whose sources are paths that exist. Raises UserError, with file and line."""
        import soundfile  # noqa: F401 (now: its want must not wait for the first batch)

        if not self.train:
            raise UserError("no training file is given: set data.train to a .tsv, .jsonl or .parquet file of paths and texts")
        found = Files(self.train, self.validation, self.test, self.format, self.source, self.target).load(split)
        return Named(found, getattr(self, split) or self.train)


class Named(Sequence[Example]):
    """Examples whose sources are the paths of recordings."""

    def __init__(self, examples: Table, file: str):
        """Args: examples: with the paths as they are written; file: where.

        Raises:
          UserError: there is no file of a path.
        """
        self._examples, self._file = examples, file
        self._folder, self._line_N = Path(file).expanduser().parent, np.array(examples.column("line"))
        for i, path in enumerate(examples.column("source")):
            self.told(i, find_sound, self._folder / path)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        return [example._replace(source=str(self._folder / example.source)) for example in self._examples.__getitems__(indices)]

    def __iter__(self) -> Iterator[Example]:
        return (example._replace(source=str(self._folder / example.source)) for example in self._examples)

    def told(self, index: int, call: Any, *arguments: Any) -> Any:
        """``call(*arguments)``; a UserError says which example it is about."""
        try:
            return call(*arguments)
        except UserError as error:
            raise UserError(f"{self._file} line {self._line_N[index]}: {error}") from error


class Heard(Tokenized):
    """Recordings with the token ids of their texts. A source's length is that of the window, or its own if it is longer."""

    def __init__(self, examples: Named, target: Encoder, window: int):
        """Args: examples: the recordings; target: what encodes their texts; window: frames that the model reads at once."""
        super().__init__(examples, Encoder(lambda paths: [[] for _ in paths], 1), target)
        self._window = window
        self._pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), "sound")

    def shapes(self, batching: Batching, multiple_of: int) -> tuple[Shape, ...]:
        """As every set's, but exactly as long as the window."""
        shapes = bucket_shapes(batching, multiple_of, self.sample_lengths())
        return tuple(shape_of((self._window, target), batching, multiple_of) for _, _, target in shapes)

    def padded(self, indices_n: np.ndarray, row_n: np.ndarray, shape: Shape, segments: bool = False) -> tuple[Sound, Tokens]:
        """Samples and targets of n examples as rows of a shape, one a row; ``segments`` is for what can be packed."""
        rows, _, target_len = shape
        _, target = super().padded(indices_n, row_n, (rows, 0, target_len))
        samples_BN = np.zeros((rows, samples_of(self._window)), np.float32)
        for row, samples_N in zip(row_n, self._pool.map(self._read, indices_n.tolist())):
            samples_BN[row] = samples_N
        mask_BN = np.zeros((rows, self._window), bool)
        mask_BN[row_n] = True
        return Sound(samples_BN, mask_BN), target

    def _read(self, index: int) -> np.ndarray:
        return self.examples.told(index, read_window, self.examples[index].source, self._window)

    def _encode(self, indices: list[int]) -> list[tuple[bytes, bytes]]:
        pairs = super()._encode(indices)
        paths = [example.source for example in self.examples.__getitems__(indices)]
        frames = self._pool.map(self.examples.told, indices, [count_frames] * len(paths), paths)
        self._lengths_N2[indices, 0] = [max(count, self._window) for count in frames]
        return pairs
