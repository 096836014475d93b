"""Models as files for programs without this zoo: StableHLO for jax alone, ONNX for onnxruntime."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tinies import SOURCE, VOCAB, tiny

import zoo
from zoo.__main__ import main
from zoo.core import pad_tokens
from zoo.generate import generate
from zoo.text import Tokenizer

HERE = Path(__file__).parent
MARIAN = HERE / "golden" / "marian"
TEXTS = ["The quick brown fox", "a", "Wie spät ist es?"]
PYTHON = os.environ.get("PEER_PYTHON", sys.executable)
MISSING = subprocess.run([PYTHON, "-c", "import jax2onnx, onnxruntime, zoo"], capture_output=True).returncode != 0

ALONE = """
import sys
import numpy as np
from jax import export

with np.load(sys.argv[2]) as arrays:
    found = export.deserialize(open(sys.argv[1], "rb").read()).call(arrays["ids"], arrays["mask"])
assert not {"zoo", "flax"} & set(sys.modules)
np.savez(sys.argv[2], **found)
"""


def by_jax_alone(program: Path, source, tmp_path: Path) -> dict[str, np.ndarray]:
    """What the file makes of a source in a process that knows no more than jax."""
    arrays = tmp_path / "arrays.npz"
    np.savez(arrays, ids=np.asarray(source.ids, np.int32), mask=source.mask)
    done = subprocess.run([sys.executable, "-c", ALONE, program, arrays], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with np.load(arrays) as found:
        return dict(found)


@pytest.mark.parametrize("beams", [1, 4])
def test_a_pretrained_model_as_one_file(beams, tmp_path):
    """Generation by the model's own settings, at two shapes."""
    predictor, program = zoo.load(MARIAN), tmp_path / "model.stablehlo"
    assert main(["export", str(MARIAN), str(program), "--format", "stablehlo", "--beams", str(beams)]) == 0
    for texts in (TEXTS, TEXTS[1:2]):
        found = by_jax_alone(program, pad_tokens(predictor.source_tokenizer.encode_batch(texts)), tmp_path)
        said = [ids[:length] for ids, length in zip(found["ids"], found["length"], strict=True)]
        assert [predictor.target_tokenizer.decode(ids) for ids in said] == predictor.predict(texts, beams=beams)


@pytest.mark.parametrize("family", ["luong", "sutskever", "transformer"])
def test_every_kind_of_model_as_one_file(family, tmp_path):
    model, params = tiny(family)
    tokenizer = Tokenizer.train("characters", ["".join(map(chr, range(97, 97 + VOCAB - 4)))])
    decoding = zoo.Decoding(beams=3, n_best=2, max_len=6, max_source_len=9)
    zoo.save(zoo.Predictor(model, params, tokenizer, tokenizer, decoding), tmp_path / "one", format="stablehlo")
    found = by_jax_alone(tmp_path / "one", SOURCE, tmp_path)
    rules = decoding.rules(VOCAB)
    wanted = generate(model, params, SOURCE, max_len=6, search=decoding.search(None), rules=rules)
    assert found["ids"].shape == (5, 2, 6)
    np.testing.assert_array_equal(found["ids"], wanted.ids)
    np.testing.assert_array_equal(found["length"], wanted.length)
    np.testing.assert_allclose(found["score"], wanted.score, atol=1e-5)
    np.testing.assert_allclose(found["log_probs"], wanted.log_probs, atol=1e-5)


def test_what_cannot_be_one_file(tmp_path):
    predictor = zoo.load(MARIAN)
    sampling = dataclasses.replace(predictor, decoding=dataclasses.replace(predictor.decoding, sample=True, beams=1))
    with pytest.raises(zoo.UserError, match="samples"):
        zoo.save(sampling, tmp_path / "model", format="stablehlo")
    assert not (tmp_path / "model").exists()
    (tmp_path / "model").write_bytes(b"mine")
    with pytest.raises(zoo.UserError, match="exists: name a new one"):
        zoo.save(predictor, tmp_path / "model", format="stablehlo")
    assert (tmp_path / "model").read_bytes() == b"mine"
    with pytest.raises(zoo.UserError, match="choose zoo or huggingface or stablehlo or onnx"):
        zoo.save(predictor, tmp_path / "other", format="pickle")


def test_export_keeps_the_decoding_that_it_is_told(tmp_path):
    assert main(["export", str(MARIAN), str(tmp_path / "out"), "--beams", "3", "--max-len", "5"]) == 0
    decoding = zoo.load(tmp_path / "out").decoding
    assert (decoding.beams, decoding.max_len) == (3, 5)
    assert decoding == dataclasses.replace(zoo.load(MARIAN).decoding, beams=3, max_len=5)


@pytest.mark.parity
@pytest.mark.skipif(MISSING, reason="jax2onnx or onnxruntime is missing")
def test_onnx_runs_in_onnxruntime(tmp_path):
    """Both graphs in a greedy loop there, for sources of two lengths; the last logits to 1e-5."""
    done = subprocess.run(
        [PYTHON, HERE / "onnx_peer.py", MARIAN, tmp_path / "out"], capture_output=True, text=True, cwd=HERE.parent
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "same"
