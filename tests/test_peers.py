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
from tones import speech

import zoo
from train.__main__ import main as train
from zoo.core import pad_tokens
from zoo.speech import told

HERE = Path(__file__).parent
ENCODERS = sorted(path.parent.name for path in (HERE / "golden").glob("*/encoder.npz"))
SPEECH = sorted(path.parent.name for path in (HERE / "golden").glob("*/speech.npz"))
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


@pytest.mark.parametrize(("name", "language"), [*((name, "") for name in SPEECH), ("whisper", "de")])
def test_an_exported_whisper_says_the_same_elsewhere(name, language, tmp_path):
    """Token by token, in the language that each finds, or that the export says, as that of a fine-tuned model does."""
    predictor = zoo.load(HERE / "golden" / name)
    if language:
        predictor = dataclasses.replace(predictor, origin=told(predictor.origin, language, "transcribe"))
    with np.load(HERE / "golden" / name / "speech.npz") as arrays:
        seeds = json.loads(str(arrays["short:json"]))["seeds"]
    sounds = [speech(seed, 1.4 + 0.1 * (seed % 17), "de" if name != "whisper_en" and seed % 2 else "en")[0] for seed in seeds]
    transcripts = predictor.predictions(sounds, temperatures=(0.0,), no_speech=2.0)
    ours = [[token for segment in transcript.segments for token in segment.tokens] for transcript in transcripts]
    assert len({x.language for x in transcripts}) == (1 if language or name == "whisper_en" else 2)
    zoo.save(predictor, tmp_path / "out", format="huggingface")
    assert peers([tmp_path / "out"], [sound.tolist() for sound in sounds]) == {"transformers": ours, "ctranslate2": ours}


def peers(directories: list, inputs: list):
    """What peers.py prints of these directories."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [PYTHON, str(HERE / "peers.py"), *map(str, directories)]
    found = subprocess.run(command, input=json.dumps(inputs), capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout.splitlines()[-1])


def here_and_elsewhere(predictor: zoo.Predictor, tmp_path: Path) -> tuple[list[str], list[str]]:
    """Our outputs, and those of the systems that read our export, one after the other."""
    zoo.save(predictor, tmp_path / "out", format="huggingface")
    texts = ["The quick brown fox", "我今天很高兴", "Wie spät ist es?", "a"]
    predictions = predictor.predictions(texts, beams=1)
    ours = [prediction.text for prediction in predictions]
    said = peers([tmp_path / "out"], texts)
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
    for directory, mine, theirs in zip(directories, ours, peers(directories, texts), strict=True):
        for x, y in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(np.squeeze(x), np.array(y), atol=1e-5, err_msg=directory)
