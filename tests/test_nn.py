"""The shared parts against plain numpy: attention, positions, recurrent cells and their scan."""

from __future__ import annotations

import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.nn.activation import gelu, gelu_tanh
from zoo.nn.attention import additive_scores, dot_product_attention, dot_scores, masked_softmax, mix
from zoo.nn.cache import DecoderCache, KeyValue, by_position, causal_mask, write
from zoo.nn.dropout import Dropout
from zoo.nn.linear import Dense, Embed, over_rows
from zoo.nn.norm import LayerNorm
from zoo.nn.position import sinusoidal
from zoo.nn.recurrent import (
    CELLS,
    Cell,
    Weights,
    gru_step,
    input_gates,
    keep_where,
    maxout,
    per_gate,
    scan_cell,
    zero_carry,
)

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


# --- Attention --------------------------------------------------------------------------------------------------------


@jax.jit
def softmax_and_gradient(scores, mask, by):
    weights, pull = jax.vjp(lambda x: masked_softmax(x, mask), scores)
    return weights, pull(by)[0]


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=4, max_size=4), st.sampled_from([1.0, 80.0, 1e30]))
def test_masked_softmax(mask, scale):
    mask, scores, by = np.array(mask), normal(4, 5) * np.float32(scale), normal(4, 5, seed=1)
    weights, gradient = softmax_and_gradient(scores, mask, by)
    chex.assert_tree_all_finite((weights, gradient))
    assert (np.asarray(weights)[~mask] == 0).all()
    assert (np.asarray(gradient)[~mask] == 0).all()
    for row in range(4):
        if mask[row].any():
            expected = softmax(scores[row, mask[row]].astype(np.float64))
            close(np.asarray(weights)[row, mask[row]], expected)
            by_row = by[row, mask[row]]
            close(np.asarray(gradient)[row, mask[row]], expected * (by_row - (expected * by_row).sum()))


def test_masked_softmax_ignores_nan_and_infinity_where_masked():
    scores = jnp.array([[1.0, jnp.nan, 2.0, jnp.inf]])
    weights, gradient = softmax_and_gradient(scores, jnp.array([[True, False, True, False]]), normal(1, 4))
    close(weights, [[sigmoid(-1), 0, sigmoid(1), 0]])
    chex.assert_tree_all_finite(gradient)


def test_masked_softmax_is_float32_for_bfloat16_scores():
    assert masked_softmax(jnp.zeros((2, 3), jnp.bfloat16), jnp.ones((2, 3), bool)).dtype == jnp.float32


attention = jax.jit(dot_product_attention)
B, W, H, T, S, K = 2, 3, 2, 4, 5, 6
SOURCE_MASK = np.arange(S)[None] < np.array([5, 2])[:, None]


def test_dot_product_attention_is_equation_1():
    q, k, v = normal(B, H, T, K), normal(B, H, K, S, seed=1), normal(B, H, S, K, seed=2)
    mask = SOURCE_MASK[:, None, None] & (np.arange(T)[:, None] + 1 >= np.arange(S))[None, None]
    mixed, weights = attention(q, k, v, mask)
    expected = softmax(np.where(mask, q @ k / np.sqrt(K), -np.inf))
    close(weights, expected)
    close(mixed, expected @ v)
    # As a cache keeps them: sentences and heads on one axis.
    chex.assert_trees_all_equal(attention(q, k.reshape(-1, K, S), v.reshape(-1, S, K), mask), (mixed, weights))


def test_beams_equal_repeated_keys():
    q, k, v = normal(W * B, H, T, K), normal(B, H, K, S, seed=1), normal(B, H, S, K, seed=2)
    mask = SOURCE_MASK[:, None, None]
    shared = attention(q, k, v, mask)
    repeated = attention(q, *(np.repeat(x, W, axis=0) for x in (k, v, mask)))
    chex.assert_trees_all_close(shared, repeated, atol=1e-6)
    chex.assert_shape(shared, [(W * B, H, T, K), (W * B, H, T, S)])


def test_beams_refuse_a_mask_that_differs_by_query():
    with pytest.raises(ValueError, match="beams"):
        dot_product_attention(normal(W * B, H, T, K), normal(B, H, K, S), normal(B, H, S, K), np.ones((B, 1, T, S), bool))


@pytest.mark.parametrize("length", [0, S])
def test_nowhere_to_look(length):
    q, v = normal(B, H, T, K), normal(B, H, length, K)
    mixed, weights = attention(q, v.swapaxes(2, 3), v, np.zeros((B, 1, 1, length), bool))
    chex.assert_shape(weights, (B, H, T, length))
    assert not np.asarray(mixed).any()
    assert not np.asarray(weights).any()


def test_additive_and_dot_scores_and_mix_share_keys_between_beams():
    query, key, v = normal(W * B, K), normal(B, S, K, seed=1), normal(K, seed=2)
    weights = normal(W * B, S, seed=3)
    for row in range(W * B):
        sentence = key[row // W]
        close(additive_scores(query, key, v)[row], [np.tanh(query[row] + k) @ v for k in sentence])
        close(dot_scores(query, key)[row], sentence @ query[row])
        close(mix(weights, key)[row], weights[row] @ sentence)


@pytest.mark.parametrize(("queries", "keys", "start"), [(4, 4, 0), (1, 6, 3), (2, 6, 3), (3, 2, 0)])
def test_causal_mask(queries, keys, start):
    expected = [[s <= start + t for s in range(keys)] for t in range(queries)]
    np.testing.assert_array_equal(causal_mask(queries, keys, start), np.reshape(expected, (1, 1, queries, keys)))


@pytest.mark.parametrize("beams", [1, W])
def test_write_changes_only_its_positions(beams):
    """Position n of beam w stands at n * W + w, and its neighbours are left alone."""
    old = KeyValue(normal(B * H, K, 6 * beams), normal(B * H, 6 * beams, K, seed=1))
    new = KeyValue(normal(B * beams, H, K, 2, seed=2), normal(B * beams, H, 2, K, seed=3))
    key_BHKNW, value_BHNWK = old.key.reshape(B, H, K, 6, beams).copy(), old.value.reshape(B, H, 6, beams, K).copy()
    for b, w, n in np.ndindex(B, beams, 2):
        key_BHKNW[b, :, :, 3 + n, w] = new.key[b * beams + w, :, :, n]
        value_BHNWK[b, :, 3 + n, w] = new.value[b * beams + w, :, n]
    key, value = jax.jit(write)(old, new, 3)
    np.testing.assert_array_equal(key, key_BHKNW.reshape(old.key.shape))
    np.testing.assert_array_equal(value, value_BHNWK.reshape(old.value.shape))


def test_a_cache_of_beams_is_read_along_each_rows_own_past():
    """Rows change places at random, three steps of one or two tokens: each sees what it continued, and itself."""
    rng, N = np.random.default_rng(0), 6
    cache = DecoderCache.zeros(1, B, W, H, N, K, jnp.float32)
    assert cache.layers.buffers[0].value.shape == (B * H, N * W, K)
    past = [[] for _ in range(B * W)]  # the slot of each position that a row has read
    for taken in (1, 2, 1):
        start = len(past[0])
        beam_RN, mask = jax.jit(DecoderCache.read, static_argnums=1)(cache, taken)
        past = [[*slots, *((start + t) * W + row % W for t in range(taken))] for row, slots in enumerate(past)]
        mask_RTN = np.asarray(mask).reshape(B * W, taken, N * W)
        for row, slots in enumerate(past):
            for t in range(taken):
                assert np.flatnonzero(mask_RTN[row, t]).tolist() == sorted(slots[: start + t + 1])
        parent_R = rng.integers(0, W, B * W) + np.arange(B * W) // W * W
        past = [past[parent] for parent in parent_R]
        cache = DecoderCache(cache.layers, beam_RN[parent_R], cache.index + taken)


def test_weights_over_a_cache_of_beams_are_summed_by_position():
    weights = normal(B * W, H, T, S * W)
    np.testing.assert_allclose(by_position(weights, W), weights.reshape(B * W, H, T, S, W).sum(axis=4), rtol=1e-6)
    assert by_position(weights, 1) is weights


def test_sinusoidal_is_the_papers_formula():
    position, D = np.array([[0, 1, 2, 7], [3, 3, 100, 511]]), 10
    encoded = sinusoidal(position, D)
    chex.assert_shape(encoded, (2, 4, D))
    for row, column in np.ndindex(position.shape):
        for i in range(D // 2):
            angle = position[row, column] / 10_000 ** (2 * i / D)
            close(encoded[row, column, 2 * i], np.sin(angle), atol=1e-4)
            close(encoded[row, column, 2 * i + 1], np.cos(angle), atol=1e-4)


# --- Recurrence -------------------------------------------------------------------------------------------------------

ROWS, LENGTH, INPUTS, D = 3, 5, 4, 3


def elman(W, U, b, b_h, x, h, c):
    return np.tanh(x @ W + h @ U + b), c


def lstm(W, U, b, b_h, x, h, c):
    i, f, g, o = np.split(x @ W + h @ U + b, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru(W, U, b, b_h, x, h, c):
    """Cho et al. 2014: equations 5 (reset), 6 (update), 8 (candidate) and 7 (state)."""
    (W_r, W_z, W), (U_r, U_z, U), (b_r, b_z, b) = (np.split(a, 3, axis=-1) for a in (W, U, b))
    r = sigmoid(x @ W_r + h @ U_r + b_r)
    z = sigmoid(x @ W_z + h @ U_z + b_z)
    candidate = np.tanh(x @ W + (r * h) @ U + b)
    return z * h + (1 - z) * candidate, c


def cudnn_gru(W, U, b, b_h, x, h, c):
    (W_r, W_z, W), (U_r, U_z, U), (b_r, b_z, b) = (np.split(a, 3, axis=-1) for a in (W, U, b))
    r = sigmoid(x @ W_r + h @ U_r + b_r)
    z = sigmoid(x @ W_z + h @ U_z + b_z)
    candidate = np.tanh(x @ W + r * (h @ U + b_h) + b)
    return z * h + (1 - z) * candidate, c


STEPS = {"elman": elman, "lstm": lstm, "gru": gru, "cudnn_gru": cudnn_gru}


def weights_of(kind: str) -> Weights:
    G = CELLS[kind].gates * D
    last = normal(1, D, seed=3) if kind == "cudnn_gru" else None
    return Weights(normal(INPUTS, G), normal(D, G, seed=1), normal(G, seed=2), last)


@functools.cache
def compiled_scan(kind: str, reverse: bool):
    """From (x, mask) to (the last carry, h), and the gradient of a sum of both by x."""

    def run(x, mask):
        weights, h_BD = weights_of(kind), jnp.asarray(normal(ROWS, D, seed=4))
        carry = (normal(ROWS, D, seed=5), h_BD) if CELLS[kind].has_memory else h_BD
        results = scan_cell(CELLS[kind].step, weights, input_gates(x, weights), carry, mask, reverse)
        return sum(leaf.sum() for leaf in jax.tree.leaves(results)), results

    return jax.jit(jax.grad(run, has_aux=True))


def by_sentence(kind: str, x, mask, reverse: bool):
    """The same in numpy: each sentence without its padding, one step after another."""
    outputs, states, memories = np.zeros((ROWS, LENGTH, D)), normal(ROWS, D, seed=4), normal(ROWS, D, seed=5)
    for row in range(ROWS):
        real = np.flatnonzero(mask[row])
        for n in real[::-1] if reverse else real:
            states[row], memories[row] = STEPS[kind](*weights_of(kind), x[row, n], states[row], memories[row])
            outputs[row, n] = states[row]
    return outputs, states, memories


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", CELLS)
@given(lengths=st.lists(st.integers(0, LENGTH), min_size=ROWS, max_size=ROWS), left=st.booleans())
def test_scan_reads_each_sentence_and_never_its_padding(kind, reverse, lengths, left):
    x = normal(ROWS, LENGTH, INPUTS, seed=6)
    mask = np.arange(LENGTH)[None] < np.array(lengths)[:, None]
    mask = mask[:, ::-1] if left else mask
    gradient, (carry, h) = compiled_scan(kind, reverse)(x, mask)
    outputs, states, memories = by_sentence(kind, x, mask, reverse)
    close(h, outputs, atol=1e-5)
    close(carry[1] if CELLS[kind].has_memory else carry, states, atol=1e-5)
    if CELLS[kind].has_memory:
        close(carry[0], memories, atol=1e-5)
    assert (np.asarray(gradient)[~mask] == 0).all()
    garbage = np.where(mask[..., None], x, np.nan).astype(np.float32)
    chex.assert_trees_all_equal(compiled_scan(kind, reverse)(garbage, mask)[1], (carry, h))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["elman", "lstm"])
def test_the_gradient_of_one_product_is_that_of_every_step(kind, reverse):
    """By all of the scan's arguments, as JAX itself has it of the same loop written out."""
    step, mask = CELLS[kind].step, jnp.asarray(np.arange(LENGTH)[None] < np.array([[LENGTH], [2]]))
    weights, seen = weights_of(kind), jnp.asarray(normal(2, LENGTH, D, seed=7))
    gates, carry = input_gates(normal(2, LENGTH, INPUTS, seed=6), weights), zero_carry(kind, 2, D)

    def scanned(recurrent, gates, carry):
        carry, h = scan_cell(step, weights._replace(recurrent=recurrent), gates, carry, mask, reverse)
        return (h * seen).sum() + sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(carry))

    def written_out(recurrent, gates, carry):
        total = 0.0
        for n in range(LENGTH)[:: -1 if reverse else 1]:
            new, h = step(carry, gates[:, n], weights._replace(recurrent=recurrent))
            total += (jnp.where(mask[:, n, None], h, 0) * seen[:, n]).sum()
            carry = keep_where(mask[:, n], new, carry)
        return total + sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(carry))

    arguments = (jnp.asarray(weights.recurrent), gates, carry)
    found, expected = (jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arguments) for loss in (scanned, written_out))
    chex.assert_trees_all_close(found, expected, atol=1e-5)
    within = inside(jax.make_jaxpr(jax.grad(scanned))(*arguments).jaxpr, scans=True)
    products = [sorted(e.outvars[0].aval.shape) for e in within if e.primitive.name == "dot_general"]
    assert products
    assert sorted(weights.recurrent.shape) not in products  # no step of a loop makes a gradient of the matrix


def inside(jaxpr, scans: bool = False, within: bool = False):
    """All equations of a program; with ``scans`` those within its loops alone."""
    for equation in jaxpr.eqns:
        if within or not scans:
            yield equation
        for value in equation.params.values():
            for each in value if isinstance(value, (list, tuple)) else [value]:
                inner = getattr(each, "jaxpr", each)
                if hasattr(inner, "eqns"):
                    yield from inside(inner, scans, within or equation.primitive.name == "scan")


def test_a_matrix_is_multiplied_by_rows_and_so_is_its_gradient():
    x, w = normal(2, 3, 4), normal(4, 5, seed=1)
    layer, table = Dense(5, use_bias=False), Embed(5, 4)
    loss = {
        "over_rows": lambda x, w: jnp.sin(over_rows(x, w)).sum(),
        "Dense": lambda x, w: jnp.sin(layer.apply({"params": {"kernel": w}}, x)).sum(),
        "Embed": lambda x, w: jnp.sin(table.apply({"params": {"embedding": w.T}}, x, method="attend")).sum(),
    }
    for name, each in loss.items():
        gradient = jax.grad(each, argnums=(0, 1))
        expected = jax.grad(lambda x, w: jnp.sin(x @ w).sum(), argnums=(0, 1))(x, w)
        chex.assert_trees_all_close(gradient(x, w), expected, atol=1e-5)
        products = [e for e in inside(jax.make_jaxpr(gradient)(x, w).jaxpr) if e.primitive.name == "dot_general"]
        assert len(products) == 3
        assert all(len(e.params["dimension_numbers"][0][0]) == 1 for e in products), name  # two contracted axes are slow


def test_gru_is_the_published_one():
    """Four steps of ``gru_step`` alone: the reset gate acts before the product, which is not cuDNN's GRU."""
    weights, x, h = weights_of("gru"), normal(1, 4, INPUTS), np.zeros((1, D), np.float32)
    gates, expected = input_gates(x, weights), h[0]
    for n in range(4):
        h, out = gru_step(h, gates[:, n], weights)
        expected, _ = gru(*weights, x[0, n], expected, None)
        close(h[0], expected)
        close(out, h)


def test_scan_without_a_mask_reads_everything():
    kind, x = "lstm", normal(ROWS, LENGTH, INPUTS)
    weights = weights_of(kind)
    run = jax.jit(lambda mask: scan_cell(CELLS[kind].step, weights, input_gates(x, weights), zero_carry(kind, ROWS, D), mask))
    chex.assert_trees_all_close(run(None), run(np.ones((ROWS, LENGTH), bool)), atol=1e-6)


@pytest.mark.parametrize("kind", CELLS)
def test_cell_starts_orthogonal_gate_by_gate(kind):
    cell = Cell(kind, INPUTS, D)
    params = jax.jit(cell.init)(jax.random.key(0), jnp.zeros((1, 2, INPUTS)))["params"]
    gates = np.split(np.asarray(params["recurrent_kernel"]), CELLS[kind].gates, axis=1)
    for gate in gates:
        close(gate @ gate.T, np.eye(D), atol=1e-5)
    assert len({gate.tobytes() for gate in gates}) == len(gates)
    bias = np.zeros((CELLS[kind].gates, D))
    if kind == "lstm":
        bias[1] = 1  # the forget gate is open
    np.testing.assert_array_equal(params["bias"].reshape(-1, D), bias)


def test_per_gate_gives_each_block_its_own_key():
    drawn = per_gate(lambda key, shape, dtype: jax.random.normal(key, shape, dtype), 3)(jax.random.key(0), (2, 6))
    chex.assert_shape(drawn, (2, 6))
    assert len(np.unique(drawn)) == 12


def test_maxout():
    x = normal(2, 3, 8)
    for pieces in (2, 4):
        expected = [[[row[i : i + pieces].max() for i in range(0, 8, pieces)] for row in rows] for rows in x]
        np.testing.assert_array_equal(maxout(x, pieces), expected)


@pytest.mark.parametrize(("activation", "exact"), [(gelu, True), (gelu_tanh, False)])
def test_gelu_and_its_gradient_keep_nothing_but_what_they_read(activation, exact):
    x = np.linspace(-6, 6, 101)
    if exact:
        phi = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])
        slope = phi + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    else:
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        phi = 0.5 * (1 + np.tanh(inner))
        slope = phi + x * 0.5 * (1 - np.tanh(inner) ** 2) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    # Where all but nothing is left of 1 + tanh, float32 has no more digits.
    y, pull = jax.vjp(activation, jnp.asarray(x, jnp.float32))
    close(y, x * phi, atol=3e-6)
    close(pull(jnp.ones_like(y))[0], slope, atol=3e-6)
    (kept,) = (leaf for leaf in jax.tree.leaves(pull) if leaf.size == x.size)
    np.testing.assert_array_equal(kept, x.astype(np.float32))
    half = jnp.asarray(x, jnp.bfloat16)
    np.testing.assert_array_equal(activation(half), activation(half.astype(jnp.float32)).astype(jnp.bfloat16))


@given(st.integers(1, 9), st.sampled_from([0.1, 0.3, 0.5]), st.integers(0, 2**31 - 1))
def test_dropout_keeps_numbers_divided_by_what_it_keeps(width, rate, seed):
    drop, x = Dropout(rate), normal(40, 25, width, seed=seed % 97)
    y = np.asarray(drop.apply({}, x, False, rngs={"dropout": jax.random.key(seed)}))
    kept = y != 0
    close(y[kept], x[kept] / (1 - rate), rtol=2e-5)  # the rate is rounded to 16 bits
    # Six standard deviations, of each column too: no two numbers of a row share their bits.
    shares = 1 - kept.reshape(-1, width)
    assert np.abs(shares.mean(axis=0) - rate).max() < 6 * math.sqrt(rate * (1 - rate) / 1000)
    for other in range(1, width):
        both = (shares[:, 0] * shares[:, other]).mean()
        assert abs(both - rate**2) < 6 * math.sqrt(rate**2 / 1000)


def test_dropout_is_nothing_without_training_or_rate():
    x = normal(3, 4)
    assert Dropout(0.5).apply({}, x, True) is x
    assert Dropout(0.0).apply({}, x, False) is x
    key = {"dropout": jax.random.key(0)}
    gradient = jax.grad(lambda x: Dropout(0.5).apply({}, x, False, rngs=key).sum())(x)
    np.testing.assert_array_equal(gradient, np.where(Dropout(0.5).apply({}, x, False, rngs=key) != 0, 2.0, 0.0))
    assert (np.asarray(Dropout(0.9999999).apply({}, x, False, rngs=key)) == 0).mean() > 0.9  # not everything divided by nothing


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_layer_norm_is_equation_4_and_flax_s(mean):
    x, scale, bias = normal(3, 5, 16) + np.float32(mean), normal(16, seed=1), normal(16, seed=2)
    weights = {"params": {"scale": scale, "bias": bias}}
    chex.assert_trees_all_equal_shapes(LayerNorm().init(jax.random.key(0), x), weights)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-6)
    digits = 5e-7 * mean  # that the mean itself has lost
    close(LayerNorm().apply(weights, x), exact * scale + bias, atol=1e-6 + digits)
    ours, theirs = (
        jax.grad(lambda w, x, norm=norm: (norm.apply(w, x) ** 2).sum(), argnums=(0, 1))(weights, x)
        for norm in (LayerNorm(), nn.LayerNorm(use_fast_variance=False))
    )
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-4)
    low = jax.tree.map(lambda v: v.astype(jnp.bfloat16), weights)
    assert LayerNorm().apply(low, jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16
