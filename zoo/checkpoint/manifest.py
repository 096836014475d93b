"""The size and the sha256 of every file in a directory, written last: what tells a whole checkpoint from any other.

Orbax checks none of the bytes of an array when it reads them: a flipped bit would be restored, silently wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

MANIFEST = "manifest.json"


class Damaged(ValueError):  # noqa: N818
    """A directory is not what its manifest says; the message follows the directory's name."""


def write(directory: Path, step: int) -> None:
    """List every file of the directory, when all of them, and then the list, are safe on the disk.

    Args:
      directory: a checkpoint that nothing writes to any more.
      step: its step, so that it can be told from another one under its name.
    """
    listed = {}
    for name, size in files(directory).items():
        sync(directory / name)
        listed[name] = [size, digest(directory / name)]
    for folder, _, _ in os.walk(directory):
        sync(Path(folder))
    temporary = directory / f"{MANIFEST}.tmp"
    temporary.write_text(json.dumps({"step": step, "files": listed}, indent=1) + "\n", encoding="utf-8")
    sync(temporary)
    temporary.replace(directory / MANIFEST)
    sync(directory)


def verify(directory: Path, step: int | None = None) -> None:
    """Read the whole directory and compare it with its manifest.

    Args:
      directory: a checkpoint.
      step: the step that it must be of; None: any.

    Raises:
      Damaged: a file is missing, has changed, or was never saved.
    """
    try:
        listed = read(directory, step)
        found = files(directory)
        for name in sorted(listed.keys() ^ found.keys()):
            raise Damaged(f"{name!r} " + ("is missing" if name in listed else f"is not in its {MANIFEST}"))
        for name, size in found.items():  # before any is read: sizes cost nothing
            if listed[name][0] != size:
                raise Damaged(f"{name!r} has {size:,} bytes instead of {listed[name][0]}")
        for name in found:
            if listed[name][1] != digest(directory / name):
                raise Damaged(f"{name!r} has changed since it was saved")
    except OSError as error:
        raise Damaged(f"{error.filename or directory} cannot be read ({error.strerror or error})") from error


def read(directory: Path, step: int | None) -> dict[str, tuple]:
    """Path -> (size, sha256) as the manifest has them. Raises Damaged if there is none, or not of this step."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        listed = {name: (size, sha256) for name, (size, sha256) in manifest["files"].items()}
        of = manifest["step"]
    except FileNotFoundError as error:
        raise Damaged(f"it has no {MANIFEST}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"its {MANIFEST} is not readable") from error
    if step is not None and of != step:
        raise Damaged(f"its {MANIFEST} is of another step, {of!r}")
    return listed


def files(directory: Path) -> dict[str, int]:
    """Path below the directory -> bytes, of every file but the manifest. Raises Damaged for a link or a device."""
    found = {}
    for folder, folders, names in os.walk(directory):
        for path in (Path(folder, name) for name in (*folders, *names)):
            status, name = path.lstat(), path.relative_to(directory).as_posix()
            if stat.S_ISREG(status.st_mode):
                found[name] = status.st_size
            elif not stat.S_ISDIR(status.st_mode):
                raise Damaged(f"{name!r} is neither a file nor a directory")
    found.pop(MANIFEST, None)
    return found


def digest(path: Path) -> str:
    """A file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until what was written to a file, or which names a directory has, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
