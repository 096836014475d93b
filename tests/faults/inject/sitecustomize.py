"""Python runs this file first in a child of the harness: it kills the process in the midst of what FAULT names.

FAULT is ``operation:n:when``: SIGKILL at the nth time that a run's checkpoints are touched by the operation, which is

    rename    os.rename or os.replace; "before" it or "after" it
    delete    shutil.rmtree; "before" it, "after" it, or "half" way, with half of the files gone
    manifest  the manifest is written; "before" it is opened, or "half" way, with half of its bytes on the disk
"""

import builtins
import functools
import io
import os
import shutil
import signal
from pathlib import Path

PLACE = f"{os.sep}checkpoints{os.sep}"


def aimed(operation, seen, nth, when, original, half):
    """``original``, but for the nth call whose first argument is in the checkpoints; ``seen`` holds how many there were."""

    @functools.wraps(original)
    def patched(path, *args, **kw):
        touched = isinstance(path, str | os.PathLike) and PLACE in os.fspath(path)
        if touched and (operation != "manifest" or ("manifest" in Path(path).name and set(str(args)) & set("wx"))):
            seen[0] += 1
            if seen[0] == nth:
                if when == "half":
                    half(path)
                elif when == "after":
                    original(path, *args, **kw)
                os.kill(os.getpid(), signal.SIGKILL)
        return original(path, *args, **kw)

    return patched


def half_deleted(path):
    files = [file for file in sorted(Path(path).rglob("*")) if file.is_file()]
    for file in files[: len(files) // 2 + 1]:
        file.unlink()


def half_written(path):
    Path(path).write_bytes(b'{\n "step": 1')


def inject(fault):
    operation, nth, when = fault.split(":")
    seen = [0]

    def patch(module, name, half=None):
        setattr(module, name, aimed(operation, seen, int(nth), when, getattr(module, name), half))

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
