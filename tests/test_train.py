"""The parts of the trainer: metrics, optimizers, schedules, the step, tasks."""

from __future__ import annotations

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train import optim, parallel, tasks
from train.data import Batch
from train.metrics import Metric, add, divide, token_metrics
from train.optim import Optimizer, by_rules, learning_rate
from train.parallel import Parallel
from train.step import make_train_step, new_state
from zoo import rnn, transformer
from zoo.core import Tokens, UserError, pad_tokens
from zoo.variants import abstract_params

PARAMS = {"encoder": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}, "output": {"kernel": jnp.full((4, 2), 2.0)}}
GRADS = jax.tree.map(lambda x: 0.1 * jnp.ones_like(x), PARAMS)


def updated(optimizer: Optimizer, steps: int = 1, grads=GRADS):
    tx = optim.make(optimizer, PARAMS, steps=10)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_adam_is_adam():
    params, _ = updated(Optimizer("adam", learning_rate=0.1, clip=0.0), steps=3)
    tx = optax.adam(0.1)
    expected, state = PARAMS, tx.init(PARAMS)
    for _ in range(3):
        updates, state = tx.update(GRADS, state)
        expected = optax.apply_updates(expected, updates)
    chex.assert_trees_all_close(params, expected, atol=1e-6)


def test_sgd_momentum_and_decay_are_the_formula():
    optimizer = Optimizer("sgd", learning_rate=0.5, b1=0.9, clip=0.0, weight_decay=0.2)
    params, _ = updated(optimizer, steps=2)
    for name, decay in (("kernel", 0.2), ("bias", 0.0)):
        x, m = 1.0, 0.0
        for _ in range(2):
            m = 0.9 * m + 0.1
            x -= 0.5 * (m + decay * x)
        chex.assert_trees_all_close(params["encoder"][name], jnp.full_like(PARAMS["encoder"][name], x), atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw", "adafactor", "sgd"])
def test_each_optimizer_goes_downhill(name):
    target = jax.tree.map(lambda x: x - 0.3, PARAMS)
    loss = lambda p: sum(((x - y) ** 2).sum() for x, y in zip(*map(jax.tree.leaves, (p, target)), strict=True))  # noqa: E731
    tx = optim.make(Optimizer(name, learning_rate=0.02), PARAMS, steps=10)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(30):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    assert loss(params) < 0.5 * loss(PARAMS)


def test_frozen_parameters_stay_and_have_no_state():
    big = {**GRADS, "output": {"kernel": jnp.full((4, 2), 1e6)}}
    optimizer = Optimizer(learning_rate=0.1, clip=1.0, rate_rules=((r"output/.*", 0.0), (r".*bias", 0.5), (r".*", 1.0)))
    params, state = updated(optimizer, grads=big)
    chex.assert_trees_all_equal(params["output"], PARAMS["output"])
    moved = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), params["encoder"], PARAMS["encoder"])
    assert moved["bias"] == pytest.approx(0.05, rel=1e-3)  # half the rate
    assert moved["kernel"] == pytest.approx(0.1, rel=1e-3)  # and the frozen gradient did not count in the norm
    assert not any(leaf.shape == (4, 2) for leaf in jax.tree.leaves(state))


def test_clipping_bounds_the_global_norm():
    params, _ = updated(Optimizer("sgd", learning_rate=1.0, clip=0.01))
    step = jax.tree.map(lambda x, y: x - y, params, PARAMS)
    assert optax.tree.norm(step) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((("encoder/.*", 1.0),), "says nothing of the parameter output/kernel"),
        ((("encoder/.*", 1.0), ("decodr/.*", 0.0), (".*", 1.0)), "'decodr/.*', which matches no parameter"),
        ((("(", 1.0),), "not a regular expression"),
    ],
)
def test_rules_that_cannot_work_are_named(rules, message):
    with pytest.raises(UserError, match="field_name") as error:
        by_rules(PARAMS, rules, "field_name")
    assert message in str(error.value)


def test_the_first_rule_wins():
    values = by_rules(PARAMS, ((".*/bias", 0.0), ("encoder/.*", 2.0), (".*", 1.0)), "field")
    assert values == {"encoder": {"kernel": 2.0, "bias": 0.0}, "output": {"kernel": 1.0}}


def test_schedules():
    rate = lambda step, **kw: float(learning_rate(Optimizer(learning_rate=2.0, warmup_steps=10, **kw), 100)(step - 1))  # noqa: E731
    for schedule in ("constant", "inverse_sqrt", "cosine"):
        assert rate(5, schedule=schedule) == pytest.approx(1.0)
        assert rate(10, schedule=schedule) == pytest.approx(2.0)
    assert rate(90, schedule="constant") == pytest.approx(2.0)
    assert rate(40, schedule="inverse_sqrt") == pytest.approx(1.0)
    assert rate(56, schedule="cosine") == pytest.approx(1.0, rel=0.01)
    assert rate(101, schedule="cosine") == pytest.approx(0.0, abs=1e-6)
    d = 512  # Vaswani et al. 2017, equation 3: lrate = d^-0.5 min(step^-0.5, step warmup^-1.5)
    peak = d**-0.5 * 4000**-0.5
    published = learning_rate(Optimizer(learning_rate=peak, schedule="inverse_sqrt", warmup_steps=4000), 10**5)
    for step in (1, 100, 4000, 50_000):
        assert float(published(step - 1)) == pytest.approx(d**-0.5 * min(step**-0.5, step * 4000**-1.5), rel=1e-5)


def test_cross_entropy_and_label_smoothing_are_the_definition():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 3, 5)).astype(np.float32)
    target = pad_tokens([[4, 3, 2], [1]], 3)
    values = divide(jax.jit(token_metrics, static_argnums=2)(logits, target, 0.1))
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll, smooth = [], []
    for row, column in zip(*np.nonzero(target.mask), strict=True):
        p, truth = log_probs[row, column], target.ids[row, column]
        q = np.array([0.0, *[0.1 / 4] * 4])
        q[truth] += 0.9
        nll.append(-p[truth])
        smooth.append(-(q * p).sum())
    assert values["nll"] == pytest.approx(np.mean(nll), rel=1e-5)
    assert values["loss"] == pytest.approx(np.mean(smooth), rel=1e-5)


def test_padding_has_no_gradient_and_bf16_logits_are_summed_in_float32():
    target = pad_tokens([[4, 3, 2], [1]], 3)
    gradient = jax.grad(lambda x: token_metrics(x, target)["loss"].sum)(jnp.zeros((2, 3, 5)))
    assert not np.asarray(gradient)[~target.mask].any()
    assert token_metrics(jnp.zeros((2, 3, 5), jnp.bfloat16), target)["loss"].sum.dtype == jnp.float32


@given(st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=6), min_size=1, max_size=5))
def test_metrics_are_divided_once(batches):
    total: dict = {}
    for batch in batches:
        total = add(total, {"x": Metric(sum(batch), len(batch))})
    flat = [x for batch in batches for x in batch]
    assert divide(total)["x"] == pytest.approx(sum(flat) / len(flat), abs=1e-9)


def test_a_metric_that_counted_nothing_is_nan():
    assert math.isnan(divide({"x": Metric(0.0, 0)})["x"])


def test_pronunciation_is_scored_against_any_reference():
    found = tasks.pronunciation(["A B C", "A", ""], [["A C", "A B D C"], ["B", "A"], ["A B"]])
    # Nearest: one edit of 4 phones ("A B D C", a quarter) rather than one of 2; no edit; two of two.
    assert found == {"per": pytest.approx(100 * 3 / 7), "wer": pytest.approx(100 * 2 / 3)}


def test_text_and_translation_scores():
    assert tasks.text(["abc", "x"], [["abd"], ["x", "y"]]) == {"cer": 25.0, "error": 50.0}
    perfect = tasks.translation(["the cat sat on the mat"], [["a dog", "the cat sat on the mat"]])
    assert perfect["bleu"] == pytest.approx(100)
    assert perfect["chrf"] == pytest.approx(100)
    assert tasks.translation(["no word in common here"], [["the cat sat on a mat"]])["bleu"] < 10


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Parallel(devices=9), "parallel.devices is 9"),
        (Parallel(fsdp=2), 'set parallel.kind to "mesh"'),
        (Parallel("mesh", fsdp=3), "does not divide 8 devices"),
    ],
)
def test_impossible_devices_are_named(kind, message):
    with pytest.raises(UserError, match=message):
        parallel.make(kind)


def test_optimizer_moments_are_sharded_like_their_parameters():
    config = transformer.PRESETS["tiny"]
    mesh = parallel.make(Parallel("mesh", fsdp=2, model=2), transformer.Transformer.SHARDING)
    params = abstract_params(config)
    tx = optim.make(Optimizer("adamw", weight_decay=0.1), params, 10)
    abstract = mesh.abstract(lambda: new_state(jax.tree.map(lambda x: jnp.zeros(x.shape), params), tx, jax.random.key(0)))
    kernel = abstract.params["encoder_0"]["feed_forward"]["inner"]["kernel"].sharding
    assert not kernel.is_fully_replicated
    moments = [
        leaf.sharding
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract.opt_state)
        if "['encoder_0']['feed_forward']['inner']['kernel']" in jax.tree_util.keystr(path)
    ]
    assert moments == [kernel, kernel]


def test_dropout_differs_between_steps_and_devices():
    """The key is folded with the step and the device: the same row on 8 devices does not lose the same units 8 times."""
    config = dataclasses.replace(rnn.PRESETS["elman-tiny"], dropout=0.5)
    model, tx = config.build(), optax.sgd(0.0)
    source, target = config.example(1)
    params = jax.jit(model.init)(jax.random.key(0), source, target)["params"]

    def losses(devices, steps):
        many = parallel.make(Parallel(devices=devices))
        step = many.compile_train(make_train_step(model, tx))
        state = many.init(lambda: new_state(params, tx, jax.random.key(1)))
        batch = many.put(jax.tree.map(lambda x: np.repeat(x, devices, axis=0), Batch(source, target, np.zeros(1))))
        found = []
        for _ in range(steps):
            state, metrics = step(state, batch)
            found.append(divide(jax.device_get(metrics))["loss"])
        return found

    first, second = losses(1, 2)
    assert first != second
    assert losses(1, 1) == [first]
    assert abs(losses(8, 1)[0] - first) > 1e-5


def test_an_empty_batch_changes_nothing():
    """All rows padding: the count is zero, the update too."""
    config = rnn.PRESETS["elman-tiny"]
    model = config.build()
    source, target = config.example(2)
    params = jax.jit(model.init)(jax.random.key(0), source, target)["params"]
    tx = optax.sgd(1.0)
    empty = Tokens(target.ids, np.zeros_like(target.mask))
    batch = (Tokens(source.ids, np.zeros_like(source.mask)), empty)

    @jax.jit
    def step(params):
        return make_train_step(model, tx)(new_state(params, tx, jax.random.key(0)), Batch(*batch, None))

    state, _ = step(params)
    chex.assert_trees_all_equal(state.params, params)
