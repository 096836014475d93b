"""Where text pairs come from: a TFDS data set by its name, or the user's own files.

Both are plain dataclasses, so that a config can hold them and the command line can set their fields. ``load(split)``
gives a sequence of ``Example`` with random access. Besides ``[i]`` the sequences answer ``__getitems__(indices)``, which
reads many at once and is several times faster.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from train.data import files
from zoo.core import UserError, first_line

Split = Literal["train", "validation", "test"]

IN_MEMORY = 200_000  # a TFDS split up to this size is decoded once, at about 40 us an example, and kept
CHUNK = 1024  # examples decoded at once
CARVED = 0.05  # share of the training file that stands in for a missing validation or test file
CARVED_AT_MOST = 2000


class Example(NamedTuple):
    """A text pair.

    Attributes:
      source: what the model reads.
      target: what it learns to write.
      references: every target that counts as right when the model is scored; ``(target,)`` where there is only one.
    """

    source: str
    target: str
    references: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Tfds:
    """A text pair data set of tensorflow-datasets, prepared on first use. TensorFlow is not needed.

    ``CMUDICT`` below needs no download.
    """

    name: str
    """Name in the TFDS catalogue, with the configuration if it has several: wmt14_translate/de-en."""
    source: str
    """Feature that the model reads, such as de."""
    target: str
    """Feature that the model learns to write, such as en, or a label's."""
    references: str = ""
    """Feature that lists all right targets, for scoring; empty: the target alone is right."""
    train_split: str = "train"
    """Name of the split to train on; TFDS slices such as train[:90%] work too."""
    validation_split: str = "validation"
    """Name of the split to evaluate on during training."""
    test_split: str = "test"
    """Name of the split for the final score."""
    data_dir: str = ""
    """Folder of prepared data sets; empty: ~/tensorflow_datasets."""

    def load(self, split: Split) -> Sequence[Example]:
        """The examples of a split. Raises UserError for an unknown data set, feature or split, or if preparing it fails."""
        builder = _builder(self.name, self.data_dir)
        keys = {"source": self.source, "target": self.target, "references": self.references or self.target}
        for field, key in keys.items():
            if key not in builder.info.features:
                features = ", ".join(builder.info.features)
                raise UserError(f"the data set {self.name} has no feature {key!r}: set the field {field} to one of {features}")
        if not _prepare(builder):
            builder = _builder(self.name, self.data_dir)  # which reads what is there now
        name = {"train": self.train_split, "validation": self.validation_split, "test": self.test_split}[split]
        try:
            records = builder.as_data_source(split=name)
        except Exception as error:  # TFDS raises ValueError, KeyError, NotImplementedError and its own
            splits = ", ".join(builder.info.splits)
            raise UserError(
                f"split {name!r} of {self.name} cannot be read ({first_line(error)}): "
                f"choose from {splits}, or give another data_dir if it was prepared by another program"
            ) from error
        labels = getattr(builder.info.features[self.target], "names", None) or []
        decoded = _Decoded(f"split {name!r} of {self.name}", records, labels, **keys)
        if not len(decoded):
            raise UserError(f"split {name!r} of {self.name} holds no examples: choose another")
        if len(decoded) > IN_MEMORY:
            return decoded
        return Table(files.columns(*zip(*decoded)))


@dataclasses.dataclass(frozen=True)
class Files:
    """Text pairs in files of one's own: TSV, JSON lines, Parquet, or two parallel text files; all but Parquet also as .gz.

    Or plain text, to learn its language: each line a document, the target of an empty source. Text is kept in memory as Arrow
    arrays, about the size of the files themselves.
    """

    train: str = ""
    """File to train on; two parallel text files as source.en,target.de."""
    validation: str = ""
    """File to evaluate on during training; empty: 5 % of the training file (at most 2,000 sources), chosen by their hash."""
    test: str = ""
    """File for the final score; empty: another 5 % of the training file, chosen alike."""
    format: Literal["auto", "tsv", "jsonl", "parquet", "parallel", "text"] = "auto"
    """Format of the files; auto tells it by the ending: .tsv, .jsonl, .parquet, .txt, or two names with a comma."""
    source: str = "source"
    """Key or column that the model reads; in a TSV without a header it is the first column."""
    target: str = "target"
    """Key or column that the model learns to write: text, a list of texts that are all right, or a label, which may be a whole
    number; in a TSV without a header the second column."""

    def load(self, split: Split) -> Sequence[Example]:
        """The examples of a split. Raises UserError, with file and line, for whatever cannot be read."""
        if not self.train:
            raise UserError("no training file is given: set train to a .tsv, .jsonl, .parquet or .txt file or to a.en,a.de")
        carved = [name for name in ("validation", "test") if not getattr(self, name)]
        if split not in carved and not (split == "train" and carved):
            return self._read(getattr(self, split))
        table = self._read(self.train)
        sources = table.column("source")
        part_N = _carve(sources if any(sources) else table.column("target"), carved)
        if split != "train" and split not in part_N:
            raise UserError(f"{self.train} has too few different sources to set aside a {split} part: give a file for {split}")
        return table.take(np.flatnonzero(part_N == split))

    def _read(self, name: str) -> Table:
        return Table(files.read(name, self.format, self.source, self.target))


CMUDICT = Tfds("cmudict", source="word", target="pronunciation", references="pronunciations")


class Table(Sequence[Example]):
    """Examples in memory, as Arrow columns ``source``, ``target`` and ``references`` (lists of strings)."""

    def __init__(self, columns: Any):
        """Args: columns: a ``pyarrow.Table``."""
        self._columns = columns

    def __len__(self) -> int:
        return self._columns.num_rows

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        rows = self._columns.take(np.asarray(indices, np.int64)).to_pydict()
        return [Example(*row[:2], tuple(row[2])) for row in zip(rows["source"], rows["target"], rows["references"])]

    def __iter__(self) -> Iterator[Example]:
        return _in_chunks(self)

    def column(self, name: str) -> list[str]:
        return self._columns[name].to_pylist()

    def take(self, indices: np.ndarray) -> Table:
        """The examples at these indices, as a table of their own."""
        return Table(self._columns.take(indices).combine_chunks())


class _Decoded(Sequence[Example]):
    """Examples of a TFDS data source, decoded whenever they are asked for."""

    def __init__(self, what: str, records: Any, labels: list[str], source: str, target: str, references: str):
        """Args: labels: what a whole number as target means."""
        self._what, self._records, self._labels = what, records, labels
        self._source, self._target, self._references = source, target, references

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        try:
            records = self._records.__getitems__([int(i) for i in indices])
        except Exception as error:  # a damaged file, by whichever library notices
            raise UserError(f"{self._what} cannot be read ({first_line(error)}): prepare it again") from error
        return [self._example(record) for record in records]

    def __iter__(self) -> Iterator[Example]:
        return _in_chunks(self)

    def _example(self, record: dict) -> Example:
        source, target, references = (record[name] for name in (self._source, self._target, self._references))
        if self._labels and self._references == self._target:
            if not 0 <= target < len(self._labels):
                raise UserError(f"{self._what} has examples without a label: choose another split")
            target = references = self._labels[int(target)]
        several = isinstance(references, (list, np.ndarray)) and len(references)
        texts = [source, target, *(references if several else [target])]
        if not all(isinstance(text, (bytes, str)) for text in texts):
            raise UserError(f"{self._what} has values that are no text: set source, target and references to features of text")
        source, target, *references = map(_text, texts)
        return Example(source, target, tuple(references))


def _in_chunks(examples: Table | _Decoded) -> Iterator[Example]:
    for start in range(0, len(examples), CHUNK):
        yield from examples.__getitems__(range(start, min(start + CHUNK, len(examples))))


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _carve(sources: list[str], carved: list[str]) -> np.ndarray:
    """Which part each example belongs to, (N,) of "train" or a name in ``carved``, by the hash of its source text.

    Equal sources share a part, so that nothing trained on is scored. With fewer than 3 different sources all are "train".
    """
    hash_N = np.array([int.from_bytes(hashlib.sha256(s.encode()).digest()[:8], "big") for s in sources], np.uint64)
    hashes = np.unique(hash_N)
    size = min(CARVED_AT_MOST, max(1, int(CARVED * len(hashes)))) if len(hashes) >= 3 else 0
    part_N = np.full(len(sources), "train", object)
    for number, name in enumerate(carved):
        part_N[np.isin(hash_N, hashes[number * size : (number + 1) * size])] = name
    return part_N


def _builder(name: str, data_dir: str) -> Any:
    """The TFDS builder of that name: ours, or one that comes with tensorflow-datasets. None is ever loaded from a folder."""
    import tensorflow_datasets as tfds
    import tensorflow_datasets.summarization
    import tensorflow_datasets.text
    import tensorflow_datasets.translate

    import train.data.cmudict  # noqa: F401 (registers itself)

    try:
        parsed, options = tfds.core.naming.parse_builder_name_kwargs(name)
    except ValueError as error:
        raise UserError(f"{name!r} is not a data set name: write name or name/config, such as wmt14_translate/de-en") from error
    known = tfds.core.registered.list_imported_builders()
    if parsed.name not in known or parsed.namespace:
        near = difflib.get_close_matches(parsed.name, known, n=1, cutoff=0) or ["cmudict"]
        raise UserError(f"there is no data set {name!r}: did you mean {near[0]}?")
    builder_class = tfds.core.registered.imported_builder_cls(parsed.name)
    directory = {"data_dir": str(Path(data_dir).expanduser())} if data_dir else {}
    try:
        return builder_class(file_format="array_record", **directory, **options)
    except Exception as error:  # an unknown configuration or version, or what a prepared folder holds
        configs = [config.name for config in builder_class.BUILDER_CONFIGS]
        near = difflib.get_close_matches(str(options.get("config")), configs, n=1, cutoff=0)
        advice = f"did you mean {parsed.name}/{near[0]}?" if near else "leave out what follows the name, or change data_dir"
        raise UserError(f"the data set {name!r} cannot be built ({first_line(error)}): {advice}") from error


def _prepare(builder: Any) -> bool:
    """Download and prepare once; later calls return at once. A terminal sees progress bars, a log nothing.

    Returns:
      False if another process has prepared the set in the meantime, which this builder knows nothing of.
    """
    import tensorflow_datasets as tfds

    (tfds.enable_progress_bar if sys.stderr.isatty() else tfds.disable_progress_bar)()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(file_format="array_record")
        return True
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"preparing {builder.info.full_name} needs the package {error.name}: pip install {error.name}"
        ) from error
    except Exception as error:  # a download, an archive or a disk may fail in many ways, each with its own exception
        if Path(builder.data_dir).is_dir():  # where TFDS puts a whole set or nothing
            return False
        raise UserError(
            f"the data set {builder.info.full_name} could not be prepared in {builder.data_dir} ({first_line(error)}): "
            "check the network, the space on the disk and the field data_dir"
        ) from error
