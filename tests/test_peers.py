"""What we export, read by transformers and CTranslate2: the same greedy outputs. Runs where torch is installed.

``PEER_PYTHON`` may name another interpreter that has them: they need not stand beside jax.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import zoo

HERE = Path(__file__).parent
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
