"""Files of word vectors as the word2vec tool writes them, in text or binary.

    text      a line "V D", then a line for each word: the word and D numbers, with a space between
    binary    a line "V D", then of each word: the word, a space, D float32 (little-endian) and a line feed

A file is binary if its name ends in .bin. Nothing that its first line says is believed before the rest bears it out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from zoo.core import UserError
from zoo.vectors import VectorPredictor, WordVectors

MOST_WORDS, MOST_NUMBERS = 2**31, 2**20
LONGEST_WORD = 10_000  # bytes


def save(predictor: object, path: Path) -> None:
    """Write the vectors of a model.

    Raises:
      UserError: it has none, or a word holds white space.
    """
    if not isinstance(predictor, VectorPredictor):
        raise UserError("the format word2vec is for models of word vectors, which this is not: choose another format")
    write(predictor.words, path)


def write(vectors: WordVectors, path: Path) -> None:
    """Write a file; float32 is kept to the bit in text too. Raises UserError for a word that holds white space."""
    for word in vectors.words:
        if not word or word.split() != [word]:
            raise UserError(
                f"the word {word!r} holds white space, by which the format word2vec tells words apart: use format zoo"
            )
    V, D = vectors.vectors.shape
    with path.open("wb") as file:
        file.write(f"{V} {D}\n".encode())
        for word, row_D in zip(vectors.words, vectors.vectors.astype("<f4"), strict=True):
            numbers = row_D.tobytes() if is_binary(path) else " ".join(f"{x:.9g}" for x in row_D.tolist()).encode()
            file.write(word.encode() + b" " + numbers + b"\n")


def read(path: Path) -> WordVectors:
    """Read a file. Of a word that stands twice the first vector counts; bytes of a word that are not UTF-8 become "\\ufffd".

    Raises:
      UserError: the file is damaged or of another format, with the line or word.
    """
    try:
        with path.open("rb") as file:
            V, D = header(file.readline(200), path)
            rows = binary_rows(file, path, D) if is_binary(path) else text_rows(file, path, D)
            found: dict[str, np.ndarray] = {}
            total = 0
            for word, row_D in rows:
                total += 1
                if total > V:
                    break
                if not np.isfinite(row_D).all():
                    raise UserError(f"{path} has a vector of {word!r} that is not finite: write the file again")
                found.setdefault(word, row_D)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): check the file") from error
    if total != V:
        raise UserError(f"{path} says that it holds {V} words, but has {'more' if total > V else total}: fetch it again")
    return WordVectors(list(found), np.stack(list(found.values())))


def is_binary(path: Path) -> bool:
    return path.suffix == ".bin"


def header(line: bytes, path: Path) -> tuple[int, int]:
    """The number of words and of numbers of each."""
    parts = line.split()
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise UserError(
            f"{path} does not begin with a line of two numbers, words and dimensions: write it there, or unpack the file"
        )
    V, D = map(int, parts)
    if not (0 < V <= MOST_WORDS and 0 < D <= MOST_NUMBERS):
        raise UserError(f"{path} says that it holds {V} words of {D} numbers, which cannot be: fetch it again")
    return V, D


def text_rows(file: BinaryIO, path: Path, D: int) -> Iterator[tuple[str, np.ndarray]]:
    for number, line in enumerate(file, 2):
        word, *parts = line.rstrip(b" \r\n").split(b" ")
        try:
            row_D = np.array(parts, dtype=np.float32)
        except ValueError:
            row_D = np.zeros(0)
        if len(row_D) != D or not word:
            raise UserError(f"{path} line {number} is not a word and {D} numbers with spaces between: fetch the file again")
        yield word.decode("utf-8", "replace"), row_D


def binary_rows(file: BinaryIO, path: Path, D: int) -> Iterator[tuple[str, np.ndarray]]:
    number, size = 0, 4 * D
    while word := until_space(file):
        number += 1
        data = file.read(size)
        if len(data) < size or not word.endswith(b" "):
            raise UserError(f"{path} breaks off in word {number}, or is none of binary vectors: fetch it again")
        yield word.strip().decode("utf-8", "replace"), np.frombuffer(data, "<f4").astype(np.float32)


def until_space(file: BinaryIO) -> bytes:
    """What stands up to the next space, with it; the line feed after the vector before is left out."""
    word = bytearray()
    while len(word) < LONGEST_WORD and (byte := file.read(1)):
        if byte != b"\n" or word:
            word += byte
        if byte == b" ":
            break
    return bytes(word)
