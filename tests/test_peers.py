"""What we export, read by transformers and CTranslate2: the same greedy outputs. Runs where torch is installed.

``PEER_PYTHON`` may name another interpreter that has them: they need not stand beside jax.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import zoo
from zoo.core import pad_tokens

HERE = Path(__file__).parent
ENCODERS = sorted(path.parent.name for path in (HERE / "golden").glob("*/encoder.npz"))
CASES = sorted(path.parent.name for path in (HERE / "golden").glob("*/golden.npz"))
PYTHON = os.environ.get("PEER_PYTHON", sys.executable)
NEEDED = "import torch, transformers"

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(
        subprocess.run([PYTHON, "-c", NEEDED], capture_output=True).returncode != 0, reason="torch or transformers is missing"
    ),
]


@pytest.mark.parametrize("name", CASES)
def test_an_exported_directory_generates_the_same_elsewhere(name, tmp_path):
    predictor = zoo.load(HERE / "golden" / name)
    zoo.save(predictor, tmp_path / "out", format="huggingface")
    texts = ["The quick brown fox", "我今天很高兴", "Wie spät ist es?", "a"]
    ours = predictor.predict(texts, beams=1)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [PYTHON, str(HERE / "peers.py"), str(tmp_path / "out")]
    found = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    said = json.loads(found.stdout.splitlines()[-1])
    assert said["transformers"] == ours
    if said["ctranslate2"] is not None:
        assert said["ctranslate2"] == ours


def test_exported_encoders_compute_the_same_elsewhere(tmp_path):
    """Those that came from there, and those that know nothing of it but the table of names."""
    texts, directories, ours = ["The quick brown fox", "Wie spät ist es?", "a"], [], []
    for name in ENCODERS:
        loaded = zoo.load(HERE / "golden" / name)
        for kind, predictor in {"back": loaded, "new": dataclasses.replace(loaded, origin=None)}.items():
            directories.append(str(tmp_path / f"{name}_{kind}"))
            zoo.save(predictor, directories[-1], format="huggingface")
        apply = jax.jit(lambda params, source, model=loaded.model: model.apply({"params": params}, source).logits)
        source = pad_tokens(loaded.source_tokenizer.encode_batch(texts))
        rows = zip(np.asarray(apply(loaded.params, source)), source.mask, strict=True)
        ours += 2 * [[logits if len(logits) == 1 else logits[mask] for logits, mask in rows]]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [PYTHON, str(HERE / "peers.py"), *directories]
    found = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    for directory, mine, theirs in zip(directories, ours, json.loads(found.stdout.splitlines()[-1]), strict=True):
        for x, y in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(np.squeeze(x), np.array(y), atol=1e-5, err_msg=directory)
