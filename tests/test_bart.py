"""BART's family, beyond what test_pretrained.py asks of every one: languages, sizes, limits, and n-grams of the source."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import zoo
from zoo.bart import PRESETS
from zoo.checkpoint import generation_config
from zoo.core import Tokens, flatten_params
from zoo.generate import Rules
from zoo.variants import abstract_params

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    ("name", "wanted"),
    # What transformers counts of a model on the meta device; the output's bias is no parameter there.
    [
        ("bart-base", 139_420_416),
        ("bart-large", 406_291_456),
        ("blenderbot-400m-distill", 364_802_560),
        ("blenderbot-small-90m", 87_508_992),
    ],
)
def test_published_sizes(name, wanted):
    config = PRESETS[name]
    params = flatten_params(abstract_params(config))
    assert sum(math.prod(x.shape) for path, x in params.items() if path != "output_bias") == wanted
    assert params["output_bias"].shape == (config.target_vocab_size,)


def test_a_checkpoint_without_the_head(tmp_path):
    """BART's first checkpoints are of the class BartModel: no prefix, no bias of the output."""
    shutil.copytree(GOLDEN / "bart", tmp_path / "in", ignore=shutil.ignore_patterns("*.npz", "*.safetensors"))
    tensors = load_file(GOLDEN / "bart" / "model.safetensors")
    bare = {name.removeprefix("model."): x for name, x in tensors.items() if name != "final_logits_bias"}
    save_file(bare, tmp_path / "in" / "model.safetensors")
    path = tmp_path / "in" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["BartModel"]}))
    ours, whole = zoo.load(tmp_path / "in"), zoo.load(GOLDEN / "bart")
    assert "output_bias" not in ours.params
    with np.load(GOLDEN / "bart" / "golden.npz") as golden:
        batch = [Tokens(golden[f"in:{side}_ids"], golden[f"in:{side}_mask"]) for side in ("source", "target")]
    logits = [jax.jit(p.model.apply)({"params": p.params}, *batch).logits for p in (ours, whole)]
    bias = jnp.expand_dims(whole.params["output_bias"], (0, 1))
    np.testing.assert_allclose(logits[0] + bias, logits[1], atol=1e-5)
    zoo.save(ours, tmp_path / "out", format="huggingface")
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert set(again) == set(bare)
    assert all(np.array_equal(again[name], bare[name]) for name in bare)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["BartModel"]


def test_mbart_reads_the_target_language_first(tmp_path):
    """Its code ends a source, and is what the decoder reads first: also of what is saved."""
    predictor = zoo.load(GOLDEN / "mbart")
    code = predictor.target_tokenizer.language_id
    end = predictor.model.config.end_id
    assert predictor.model.config.start_id == code("ro_RO")
    assert predictor.source_tokenizer.encode("a")[-2:] == [end, code("en_XX")]
    assert predictor.target_tokenizer.encode("a")[-2:] == [end, code("ro_RO")]
    other = predictor.between("de_DE", "fr_XX")
    assert (other.model.config.start_id, other.decoding.first_id) == (code("fr_XX"), -1)
    assert other.source_tokenizer.encode("a") == [*predictor.source_tokenizer.encode("a")[:-1], code("de_DE")]
    assert other.predict(["fuchs"], beams=1) != predictor.predict(["fuchs"], beams=1)
    for form in (None, "huggingface"):
        zoo.save(other, tmp_path / str(form), **({"format": form} if form else {}))
        again = zoo.load(tmp_path / str(form))
        assert again.model.config == other.model.config
    with pytest.raises(zoo.UserError, match="no language 'xx'"):
        predictor.between("xx", "fr_XX")


def test_mbart50_generates_the_target_language_first():
    predictor = zoo.load(GOLDEN / "mbart50")
    code = predictor.target_tokenizer.language_id
    other = predictor.between("ro_RO", "gl_ES")
    assert (other.model.config.start_id, other.decoding.first_id) == (predictor.model.config.start_id, code("gl_ES"))
    assert other.source_tokenizer.encode("a") == [code("ro_RO"), *predictor.source_tokenizer.encode("a")[1:]]
    assert predictor.source_tokenizer.encode("a")[0] == code("de_DE")


def test_a_source_may_fill_all_positions():
    """1,024 of BART, whatever the default of other models is."""
    config = PRESETS["bart-large"]
    assert generation_config.read({}, "here", config).max_source_len == config.max_len


def test_positions_end():
    """More tokens than positions were learned are refused where they would be clamped, or cut where that is asked for."""
    predictor = zoo.load(GOLDEN / "bart")
    long = "a " * 200
    with pytest.raises(zoo.UserError, match=r"a source of up to 512 tokens .* max_len = 160 .* max_source_len to at most 160"):
        predictor.predict([long])
    assert predictor.predict([long], max_source_len=160, beams=1)
    with pytest.raises(zoo.UserError, match=r"a target of up to 256 tokens .* set max_len to at most 160"):
        predictor.predict(["a"], max_len=161)
    config = dataclasses.replace(PRESETS["tiny"], positions="sinusoidal", max_len=8)
    source, target = config.example(2, 12, 12)
    params = jax.jit(config.build().init)(jax.random.key(0), source, target)
    assert np.isfinite(jax.jit(config.build().apply)(params, source, target).logits).all()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_of_the_source(size):
    """Against the sentence above, word for word, with padding on either side and two beams a sentence."""
    rng = np.random.default_rng(size)
    ids_BS, mask_BS = rng.integers(1, 5, (3, 8)), np.ones((3, 8), bool)
    mask_BS[0, :3] = mask_BS[1, 5:] = False
    ids_RT, step, start = rng.integers(1, 5, (6, 5)), 4, 1
    rules = Rules(start_id=start, source_ngram=size, source=Tokens(jnp.asarray(ids_BS), jnp.asarray(mask_BS)))
    found = np.asarray(jax.jit(rules.change)(jnp.zeros((6, 7)), jnp.asarray(ids_RT), jnp.int32(step), None))
    for row in range(6):
        source, read = ids_BS[row // 2][mask_BS[row // 2]], [start, *ids_RT[row, :step]]
        ngrams = {tuple(source[i : i + size]) for i in range(len(source) - size + 1)}
        banned = {token for token in range(7) if (*read[len(read) - size + 1 :], token) in ngrams}
        assert set(np.flatnonzero(found[row] == -np.inf)) == banned
