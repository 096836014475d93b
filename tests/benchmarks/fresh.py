"""A measurement in a process of its own, on a few cores, with JSON in and out."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent


def run(python: str, script: Path, arguments: list[str], threads: int, gpu: bool = False) -> Any:
    """The JSON that a script prints last; without a GPU it has the first ``threads`` cores alone."""
    cores = sorted(os.sched_getaffinity(0))[: None if gpu else threads]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    environment |= {} if gpu else {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    pin = lambda: os.sched_setaffinity(0, cores)  # noqa: E731
    command = [python, str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, preexec_fn=pin)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}


def timed(step: Callable[[], None], calls: int, spare: int = 1) -> dict[str, Any]:
    """Seconds of the first call, of each of ``calls`` after ``spare`` more, and the process's greatest memory, MiB."""
    seconds = []
    for _ in range(1 + spare + calls):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"first": seconds[0], "later": seconds[1 + spare :], "mib": memory}
