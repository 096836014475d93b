"""bfloat16 takes our logits no further from float32's than it takes the reference's (golden/families/rounding.py).

Compared by the root of the mean square, since a maximum hangs on one sum's last bit. Inside norms and activations the order of
rounding differs: ours are 0.75 to 1.13 of theirs, and torch's own two ways to attend differ by as much. Directories of one
architecture differ in what their files hold: one of each is enough here. What reads sound hears many noises: with one alone the
two are by chance 0.7 to 1.6 of each other.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.core import Frames, Tokens

GOLDEN = Path(__file__).parent / "golden"
ERRORS = json.loads((GOLDEN / "bf16.json").read_text())
FACTOR = 1.2
DRAWS = 16  # as in golden/families/rounding.py
FAMILIES = (
    *("bart", "mbart", "pegasus", "blenderbot", "blenderbot_small", "m2m_100", "marian", "t5", "t5_v1_1", "gpt2", "whisper"),
    *("bert_mlm", "roberta_mlm", "distilbert_mlm"),
)


def test_each_directory_has_its_error():
    files = [path for name in ("golden", "encoder", "speech") for path in GOLDEN.glob(f"*/{name}.npz")]
    assert {path.parent.name for path in files} == set(ERRORS)


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_is_as_close_to_float32_as_the_reference_is(name):
    low = zoo.load(GOLDEN / name, dtype=jnp.bfloat16)
    (path,) = (path for path in (GOLDEN / name).glob("*.npz"))
    with np.load(path, allow_pickle=False) as arrays:
        golden = dict(arrays)
    if "in:ids" in golden:
        batch = [Tokens(golden["in:ids"], golden["in:mask"], types=golden.get("in:types"))]
    else:
        target = Tokens(golden["in:target_ids"], golden["in:target_mask"])
        if low.model.SOUND:
            batch = [noises(low.model.config, len(target.ids)), jax.tree.map(lambda x: np.tile(x, (DRAWS, 1)), target)]
        else:
            batch = [Tokens(golden["in:source_ids"], golden["in:source_mask"]), target]
    apply = jax.jit(low.model.apply)
    logits = apply({"params": low.params}, *batch).logits
    assert logits.dtype == jnp.bfloat16, "nothing was rounded"
    # Of noises the file has no logits in float32; those of others equal ours (test_whisper.py).
    wanted = apply({"params": zoo.load(GOLDEN / name).params}, *batch).logits if low.model.SOUND else golden["out:logits"]
    off = (np.asarray(logits, np.float32) - np.asarray(wanted))[batch[-1].mask]
    rms = float(np.sqrt(np.square(off).mean()))
    assert 0 < rms <= FACTOR * ERRORS[name]["rms"]


def noises(config, rows: int) -> Frames:
    shape = (rows * DRAWS, 2 * config.max_source_len, config.mels)
    return Frames(np.random.default_rng(0).standard_normal(shape).astype(np.float32), np.ones(shape[:2], bool))
