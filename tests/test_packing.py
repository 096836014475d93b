"""Several pairs in a row: how they get there, and that a model reads each as if it were alone."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data import Batching, Example, Tokenized, bucket_shapes, eval_batches, train_batches
from train.data.buckets import first_fit
from zoo import rnn, rnn_attention, transformer
from zoo.core import BOS, EOS, PAD, Tokens, UserError, pad_tokens, positions, shift_right
from zoo.text import Tokenizer
from zoo.variants import abstract_params

# --- The model --------------------------------------------------------------------------------------------------------

TINY = transformer.PRESETS["tiny"]
MODELS = {
    "post": dataclasses.replace(TINY, num_layers=1),
    "pre": dataclasses.replace(TINY, num_layers=1, norm="pre", positions="learned", max_len=12, share_embeddings="none"),
}
# Rows of (source, target): pairs of different lengths, a full row, a row of one pair, an empty row.
ROWS = [
    [([5, 6, 7, 2], [8, 9, 2]), ([10, 2], [11, 12, 13, 2]), ([2], [14, 2])],
    [([9, 8, 7, 6, 5, 2], [2]), ([6, 5, 2], [5, 6, 7, 8, 9, 10, 2]), ([7, 2], [7, 7, 2])],
    [([30, 31, 2], [29, 2])],
    [],
]
S, T = 11, 11


def pack(rows: list[list[list[int]]], length: int) -> Tokens:
    """Rows of sequences as packed tokens, written as plainly as can be."""
    ids, segments = np.full((len(rows), length), PAD, np.int32), np.zeros((len(rows), length), np.int32)
    for row, sequences in enumerate(rows):
        at = 0
        for number, sequence in enumerate(sequences, 1):
            ids[row, at : at + len(sequence)] = sequence
            segments[row, at : at + len(sequence)] = number
            at += len(sequence)
    return Tokens(ids, segments > 0, segments)


PACKED = tuple(pack([[pair[side] for pair in row] for row in ROWS], length) for side, length in enumerate((S, T)))
PAIRS = [pair for row in ROWS for pair in row]
APART = tuple(pad_tokens([pair[side] for pair in PAIRS], length) for side, length in enumerate((S, T)))


@functools.cache
def model_of(name: str):
    config = MODELS[name]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape, scale=0.3).astype(np.float32), abstract_params(config))
    return config.build(), params


@functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
def losses(model, params, source, target):
    """The loss of each token, and the gradient of their sum."""

    def loss(params):
        logits_BTV = model.apply({"params": params}, source, target).logits
        nll_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, target.ids)
        nll_BT = jnp.where(target.mask, nll_BT, 0)
        return nll_BT.sum(), nll_BT

    return jax.grad(loss, has_aux=True)(params)


SCANNED = {"scan_layers": True, "remat": True, "right_padded": True}


@pytest.mark.parametrize(("name", "options"), [("post", {}), ("pre", {}), ("pre", SCANNED)], ids=["post", "pre", "scanned"])
def test_packed_pairs_are_read_as_if_alone(name, options):
    """The loss of each token, and so of each pair; and the gradient of the sum."""
    model, params = model_of(name)
    packed_gradient, packed_BT = losses(model.clone(**options), params, *PACKED)
    gradient, apart_NT = losses(model, params, *APART)
    chex.assert_trees_all_close(packed_BT[PACKED[1].mask], apart_NT[APART[1].mask], rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(packed_gradient, gradient, rtol=1e-5, atol=1e-5 * float(optax.tree.norm(gradient)))
    chex.assert_tree_all_finite((packed_gradient, packed_BT))


def test_attention_stays_within_the_pair():
    model, params = model_of("pre")
    source, target = PACKED
    run = jax.jit(lambda params: model.apply({"params": params}, source, target, attention=True).attention)
    weights = run(params)
    assert len(weights) == 3
    for name, weights_BHQK in weights.items():
        queries, keys = source if name == "encoder_0/self" else target, target if name == "decoder_0/self" else source
        apart_BQK = queries.segments[:, :, None] != keys.segments[:, None, :]
        assert not (np.asarray(weights_BHQK) * apart_BQK[:, None]).any(), name
        real_BHQ = np.broadcast_to(queries.mask[:, None], weights_BHQK.shape[:3])
        np.testing.assert_allclose(np.asarray(weights_BHQK.sum(axis=-1))[real_BHQ], 1, rtol=1e-5)


def test_every_pair_begins_anew():
    target = PACKED[1]
    assert shift_right(target.ids, BOS, target.segments)[0].tolist() == [BOS, 8, 9, BOS, 11, 12, 13, BOS, 14, BOS, PAD]
    assert positions(target.mask, target.segments)[0, :9].tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1]
    one = np.ones_like(target.segments)
    np.testing.assert_array_equal(shift_right(target.ids, BOS, one), shift_right(target.ids))
    np.testing.assert_array_equal(positions(target.mask, one), positions(target.mask))


@pytest.mark.parametrize("name", ["sutskever-tiny", "cho-tiny", "bahdanau-tiny", "luong-tiny"])
def test_models_that_read_one_pair_a_row_say_so(name):
    config = (rnn.PRESETS | rnn_attention.PRESETS)[name]
    model = config.build()
    assert not model.PACKS
    with pytest.raises(UserError, match=r"batching\.pack"):
        jax.eval_shape(lambda params: model.apply({"params": params}, *PACKED), abstract_params(config))


# --- The data ---------------------------------------------------------------------------------------------------------

LETTER = Tokenizer.train("characters", ["a", "b"])
PAIR_LENGTHS = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 13)), min_size=1, max_size=60)
BATCHING = st.builds(
    Batching,
    tokens=st.sampled_from([1, 24, 60]),
    max_source_len=st.integers(1, 12),
    max_target_len=st.integers(1, 12),
    window=st.integers(1, 3),
    pack=st.just(True),
)


def corpus(lengths) -> Tokenized:
    """Examples of these numbers of letters, in which no two neighbours are alike."""
    letters = ["ab"[i % 2] for i in range(len(lengths))]
    return Tokenized([Example(x * s, x * t, (x * t,)) for x, (s, t) in zip(letters, lengths)], LETTER, LETTER)


def within(lengths, batching) -> list[int]:
    limits = (batching.max_source_len, batching.max_target_len)
    return [i for i, pair in enumerate(lengths) if all(n + 1 <= limit for n, limit in zip(pair, limits))]


def check(batch, data: Tokenized) -> list[int]:
    """Segment k of a row is the k-th of its examples, on both sides, and nothing else stands there; returns the examples."""
    rows = len(batch.source.ids)
    assert batch.example_ids.shape[0] == rows
    for side, tokens in enumerate((batch.source, batch.target)):
        assert [x.dtype for x in tokens if x is not None] == [np.int32, bool, np.int32]
        sequences = [
            [[*LETTER.encode(data.examples[i][side])] for i in example_ids if i >= 0] for example_ids in batch.example_ids
        ]
        chex.assert_trees_all_equal(tokens, pack(sequences, tokens.ids.shape[1]))
    assert (np.diff((batch.example_ids >= 0).astype(int), axis=1) <= 0).all()
    return [int(i) for i in batch.example_ids.ravel() if i >= 0]


@given(lengths=PAIR_LENGTHS, batching=BATCHING, seed=st.integers(0, 3), cut=st.integers(0, 12))
def test_each_epoch_holds_each_example_once_and_resumes_exactly(lengths, batching, seed, cut):
    data, expected = corpus(lengths), within(lengths, batching)
    if not expected:
        return
    (shape,) = bucket_shapes(batching, 1, data.sample_lengths())
    batches, taken, states = train_batches(data, batching, [shape], seed), [], []
    for _ in range(2):
        seen = []
        while len(seen) < len(expected):
            states.append(json.dumps(batches.get_state()))
            taken.append(next(batches))
            assert taken[-1].source.ids.shape == shape[:2]
            assert taken[-1].target.ids.shape == (shape[0], shape[2])
            seen += check(taken[-1], data)
        assert sorted(seen) == expected
    cut %= len(taken)
    resumed = train_batches(corpus(lengths), batching, [shape], seed)
    resumed.set_state(json.loads(states[cut]))
    for batch in taken[cut:]:
        chex.assert_trees_all_equal(next(resumed), batch)


@given(lengths=PAIR_LENGTHS, batching=BATCHING)
def test_the_slices_of_the_hosts_make_up_the_batch(lengths, batching):
    data = corpus(lengths)
    if not within(lengths, batching):
        return
    shapes = bucket_shapes(batching, 4, data.sample_lengths())
    whole, *parts = (train_batches(data, batching, shapes, 2, host) for host in [(0, 1), (0, 2), (1, 2)])
    for batch, *slices in itertools.islice(zip(whole, *parts), 6):
        chex.assert_trees_all_equal(jax.tree.map(lambda *x: np.concatenate(x), *slices), batch)


@given(lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7)), max_size=40))
def test_first_fit(lengths):
    """No row overflows, none is skipped, and no example would have fitted into an earlier row than its own."""
    lengths_N2 = np.array(lengths, int).reshape(-1, 2)
    row_N = first_fit(lengths_N2, (9, 7))
    assert sorted(set(row_N.tolist())) == list(range(len(set(row_N.tolist()))))
    for side, limit in enumerate((9, 7)):
        assert (np.bincount(row_N, lengths_N2[:, side], minlength=1) <= limit).all()
    used = [lengths_N2[row_N == row].sum(axis=0) for row in range(row_N.max(initial=-1) + 1)]
    for example, row in enumerate(row_N):
        assert all((used[early] + lengths_N2[example] > (9, 7)).any() for early in range(row))


def density(batches, count: int) -> float:
    """The share of all places, of sources and targets, that hold a token."""
    masks = [batch.source.mask.ravel() for batch in batches[:count]] + [batch.target.mask.ravel() for batch in batches[:count]]
    return float(np.concatenate(masks).mean())


def test_packing_fills_the_rows():
    """Lengths as in translated text: few places stay empty, in fewer batches of the same size."""
    rng = np.random.default_rng(0)
    source_N = np.minimum(rng.lognormal(3.0, 0.6, 4000).astype(int) + 2, 95)
    lengths = list(zip(source_N.tolist(), np.clip(source_N + rng.normal(0, 4, 4000), 1, 95).astype(int).tolist()))
    data = corpus(lengths)
    sizes = {}
    for packed in (False, True):
        batching = Batching(tokens=3072, max_source_len=96, max_target_len=96, buckets=4, window=16, pack=packed)
        shapes = bucket_shapes(batching, 1, data.sample_lengths())
        batches, epoch, seen = train_batches(data, batching, shapes, 0), [], 0
        while seen < 4000:
            epoch.append(next(batches))
            seen += int((epoch[-1].example_ids >= 0).sum())
        sizes[packed] = (len(epoch), density(epoch, len(epoch)))
    assert sizes[True][1] > 0.9, sizes
    assert sizes[True][1] > sizes[False][1] + 0.1, sizes
    assert sizes[True][0] < sizes[False][0], sizes


def test_packed_batches_come_in_another_order_each_epoch_and_mix_lengths():
    data = corpus([(n % 8, n % 8) for n in range(200)])
    batching = Batching(tokens=160, max_source_len=16, max_target_len=16, pack=True)
    batches = train_batches(data, batching, bucket_shapes(batching, 1, data.sample_lengths()), 0)
    epochs = []
    for _ in range(2):
        epochs.append([])
        while sum(map(len, epochs[-1])) < 200:
            epochs[-1].append([int(i) for i in next(batches).example_ids.ravel() if i >= 0])
    assert epochs[0] != epochs[1]
    means = [np.mean([i % 8 for i in batch]) for batch in epochs[0][:-1]]
    assert np.ptp(means) < 3, "batches are sorted by length"


def test_evaluation_is_not_packed():
    data = corpus([(3, 3)] * 10)
    batching = Batching(tokens=64, max_source_len=16, max_target_len=16, pack=True)
    batches = list(eval_batches(data, bucket_shapes(batching, 1, data.sample_lengths())))
    assert all(batch.source.segments is None and batch.example_ids.ndim == 1 for batch in batches)
    assert sorted(i for batch in batches for i in batch.example_ids if i >= 0) == list(range(10))
    assert all((batch.source.ids == EOS).sum() == (batch.example_ids >= 0).sum() for batch in batches)
