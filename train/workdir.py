"""A run's directory: made once, that of one experiment, and of one command at a time."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from train import experiment, report
from zoo.checkpoint.orbax import CHECKPOINTS, steps
from zoo.core import UserError

try:
    import fcntl
except ImportError:  # Windows: commands there are not kept apart
    fcntl = None

LOCK = ".lock"  # stays in the directory: what counts is whether a process holds it


@contextlib.contextmanager
def open_workdir(now: dict[str, Any], workdir: Path) -> Iterator[None]:
    """Make the run's directory, or see that it is that of the same experiment; it is this command's as long as the block lasts.

    Raises:
      UserError: it holds something else, another command trains in it, or it cannot be written.
    """
    with contextlib.ExitStack() as held:
        path = workdir / "experiment.json"
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            if not path.exists() and any(other.name != LOCK for other in workdir.iterdir()):
                raise UserError(f"{workdir} is not empty and holds no training run: choose another --workdir")
            lock = held.enter_context((workdir / LOCK).open("a+", encoding="utf-8"))
            take(lock, workdir)
            # Before the first checkpoint there is nothing to lose, and options may change.
            if path.exists() and steps(workdir / CHECKPOINTS):
                experiment.check_same(json.loads(path.read_text(encoding="utf-8")), now, str(workdir))
            report.write_atomically(path, json.dumps(now, indent=2) + "\n")
            (workdir / CHECKPOINTS).mkdir(exist_ok=True)
            lock.truncate(0)
            lock.write(f"{os.getpid()} on {platform.node()}\n")
            lock.flush()
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"--workdir {workdir} cannot be written ({error.strerror or error}): choose another") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not readable JSON ({error}): restore it, or choose another --workdir") from error
        yield


def take(file: IO[str], workdir: Path) -> None:
    """Lock the file, which names the process that holds it. The lock ends with the process, however that ends.

    Raises:
      UserError: another process holds it.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise UserError(
            f"another command trains in {workdir}, process {file.read().strip() or 'unknown'}: wait until it ends, or choose "
            "another --workdir"
        ) from error
    except OSError:  # a file system without locks
        return
