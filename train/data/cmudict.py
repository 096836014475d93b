"""CMUdict as a TFDS builder: spelling to pronunciation, the smallest real sequence-to-sequence task there is.

The dictionary is the one that the ``pocketsphinx`` wheel carries (126,052 words, 134,860 pronunciations, 39 phones without
stress), the family on which grapheme-to-phoneme results are published. Nothing is downloaded.

Words are split 90/5/5 by a hash of their spelling, so that all pronunciations of a word stand in one split, whichever
dictionary release they come from. The train split holds one example a pronunciation; validation and test one a word.

Importing this module imports ``tensorflow_datasets`` and registers the builder under the name ``cmudict``.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from zoo.core import UserError

DICTIONARY = "pocketsphinx/model/en-us/cmudict-en-us.dict"
ALTERNATIVE = re.compile(r"\(\d+\)$")  # "inspiring(2)" is the second pronunciation of "inspiring"


def dictionary_path() -> Path:
    """Where the installed pocketsphinx keeps its dictionary. The package itself is not imported: it wants a sound library."""
    try:
        path = Path(str(importlib.metadata.distribution("pocketsphinx").locate_file(DICTIONARY)))
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError("CMUdict comes from the package pocketsphinx, which is missing: pip install pocketsphinx") from error
    if not path.is_file():
        raise UserError(f"the installed pocketsphinx has no {DICTIONARY}: pip install --force-reinstall pocketsphinx==5.1.1")
    return path


def read_dictionary(path: Path) -> dict[str, list[str]]:
    """Each word's pronunciations in the order listed, phones joined by one space: {"a": ["AH", "EY"], ...}."""
    pronunciations: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry, *phones = line.split()
        pronunciations.setdefault(ALTERNATIVE.sub("", entry), []).append(" ".join(phones))
    return pronunciations


def split_of(word: str) -> str:
    """The split of a word: "train" (90 %), "validation" or "test" (5 % each), always the same.

    >>> split_of("inspiring")
    'train'
    """
    percent = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") % 100
    return "train" if percent < 90 else "validation" if percent < 95 else "test"


class Cmudict(tfds.core.GeneratorBasedBuilder):
    """English words and their pronunciations in 39 phones.

    Features:
      word: the spelling, "inspiring".
      pronunciation: phones joined by spaces, "IH N S P AY ER IH NG"; in validation and test the first one listed.
      pronunciations: all pronunciations of the word, the right answers when it is scored.
    """

    VERSION = tfds.core.Version("1.0.0")
    code_path = Path(__file__)  # what TFDS would find out itself, with a package that it forgets to require

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description="The CMU pronouncing dictionary as CMUSphinx distributes it: lower case, phones without stress.",
            features=tfds.features.FeaturesDict(
                {"word": text, "pronunciation": text, "pronunciations": tfds.features.Sequence(tfds.features.Text())}
            ),
            supervised_keys=("word", "pronunciation"),
            homepage="http://www.speech.cs.cmu.edu/cgi-bin/cmudict",
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        dictionary = read_dictionary(dictionary_path())
        return {split: self._generate_examples(dictionary, split) for split in ("train", "validation", "test")}

    def _generate_examples(self, dictionary: dict[str, list[str]], split: str) -> Iterator[tuple[str, dict]]:
        for word, pronunciations in dictionary.items():
            if split_of(word) == split:
                for number, pronunciation in enumerate(pronunciations if split == "train" else pronunciations[:1]):
                    example = {"word": word, "pronunciation": pronunciation, "pronunciations": pronunciations}
                    yield f"{word}({number})", example
