"""Fine-tuning: runs that start from a published model's directory, adapters, rates by layer, and what comes out of them."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
from hypothesis import given
from hypothesis import strategies as st
from test_step import TOY, toy_batch

import zoo
from train import classify, optim, parallel, start, tasks
from train.__main__ import main as train
from train.data import Example, Files, Tokenized, eval_batches
from train.experiment import Experiment, check
from train.lora import Lora
from train.metrics import divide, token_metrics
from train.optim import Optimizer, layer_rules, rates
from train.parallel import Parallel
from train.step import make_train_step, model_params, new_state
from zoo import bert, marian
from zoo.__main__ import main as use
from zoo.checkpoint import adapters, orbax
from zoo.checkpoint.directory import load_average
from zoo.checkpoint.tensors import Tensors
from zoo.core import Tokens, flatten_params
from zoo.labels import Labels
from zoo.variants import abstract_params

pytestmark = pytest.mark.xdist_group("finetune")  # one worker: the runs that most tests share are made once

HERE = Path(__file__).parent
GOLDEN = HERE / "golden" / "marian"
CONFIG = str(HERE.parent / "configs" / "marian_finetune.py")
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "today", "it", "is", "fine"]
TINY = [
    *("--batching.tokens", "256", "--batching.max-source-len", "16", "--batching.max-target-len", "16"),
    *("--batching.buckets", "1", "--decoding.beams", "1", "--decoding.max-len", "8", "--training.eval-examples", "4"),
    *("--training.label-smoothing", "0", "--training.trace", "--training.log-every", "1", "--training.samples", "0"),
    *("--training.eval-every", "2", "--parallel.devices", "2", "--model.dropout", "0", "--optimizer.learning-rate", "1e-2"),
    *("--optimizer.warmup-steps", "0", "--optimizer.schedule", "constant"),
]
FROZEN = ["--optimizer.rate-rules", "encoder_0/.*", "0", ".*", "1", "--optimizer.layer-decay", "0.5", "--optimizer.ema", "0.9"]
LORA = ["--lora.rank", "2", "--lora.alpha", "8"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    rows = [rng.choice(WORDS, rng.integers(1, 4)) for _ in range(80)]
    path = tmp_path_factory.mktemp("data") / "pairs.tsv"
    path.write_text("".join(f"{' '.join(row)}\t{' '.join(row[::-1])}\n" for row in rows), encoding="utf-8")
    return path


def command(directory: Path, pairs: Path, workdir: Path, steps: int, *more: str) -> list[str]:
    paths = ["--workdir", str(workdir), "--init-from", str(directory), "--data.train", str(pairs)]
    return [CONFIG, *paths, "--training.steps", str(steps), *TINY, *more]


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A copy of the golden directory, which one test removes when a run has started from it."""
    return shutil.copytree(GOLDEN, tmp_path_factory.mktemp("published") / "marian")


@pytest.fixture(scope="module")
def workdir(published, pairs, tmp_path_factory) -> Path:
    """Four steps in one go, of which some parameters are frozen."""
    path = tmp_path_factory.mktemp("run") / "whole"
    assert train(command(published, pairs, path, 4, *FROZEN)) == 0
    return path


@pytest.fixture(scope="module")
def adapted(pairs, tmp_path_factory) -> Path:
    """Two steps of adapters."""
    path = tmp_path_factory.mktemp("run") / "adapted"
    assert train(command(GOLDEN, pairs, path, 2, *LORA, "--optimizer.ema", "0.9")) == 0
    return path


@pytest.fixture(scope="module")
def pretrained() -> zoo.Predictor:
    return zoo.load(GOLDEN)


def trace(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in (path / "trace.jsonl").read_text().splitlines()]
    return [{**line, "loss": float.fromhex(line["loss"])} for line in lines]


def read(workdir: Path, step: int, item: str, template) -> dict:
    """An item of a checkpoint: path -> array."""
    path = workdir / "checkpoints" / str(step) / item
    return flatten_params(orbax.read_tree(path, orbax.on_one_device(template)))


def test_the_first_loss_is_that_of_the_model_as_it_was_published(workdir, adapted, pretrained, pairs):
    """By another way through its files, tokenizers and special ids; with adapters too, which begin as nothing."""
    data, first = Files(train=str(pairs)).load("train"), trace(workdir)[0]
    chosen = [data[i] for i in first["example_ids"]]
    targets = [example.target for example in chosen]
    count = sum(map(len, pretrained.target_tokenizer.encode_batch(targets)))
    wanted = -sum(pretrained.score([example.source for example in chosen], targets)) / count
    for path in (workdir, adapted):
        assert trace(path)[0]["example_ids"] == first["example_ids"]
        assert trace(path)[0]["loss"] == pytest.approx(wanted, abs=1e-5)
    assert trace(workdir)[3]["loss"] != pytest.approx(wanted, abs=0.05)


def test_frozen_parameters_stay_to_the_bit_and_have_no_state(workdir, pretrained):
    published = flatten_params(pretrained.params)
    for item in ("params", "ema"):
        for path, x in read(workdir, 4, item, pretrained.params).items():
            assert np.array_equal(x, published[path]) == path.startswith("encoder_0/"), path
    names = orbax.item_metadata(workdir / "checkpoints" / "4" / "optimizer")
    assert any("encoder_1/" in name for name in names)
    assert not any("encoder_0/" in name for name in names)


def test_a_run_goes_on_without_what_it_started_from(workdir, published, pairs, pretrained, tmp_path, capsys):
    """From the second step, with the directory gone: to the bit the run of four in one go."""
    path = shutil.copytree(workdir, tmp_path / "resumed")
    shutil.rmtree(path / "checkpoints" / "4")
    shutil.rmtree(published)
    assert train(command(published, pairs, path, 4, *FROZEN)) == 0
    assert "continuing at step 2 of 4" in capsys.readouterr().out
    assert trace(path) == trace(workdir)
    for item in ("params", "ema"):
        chex.assert_trees_all_equal(*(read(run, 4, item, pretrained.params) for run in (path, workdir)))


def test_what_was_typed_is_followed_and_the_rest_is_the_models(workdir, pretrained):
    tuned, ours = zoo.load(workdir), pretrained.decoding
    assert (ours.beams, ours.suppress) == (4, ours.suppress)
    assert tuned.decoding == dataclasses.replace(ours, beams=1, max_len=8)
    assert tuned.model.config == dataclasses.replace(pretrained.model.config, dropout=0.0)
    assert tuned.origin == pretrained.origin
    assert tuned.source_tokenizer.to_json() == pretrained.source_tokenizer.to_json()


@pytest.mark.parametrize("kind", ["workdir", "adapted"])
def test_export_gives_the_published_names_and_predicts_the_same(kind, request, tmp_path, capsys):
    path, texts = request.getfixturevalue(kind), ["the quick fox", "it is fine", "a"]
    assert use(["export", str(path), str(tmp_path / "out"), "--format", "huggingface"]) == 0
    capsys.readouterr()
    again, tuned = zoo.load(tmp_path / "out"), zoo.load(path)
    chex.assert_trees_all_equal(again.params, tuned.params)
    assert again.predict(texts) == tuned.predict(texts)
    assert use(["predict", str(path), *texts]) == 0
    assert capsys.readouterr().out.splitlines() == again.predict(texts)
    ours, theirs = Tensors.open(tmp_path / "out"), Tensors.open(GOLDEN)
    assert {name: (x.shape, x.dtype) for name, x in ours.items()} == {name: (x.shape, x.dtype) for name, x in theirs.items()}
    changed = {name for name in ours if not np.array_equal(ours[name], theirs[name])}
    if kind == "adapted":
        adapted = {f"{name}.weight" for name in ("q_proj", "v_proj")}
        assert changed == {name for name in ours if any(name.endswith(end) for end in adapted)}
    else:
        assert not any(name.startswith("model.encoder.layers.0") for name in changed)
    files = {file.name for file in GOLDEN.iterdir()} - {"golden.npz"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == files
    for name in ("source.spm", "target.spm", "vocab.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (GOLDEN / name).read_bytes()


def test_a_checkpoint_of_adapters_holds_all_that_is_needed(adapted, pretrained):
    """The model, the adapters and their average; what is loaded is merged by hand here."""
    described = json.loads((adapted / "checkpoints" / "2" / "model" / "metadata").read_text())["lora"]
    assert described == {"targets": Lora(rank=2).paths(pretrained.params), "rank": 2, "alpha": 8.0}
    base = flatten_params(pretrained.params)
    chex.assert_trees_all_equal(read(adapted, 2, "base", pretrained.params), base)
    shapes = Lora(rank=2).shapes(pretrained.params)
    ema, last = (read(adapted, 2, item, shapes) for item in ("ema", "params"))
    assert not np.array_equal(ema["encoder_0/attention/query/kernel/lora_b"], 0)
    for trained, loaded in ((ema, zoo.load(adapted)), (last, load_average(adapted, 1))):
        found = flatten_params(loaded.params)
        for path, x in base.items():
            change = trained[f"{path}/lora_a"] @ trained[f"{path}/lora_b"] * 4 if path in described["targets"] else 0
            np.testing.assert_allclose(found[path], x + change, atol=1e-6)


PLACES = {"one": None, "pmap": Parallel(), "mesh": Parallel("mesh", fsdp=2, model=2)}
ADAPTERS = Lora(rank=3, alpha=6.0, targets=r"output/kernel|.*embedding")


@functools.cache
def toy_steps(place: str):
    """Three steps of adapters on the toy: (the state before and after, the metrics of the first)."""
    optimizer = Optimizer(
        "adamw", 0.05, weight_decay=0.1, ema=0.5, accumulate=1, clip=1.0, rate_rules=((".*embedding", 0.5), (".*", 1.0))
    )
    params = jax.device_get(jax.jit(TOY.init)(jax.random.key(0), *TOY.config.example())["params"])
    tx = optim.make(optimizer, params, 3, ADAPTERS.shapes(params))
    step, first = make_train_step(TOY, tx, 0.1, optimizer, lora=ADAPTERS), None
    init = functools.partial(new_state, tx=tx, key=jax.random.key(1), optimizer=optimizer, lora=ADAPTERS)
    # Random bits may depend on the places that they are made for: all start from these values.
    values = jax.device_get(jax.jit(init)(params)._replace(key=None))
    if place == "one":
        put, state, step = (lambda x: x), jax.tree.map(jnp.asarray, values), jax.jit(step)
    else:
        many = parallel.make(PLACES[place], TOY.SHARDING)
        shardings = jax.tree.map(lambda x: x.sharding, many.abstract(functools.partial(init, params))._replace(key=None))
        put, state, step = many.put, jax.device_put(values, shardings), many.compile_train(step)
    state = state._replace(key=jax.random.key(1))
    for seed in range(3):
        state, metrics = step(state, put(toy_batch(seed)))
        first = first or jax.device_get(metrics)
    return values, jax.device_get(state._replace(key=None)), divide(first)


def test_only_adapters_learn_and_begin_as_nothing():
    before, after, metrics = toy_steps("one")
    chex.assert_trees_all_equal(after.base, before.base)
    batch = toy_batch(0)
    logits = TOY.apply({"params": before.base}, batch.source, batch.target).logits
    assert metrics["loss"] == pytest.approx(divide(token_metrics(logits, batch.target, 0.1))["loss"], abs=1e-6)
    targets = {"source_embedding/embedding", "target_embedding/embedding", "output/kernel"}
    assert set(flatten_params(after.params)) == {f"{path}/lora_{x}" for path in targets for x in "ab"}
    assert all(np.abs(x - y).max() > 1e-3 for x, y in zip(*map(jax.tree.leaves, (before.params, after.params)), strict=True))
    matrices = {leaf.shape for leaf in jax.tree.leaves(before.base)} - {leaf.shape for leaf in jax.tree.leaves(before.params)}
    assert not matrices & {leaf.shape for leaf in jax.tree.leaves((after.opt_state, after.ema))}
    merged, base = flatten_params(model_params(after.params, after.base, ADAPTERS)), flatten_params(after.base)
    trained = flatten_params(after.params)
    for path, x in base.items():
        change = 2 * trained[f"{path}/lora_a"] @ trained[f"{path}/lora_b"] if path in targets else 0
        np.testing.assert_allclose(merged[path], x + change, atol=1e-6)


@pytest.mark.parametrize("place", ["pmap", "mesh"])
def test_adapters_learn_the_same_on_many_devices(place):
    (_, wanted, first), (_, found, metrics) = toy_steps("one"), toy_steps(place)
    chex.assert_trees_all_close(found.params, wanted.params, atol=2e-6)
    chex.assert_trees_all_close(found.ema, wanted.ema, atol=2e-6)
    chex.assert_trees_all_equal(found.base, wanted.base)
    assert metrics["loss"] == pytest.approx(first["loss"], rel=1e-5)


def test_a_mesh_gets_its_parts_alone(pretrained):
    """Each device of a mesh its own part of the published parameters, in float32."""
    config = pretrained.model.config
    mesh = parallel.make(Parallel("mesh", fsdp=2, model=2), marian.SHARDING)
    experiment = Experiment(config, Files(), init_from=str(GOLDEN))
    params, new = start.params(experiment, config, mesh.mesh, lambda: pytest.fail("nothing is new"))
    kernel = params["encoder_0"]["feed_forward"]["inner"]["kernel"]
    assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // 4}
    assert new == []
    chex.assert_trees_all_equal(params, pretrained.params)
    state = mesh.init(functools.partial(new_state, tx=optax.adam(1e-3), key=jax.random.key(0)), params)
    assert state.params["encoder_0"]["feed_forward"]["inner"]["kernel"].sharding.is_equivalent_to(kernel.sharding, 2)
    chex.assert_trees_all_equal(state.params, pretrained.params)


def test_rates_fall_from_layer_to_layer():
    params = abstract_params(marian.PRESETS["tiny"])
    optimizer = Optimizer(layer_decay=0.5, rate_rules=((r".*/bias", 0.0), (r".*", 3.0)))
    found = flatten_params(rates(optimizer, params))
    kernel = "attention/query/kernel"
    for stack in ("encoder", "decoder"):
        assert (found[f"{stack}_0/{kernel}"], found[f"{stack}_1/{kernel}"]) == (1.5, 3.0)
    assert found["embedding/embedding"] == 0.75
    assert found["output_bias"] == 3.0
    assert found["encoder_1/attention/query/bias"] == 0
    lora = Lora(rank=2)
    adapters = lora.shapes(params)
    assert flatten_params(optim.of_adapters(found, adapters))[f"encoder_0/{kernel}/lora_b"] == 1.5
    tx = optim.make(dataclasses.replace(optimizer, name="sgd", learning_rate=1.0, clip=0.0), params, 1, adapters)
    ones = jax.tree.map(lambda x: jnp.ones(x.shape), adapters)
    updates, _ = tx.update(ones, tx.init(ones), ones)
    moved = {path: float(x.max()) for path, x in flatten_params(updates).items()}
    assert (moved[f"encoder_0/{kernel}/lora_a"], moved[f"encoder_1/{kernel}/lora_a"]) == (-1.5, -3.0)
    with pytest.raises(zoo.UserError, match="no numbered layers"):
        layer_rules({"embedding": 0}, 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--init-from", "nowhere"], "there is no directory nowhere"),
        (["--init-from", str(HERE)], "holds no model"),
        (["--model.d-model", "48"], "has the shape .* but the experiment's model wants .*: leave the sizes of the model out"),
        (["--lora.rank", "-1"], "lora.rank is -1"),
        (["--lora.rank", "2", "--lora.targets", "querry"], "lora.targets is 'querry', which matches no matrix"),
        (["--lora.rank", "2", "--lora.targets", "("], "lora.targets has the rule '\\(', which is not a regular expression"),
        (["--optimizer.rate-rules", "encodr.*", "0", ".*", "1"], "rule 'encodr.*', which matches no parameter"),
        (["--optimizer.layer-decay", "2"], "optimizer.layer_decay is 2"),
    ],
)
def test_wrong_options_are_one_sentence(options, message, pairs, tmp_path, capsys):
    assert train(command(GOLDEN, pairs, tmp_path / "run", 2, *options)) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert said.count("\n") == 1


def test_a_model_of_another_variant_is_refused(pairs, tmp_path, capsys):
    (tmp_path / "elman").mkdir()
    runs.model_run(tmp_path / "elman")
    assert train(command(tmp_path / "elman", pairs, tmp_path / "run", 2)) == 2
    assert "holds a ElmanConfig, but the experiment's model is a MarianConfig" in capsys.readouterr().err


@pytest.mark.parametrize(
    "lora",
    [
        *("no", {}, {"targets": ["encoder_0/bias"], "rank": 1, "alpha": 1.0}, {"targets": [], "rank": 1, "alpha": 1.0}),
        *({"targets": [3], "rank": 1, "alpha": 1.0}, {"targets": ["output/kernel"], "rank": 2**40, "alpha": 1.0}),
        *({"targets": ["output/kernel"], "rank": True, "alpha": 1.0}, {"targets": ["output/kernel"], "rank": 1}),
    ],
)
def test_a_made_up_description_of_adapters_is_refused(lora):
    with pytest.raises(zoo.UserError, match=r"where|can have no adapter"):
        adapters.described(lora, {"output": {"kernel": jax.ShapeDtypeStruct((2, 3), np.float32)}}, "where")


def test_the_models_own_ids_are_used(pretrained):
    """A text that is cut keeps the model's end; smoothed labels leave out the model's padding, or nothing of labels."""
    examples = [Example("the quick brown fox jumps", "the quick brown fox jumps", ("",))]
    data = Tokenized(examples, pretrained.source_tokenizer, pretrained.target_tokenizer)
    for tokens in data.padded(np.array([0]), np.array([0]), (1, 3, 3)):
        assert tokens.mask.all()
        assert tokens.ids[0, -1] == pretrained.model.config.end_id == 0
    logits = np.log(np.array([[[0.5, 0.25, 0.125, 0.125]]], np.float32))
    target = Tokens(np.array([[1]]), np.array([[True]]))
    log = np.log(np.array([0.5, 0.25, 0.125, 0.125]))
    for pad_id, others in ((0, [1, 2, 3]), (3, [0, 1, 2]), (None, [0, 1, 2, 3])):
        wanted = -(0.9 * log[1] + 0.1 * np.mean(log[others]))
        assert divide(token_metrics(logits, target, 0.1, pad_id))["loss"] == pytest.approx(wanted, rel=1e-6)
    many = start.filled(Experiment(marian.MarianConfig(), Files(), init_from=str(GOLDEN.parent / "m2m_100")), Path("none"))
    assert many.decoding.first_id == zoo.load(GOLDEN.parent / "m2m_100").decoding.first_id > 0
    assert (many.model.end_id, many.model.pad_id, many.model.norm) == (2, 1, "pre")


def test_a_text_without_tokens_is_a_source():
    """A prompt may be empty: its length is known, and its example goes into a batch."""
    ids = {"": [], "a": [4, 2]}
    tokenizer = SimpleNamespace(vocab_size=9, encode_batch=lambda texts: [ids[text] for text in texts])
    data = Tokenized([Example("", "a", ("a",))], tokenizer, tokenizer)
    assert data.lengths(np.array([0])).tolist() == [[0, 2]]
    tokenizer.encode_batch = None  # it is not asked again
    assert data.lengths(np.array([0])).tolist() == [[0, 2]]
    batch = next(iter(eval_batches(data, [(1, 0, 2)])))
    assert (batch.source.ids.shape, batch.example_ids.tolist()) == ((1, 0), [0])


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> tuple[Path, Path]:
    """A classifier begun from a masked language model with no label of its own: (its run, its data)."""
    folder = tmp_path_factory.mktemp("labels")
    rows = [f"{' '.join(np.random.default_rng(i).choice(WORDS, 2))} {i}\t{['no', 'yes'][i % 3 == 0]}\n" for i in range(80)]
    (folder / "labels.tsv").write_text("".join(rows))
    config = str(HERE.parent / "configs" / "bert_classify.py")
    paths = ["--init-from", str(GOLDEN.parent / "bert_mlm"), "--data.train", str(folder / "labels.tsv")]
    sizes = ["--batching.tokens", "512", "--batching.max-source-len", "32", "--batching.buckets", "1", "--training.steps", "2"]
    rates = ["--optimizer.rate-rules", "encoder_0/.*", "0", ".*", "1", "--optimizer.warmup-steps", "0"]
    assert train([config, "--workdir", str(folder / "run"), *paths, *sizes, *rates, "--parallel.devices", "2"]) == 0
    return folder / "run", folder / "labels.tsv"


def test_a_new_head_tells_labels_and_is_scored(labelled, tmp_path, capsys):
    path, data = labelled
    tuned, published = zoo.load(path), flatten_params(zoo.load(GOLDEN.parent / "bert_mlm").params)
    for name, x in flatten_params(tuned.params).items():
        assert name.startswith(("classifier/", "pooler/")) == (name not in published)
        assert name not in published or np.array_equal(x, published[name]) == name.startswith("encoder_0/"), name
    test = Files(train=str(data)).load("test")
    found = tuned.predictions([example.source for example in test])
    assert list(found[0].probabilities) == ["no", "yes"]
    result = json.loads((path / "result.json").read_text())
    right = [example.target for example in test]
    assert result["test/accuracy"] == pytest.approx(np.mean([p.label == label for p, label in zip(found, right)]))
    scores = [p.probabilities["yes"] for p in found]
    assert result["test/auc"] == pytest.approx(brute_auc(scores, [label == "yes" for label in right]), nan_ok=True)
    counts = [[sum(a == t and p.label == b for p, t in zip(found, right)) for b in ("no", "yes")] for a in ("no", "yes")]
    assert result["test/confusion"] == {"labels": ["no", "yes"], "counts": counts}
    assert use(["export", str(path), str(tmp_path / "out"), "--format", "huggingface"]) == 0
    again = zoo.load(tmp_path / "out")
    assert again.predictions([example.source for example in test]) == found
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["architectures"], config["id2label"]) == (["BertForSequenceClassification"], {"0": "no", "1": "yes"})
    capsys.readouterr()
    assert use(["predict", str(path), "--json", "the fox"]) == 0
    assert set(json.loads(capsys.readouterr().out)["probabilities"]) == {"no", "yes"}


def test_labels_that_a_model_has_are_kept():
    known, examples = Labels(["b", "a", "c"]), [Example("x", "a", ("a",)), Example("y", "b", ("b",))]
    assert start.labels(known, examples) is known
    assert start.labels(known, [*examples, Example("z", "d", ("d",))]).names == ("a", "b", "d")
    assert start.labels(None, examples).names == ("a", "b")
    with pytest.raises(zoo.UserError, match="the label 'e', which is not one of a, b"):
        tasks.TASKS["classify"].score([SimpleNamespace(probabilities={"a": 0.5, "b": 0.5})], [("e",)])


def test_a_task_that_a_model_does_not_do_is_refused():
    for model, task in ((bert.BertConfig(head="classification", pooler=True), "text"), (marian.MarianConfig(), "classify")):
        with pytest.raises(zoo.UserError, match=f"task is '{task}', which the model does not do"):
            check(Experiment(model, Files(), init_from="somewhere", task=task))
    with pytest.raises(zoo.UserError, match="a label of each token"):
        check(Experiment(bert.BertConfig(head="token_classification"), Files(), task="classify"))


def brute_auc(scores, positive) -> float:
    pairs = [(p, n) for p, is_p in zip(scores, positive) if is_p for n, is_n in zip(scores, positive) if not is_n]
    return sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs) if pairs else math.nan


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.2, 0.7, 1.0]), st.booleans()), min_size=1, max_size=12))
def test_the_area_under_the_curve_is_the_count_of_pairs_in_order(rows):
    scores, positive = map(np.array, zip(*rows))
    assert classify.auc(scores, positive) == pytest.approx(brute_auc(scores, positive), nan_ok=True)


@given(st.integers(2, 4).flatmap(lambda c: st.lists(st.tuples(*[st.integers(0, c - 1)] * 2), min_size=1).map(lambda x: (c, x))))
def test_scores_of_labels_are_counted_by_hand(drawn):
    labels, rows = drawn
    predicted, truth = map(np.array, zip(*rows))
    found = classify.scores(np.eye(labels)[predicted], truth)
    assert found["accuracy"] == pytest.approx(np.mean(predicted == truth))
    f1 = []
    for label in range(labels):
        hits = sum(p == t == label for p, t in rows)
        precision, recall = hits / max(sum(predicted == label), 1), hits / max(sum(truth == label), 1)
        f1.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    assert found["macro_f1"] == pytest.approx(np.mean(f1))
    assert ("f1" in found) == (labels == 2)
    assert labels != 2 or found["f1"] == pytest.approx(f1[1])
    areas = [brute_auc(predicted == label, truth == label) for label in ([1] if labels == 2 else range(labels))]
    assert found["auc"] == pytest.approx(np.nanmean(areas) if not np.isnan(areas).all() else math.nan, nan_ok=True)
    matrix = classify.confusion(predicted, truth, labels)
    assert all(matrix[t, p] == rows.count((p, t)) for t in range(labels) for p in range(labels))
