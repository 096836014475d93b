"""Reads a user's files of text pairs into Arrow columns: TSV, JSON lines, Parquet, two parallel text files, and plain text.

Whatever is wrong with a file is said in one sentence, with the file and the line.
"""

from __future__ import annotations

import gzip
import itertools
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from zoo.core import UserError
from zoo.text import without_surrogates

ENDINGS = {".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet", ".txt": "text"}
ROWS = 65_536  # rows gathered as Python strings before they become an Arrow batch

Pair = tuple[int, str, str, Sequence[str]]  # line or row, counted from 1, source, target, references

SCHEMA = pa.schema([("source", pa.large_string()), ("target", pa.large_string()), ("references", pa.list_(pa.large_string()))])
LINE = pa.field("line", pa.int32())


def read(name: str, form: str, source: str, target: str) -> pa.Table:
    """Read a file, or two parallel ones.

    Args:
      name: a path, or two with a comma between.
      form: "tsv", "jsonl", "parquet", "parallel", "text", or "auto" to tell by the ending.
      source: key or column of the source.
      target: key or column of the target, a string, a list of strings or a label's whole number.

    Returns:
      A table with columns source, target, references (lists of strings) and line, where each stands.

    Raises:
      UserError: anything missing, empty, unreadable or misformed, with file and line.
    """
    form = _format(name) if form == "auto" else form
    if form == "parallel":
        pairs = _parallel(name)
    elif form == "text":
        pairs = ((number, "", line, (line,)) for number, line in enumerate(_lines(_file(name)), 1) if line.strip())
    elif form == "tsv":
        pairs = _tsv(_file(name), source, target)
    elif form == "jsonl":
        pairs = _jsonl(_file(name), source, target)
    else:
        pairs = _parquet(_file(name), source, target)
    batches = []
    while rows := list(itertools.islice(pairs, ROWS)):
        numbers, *texts = zip(*rows)
        batches += columns(*texts).append_column(LINE, pa.array(numbers, pa.int32())).to_batches()
    if not batches:
        raise UserError(f"{name} holds no examples: give a file with at least one")
    return pa.Table.from_batches(batches, SCHEMA.append(LINE)).combine_chunks()  # one chunk: random access would search many


def columns(sources: Sequence[str], targets: Sequence[str], references: Sequence[Sequence[str]]) -> pa.Table:
    """An Arrow table of text pairs. Lone surrogates, which Arrow refuses, become "\\ufffd"."""
    return pa.table(
        [
            pa.array(map(without_surrogates, sources), pa.large_string()),
            pa.array(map(without_surrogates, targets), pa.large_string()),
            pa.array(([without_surrogates(text) for text in row] for row in references), pa.list_(pa.large_string())),
        ],
        SCHEMA,
    )


def _format(name: str) -> str:
    ending = Path(name.removesuffix(".gz")).suffix.lower()
    if ending in ENDINGS:
        return ENDINGS[ending]
    if "," in name:
        return "parallel"
    raise UserError(
        f"the ending of {name} does not tell its format: set the field format to tsv, jsonl, parquet, parallel or text"
    )


def _file(name: str) -> Path:
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            raise UserError(f"{name} is a folder: give the file in it")
        if not path.is_file():
            raise UserError(f"there is no file {name}: check the path, which is relative to {Path.cwd()}")
        return path
    except (OSError, RuntimeError) as error:  # no such home, a name that is too long, a folder that may not be read
        raise UserError(f"the file {name} cannot be looked up ({error}): check the path") from error


def _lines(path: Path) -> Iterator[str]:
    """Lines without their line ends and without a byte order mark, from a plain or gzipped file."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for line in file:
                text = line.decode("utf-8" if number else "utf-8-sig")
                number += 1
                yield text.rstrip("\r\n")
    except UnicodeDecodeError as error:
        where = f"{path} line {number + 1}"
        raise UserError(f"{where} is not UTF-8 (byte {error.start + 1} of the line): convert the file to UTF-8") from error
    except (EOFError, zlib.error, OSError) as error:
        where = f"{path} after line {number}"
        raise UserError(f"{where} cannot be read ({error}): the file may be damaged, fetch it again") from error


def _tsv(path: Path, source: str, target: str) -> Iterator[Pair]:
    """Columns 0 and 1, or the two named ones if the first row names them both. There is no quoting; blank lines are skipped."""
    at = 0, 1
    for number, line in enumerate(_lines(path), 1):
        cells = line.split("\t")
        if number == 1 and source in cells and target in cells:
            at = cells.index(source), cells.index(target)
        elif line.strip():
            if len(cells) <= max(at):
                raise UserError(
                    f"{path} line {number} has {len(cells)} column{'s' * (len(cells) > 1)} where {max(at) + 1} are needed: "
                    "separate source and target by a tab"
                )
            yield number, cells[at[0]], cells[at[1]], (cells[at[1]],)


def _jsonl(path: Path, source: str, target: str) -> Iterator[Pair]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            where = f"{path} line {number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where} is not JSON ({error}): write one object a line") from error
            if not isinstance(record, dict):
                raise UserError(f"{where} is not a JSON object: write one a line, with the keys {source!r} and {target!r}")
            yield number, *_pair(where, record, source, target)


def _parquet(path: Path, source: str, target: str) -> Iterator[Pair]:
    try:
        file = pq.ParquetFile(path)
        for field, name in (("source", source), ("target", target)):
            if (count := file.schema_arrow.names.count(name)) != 1:
                names = ", ".join(file.schema_arrow.names)
                raise UserError(
                    f"{path} has {count or 'no'} column{'s' * (count > 1)} {name!r}: set the field {field} to one of {names}"
                )
            kind = file.schema_arrow.field(name).type
            if not _is_text(kind) and not (field == "target" and pa.types.is_integer(kind)):
                raise UserError(f"{path} has {kind} in column {name!r}: write strings (for the target also lists of strings)")
        number = 0
        for batch in file.iter_batches(ROWS, columns=[source, target]):
            batch.validate(full=True)  # Parquet does not promise that strings are UTF-8
            for record in batch.to_pylist():
                number += 1
                yield number, *_pair(f"{path} row {number}", record, source, target)
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({error}): write it again") from error


def _is_text(kind: pa.DataType) -> bool:
    """Whether Arrow gives the values of this type as strings, lists of strings or None."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


def _pair(where: str, record: dict, source: str, target: str) -> tuple[str, str, Sequence[str]]:
    for name in (source, target):
        if name not in record:
            keys = ", ".join(record) or "none"
            raise UserError(f"{where} has no key {name!r} (it has {keys}): set the fields source and target")
    texts, references = record[source], record[target]
    references = str(references) if type(references) is int else references
    references = references if isinstance(references, list) and references else [references]
    for name, value in ((source, texts), *((target, value) for value in references)):
        if not isinstance(value, str):
            raise UserError(f"{where} has {value!r} for {name!r}: write a string (for the target also a list of strings)")
    return texts, references[0], references


def _parallel(name: str) -> Iterator[Pair]:
    """Line n of the one file belongs to line n of the other; a blank line is an empty text."""
    paths = [_file(part.strip()) for part in name.split(",")]
    if len(paths) != 2:
        raise UserError(f"parallel files are two, with a comma between (a.en,a.de), not {len(paths)}: {name}")
    for number, lines in enumerate(itertools.zip_longest(*map(_lines, paths)), 1):
        if None in lines:
            shorter, longer = paths if lines[0] is None else paths[::-1]
            where = f"{shorter} ends after line {number - 1} but {longer} goes on"
            raise UserError(f"{where}: parallel files need equally many lines")
        yield number, lines[0], lines[1], (lines[1],)
