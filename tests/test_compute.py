"""How a run computes: rematerialised, scanned, in bfloat16, by another kernel, on a mesh; the numbers are the same."""

from __future__ import annotations

import dataclasses
import functools
import logging

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from train import parallel
from train.parallel import Parallel
from zoo import rnn, rnn_attention, transformer
from zoo.core import UserError, pad_tokens, shift_right
from zoo.nn import attention
from zoo.nn.attention import attend, choose, dot_product_attention, fused
from zoo.nn.cache import KeyValue, Visible, causal_mask
from zoo.nn.recurrent import Weights, lstm_step, scan_cell
from zoo.nn.sharding import BATCH, MODEL, constrain
from zoo.nn.stack import scan_layers
from zoo.variants import abstract_params

TINY = {name: config for module in (rnn, rnn_attention) for name, config in module.PRESETS.items() if name.endswith("tiny")}
TINY["transformer-tiny"] = transformer.PRESETS["tiny"]
TRANSFORMERS = {
    norm: dataclasses.replace(TINY["transformer-tiny"], num_layers=2, norm=norm, share_embeddings=share)
    for norm, share in (("post", "all"), ("pre", "none"))
}
quick_jit = functools.partial(  # programs that run once
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


def random_params(config):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape, scale=0.3).astype(np.float32), abstract_params(config))


def loss(model, params, source, target, key=None):
    rngs = None if key is None else {"dropout": key}
    logits_BTV = model.apply({"params": params}, source, target, train=key is not None, rngs=rngs).logits
    log_probs_BTV = jax.nn.log_softmax(logits_BTV.astype(jnp.float32))
    return jnp.where(target.mask, -jnp.take_along_axis(log_probs_BTV, target.ids[..., None], axis=-1)[..., 0], 0).sum()


@quick_jit
def value_and_grad(model, params, source, target, key=None):
    return jax.value_and_grad(functools.partial(loss, model))(params, source, target, key)


# --- Rematerialised and scanned ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in TINY if name != "elman-tiny"])  # Sutskever's wiring
def test_rematerialised_layers_give_the_same_numbers(name):
    """Dropout too: what is computed again draws the same masks."""
    config = dataclasses.replace(TINY[name], dropout=0.3)
    model, params, batch = config.build(), random_params(config), config.example(3)
    plain = value_and_grad(model, params, *batch, jax.random.key(0))
    again = value_and_grad(model.clone(remat=True), params, *batch, jax.random.key(0))
    chex.assert_trees_all_close(again, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in TINY if name != "elman-tiny"])
def test_rematerialised_layers_keep_less(name):
    """What the forward pass hands to the backward pass; a CPU's compiler would compute nothing again, to save time."""
    config = TINY[name]
    source, target = config.example(batch=8, source_len=32, target_len=32)

    def kept(remat: bool) -> int:
        model = config.build().clone(remat=remat)
        run = lambda params: model.apply({"params": params}, source, target).hidden  # noqa: E731
        backward = jax.eval_shape(lambda params: jax.vjp(run, params)[1], abstract_params(config))
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert kept(True) < 0.65 * kept(False), (kept(True), kept(False))


def test_rematerialised_and_scanned_layers_take_less_memory():
    config = dataclasses.replace(TRANSFORMERS["pre"], num_layers=3)
    batch = config.example(batch=8, source_len=32, target_len=32)

    def temporary(remat: bool) -> int:
        model = config.build().clone(scan_layers=True, remat=remat)
        return value_and_grad.lower(model, abstract_params(config), *batch).compile().memory_analysis().temp_size_in_bytes

    assert temporary(True) < 0.6 * temporary(False)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("norm", TRANSFORMERS)
def test_scanned_layers_give_the_same_numbers(norm, remat):
    config = TRANSFORMERS[norm]
    model, params, batch = config.build(), random_params(config), config.example(3)
    plain = value_and_grad(model, params, *batch)
    scanned = value_and_grad(model.clone(scan_layers=True, remat=remat), params, *batch)
    chex.assert_trees_all_close(scanned[0], plain[0], rtol=1e-6)
    chex.assert_trees_all_close(scanned[1], plain[1], rtol=1e-5, atol=1e-5)


def test_scanned_layers_are_compiled_once_and_keep_their_tree():
    shallow, deep = (dataclasses.replace(TRANSFORMERS["pre"], num_layers=n) for n in (2, 6))
    batch = deep.example(3)

    def products(config, **options):
        run = jax.jit(functools.partial(loss, config.build().clone(**options)))
        return run.lower(abstract_params(config), *batch).as_text().count("stablehlo.dot_general")

    keys_of_the_source = 2 * (6 - 2)  # each layer's share of the memory is projected apart
    assert products(deep, scan_layers=True) == products(shallow, scan_layers=True) + keys_of_the_source
    assert products(deep) > products(shallow) + 40
    init = jax.eval_shape(deep.build().clone(scan_layers=True).init, jax.random.key(0), *batch)["params"]
    chex.assert_trees_all_equal_shapes_and_dtypes(init, abstract_params(deep))


class Dropping(nn.Module):
    """x is shifted by four bits, and what is kept of ones is added: each layer's mask can be read off the result."""

    @nn.compact
    def __call__(self, x, train):
        one = self.param("one", nn.initializers.ones, ())
        return x * 4 + nn.Dropout(0.5)(jnp.ones_like(x) * one, deterministic=not train)


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x, key):
        layers = [Dropping(name=f"layer_{i}") for i in range(2)]
        if self.is_initializing():
            return [layer(x, False) for layer in layers]
        return scan_layers(lambda layer, x, _: layer(x, True), layers, x, [None, None], key, remat=False)


def test_scanned_layers_drop_by_their_own_keys():
    params = Stack().init(jax.random.key(0), jnp.zeros(64), None)
    run = jax.jit(lambda key: Stack().apply(params, jnp.zeros(64), key))
    first, again, other = (np.asarray(run(jax.random.key(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert set(np.unique(first)) == {0, 2, 8, 10}, "both layers drop, and not the same numbers"


@pytest.mark.parametrize("name", TINY)
def test_only_like_layers_are_scanned(name):
    model = TINY[name].build()
    if name == "transformer-tiny":
        assert model.clone(scan_layers=True).scan_layers
    else:
        with pytest.raises(UserError, match=r"compute\.scan_layers"):
            model.clone(scan_layers=True)


# --- bfloat16 ---------------------------------------------------------------------------------------------------------


def products(jaxpr) -> list[tuple]:
    """(dtypes of the operands, of the result) of each product, in whatever stands inside too."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append(tuple(str(x.aval.dtype) for x in (*equation.invars, *equation.outvars)))
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            found += products(inner) if hasattr(inner, "eqns") else []
    return found


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in TINY if name != "elman-tiny"), ("transformer-tiny", {"remat": True, "scan_layers": True})],
)
def test_bfloat16_parameters_make_bfloat16_products(name, options):
    """Both ways: no product of two float32 arrays. Attention's scores alone are added up in float32."""
    config = dataclasses.replace(TINY[name], dropout=0.2)
    if name == "luong-tiny":
        config = dataclasses.replace(config, alignment="local-p", score="concat")
    model, batch = config.build().clone(**options), config.example(3)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_params(config))

    def both_ways(params):
        run = lambda params: model.apply({"params": params}, *batch, train=True, rngs={"dropout": jax.random.key(0)})  # noqa: E731
        outputs, pull = jax.vjp(run, params)
        return outputs, pull(jax.tree.map(jnp.ones_like, outputs))

    found = products(jax.make_jaxpr(both_ways)(params).jaxpr)
    assert found
    assert ("float32", "float32", "float32") not in found
    scores = {x for x in found if x[2] == "float32"}
    assert bool(scores) == (name == "transformer-tiny")
    outputs, gradients = jax.eval_shape(both_ways, params)
    assert outputs.logits.dtype == outputs.hidden.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(gradients)} == {jnp.dtype("bfloat16")}


@quick_jit
def logits_and_steps(model, params, source, target):
    """All at once, and token by token through the cache."""
    everything = model.apply({"params": params}, source, target).logits
    memory = model.apply({"params": params}, source, method="encode")
    cache = model.apply({"params": params}, memory, target.ids.shape[1], method="init_cache")

    def step(cache, tokens_B):
        outputs, cache = model.apply({"params": params}, tokens_B[:, None], memory, cache, method="decode")
        return cache, outputs.logits[:, 0]

    return everything, jnp.swapaxes(jax.lax.scan(step, cache, shift_right(target.ids).T)[1], 0, 1)


@pytest.mark.parametrize("name", ["cho-tiny", "bahdanau-tiny", "luong-tiny", "transformer-tiny"])
def test_bfloat16_is_close_to_float32(name):
    """Within the rounding of eight bits, and step by step too, whose carry keeps its dtypes (a scan says so)."""
    config = TINY[name]
    model, params, batch = config.build(), random_params(config), config.example(3)
    exact = np.asarray(quick_jit(lambda _: model.apply({"params": params}, *batch).logits)(0))
    rounded = logits_and_steps(model, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), *batch)
    for logits in rounded:
        assert logits.dtype == jnp.bfloat16
        assert np.abs(np.asarray(logits, np.float32) - exact).max() < 0.05 * np.abs(exact).max()


def test_an_lstms_memory_stays_float32():
    """256 additions of 1/256 to 1: in bfloat16 each would be lost."""
    D = 4
    big = 100.0  # sigmoid(100) = 1: nothing is forgotten, all that comes is taken
    weights = Weights(jnp.zeros((1, 4 * D), jnp.bfloat16), jnp.zeros((D, 4 * D), jnp.bfloat16), jnp.zeros(4 * D, jnp.bfloat16))
    gates = jnp.repeat(jnp.array([big, big, 2.0**-8, 0.0], jnp.bfloat16), D)[None, None]
    carry = (jnp.ones((1, D)), jnp.zeros((1, D), jnp.bfloat16))
    (c, h), _ = jax.jit(lambda gates: scan_cell(lstm_step, weights, gates, carry))(jnp.broadcast_to(gates, (1, 256, 4 * D)))
    np.testing.assert_allclose(c, 2, rtol=1e-4)
    assert (c.dtype, h.dtype) == (jnp.float32, jnp.bfloat16)


# --- The attention kernel ---------------------------------------------------------------------------------------------

BF16, Q, KEYS = jnp.dtype("bfloat16"), (8, 4, 20, 64), (8, 4, 64, 32)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"gpu": 8.0, "dtype": jnp.dtype("float16")}, None),
        ({"q_shape": (8, 4, 20, 128), "k_shape": (8, 4, 128, 32)}, None),
        ({"kernel": "xla"}, "asked for"),
        ({"gpu": None}, "GPU"),
        ({"gpu": 7.5}, "GPU"),
        ({"dtype": jnp.dtype("float32")}, "float32"),
        ({"weights": True}, "weights"),
        ({"cached": True}, "cache"),
        ({"q_shape": (16, 4, 20, 64)}, "beams"),
        ({"q_shape": (8, 4, 20, 60)}, "60"),
        ({"q_shape": (8, 4, 20, 136)}, "136"),
        ({"q_shape": (8, 4, 1, 64)}, "even"),
        ({"q_shape": (8, 4, 21, 64)}, "21"),
        ({"k_shape": (8, 4, 64, 0)}, "even"),
        ({"k_shape": (8, 4, 64, 33)}, "33"),
    ],
)
def test_which_kernel_attends(change, reason):
    call = {"kernel": "auto", "gpu": 9.0, "dtype": BF16, "q_shape": Q, "k_shape": KEYS, "weights": False, "cached": False}
    implementation, why = choose(**call | change)
    assert implementation == ("cudnn" if reason is None else "xla")
    assert reason is None or reason in why


def test_the_choice_is_logged_once(caplog):
    attention._log.cache_clear()
    q, v = normal(1, 2, 4, 8), normal(1, 2, 4, 8)
    with caplog.at_level(logging.INFO, "zoo"):
        for _ in range(2):
            attend(q, KeyValue(v.swapaxes(2, 3), v), Visible(None), causal=True)
    assert [record.getMessage() for record in caplog.records] == [
        "attention by XLA: cuDNN's flash attention wants an NVIDIA GPU of compute capability 8.0 or more"
    ]


def normal(*shape, seed: int = 0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


B, H, N, K = 4, 2, 6, 8
LENGTHS = np.array([6, 3, 0, 1])
RAGGED = (np.arange(N) < LENGTHS[:, None])[:, None, None]
SEGMENTS = np.array([[1, 1, 1, 2, 2, 3], [1, 2, 2, 2, 0, 0], [0] * 6, [1] * 6])
SAME = (SEGMENTS[:, None, :, None] == SEGMENTS[:, None, None, :]) & (SEGMENTS > 0)[:, None, None]
CASES = {
    "everywhere": (Visible(None), False, np.ones((1, 1, 1, N), bool)),
    "causal": (Visible(None), True, np.asarray(causal_mask(N, N))),
    "lengths": (Visible(RAGGED, LENGTHS), False, RAGGED),
    "a mask": (Visible(RAGGED[..., ::-1]), False, RAGGED[..., ::-1]),
    "segments": (Visible(SAME), False, SAME),
    "causal segments": (Visible(SAME), True, SAME & np.asarray(causal_mask(N, N))),
    "a causal mask": (Visible(RAGGED[..., ::-1]), True, RAGGED[..., ::-1] & np.asarray(causal_mask(N, N))),
}


@pytest.mark.parametrize("case", CASES)
def test_the_fused_call_is_our_attention(case):
    """Values and gradients, by the same call that cuDNN gets, done by XLA; zeros where a query may look nowhere."""
    visible, causal, mask = CASES[case]
    arrays = normal(B, H, N, K), normal(B, H, K, N, seed=1), normal(B, H, N, K, seed=2)

    @jax.jit
    def both(q, k, v):
        run = lambda q, k, v: fused(q, KeyValue(k, v), visible, causal, "xla")  # noqa: E731
        ours = lambda q, k, v: dot_product_attention(q, k, v, mask)[0]  # noqa: E731
        return [(out, pull(jnp.cos(out))) for out, pull in (jax.vjp(f, q, k, v) for f in (run, ours))]

    (mixed, gradient), (expected, expected_gradient) = both(*arrays)
    chex.assert_trees_all_close((mixed, gradient), (expected, expected_gradient), atol=1e-5)
    nowhere = ~np.broadcast_to(mask, (B, H, N, N)).any(axis=-1)
    assert not np.asarray(mixed)[nowhere].any()
    assert nowhere.any() == (case in ("lengths", "a mask", "segments", "causal segments", "a causal mask"))


@pytest.mark.parametrize("right_padded", [False, True])
def test_a_model_by_the_fused_call(monkeypatch, right_padded):
    """The whole Transformer, its calls made as for cuDNN: which get lengths, which causality, which a mask."""
    config = TRANSFORMERS["pre"]
    model, params = config.build().clone(right_padded=right_padded), random_params(config)
    source, target = pad_tokens([[5, 6, 7, 2], [9, 2], []], 6), pad_tokens([[5, 2], [6, 7, 8, 2], [2]], 6)
    run = lambda: jax.jit(lambda params: model.apply({"params": params}, source, target).logits)(params)  # noqa: E731
    expected, calls = run(), []

    original = jax.nn.dot_product_attention

    def watched(*args, **kwargs):
        calls.append((kwargs["is_causal"], kwargs["mask"] is not None, kwargs["key_value_seq_lengths"] is not None))
        return original(*args, **{**kwargs, "implementation": "xla"})

    monkeypatch.setattr(attention, "choose", lambda *args: ("cudnn", "a test"))
    monkeypatch.setattr(attention.jax.nn, "dot_product_attention", watched, raising=True)
    chex.assert_trees_all_close(run(), expected, atol=2e-5)
    of_source = (False, not right_padded, right_padded)
    assert calls == [of_source] * 2 + [(True, False, False), of_source] * 2


def test_the_model_passes_its_kernel_on(monkeypatch):
    config, asked = TRANSFORMERS["pre"], []
    params = abstract_params(config)
    monkeypatch.setattr(attention, "choose", lambda kernel, *args: asked.append(kernel) or ("xla", "a test"))
    model = config.build().clone(kernel="xla")
    jax.eval_shape(lambda params: model.apply({"params": params}, *config.example()), params)
    assert asked == ["xla"] * 6


# --- Meshes -----------------------------------------------------------------------------------------------------------


def mesh_of(*shape):
    return jax.make_mesh(shape, ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3)


def test_constrain():
    """By the mesh in context; axes that do not divide are left out; nothing at all without a mesh or under a pmap."""
    mesh, x = mesh_of(2, 2, 2), np.ones((8, 3, 4), np.float32)

    def run(*axes):
        def f(x):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return constrain(x + 1, *axes)

        return jax.jit(f)(jax.device_put(x, NamedSharding(mesh, P()))).sharding

    assert run(BATCH, None, MODEL).is_equivalent_to(NamedSharding(mesh, P(("data", "fsdp"), None, "model")), 3)
    assert run(BATCH, MODEL).is_equivalent_to(NamedSharding(mesh, P(("data", "fsdp"))), 3)
    assert constrain(x, BATCH) is x
    parallel = jax.pmap(lambda x: constrain(x + 1, BATCH, None, MODEL), axis_name="data")(x[:, None])
    np.testing.assert_array_equal(parallel, x[:, None] + 1)


def test_a_sharded_transformer_keeps_its_activations_where_they_belong(capfd):
    """Data, fsdp and model at once: the batch stays split, and the partitioner never gives up on an activation."""
    config = dataclasses.replace(TRANSFORMERS["post"], num_layers=1)
    model, params, batch = config.build(), random_params(config), config.example(8)
    many = parallel.make(Parallel("mesh", fsdp=2, model=2), model.SHARDING)
    params = jax.device_put(params, jax.tree_util.tree_map_with_path(many.sharding, params))

    def both(params, batch):
        return model.apply({"params": params}, *batch), jax.grad(functools.partial(loss, model))(params, *batch)

    compiled = many.compile_eval(both).lower(params, many.put(batch)).compile()
    outputs, gradient = compiled(params, many.put(batch))
    chex.assert_trees_all_close(jax.device_get(gradient), value_and_grad(model, jax.device_get(params), *batch)[1], atol=2e-5)
    for x, spec in ((outputs.logits, P(BATCH, None, MODEL)), (outputs.hidden, P(BATCH))):
        assert x.sharding.is_equivalent_to(NamedSharding(many.mesh, spec), 3)
    assert "rematerialization" not in capfd.readouterr().err
