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
from train.__main__ import main as train
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
    ours, theirs = here_and_elsewhere(zoo.load(HERE / "golden" / name), tmp_path)
    assert ours == theirs


def test_a_fine_tuned_model_generates_the_same_elsewhere(tmp_path):
    """A run of a few steps, with adapters that change it."""
    config, data = HERE.parent / "configs" / "marian_finetune.py", tmp_path / "pairs.tsv"
    data.write_text("".join(f"a quick fox {i}\tfox a {i}\n" for i in range(40)))
    paths = ["--workdir", str(tmp_path / "run"), "--init-from", str(HERE / "golden" / "marian"), "--data.train", str(data)]
    sizes = ["--batching.tokens", "256", "--batching.max-source-len", "16", "--batching.max-target-len", "16"]
    rates = ["--lora.rank", "4", "--optimizer.learning-rate", "0.02", "--optimizer.warmup-steps", "0"]
    assert train([str(config), *paths, *sizes, *rates, "--training.steps", "20", "--batching.buckets", "1"]) == 0
    tuned, texts = zoo.load(tmp_path / "run"), ["a quick fox 3", "a"]
    assert tuned.predict(texts, beams=1) != zoo.load(HERE / "golden" / "marian").predict(texts, beams=1)
    ours, theirs = here_and_elsewhere(tuned, tmp_path)
    assert ours == theirs


def here_and_elsewhere(predictor: zoo.Predictor, tmp_path: Path) -> tuple[list[str], list[str]]:
    """Our outputs, and those of the systems that read our export, one after the other."""
    zoo.save(predictor, tmp_path / "out", format="huggingface")
    texts = ["The quick brown fox", "我今天很高兴", "Wie spät ist es?", "a"]
    predictions = predictor.predictions(texts, beams=1)
    ours = [prediction.text for prediction in predictions]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [PYTHON, str(HERE / "peers.py"), str(tmp_path / "out")]
    found = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    said = json.loads(found.stdout.splitlines()[-1])
    if said["ctranslate2"] is None:
        return ours, said["transformers"]
    # CTranslate2 knows no end that is forced at the limit.
    ended = [i for i, prediction in enumerate(predictions) if len(prediction.target_pieces) < predictor.decoding.max_len]
    assert ended
    return ours + [ours[i] for i in ended], said["transformers"] + [said["ctranslate2"][i] for i in ended]


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
