"""The training step: accumulation, averages, batches that are skipped, precision, chunks of logits; and the count of FLOPs."""

from __future__ import annotations

import dataclasses
import functools
import re
from types import SimpleNamespace
from typing import ClassVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from tinies import CONFIGS

from train import optim, parallel
from train.data import Batch
from train.flops import PEAKS, count, peak_flops, training_flops, utilisation
from train.metrics import chunked_token_metrics, divide, token_metrics
from train.optim import Optimizer
from train.parallel import Parallel
from train.step import Compute, Skipped, init_state, make_eval_step, make_train_step, new_state, updates
from zoo import transformer
from zoo.core import ModelConfig, Outputs, Seq2Seq, Tokens, pad_tokens

NO_LOSS, NO_GRADIENT = 30, 31  # source tokens that make a row's loss, or its gradient alone, not a number


@dataclasses.dataclass(frozen=True)
class ToyConfig(ModelConfig):
    """A bag of words in, a token-wise decoder out; compiles in no time."""

    width: int = 8

    def build(self) -> Toy:
        return Toy(self)


class Toy(Seq2Seq):
    config: ToyConfig

    SHARDING: ClassVar = ((r"output/kernel", P("fsdp", "model")), (r".*embedding", P("model", "fsdp")), (r".*", P()))

    def setup(self):
        c = self.config
        self.source_embedding, self.target_embedding = (
            nn.Embed(size, c.width) for size in (c.source_vocab_size, c.target_vocab_size)
        )
        self.scale = self.param("scale", nn.initializers.ones, (c.width,))
        self.output = nn.Dense(c.target_vocab_size)

    def encode(self, source: Tokens, train: bool = False, attention: bool = False) -> jax.Array:
        x_BD = jnp.where(source.mask[..., None], self.source_embedding(source.ids), 0).sum(axis=1)
        lost, flat = ((source.ids == token).any(axis=1)[:, None] for token in (NO_LOSS, NO_GRADIENT))
        # The root of zero: its value is fine, its gradient is not.
        x_BD = x_BD * jnp.sqrt(jnp.square(self.scale)[None] * (1 - flat).astype(x_BD.dtype))
        return jnp.where(lost, jnp.nan, x_BD)

    def init_cache(self, memory, max_len: int, beams: int = 1):
        return memory

    def decode(self, tokens_BT, memory, cache=None, train: bool = False, attention: bool = False):
        hidden_BTD = jnp.tanh(self.target_embedding(tokens_BT) + memory[:, None])
        return Outputs(self.logits(hidden_BTD), {}, hidden_BTD), cache

    def logits(self, hidden_BTD):
        return self.output(hidden_BTD)


TOY = ToyConfig(32, 32).build()
ROWS, SOURCE, TARGET = 16, 5, 6
EVERYTHING = Optimizer(
    "adamw", learning_rate=0.05, schedule="inverse_sqrt", warmup_steps=2, clip=0.01, weight_decay=0.1, ema=0.15
)
ACCUMULATING = dataclasses.replace(EVERYTHING, accumulate=3)
PLACES = {"one": None, "pmap": Parallel(), "mesh": Parallel("mesh", fsdp=2, model=2)}


def toy_batch(seed: int, poison: int | None = None, rows: int = ROWS) -> Batch:
    """Rows of very different lengths, the last one of none; the poison stands in one row, which one device sees."""
    rng = np.random.default_rng(seed)
    words = lambda n: rng.integers(4, 28, n).tolist()  # noqa: E731
    source = pad_tokens([words(rng.integers(1, SOURCE + 1)) for _ in range(rows)], SOURCE)
    target = pad_tokens([words(rng.integers(1, TARGET + 1)) for _ in range(rows - 1)] + [[]], TARGET)
    if poison:
        source.ids[3, 0] = poison
    return Batch(source, target, np.arange(rows, dtype=np.int32))


def joined(batches: list[Batch]) -> Batch:
    return jax.tree.map(lambda *x: np.concatenate(x), *batches)


def host(state):
    """Copies, before the state is consumed; the key as numbers."""
    return jax.tree.map(np.array, state._replace(key=jax.random.key_data(state.key)))


@functools.cache
def toy_start(optimizer: Optimizer):
    """(tx, the first state): on the host, since random bits may depend on the places that they are made for."""
    example = TOY.config.example()
    tx = optim.make(optimizer, jax.eval_shape(TOY.init, jax.random.key(0), *example)["params"], steps=10)
    return tx, host(jax.jit(lambda key: init_state(TOY, tx, example, key, optimizer))(jax.random.key(5)))


class Trainer:
    """The toy's step, compiled for one device, pmap or a mesh; on many devices it takes the logits in chunks."""

    def __init__(self, optimizer: Optimizer, place: str):
        self.optimizer = optimizer
        tx, _ = toy_start(optimizer)
        if place == "one":
            self.put, self.sharding = lambda batch: batch, jax.sharding.SingleDeviceSharding(jax.devices()[0])
            self.step = jax.jit(make_train_step(TOY, tx, 0.1, optimizer), donate_argnums=0)
            return
        many = parallel.make(PLACES[place], TOY.SHARDING)
        self.put = many.put
        self.sharding = jax.tree.map(lambda x: x.sharding, many.abstract(self.values))
        self.step = many.compile_train(make_train_step(TOY, tx, 0.1, optimizer, Compute(logits_chunk=4)))

    def values(self):
        state = toy_start(self.optimizer)[1]
        return state._replace(key=jax.random.wrap_key_data(state.key))

    def start(self):
        return jax.device_put(self.values(), self.sharding)

    def run(self, state, batches: list[Batch]):
        for batch in batches:
            state, metrics = self.step(state, self.put(batch))
        return state, metrics


trainer = functools.cache(Trainer)


def learned(state):
    """All that a skipped batch must leave alone."""
    state = host(state)
    return {name: getattr(state, name) for name in ("key", "params", "opt_state", "ema", "accumulated")}


def test_accumulated_batches_make_the_update_of_one_batch_of_all_their_rows():
    """Uneven padding, clipping, decay, the schedule and the average included; in between nothing moves."""
    batches = [toy_batch(seed) for seed in range(6)]
    one, few = trainer(EVERYTHING, "one"), trainer(ACCUMULATING, "one")
    whole, _ = one.run(one.start(), [joined(batches[:3]), joined(batches[3:])])
    state, tokens = few.start(), 0
    before = learned(state)
    assert whole.accumulated is None
    for i, batch in enumerate(batches[:3]):
        assert int(updates(state, 3)) == 0
        state, _ = few.run(state, [batch])
        tokens += batch.target.mask.sum()
        if i < 2:
            now = learned(state)
            assert now.pop("accumulated")[1:] == (tokens, i + 1)
            chex.assert_trees_all_equal(now, {name: before[name] for name in now})
    assert not any(leaf.any() for leaf in jax.tree.leaves(learned(state)["accumulated"]))
    state, _ = few.run(state, batches[3:])
    assert (int(state.step), int(updates(state, 3))) == (6, 2)
    for name in ("params", "ema", "opt_state"):
        chex.assert_trees_all_close(getattr(state, name), getattr(whole, name), atol=1e-6)
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), before["params"], host(state).params)
    assert min(jax.tree.leaves(moved)) > 1e-3


def test_the_average_is_the_formula():
    """e <- d e + (1 - d) p with d = min(decay, (1 + t) / (10 + t)), once an update, from the initial parameters."""
    few = trainer(ACCUMULATING, "one")
    state = few.start()
    expected = host(state).params
    chex.assert_trees_all_equal(host(state).ema, expected)
    for t, decay in enumerate([1 / 10, 0.15, 0.15]):
        state, _ = few.run(state, [toy_batch(seed) for seed in range(3 * t, 3 * t + 3)])
        expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, expected, host(state).params)
        chex.assert_trees_all_close(host(state).ema, expected, atol=1e-6)


def test_a_state_has_buffers_of_its_own():
    """Made outside of jit, too: the average is no second name for the parameters, which a step consumes."""
    params = {"w": jnp.ones(3)}
    state = new_state(params, optax.sgd(0.1, momentum=0.9), jax.random.key(0), Optimizer(ema=0.9, accumulate=2))
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state._replace(key=None))]
    assert len(set(pointers)) == len(pointers)
    bare = new_state(params, optax.sgd(0.1), jax.random.key(0))
    assert bare.ema is None
    assert bare.accumulated is None


@pytest.mark.parametrize(("place", "accumulate"), [("one", 1), ("one", 3), ("pmap", 1), ("pmap", 3), ("mesh", 3)])
def test_a_batch_that_is_not_finite_changes_nothing(place, accumulate):
    """Not one bit, in mid-accumulation too, where one device of many sees it, by loss or by gradient; all else goes on."""
    few = trainer(EVERYTHING if accumulate == 1 else ACCUMULATING, place)
    good = [toy_batch(seed) for seed in range(4)]
    state, metrics = few.run(few.start(), good[:2])
    assert all(np.isfinite(x) for x in divide(metrics).values())
    before = learned(state)
    for i, poison in enumerate((NO_LOSS, NO_GRADIENT), start=1):
        state, metrics = few.run(state, [toy_batch(9, poison)])
        chex.assert_trees_all_equal(learned(state), before)
        assert host(state).skipped == Skipped(i, i)
        assert int(state.step) == 2 + i
        assert {name: tuple(map(float, metric)) for name, metric in metrics.items()} == {
            **dict.fromkeys(("loss", "nll", "accuracy", "gradient_norm"), (0, 0)),
            "skipped": (1, 1),
        }
    state, metrics = few.run(state, good[2:])
    assert host(state).skipped == Skipped(2, 0)
    assert tuple(map(float, metrics["skipped"])) == (0, 1)
    never, _ = few.run(few.start(), good)
    chex.assert_trees_all_equal(learned(state), learned(never))


def test_the_poison_is_what_it_is_called():
    """A finite loss without a gradient, and no loss at all: else the test above would test one thing twice."""
    params = toy_start(EVERYTHING)[1].params

    @jax.jit
    def loss_and_norm(batch):
        loss = lambda p: token_metrics(TOY.apply({"params": p}, batch.source, batch.target).logits, batch.target)["loss"].sum  # noqa: E731
        value, grads = jax.value_and_grad(loss)(params)
        return value, optax.tree.norm(grads)

    finite = [np.isfinite(loss_and_norm(toy_batch(9, poison))).tolist() for poison in (None, NO_LOSS, NO_GRADIENT)]
    assert finite == [[True, True], [False, False], [True, False]]


@pytest.mark.parametrize("place", ["pmap", "mesh"])
def test_many_devices_accumulate_average_and_chunk_like_one(place):
    one, many = trainer(ACCUMULATING, "one"), trainer(ACCUMULATING, place)
    batches = [toy_batch(seed) for seed in range(5)]
    state, start = many.start(), many.start()
    shared, shared_metrics = many.run(state, batches)
    expected, metrics = one.run(one.start(), batches)
    for name in ("params", "ema", "accumulated"):
        chex.assert_trees_all_close(getattr(host(shared), name), getattr(host(expected), name), atol=2e-6)
    chex.assert_trees_all_close(divide(shared_metrics), divide(metrics), rtol=1e-5)
    same = jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim), shared, start)
    assert all(jax.tree.leaves(same)), "a step moved the state to other places"
    if place == "mesh":
        for tree in (shared.ema, shared.accumulated.grads):
            assert tree["output"]["kernel"].sharding == shared.params["output"]["kernel"].sharding
            assert not tree["output"]["kernel"].sharding.is_fully_replicated


@functools.cache
def real():
    """(model without dropout, parameters, batch) of one of the zoo's; the contract's tests hold the others to it."""
    config = dataclasses.replace(CONFIGS["transformer"], dropout=0.0)
    model = config.build()
    source, target = config.example(6, 7, 13)
    return model, jax.jit(model.init)(jax.random.key(0), source, target)["params"], Batch(source, target, np.arange(6))


def update_of(model, params, batch, compute: Compute):
    """(minus the gradient of the mean loss, metrics) of one step."""
    tx = optax.sgd(1.0)

    @jax.jit
    def step(params):
        state, metrics = make_train_step(model, tx, 0.1, compute=compute)(new_state(params, tx, jax.random.key(0)), batch)
        return jax.tree.map(lambda x, y: x - y, state.params, params), metrics

    return step(params)


@functools.cache
def update_of_real(compute: Compute):
    return update_of(*real(), compute)


def relative(x, y) -> float:
    return float(optax.tree.norm(jax.tree.map(lambda a, b: a - b, x, y)) / optax.tree.norm(y))


def test_bfloat16_keeps_masters_metrics_and_gradients_in_float32():
    half, metrics = update_of_real(Compute("bfloat16"))
    full, exact = update_of_real(Compute())
    chex.assert_type([*jax.tree.leaves(half), *jax.tree.leaves(metrics)], jnp.float32)
    assert divide(metrics)["loss"] == pytest.approx(divide(exact)["loss"], rel=2**-7)
    assert float(metrics["loss"].sum) != float(exact["loss"].sum), "bfloat16 was not used"
    assert 0 < relative(half, full) < 0.05


def test_bfloat16_is_what_the_products_take():
    """The encoder's, the decoder's and the vocabulary's; the scores of attention alone come out in float32."""
    model, params, batch = real()
    program = str(jax.make_jaxpr(make_eval_step(model, Compute("bfloat16")))(params, batch))
    products = re.findall(r"\w+:(\w+)\[[^]]*\] = dot_general\[.*?\] (\w+) (\w+)\n", program, re.DOTALL)
    kinds = dict(re.findall(r"(\w+):(\w+)\[", program))
    assert len(products) > 10
    assert {kinds[name] for _, *operands in products for name in operands} == {"bf16"}


def test_bfloat16_learns():
    """By steps that bfloat16 parameters would not feel: their loss would stay where it is."""
    batch = toy_batch(0)
    optimizer = Optimizer(learning_rate=3e-4, ema=0.9)
    tx, state = toy_start(optimizer)
    step = make_train_step(TOY, tx, 0.0, optimizer, Compute("bfloat16", logits_chunk=4))
    state = state._replace(key=jax.random.wrap_key_data(state.key))
    state, metrics = jax.jit(lambda state: jax.lax.scan(lambda state, _: step(state, batch), state, length=400))(state)
    loss = np.asarray(metrics["loss"].sum / metrics["loss"].count)
    assert loss[-1] < 0.9 * loss[0]
    chex.assert_type([*jax.tree.leaves(state.params), *jax.tree.leaves(state.ema)], jnp.float32)


def test_chunks_of_logits_change_no_number():
    chunked, whole = (update_of_real(Compute(logits_chunk=chunk)) for chunk in (5, 0))
    chex.assert_trees_all_close(chunked, whole, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("chunk", "length"), [(1, 7), (4, 7), (50, 7), (4, 1), (4, 0)])
def test_any_chunk_of_any_length(chunk, length):
    rng = np.random.default_rng(0)
    hidden, kernel = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, length, 4), (4, 9)))
    target = Tokens(rng.integers(1, 9, (3, length)).astype(np.int32), rng.random((3, length)) < 0.7)

    @jax.jit
    def both(hidden, kernel):
        chunked = lambda h, k: chunked_token_metrics(lambda x: x @ k, h, target, chunk, 0.1)  # noqa: E731
        whole = lambda h, k: token_metrics(h @ k, target, 0.1)  # noqa: E731
        loss = lambda f: jax.grad(lambda h, k: f(h, k)["loss"].sum, (0, 1))(hidden, kernel)  # noqa: E731
        return [(f(hidden, kernel), loss(f)) for f in (chunked, whole)]

    chex.assert_trees_all_close(*both(hidden, kernel), atol=1e-6, rtol=1e-6)


def test_chunks_add_their_gradients_in_float32():
    """512 chunks of one position: a sum in bfloat16 is off by a tenth."""
    batch = Batch(*TOY.config.example(2, 5, 512), None)
    params = jax.jit(TOY.init)(jax.random.key(0), batch.source, batch.target)["params"]
    chunked, exact = (update_of(TOY, params, batch, c)[0] for c in (Compute("bfloat16", logits_chunk=1), Compute()))
    assert relative(chunked["output"], exact["output"]) < 0.01


def test_the_logits_of_all_positions_never_exist():
    """Read off the compiled step: no buffer of B x T x V numbers, and the memory of the chunks alone."""
    B, T, V = 4, 64, 1000
    model = ToyConfig(32, V).build()
    batch = Batch(*model.config.example(B, 5, T), None)
    tx = optax.sgd(0.1)
    state = jax.eval_shape(lambda: init_state(model, tx, model.config.example(), jax.random.key(0)))

    def compiled(chunk: int) -> tuple[int, int]:
        """The numbers of the largest buffer that a step on V words names, and the bytes of its temporary ones."""
        step = jax.jit(make_train_step(model, tx, 0.1, compute=Compute(logits_chunk=chunk)), donate_argnums=0)
        program = step.lower(state, batch).compile()
        shapes = re.findall(r"\w+\[([\d,]+)\]", program.as_text())
        return max(np.prod([int(n) for n in s.split(",")]) for s in shapes), program.memory_analysis().temp_size_in_bytes

    (largest, memory), (chunk_largest, chunk_memory) = compiled(0), compiled(8)
    assert largest >= B * T * V, "the test cannot see them"
    assert chunk_largest <= B * T * V // 8
    assert chunk_memory < memory / 3


def test_evaluation_takes_the_precision_and_the_chunks_too():
    params, batch = toy_start(EVERYTHING)[1].params, toy_batch(0)
    exact, chunked, half = (
        divide(jax.jit(make_eval_step(TOY, compute))(params, batch))
        for compute in (Compute(), Compute(logits_chunk=4), Compute("bfloat16", logits_chunk=4))
    )
    chex.assert_trees_all_close(chunked, exact, rtol=1e-6)
    assert half["nll"] == pytest.approx(exact["nll"], rel=2**-7)
    assert half["nll"] != exact["nll"]


def test_labels_of_padding_are_not_read():
    target = pad_tokens([[4, 3, 2], [1], []], 3)
    garbage = Tokens(np.where(target.mask, target.ids, [-7, 10**6, -1]).astype(np.int32), target.mask)
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3, 5)), jnp.float32)
    loss = jax.jit(jax.value_and_grad(lambda x, target: token_metrics(x, target, 0.1)["loss"].sum))
    chex.assert_trees_all_equal(loss(logits, garbage), loss(logits, target))


def products(f, *shapes) -> int:
    return count(jax.make_jaxpr(f)(*(jnp.zeros(shape) for shape in shapes)).jaxpr)


def test_flops_of_the_transformer_are_the_closed_form():
    """6 N D, by the parameters N of its products and the tokens D, and 12 times layers x length x width for its attention."""
    c = dataclasses.replace(transformer.PRESETS["tiny"], num_layers=3)
    B, S, T, D, F, L, V = 4, 7, 5, c.d_model, c.d_ff, c.num_layers, c.target_vocab_size
    attention, feed_forward = 4 * D * D, 2 * D * F
    encoder = B * S * L * (attention + feed_forward + 2 * D * D)  # and the keys and values that the decoder looks at
    decoder = B * T * (L * (attention + 2 * D * D + feed_forward) + D * V)
    looking = 2 * D * L * B * (S * S + T * T + T * S)
    flops = training_flops(c.build())
    assert flops(*c.example(B, S, T)) == 3 * 2 * (encoder + decoder + looking)
    assert flops(*jax.eval_shape(lambda: jax.tree.map(jnp.asarray, c.example(2 * B, S, T)))) == 6 * 2 * (
        encoder + decoder + looking
    )


def test_flops_of_an_lstm_are_those_of_its_gates():
    """4 D (E + D) products a step and layer, the scan's body once for each."""
    c = CONFIGS["sutskever"]
    B, S, T, E, D = 3, 7, 5, c.embed_dim, c.hidden_dim
    expected = 3 * 2 * B * ((S + T) * 4 * D * (E + D) + T * D * c.target_vocab_size)
    assert training_flops(c.build())(*c.example(B, S, T)) == expected


def test_a_loop_counts_like_its_turns():
    def scanned(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=6)[0]

    def unrolled(x, w):
        for _ in range(6):
            x = jnp.tanh(x @ w)
        return x

    shapes = (3, 4), (4, 4)
    assert products(scanned, *shapes) == products(unrolled, *shapes) == 6 * 2 * 3 * 4 * 4
    assert products(jax.checkpoint(scanned), *shapes) == products(jax.jit(scanned), *shapes) == 6 * 2 * 3 * 4 * 4


def test_convolutions_branches_and_unknown_loops():
    image, kernel = (2, 10, 10, 4), (3, 3, 2, 6)  # two groups of two channels each
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=2,
    )
    assert products(convolve, image, kernel) == 2 * (2 * 8 * 8 * 6) * (3 * 3 * 2)
    either = lambda x: jax.lax.cond(x.sum() > 0, lambda: x @ x @ x, lambda: x @ x)  # noqa: E731
    assert products(either, (3, 3)) == 2 * 2 * 27
    assert products(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x) @ x, (3, 3)) == 2 * 27
    with pytest.raises(ValueError, match="while loop"):
        products(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x), (3, 3))


def test_utilisation_is_a_share_of_what_the_devices_could_do():
    device = lambda kind: SimpleNamespace(device_kind=kind)  # noqa: E731
    h100 = device("NVIDIA H100 80GB HBM3")
    assert utilisation(989.5e12, 2.0, [h100] * 4, "bfloat16") == pytest.approx(1 / 8)
    assert utilisation(1.0, 1.0, [h100, device("a toaster")], "bfloat16") is None
    assert peak_flops("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16") is None
    assert all(0 < peak.float32 <= peak.bfloat16 for peak in PEAKS.values())
    assert peak_flops(jax.devices()[0].device_kind, "float32") is None
