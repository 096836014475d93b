"""The suite's strict flags: set before anything imports jax."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

hypothesis.settings.register_profile("zoo", deadline=None, derandomize=True, database=None, max_examples=25)
hypothesis.settings.load_profile("zoo")
