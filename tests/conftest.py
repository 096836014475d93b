"""The suite's strict flags: set before anything imports jax."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("MPLBACKEND", "Agg")

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
