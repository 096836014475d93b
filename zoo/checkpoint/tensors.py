"""Safetensors files, single or sharded: read without loading what is not asked for, written a tensor at a time.

A file is 8 bytes with the length of a header, the header (JSON: name -> dtype, shape, offsets), then the tensors' bytes.
Nothing in a file is believed before it is checked against the file's size: a damaged or made-up file allocates nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from zoo.core import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "BOOL": np.bool_},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8},
}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
LONGEST_HEADER = 100_000_000  # bytes, as in the reference implementation
SHARD = 5 * 10**9  # bytes of tensors in a file that is written
TORCH = "pytorch_model.bin"
TO_SAFETENSORS = (
    'python -c "import torch, safetensors.torch as s; s.save_file({k: v.clone().contiguous() for k, v in '
    f"torch.load('{TORCH}', weights_only=True).items()}}, '{WEIGHTS}', {{'format': 'pt'}})\""
)


class Entry(NamedTuple):
    """Where a tensor lies: ``start`` counts bytes from the beginning of the file."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int


class Tensors(Mapping[str, np.ndarray]):
    """Name -> array of one or several files: a view of the file, of which only what is used is read."""

    def __init__(self, entries: dict[str, Entry]):
        self.entries = entries

    @classmethod
    def open(cls, directory: Path) -> Tensors:
        """The weights in a directory.

        Raises:
          UserError: there are none, or a file is damaged, missing or says what cannot be.
        """
        try:
            if (directory / INDEX).is_file():
                return cls(read_shards(directory))
            if (directory / WEIGHTS).is_file():
                return cls(read_header(directory / WEIGHTS))
        except OSError as error:
            raise UserError(
                f"the weights in {directory} cannot be read ({error.strerror or error}): check the files"
            ) from error
        raise UserError(
            f"{directory} holds no weights: {WEIGHTS} or {INDEX} is wanted; {TORCH} can run code and is not read, so convert "
            f"it there with torch installed by: {TO_SAFETENSORS}"
        )

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        count = math.prod(entry.shape)
        if not count:
            return np.empty(entry.shape, entry.dtype)
        return np.memmap(entry.path, entry.dtype, "r", entry.start, (count,)).reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def read_header(path: Path) -> dict[str, Entry]:
    """What a file holds, checked: every tensor of a known dtype, and together they fill the file without gap or overlap."""
    damaged = f"{path} is damaged: "
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            raise UserError(f"{damaged}a header of {length} bytes does not fit a file of {size}; fetch it again")
        header = strict_json(file.read(length), path)
    start, entries = 8 + length, {}
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise UserError(f"{damaged}its header is no table of tensors; fetch it again")
    for name, fields in header.items():
        dtype, shape, first, last = read_entry(fields, f"{damaged}{name}")
        entries[name] = first, last, Entry(path, dtype, shape, start + first)
    end = 0
    for name, (first, last, _) in sorted(entries.items(), key=lambda item: item[1][:2]):
        if first != end:
            raise UserError(f"{damaged}{name} begins at byte {first} of the tensors, where {end} was due; fetch it again")
        end = last
    if start + end != size:
        raise UserError(f"{damaged}its tensors end at byte {start + end}, the file at {size}; fetch it again")
    return {name: entry for name, (_, _, entry) in entries.items()}


def read_entry(fields: Any, what: str) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """The dtype, shape and place of a tensor, if they fit each other."""
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise UserError(f"{what} lacks dtype, shape or data_offsets; fetch the file again")
    if not isinstance(fields["dtype"], str) or fields["dtype"] not in DTYPES:
        raise UserError(f"{what} has the dtype {fields['dtype']!r}, which is none of {', '.join(DTYPES)}: convert it to one")
    dtype, (shape, offsets) = np.dtype(DTYPES[fields["dtype"]]), (fields["shape"], fields["data_offsets"])
    counts = isinstance(shape, list) and isinstance(offsets, list) and all(type(n) is int and n >= 0 for n in shape + offsets)
    if not counts or len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise UserError(f"{what} has the shape {shape} of {fields['dtype']} between {offsets}, which cannot be; fetch it again")
    return dtype, tuple(shape), *offsets


def read_shards(directory: Path) -> dict[str, Entry]:
    """What all files of an index hold. Only plain names of files beside the index are opened."""
    index = directory / INDEX
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise UserError(f"{index} has no weight_map: fetch it again")
    files, entries = sorted(set(map(str, table.values()))), {}
    for name in files:
        if Path(name).name != name or not name.endswith(".safetensors") or "\\" in name:
            raise UserError(f"{index} names the file {name!r}: only .safetensors files beside it are read")
        if not (directory / name).is_file():
            raise UserError(f"{directory / name} is missing, which {INDEX} names: fetch it again")
        found = read_header(directory / name)
        wanted = {tensor for tensor, file in table.items() if file == name}
        if set(found) != wanted:
            odd = sorted(set(found) ^ wanted)[0]
            raise UserError(f"{directory / name} and {INDEX} do not agree on the tensor {odd}: fetch both again")
        entries |= found
    return entries


def read_json(path: Path, again: str = "fetch it again", most: int = 500_000_000) -> dict[str, Any]:
    """A JSON object. Raises UserError for anything else, which ends with how to come by the file ``again``."""
    if not path.is_file():
        raise UserError(f"{path} is missing: {again}")
    if path.stat().st_size > most:
        raise UserError(f"{path} has {path.stat().st_size} bytes, too many for what it should hold: {again}")
    data = strict_json(path.read_bytes(), path, again)
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no JSON object: {again}")
    return data


def strict_json(text: bytes, path: Path, again: str = "fetch it again") -> Any:
    """JSON without a name that stands twice in an object."""

    def unique(pairs):
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name stands twice in it")
        return found

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({error}): {again}") from error


class Shape(NamedTuple):
    """What the header must know of a tensor."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write(directory: Path, shapes: Mapping[str, Shape], make: Callable[[str], np.ndarray], shard: int = SHARD) -> None:
    """Write one file, or several and their index where one would pass ``shard`` bytes.

    Args:
      directory: where.
      shapes: every tensor.
      make: gives the array of a name; asked once for each, when it is written.
      shard: the most bytes of tensors in a file; a tensor is never split.
    """
    files: list[dict[str, Shape]] = [{}]
    for name in sorted(shapes, key=lambda name: (-shapes[name].dtype.itemsize, name)):  # wide dtypes first: all lie aligned
        if files[-1] and sum(s.size for s in files[-1].values()) + shapes[name].size > shard:
            files.append({})
        files[-1][name] = shapes[name]
    if len(files) == 1:
        return write_file(directory / WEIGHTS, files[0], make)
    table = {}
    for number, part in enumerate(files, 1):
        file = f"model-{number:05}-of-{len(files):05}.safetensors"
        write_file(directory / file, part, make)
        table |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(s.size for s in shapes.values())}, "weight_map": dict(sorted(table.items()))}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_file(path: Path, shapes: dict[str, Shape], make: Callable[[str], np.ndarray]) -> None:
    """One file."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape) in shapes.items():
        size = Shape(dtype, shape).size
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (dtype, shape) in shapes.items():
            array = make(name)
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(f"{name} is {array.dtype}{array.shape}, not {dtype}{shape}")
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
