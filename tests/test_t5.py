"""T5: what its golden directories (test_pretrained.py) do not show."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import zoo
from train.data.spans import corrupt_spans, span_mask
from zoo import t5
from zoo.checkpoint.fields import Fields
from zoo.nn.position import by_distance, relative_bucket
from zoo.pretrained_text import T5Tokenizer
from zoo.variants import count_parameters

GOLDEN = Path(__file__).parent / "golden"
READ = {name: architecture.read for name, architecture in t5.HUGGINGFACE.items()}


def test_buckets_are_those_of_transformers():
    """All distances from -300 to 300."""
    with np.load(GOLDEN / "t5" / "golden.npz") as arrays:
        wanted = {key.removeprefix("bucket:"): value for key, value in arrays.items() if key.startswith("bucket:")}
    assert len(wanted) == 28
    for settings, value in wanted.items():
        both, buckets, far = map(int, settings.split("_"))
        np.testing.assert_array_equal(relative_bucket(jnp.arange(-300, 301), bool(both), buckets, far), value, settings)


@pytest.mark.parametrize(("T", "S", "index"), [(0, 0, 0), (1, 0, 0), (0, 3, 0), (2, 5, 3), (5, 2, 0), (1, 6, 4)])
def test_entries_by_distance(T, S, index):
    found = by_distance(lambda distance_N: jnp.stack([distance_N, 2 * distance_N], axis=1), T, S, index)
    distance_TS = np.arange(S)[None] - np.arange(T)[:, None] - index
    np.testing.assert_array_equal(found, np.stack([distance_TS, 2 * distance_TS]))


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("t5-small", 60_506_624),
        ("t5-base", 222_903_552),
        ("t5-large", 737_668_096),
        ("t5-v1.1-small", 76_961_152),
        ("t5-v1.1-base", 247_577_856),
        ("mt5-small", 300_176_768),
        ("byt5-small", 299_637_760),
    ],
)
def test_presets_have_as_many_parameters_as_the_published_models(preset, parameters):
    assert count_parameters(t5.PRESETS[preset]) == parameters


@pytest.mark.parametrize("how", [{"remat": True}, {"scan_layers": True}, {"remat": True, "scan_layers": True}], ids=str)
def test_memory_and_compile_time_saved_change_no_number(how):
    """Logits, and gradients, those of the shared biases too."""
    config = t5.PRESETS["tiny"]
    source, target = config.example(3, 6, 5)
    params = jax.jit(config.build().init)(jax.random.key(0), source, target)["params"]

    def loss(model):
        def run(params):
            logits = model.apply({"params": params}, source, target).logits
            return jnp.square(logits).mean(), logits

        return jax.jit(jax.value_and_grad(run, has_aux=True))(params)

    ((_, logits), gradient), ((_, wanted), wanted_gradient) = loss(config.build().clone(**how)), loss(config.build())
    np.testing.assert_allclose(logits, wanted, atol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), gradient, wanted_gradient)
    assert np.abs(gradient["encoder_bias"]["embedding"]).max() > 1e-5


@pytest.mark.parametrize(
    ("name", "said", "tensors", "shared", "scaled"),
    [
        ("T5ForConditionalGeneration", {}, ("shared.weight",), True, True),
        ("T5ForConditionalGeneration", {}, ("shared.weight", "lm_head.weight"), True, True),
        ("T5ForConditionalGeneration", {"tie_word_embeddings": False}, ("lm_head.weight",), False, False),
        ("T5ForConditionalGeneration", {"tie_word_embeddings": False}, ("shared.weight",), True, False),
        (
            "T5ForConditionalGeneration",
            {"tie_word_embeddings": True, "scale_decoder_outputs": False},
            ("lm_head.weight",),
            False,
            False,
        ),
        ("T5ForConditionalGeneration", {"tie_word_embeddings": False}, None, False, False),
        ("MT5ForConditionalGeneration", {"tie_word_embeddings": True}, ("lm_head.weight",), False, False),
        ("MT5ForConditionalGeneration", {}, ("shared.weight",), True, False),
    ],
)
def test_how_the_output_is_made(name, said, tensors, shared, scaled):
    """By what older and newer versions of transformers write."""
    tensors = tensors and [*tensors, *map(str, range(20))]
    config = READ[name](Fields(said, "config.json", tensors))
    assert (config.share_output, config.scale_output) == (shared, scaled)
    assert READ[name](Fields(t5.HUGGINGFACE[name].write(config), "config.json")) == config


def test_what_is_not_computed_is_one_error(tmp_path):
    with pytest.raises(zoo.UserError, match=r"feed_forward_proj in config\.json is 'gated-silu'"):
        READ["T5ForConditionalGeneration"](Fields({"feed_forward_proj": "gated-silu"}, "config.json"))
    with pytest.raises(zoo.UserError, match=r"dense_act_fn in config\.json is 'silu'"):
        READ["T5ForConditionalGeneration"](Fields({"dense_act_fn": "silu"}, "config.json"))
    with pytest.raises(zoo.UserError, match=r"model\.buckets is 6"):
        t5.T5Config(9, 9, buckets=6, max_distance=3).build()
    for content in (b"\xff", b"\x0a\xff\xff\xff\xff\x7f", (GOLDEN / "t5" / "spiece.model").read_bytes()[:-1000]):
        with pytest.raises(zoo.UserError, match=r"spiece\.model"):
            T5Tokenizer({"spiece.model": content}, "source", 278, 1)
    directory = tmp_path / "other"
    shutil.copytree(GOLDEN / "t5", directory)
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "AlbertTokenizer"}))
    with pytest.raises(zoo.UserError, match="holds no tokenizer that this zoo reads"):
        zoo.load(directory)


@given(st.integers(0, 400), st.integers(0, 2**31), st.floats(0.05, 0.6), st.floats(1, 8))
def test_source_and_target_put_together_give_the_text(length, seed, density, mean_length):
    rng = np.random.default_rng(seed)
    ids, first = rng.integers(0, 1000, length).tolist(), 5000
    sentinels = range(first, first - 400, -1)
    source, target = corrupt_spans(ids, np.random.default_rng(seed), sentinels, density, mean_length)
    spans: dict[int, list[int]] = {}
    for token in target:
        if token > 1000:
            spans[token] = []
        else:
            spans[next(reversed(spans))].append(token)
    assert [token for token in source if token > 1000] == list(spans) == [first - i for i in range(len(spans))]
    assert [word for token in source for word in spans.get(token, [token])] == ids
    assert all(spans.values())
    if length >= 2:
        taken = min(max(int(np.round(length * density)), 1), length - 1)
        count = min(max(int(np.round(taken / mean_length)), 1), length - taken)
        assert (sum(map(len, spans.values())), len(spans)) == (taken, count)
        assert source[0] == ids[0]
    assert corrupt_spans(ids, np.random.default_rng(seed), sentinels, density, mean_length) == (source, target)


def test_where_spans_stand():
    """The first token is never taken, the last always, as in the released code; of the others a share of 15 %."""
    share_N = np.mean([span_mask(40, np.random.default_rng(seed)) for seed in range(2000)], axis=0)
    assert share_N[0] == 0
    assert abs(share_N.mean() - 0.15) < 1e-9
    assert share_N[-1] == 1
    assert share_N[1:-5].min() > 0.02
