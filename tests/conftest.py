"""The suite's strict flags: set before anything imports jax."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("MPLBACKEND", "Agg")
# Thousands of programs run once or twice: LLVM's optimizations took 39 of the 86 CPU-seconds of the GRU's contract.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

hypothesis.settings.register_profile("zoo", deadline=None, derandomize=True, database=None, max_examples=25)
hypothesis.settings.load_profile("zoo")

MAPS = Path("/proc/self/maps")  # where there is one
MOST_MAPS = 30_000  # of Linux's 65,530 a process, beyond which the compiler crashes


@pytest.fixture(autouse=True)
def _compiled_programs_are_let_go():
    """Each compiled program keeps a few memory maps, and a worker compiles thousands."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture(scope="module")
def ground() -> Iterator[Path]:
    """In memory, where there is such a place: thousands of small files are written."""
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """A Chromium without a window, driven by playwright (extra ``browser``)."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[browser]'")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("there is no Chromium on this machine")
    with api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def collected() -> Iterator[None]:
    """Of several reads or writes that fail Orbax waits for one: what it abandons is collected in the test that led to it."""
    yield
    gc.collect()
