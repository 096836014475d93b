"""Python runs this file first in a child of the harness: it kills the process in the midst of what FAULT names.

FAULT is ``operation:n:when``: SIGKILL at the nth time that a run's checkpoints are touched by the operation, which is

    rename    os.rename or os.replace; "before" it or "after" it
    delete    shutil.rmtree; "before" it, "after" it, or "half" way, with half of the files gone
    manifest  the manifest is written; "before" it is opened, or "half" way, with half of its bytes on the disk
"""

import builtins
import io
import os
import shutil
import signal
from pathlib import Path

PLACE = f"{os.sep}checkpoints{os.sep}"


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def aimed(operation, nth, when, name, original, half):
    """``original``, but for the nth call whose first argument is in the checkpoints."""
    seen = 0

    def patched(path, *args, **kw):
        nonlocal seen
        touched = isinstance(path, str | os.PathLike) and PLACE in os.fspath(path)
        if touched and (operation != "manifest" or ("manifest" in Path(path).name and set(str(args)) & set("wx"))):
            seen += 1
            if seen == nth:
                if when == "half":
                    half(path, *args, **kw)
                elif when == "after":
                    original(path, *args, **kw)
                die()
        return original(path, *args, **kw)

    return patched


def half_deleted(path, *args, **kw):
    files = [file for file in sorted(Path(path).rglob("*")) if file.is_file()]
    for file in files[: len(files) // 2 + 1]:
        file.unlink()


def half_written(path, *args, **kw):
    """Whatever is written to this file: its first bytes are there, the rest never comes."""
    Path(path).write_bytes(b'{\n "step": 1')


def inject(fault):
    operation, nth, when = fault.split(":")

    def patch(module, name, half=None):
        setattr(module, name, aimed(operation, int(nth), when, name, getattr(module, name), half))

    if operation == "rename":
        patch(os, "rename")
        patch(os, "replace")
    elif operation == "delete":
        patch(shutil, "rmtree", half_deleted)
    else:
        patch(io, "open", half_written)
        builtins.open = io.open


if "FAULT" in os.environ:
    inject(os.environ["FAULT"])
