"""What is true of one variant and not of another: sizes, windows, feeding, sharing, refusals."""

from __future__ import annotations

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import rnn, rnn_attention, transformer
from zoo.core import UserError, flatten_params, pad_tokens, random_tokens, unflatten_params
from zoo.nn.dropout import Dropout

TINY = {name: config for module in (rnn, rnn_attention) for name, config in module.PRESETS.items() if name.endswith("tiny")}
TINY["transformer-tiny"] = transformer.PRESETS["tiny"]
FIXED_VECTOR = ("elman-tiny", "sutskever-tiny", "cho-tiny")
ATTENDING = ("bahdanau-tiny", "luong-tiny", "transformer-tiny")
LUONG = dataclasses.replace(TINY["luong-tiny"], num_layers=1)
TRANSFORMER = dataclasses.replace(TINY["transformer-tiny"], num_layers=1)


def shapes(config, source_len: int = 3):
    model, (source, target) = config.build(), config.example(2, source_len, 3)
    return model, source, target, jax.eval_shape(model.init, jax.random.key(0), source, target)["params"]


def randomised(config):
    """The model with all parameters random: nothing hides behind a zero bias, and no init is compiled."""
    model, _, _, template = shapes(config)
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda x: rng.normal(size=x.shape, scale=0.4).astype(np.float32), template)


def count(config) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(config)[3]))


@functools.partial(jax.jit, static_argnames=("model", "train", "attention"))
def run(model, params, source, target, key=None, train=False, attention=False):
    rngs = None if key is None else {"dropout": key}
    return model.apply({"params": params}, source, target, train=train, attention=attention, rngs=rngs)


def differ(a, b) -> bool:
    return float(np.abs(np.asarray(a) - np.asarray(b)).max()) > 1e-3


def replaced(params, **arrays):
    """The tree with the parameters whose path ends in ``name`` (``__`` for the slash) scaled."""
    flat = flatten_params(params)
    for name, scale in arrays.items():
        paths = [path for path in flat if path.endswith(name.replace("__", "/"))]
        assert paths, name
        flat |= {path: flat[path] * np.float32(scale) for path in paths}
    return unflatten_params(flat)


# --- Sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "papers", "within", "exact"),
    [
        (transformer.PRESETS["base"], 65e6, 0.03, 63_082_496),
        (transformer.PRESETS["big"], 213e6, 0.03, 214_245_376),
        (rnn.PRESETS["sutskever-2014"], 384e6, 0.001, None),
    ],
    ids=["transformer-base", "transformer-big", "sutskever-2014"],
)
def test_parameters_as_published(config, papers, within, exact):
    assert count(config) == pytest.approx(papers, rel=within)
    assert exact is None or count(config) == exact


@pytest.mark.parametrize("name", TINY)
def test_memory_grows_with_the_source_only_where_a_model_attends(name):
    model, params = randomised(TINY[name])

    def size(length):
        source = random_tokens(np.random.default_rng(0), 2, length, 32)
        memory = jax.eval_shape(lambda params: model.apply({"params": params}, source, method="encode"), params)
        return sum(leaf.size for leaf in jax.tree.leaves(memory))

    assert (size(5) == size(9)) == (name in FIXED_VECTOR)


# --- Attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
def test_attention_weights_on_request(name):
    model, params = randomised(TINY[name])
    source = pad_tokens([[5, 6, 7, 8, 2], [9, 2], []], 6)
    target = random_tokens(np.random.default_rng(1), 3, 4, 32)
    outputs = run(model, params, source, target, attention=True)
    chex.assert_tree_all_finite(outputs)
    assert bool(outputs.attention) == (name in ATTENDING)
    assert not jax.eval_shape(lambda: run(model, params, source, target)).attention
    assert any(key.endswith("cross") for key in outputs.attention) == (name in ATTENDING)
    for key, weights_BHTS in outputs.attention.items():
        total_BHT = np.asarray(weights_BHTS.sum(axis=-1))
        if key.startswith("decoder") and key.endswith("self"):
            np.testing.assert_allclose(total_BHT, 1, rtol=1e-5)
            assert not np.triu(weights_BHTS, k=1).any()
        else:
            chex.assert_axis_dimension(weights_BHTS, 3, 6)
            assert not (np.asarray(weights_BHTS) * ~source.mask[:, None, None]).any()
            np.testing.assert_allclose(total_BHT[:2], 1, rtol=1e-5)
            np.testing.assert_array_equal(total_BHT[2], 0)  # nothing to look at


@pytest.mark.parametrize("alignment", ["global", "local-m", "local-p"])
def test_luong_windows(alignment):
    """``align`` against section 3.2 written in numpy, for two beams a sentence, on either side of the padding."""
    window, B, W, S, D = 2, 3, 2, 9, 8
    config = dataclasses.replace(LUONG, hidden_dim=D, alignment=alignment, window=window, score="dot")
    model, params = randomised(config)
    rng = np.random.default_rng(0)
    h, states = (rng.normal(size=shape).astype(np.float32) for shape in ((B * W, D), (B, S, D)))
    mask = np.stack([np.arange(S) < 9, np.arange(S) < 5, np.arange(S) >= 3])
    t = np.array([0, 1, 3, 8, 4, 5], np.int32)
    memory = rnn_attention.LuongMemory(states, states, (), mask)
    align = jax.jit(lambda params: model.apply({"params": params}, method=lambda m: m.align(memory)(h, t)))
    weights = np.asarray(align(params))

    for row in range(B * W):
        real = np.flatnonzero(mask[row // W])
        place = np.arange(len(real))
        p = t[row]
        if alignment == "local-p":
            hidden = np.tanh(h[row] @ params["predict_hidden"]["kernel"])
            p = len(real) / (1 + np.exp(-hidden @ params["predict_energy"]))
        inside = np.full(len(real), True) if alignment == "global" else np.abs(place - p) <= window
        scores = np.exp(states[row // W, real] @ h[row]) * inside
        expected = scores / max(scores.sum(), 1e-9)
        if alignment == "local-p":
            expected = expected * np.exp(-((place - p) ** 2) / (2 * (window / 2) ** 2))
        np.testing.assert_allclose(weights[row, real], expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(weights[row, ~mask[row // W]], 0)
        np.testing.assert_array_equal(weights[row, real[~inside]], 0)


# --- Recurrent models -------------------------------------------------------------------------------------------------


def test_input_feeding_reaches_every_step_but_the_first():
    fed, params = randomised(dataclasses.replace(LUONG, input_feeding=True))
    plain = dataclasses.replace(LUONG, input_feeding=False).build()
    source, target = LUONG.example()
    without = {name: value for name, value in params.items() if name != "feed_gates"}
    logits, plain_logits = run(fed, params, source, target).logits, run(plain, without, source, target).logits
    chex.assert_trees_all_close(logits[:, 0], plain_logits[:, 0], atol=1e-5)
    assert all(differ(logits[:, t], plain_logits[:, t]) for t in range(1, logits.shape[1]))
    chex.assert_trees_all_close(
        run(fed, replaced(params, feed_gates__kernel=0), source, target).logits, plain_logits, atol=1e-5
    )


@pytest.mark.parametrize("config", [TINY["sutskever-tiny"], LUONG], ids=["sutskever", "luong"])
def test_reverse_source_reads_the_last_token_first(config):
    forth, params = randomised(dataclasses.replace(config, reverse_source=False))
    back = dataclasses.replace(config, reverse_source=True).build()
    source = pad_tokens([[5, 6, 7, 8], [9, 10]], 6)
    backwards = pad_tokens([[8, 7, 6, 5], [10, 9]], 6)
    target = random_tokens(np.random.default_rng(1), 2, 4, 32)
    logits = run(back, params, source, target).logits
    chex.assert_trees_all_close(logits, run(forth, params, backwards, target).logits, atol=1e-5)
    assert differ(logits, run(forth, params, source, target).logits)


@pytest.mark.parametrize(("off", "path"), [("readout_summary", "the gates"), ("summary_gates", "the readout")])
def test_chos_summary_reaches_every_step(off, path):
    """By each of its two ways, with the other and the first state's cut: c moves the logits of each step."""
    model, params = randomised(TINY["cho-tiny"])
    params = replaced(params, **{f"{off}__kernel": 0, "initial__kernel": 0})
    tokens, c = np.array([[1, 5, 6, 7]]), np.random.default_rng(0).normal(size=(1, 32)).astype(np.float32)

    @jax.jit
    @jax.jacrev
    def by_summary(c):
        outputs, _ = model.apply({"params": params}, tokens, rnn.Summary(c), method="decode")
        return outputs.logits[0].sum(axis=-1)

    gradient_TD = np.asarray(by_summary(c))[:, 0]
    assert (np.abs(gradient_TD).max(axis=1) > 1e-3).all(), path


# --- Transformer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "tables"),
    [
        ("all", {"embedding/embedding"}),
        ("target", {"source_embedding/embedding", "target_embedding/embedding"}),
        ("none", {"source_embedding/embedding", "target_embedding/embedding", "output/kernel"}),
    ],
)
def test_transformer_shares_embeddings(share, tables):
    *_, template = shapes(dataclasses.replace(TRANSFORMER, share_embeddings=share))
    assert {path for path, leaf in flatten_params(template).items() if 32 in leaf.shape and "_0/" not in path} == tables


def test_transformer_shared_by_all_wants_one_vocabulary():
    with pytest.raises(UserError, match="31 and 32 entries: use one for both sides"):
        dataclasses.replace(TRANSFORMER, source_vocab_size=31, share_embeddings="all").build()
    dataclasses.replace(TRANSFORMER, source_vocab_size=31, share_embeddings="target").build()


@pytest.mark.parametrize("field", [{"d_model": 30}, {"d_model": 33, "num_heads": 3}])
def test_transformer_refuses_a_width_that_does_not_divide(field):
    with pytest.raises(UserError, match=r"model\.d_model"):
        dataclasses.replace(TRANSFORMER, **field).build()


def test_learned_positions_refuse_what_does_not_fit():
    config = dataclasses.replace(TRANSFORMER, positions="learned", max_len=6)
    model, _, _, template = shapes(config)

    def encode_and_decode(source_len, target_len, cache_len):
        def call(params):
            source = random_tokens(np.random.default_rng(0), 2, source_len, 32)
            memory = model.apply({"params": params}, source, method="encode")
            model.apply({"params": params}, memory, cache_len, method="init_cache")
            return model.apply({"params": params}, jnp.ones((2, target_len), jnp.int32), memory, method="decode")

        return jax.eval_shape(call, template)

    encode_and_decode(6, 6, 6)
    for lengths in ((7, 6, 6), (6, 7, 6), (6, 6, 7)):
        with pytest.raises(UserError, match=r"7 tokens.*model\.max_len = 6"):
            encode_and_decode(*lengths)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_where_the_norm_stands(norm):
    """With the sublayers' norms at zero, a post-norm stack says nothing; a pre-norm one passes its input on."""
    config = dataclasses.replace(TRANSFORMER, norm=norm)
    model, params = randomised(config)
    assert ("encoder_norm" in params) == ("decoder_norm" in params) == (norm == "pre")
    params = replaced(params, residual__norm__scale=0, residual__norm__bias=0)
    source, target = config.example()
    logits = np.asarray(run(model, params, source, target).logits)
    if norm == "post":
        np.testing.assert_array_equal(logits, 0)
    else:
        assert (logits.std(axis=-1) > 0.1).all()


# --- Dropout ----------------------------------------------------------------------------------------------------------


def test_dropout_draws_from_its_key_alone():
    """Luong's stands for all here: it draws its masks before the scan by itself."""
    config = dataclasses.replace(TINY["luong-tiny"], dropout=0.5)
    model, params = randomised(config)
    source, target = config.example()
    first, again, other = (
        run(model, params, source, target, key=jax.random.key(seed), train=True).logits for seed in (0, 0, 1)
    )
    chex.assert_trees_all_equal(first, again)
    assert differ(first, other)
    assert differ(first, run(model, params, source, target).logits)


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("sutskever-tiny", 2 + 2 + 1),  # the input of each layer, and of the output product
        ("cho-tiny", 2 + 1),  # both embeddings, and the maxout layer
        ("bahdanau-tiny", 2 + 1),
        ("luong-tiny", 2 + 2 + 1),
        ("transformer-tiny", 2 + 2 * 2 + 2 * 3),  # both sums of embedding and position, and each sublayer
    ],
)
def test_dropout_stands_where_the_config_says_and_only_in_training(name, places):
    model, source, target, template = shapes(dataclasses.replace(TINY[name], dropout=0.5))
    seen = []

    def watch(call, args, kwargs, context):
        if isinstance(context.module, Dropout) and not kwargs["deterministic"]:
            seen.append(context.module.name)
        return call(*args, **kwargs)

    def call(params, train):
        rngs = {"dropout": jax.random.key(0)} if train else None
        return model.apply({"params": params}, source, target, train=train, rngs=rngs)

    with nn.intercept_methods(watch):
        jax.eval_shape(functools.partial(call, train=False), template)
        assert not seen
        jax.eval_shape(functools.partial(call, train=True), template)
    assert len(seen) == places
