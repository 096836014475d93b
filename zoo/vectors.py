"""Words as vectors: the nearest neighbours of a word, and analogies (Mikolov et al. 2013, arXiv:1301.3781, section 4)."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from zoo.core import SPECIAL_TOKENS, UserError, flatten_params
from zoo.decoding import Decoding
from zoo.predictor_base import PredictorBase

CLOSE = 3  # spellings that the error of an unknown word suggests


class WordVectors:
    """Words and their vectors.

    >>> table = WordVectors(["king", "queen", "man", "woman"], np.array([[3, 0], [3, 1], [1, 0], [1, 1]], np.float32))
    >>> [word for word, _ in table.analogy(["king", "woman"], ["man"])]
    ['queen']

    Attributes:
      words: V different words.
      vectors: (V, D) float32, a row for each.
    """

    def __init__(self, words: Sequence[str], vectors: np.ndarray):
        self.words, self.vectors = list(words), vectors
        self._place = {word: place for place, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._place

    def __getitem__(self, word: str) -> np.ndarray:
        """(D,) the vector of a word. Raises UserError, with words spelt alike, for one that has none."""
        return self.vectors[self.place(word)]

    def place(self, word: str) -> int:
        """The row of a word. Raises UserError for one that has none."""
        if word not in self._place:
            close = difflib.get_close_matches(word, self.words, n=CLOSE)
            advice = (
                f"did you mean {' or '.join(close)}?" if close else f"it holds {len(self):,} words, such as {self.words[0]}"
            )
            raise UserError(f"the word {word!r} is not in the vocabulary: {advice}")
        return self._place[word]

    @functools.cached_property
    def unit(self) -> np.ndarray:
        """(V, D) the vectors, each of length one, so that a product is a cosine; zero for a vector of zeros."""
        return self.vectors / np.maximum(np.linalg.norm(self.vectors, axis=1, keepdims=True), 1e-30)

    def similar(self, word: str, count: int = 10) -> list[tuple[str, float]]:
        """The words whose vectors have the largest cosine with a word's, the nearest first, with these.

        Raises:
          UserError: an unknown word, or a count below one.
        """
        return self.analogy([word], [], count)

    def analogy(self, positive: Sequence[str], negative: Sequence[str], count: int = 10) -> list[tuple[str, float]]:
        """What is nearest to a sum of unit vectors, such as king - man + woman; none of the words asked about is an answer.

        Args:
          positive: words that are added.
          negative: words that are taken away.
          count: most answers.

        Raises:
          UserError: an unknown word, none at all, or a count below one.
        """
        if count < 1:
            raise UserError(f"count is {count}: ask for at least one word")
        places = [self.place(word) for word in (*positive, *negative)]
        if not places:
            raise UserError("there is no word to look for: give at least one")
        sign_n = np.array([1.0] * len(positive) + [-1.0] * len(negative), np.float32)
        query_D = sign_n @ self.unit[places]
        cosine_V = self.unit @ (query_D / max(np.linalg.norm(query_D), 1e-30))
        cosine_V[places] = -np.inf
        nearest = np.argsort(-cosine_V, kind="stable")[: min(count, len(self) - len(set(places)))]
        return [(self.words[place], float(cosine_V[place])) for place in nearest]


@dataclasses.dataclass(frozen=True)
class VectorPredictor(PredictorBase):
    """What ``zoo.load`` gives of a model of word vectors."""

    @property
    def vectors(self) -> np.ndarray:
        """(V, D) float32, a row for each id of the vocabulary."""
        return np.asarray(flatten_params(self.params)[self.model.VECTORS], np.float32)

    @functools.cached_property
    def words(self) -> WordVectors:
        """The vocabulary but for its special tokens."""
        special = len(SPECIAL_TOKENS)
        return WordVectors(self.source_tokenizer.tokens()[special:], self.vectors[special:])

    def similar(self, word: str, count: int = 10) -> list[tuple[str, float]]:
        """``WordVectors.similar``."""
        return self.words.similar(word, count)

    def analogy(self, positive: Sequence[str], negative: Sequence[str], count: int = 10) -> list[tuple[str, float]]:
        """``WordVectors.analogy``."""
        return self.words.analogy(positive, negative, count)

    def settings(self, options: dict[str, Any]) -> Decoding:
        """The same as it is. Raises UserError for an option: there is nothing to decode."""
        return self.predictions([]) if options else self.decoding

    def predictions(self, texts: Sequence[str], **options: Any) -> NoReturn:
        """Raises UserError: there are none."""
        raise UserError("this model has word vectors and writes no text: use similar or analogy, in Python or by python -m zoo")

    predict = stream = score = predictions


def load(name: str | Path) -> WordVectors:
    """The word vectors of a model (what ``zoo.load`` reads), or of a file of the word2vec tool.

    Raises:
      UserError: there is no such thing, the model is of another kind, or the file is damaged.
    """
    from zoo.checkpoint import vector_files
    from zoo.checkpoint.directory import load as load_model

    if Path(name).is_file():
        return vector_files.read(Path(name))
    predictor = load_model(name)
    if not isinstance(predictor, VectorPredictor):
        raise UserError(f"{name} holds a {type(predictor.model).__name__}, which is no model of word vectors: give another")
    return predictor.words
