"""Word vectors: the paper's loss and its gradient, the windows and the noise that are drawn, what a run learns, and files."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
import shlex
from collections import Counter
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

import zoo
from train import embeddings
from train.__main__ import main as train
from train.__main__ import read_config
from train.data import Batch, Batching, Files, Tokenized, WindowBatches, Windows
from train.data.windows import POWER, count, draw, keep, windows
from train.experiment import check
from train.metrics import noise_metrics
from train.step import Compute, teacher_forced
from zoo import vectors, word2vec
from zoo.__main__ import main as use
from zoo.checkpoint import vector_files
from zoo.core import SPECIAL_TOKENS, Tokens, UserError, flatten_params
from zoo.text import Tokenizer
from zoo.variants import abstract_params, variants

pytestmark = pytest.mark.xdist_group("word2vec")

ROOT = Path(__file__).parent.parent
CONFIG = str(ROOT / "configs" / "word2vec_text.py")
V, D, B, C, K = 12, 5, 4, 6, 3


# The loss.


def batch(predict: str, seed: int = 0) -> tuple[Tokens, Tokens]:
    """Windows with holes, one row without any, and noise that is sometimes the target."""
    rng = np.random.default_rng(seed)
    ids = lambda *shape: rng.integers(4, V, shape).astype(np.int32)  # noqa: E731
    mask_BC = rng.random((B, C)) < 0.6
    mask_BC[-1] = False
    centre, around = Tokens(ids(B, 1), mask_BC.any(axis=1, keepdims=True)), Tokens(ids(B, C), mask_BC)
    source, target = (centre, around) if predict == "neighbours" else (around, centre)
    return source, target._replace(noise=ids(B, target.ids.shape[1], K))


def params(seed: int = 1) -> dict:
    rng = np.random.default_rng(seed)
    table = lambda: {"embedding": rng.standard_normal((V, D)).astype(np.float32)}  # noqa: E731
    return {"source_embedding": table(), "target_embedding": table()}


def equation_4(tree: dict, source: Tokens, target: Tokens) -> tuple[float, np.ndarray, np.ndarray]:
    """arXiv:1310.4546, equation 4 with its sign turned, summed over the words predicted, and its gradient, word by word."""
    v, u = (np.float64(tree[f"{side}_embedding"]["embedding"]) for side in ("source", "target"))
    sigma = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    loss, grad_v, grad_u = 0.0, np.zeros_like(v), np.zeros_like(u)
    for row in range(B):
        read = source.ids[row][source.mask[row]]
        h = v[read].mean(axis=0) if len(read) else np.zeros(D)
        grad_h = np.zeros(D)
        for t in np.flatnonzero(target.mask[row]):
            word = target.ids[row, t]
            loss -= np.log(sigma(u[word] @ h))
            grad_h += (sigma(u[word] @ h) - 1) * u[word]
            grad_u[word] += (sigma(u[word] @ h) - 1) * h
            for noise in target.noise[row, t]:
                if noise != word:
                    loss -= np.log(sigma(-u[noise] @ h))
                    grad_h += sigma(u[noise] @ h) * u[noise]
                    grad_u[noise] += sigma(u[noise] @ h) * h
        for word in read:
            grad_v[word] += grad_h / len(read)
    return loss, grad_v, grad_u


@pytest.mark.parametrize("predict", ["neighbours", "centre"])
def test_the_loss_and_its_gradient_are_those_of_equation_4(predict):
    model = word2vec.Word2VecConfig(V, V, embed_dim=D).build()
    source, target = batch(predict)

    @jax.jit
    def loss(tree):
        metrics = teacher_forced(model, tree, zoo_batch(source, target), Compute())
        return metrics["loss"].sum, metrics

    (found, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params())
    expected, grad_v, grad_u = equation_4(params(), source, target)
    assert float(metrics["loss"].count) == target.mask.sum()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(grads["source_embedding"]["embedding"], grad_v, atol=1e-5)
    np.testing.assert_allclose(grads["target_embedding"]["embedding"], grad_u, atol=1e-5)


def zoo_batch(source: Tokens, target: Tokens):
    return Batch(source, target, np.arange(B, dtype=np.int32))


def test_candidates_have_the_logits_of_the_whole_vocabulary_and_training_computes_no_others():
    config = word2vec.Word2VecConfig(43, 43, embed_dim=D)  # a number seen nowhere else
    model, shapes = config.build(), abstract_params(config)
    source, target = batch("neighbours")

    def loss(tree):
        return teacher_forced(model, tree, zoo_batch(source, target), Compute())["loss"].sum

    text = jax.jit(jax.grad(loss)).lower(shapes).as_text()
    tensors = set(re.findall(r"tensor<([\dx]*)x[a-z]", text))
    assert {shape for shape in tensors if "43" in shape.split("x")} == {f"43x{D}"}

    model = word2vec.Word2VecConfig(V, V, embed_dim=D).build()
    apply = jax.jit(lambda target: model.apply({"params": params()}, source, target).logits)
    everything_B1V, some_BTK = apply(target._replace(noise=None)), apply(target)
    words_BTK = np.concatenate([target.ids[..., None], target.noise], axis=-1)
    expected = np.take_along_axis(np.asarray(everything_B1V), words_BTK.reshape(B, -1)[:, None], axis=-1)
    chex.assert_trees_all_close(some_BTK, expected.reshape(some_BTK.shape), atol=1e-6)


def test_accuracy_is_the_share_above_all_noise_but_the_token_itself():
    logits = jnp.array([[[2.0, 1.0, 0.0], [2.0, 3.0, 0.0], [2.0, 9.0, 1.0], [0.0, 0.0, -1.0]]])
    target = Tokens(jnp.array([[5, 5, 5, 5]]), jnp.ones((1, 4), bool), noise=jnp.array([[[6, 7], [6, 7], [5, 7], [6, 7]]]))
    assert float(noise_metrics(logits, target)["accuracy"].sum) == 2  # the second is below, the fourth ties


# What is drawn.


def test_noise_is_drawn_from_the_counts_to_the_three_quarters():
    counts = np.array([0, 0, 0, 0, 1000, 300, 100, 30, 10, 0, 3])
    drawn = draw(np.cumsum(counts**POWER), (1000, 100, 2), np.random.default_rng(0))
    seen = np.bincount(drawn.reshape(-1), minlength=len(counts))
    assert not seen[counts == 0].any()
    real = counts > 0

    def p_value(weights):
        return scipy.stats.chisquare(seen[real], seen.sum() * weights[real] / weights.sum()).pvalue

    assert p_value(counts**0.75) > 0.01
    assert p_value(counts**0.74) < 1e-6
    assert p_value(counts**1.0) < 1e-6


def test_frequent_words_are_kept_by_equation_5():
    counts = np.array([0, 1, 99, 900, 9000])
    expected = [0] + [min(1.0, 1 - (1 - np.sqrt(1e-3 / (c / 10_000)))) for c in counts[1:]]
    np.testing.assert_allclose(keep(counts, 1e-3), expected, rtol=1e-12)
    assert keep(counts, 0).tolist() == [0, 1, 1, 1, 1]


@given(st.lists(st.integers(0, 5), min_size=0, max_size=5), st.integers(1, 4), st.integers(0, 99))
def test_windows_are_the_words_in_reach_in_the_same_line(lengths, window, seed):
    line_N = np.repeat(np.arange(len(lengths)), lengths)
    ids_N = np.arange(4, 4 + len(line_N))
    around_NC, mask_NC = windows(ids_N, line_N, window, np.random.default_rng(seed))
    reach_N = np.random.default_rng(seed).integers(1, window + 1, (len(ids_N), 1))[:, 0]
    for i, (around, mask) in enumerate(zip(around_NC, mask_NC, strict=True)):
        near = [j for j in range(len(ids_N)) if j != i and abs(i - j) <= reach_N[i] and line_N[i] == line_N[j]]
        assert around[mask].tolist() == ids_N[near].tolist()
        assert not around[~mask].any()


def test_each_reach_is_equally_likely():
    """A word n places away is seen with probability (window - n + 1) / window."""
    _, mask_NC = windows(np.arange(20_004), np.zeros(20_004, int), 4, np.random.default_rng(0))
    np.testing.assert_allclose(mask_NC[4:-4].mean(axis=0), np.array([1, 2, 3, 4, 4, 3, 2, 1]) / 4, atol=0.02)


LINES = ["a b c d", "b", "", "c zzz a b", "d a d a b c", "a a"]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(LINES * 5) + "\n", encoding="utf-8")
    return path


def stream(text: Path, multiple_of: int = 1, seed: int = 0, host=(0, 1), tokens: int = 64, **fields) -> WindowBatches:
    tokenizer = Tokenizer.train("words", ["a b c d"])
    data = Tokenized(Files(str(text), str(text), str(text)).load("train"), tokenizer, tokenizer)
    how = Windows(str(text), **{"window": 2, "subsample": 0, "negatives": 3, **fields})
    return WindowBatches(data, how, Batching(tokens=tokens), multiple_of, seed, host)


def pairs(batches) -> Counter:
    """(line, source word, target word) of all that is real."""
    found = Counter()
    for b in batches:
        for row, line in enumerate(b.example_ids):
            sources, targets = (x.ids[row][x.mask[row]].tolist() for x in (b.source, b.target))
            assert (line >= 0) == bool(sources) == bool(targets)
            found.update((int(line), s, t) for s, t in itertools.product(sources, targets))
    return found


def test_an_epoch_has_each_pair_of_neighbours_once(text):
    """With windows of one place nothing is left to chance but the order; the unknown word is left out before."""
    wanted = Counter()
    for line, words in enumerate(line for line in LINES * 5 if line):
        ids = ["abcd".index(word) + 4 for word in words.split() if word != "zzz"]
        for s, t in itertools.pairwise(ids):
            wanted.update([(line, s, t), (line, t, s)])
    for predict in ("neighbours", "centre"):
        of = stream(text, window=1, predict=predict)
        assert pairs(of.eval_batches(of.data)) == wanted
        batches, found = of.train_batches(), Counter()
        while found.total() < wanted.total():
            found += pairs([next(batches)])
        assert found == wanted
        assert pairs([next(batches)]).total() > 0


def test_subsampling_goes_before_the_windows(text):
    """Words on both sides of one that is left out are neighbours."""
    of = stream(text, window=1)
    of.keep_V = np.array([0, 0, 0, 0, 1.0, 0.0, 1.0, 0.0])  # a and c stay
    assert set(pairs(of.eval_batches(of.data))) >= {(0, 4, 6), (0, 6, 4)}  # of "a b c d"
    assert {id for _, *ids in pairs(of.eval_batches(of.data)) for id in ids} == {4, 6}


def test_the_stream_goes_on_where_it_was_and_hosts_share_it(text):
    whole = stream(text, 4)
    assert whole.shape == (16, 1, 4)
    batches = whole.train_batches()
    for _ in range(5):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    rest = [next(batches) for _ in range(12)]
    again = stream(text, 4).train_batches()
    again.set_state(state)
    chex.assert_trees_all_equal([next(again) for _ in range(12)], rest)
    shares = [stream(text, 4, host=(host, 2)).train_batches() for host in (0, 1)]
    for share in shares:
        share.set_state(state)
    for b in rest:
        joined = jax.tree.map(lambda *x: np.concatenate(x), *map(next, shares))
        chex.assert_trees_all_equal(joined, b)
    first, other = next(stream(text, 4).train_batches()), next(stream(text, 4, seed=1).train_batches())
    assert not np.array_equal(first.target.noise, other.target.noise)
    assert rest[0].target.noise.shape == (16, 4, 3)
    assert len({b.target.noise.tobytes() for b in rest}) == len(rest)  # of batches of the same lines too


def test_evaluation_is_the_same_each_time_and_special_tokens_are_no_words(text):
    of = stream(text, subsample=0.1)
    chex.assert_trees_all_equal(list(of.eval_batches(of.data)), list(of.eval_batches(of.data)))
    counts = count(of.data)
    assert counts.tolist() == [0, 0, 0, 0, *(sum(line.split().count(w) for line in LINES * 5) for w in "abcd")]
    for b in of.eval_batches(of.data):
        assert b.target.noise.min() >= len(SPECIAL_TOKENS)
    np.testing.assert_allclose(np.diff(of.noise_V, prepend=0), counts**0.75)


# A run.

ROLES = {"king queen": "crown realm law", "man woman": "shop bus house", "prince princess": "heir tower ball"}
STEPS = 200
SIDES = ("he him beard", "she her dress")
RUN = shlex.split(
    "--training.eval-every 100 --training.log-every 50 --data.subsample 0 --batching.tokens 1024 --data.window 4 "
    "--model.embed-dim 8 --optimizer.learning-rate 3e-2 --optimizer.schedule constant --parallel.devices 2 "
    "--training.no-tensorboard"
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Each word stands among those of its role and of its side."""
    rng, lines = np.random.default_rng(0), []
    for _ in range(1500):
        role = rng.choice(list(ROLES))
        side = rng.integers(2)
        words = [role.split()[side], *rng.choice(SIDES[side].split(), 2), *rng.choice(ROLES[role].split(), 2)]
        lines.append(" ".join(rng.permutation(words)))
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def command(corpus: Path, workdir: Path, steps: int, *more: str) -> list[str]:
    return [CONFIG, "--workdir", str(workdir), "--data.train", str(corpus), "--training.steps", str(steps), *RUN, *more]


@pytest.fixture(scope="module")
def workdir(corpus, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run") / "whole"
    assert train(command(corpus, path, STEPS)) == 0
    return path


def test_a_run_learns_neighbours_and_analogies(workdir, capsys):
    model = zoo.load(workdir)
    assert model.vectors.shape == (len(model.source_tokenizer.tokens()), 8)
    assert {word for word, _ in model.similar("crown", 2)} < {"king", "queen", "realm", "law"}
    for question in ("king man woman queen", "prince king queen princess", "princess woman man prince"):
        positive, negative, other, answer = question.split()
        assert model.analogy([positive, other], [negative], 1)[0][0] == answer
    result = json.loads((workdir / "result.json").read_text())
    assert {"test/loss", "test/accuracy", "test/lines"} <= set(result)
    assert use(["analogy", str(workdir), "king", "-", "man", "+", "woman", "--count", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].split()[1] == "queen"
    assert use(["analogy", str(workdir), "man", "king", "woman", "--count", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == lines
    assert use(["similar", str(workdir), "crown", "--json", "--count", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(line["word"], line["score"]) for line in found] == model.similar("crown", 3)


def test_resuming_gives_the_same_numbers(workdir, corpus, tmp_path, capsys):
    path = tmp_path / "halves"
    assert train(command(corpus, path, 100)) == 0
    assert train(command(corpus, path, STEPS)) == 0
    assert f"continuing at step 100 of {STEPS}" in capsys.readouterr().out
    whole, halves = (zoo.load(run / "checkpoints" / str(STEPS)).params for run in (workdir, path))
    chex.assert_trees_all_equal(whole, halves)
    results = [json.loads((run / "result.json").read_text()) for run in (workdir, path)]
    assert results[0]["test/loss"] == results[1]["test/loss"]


def test_what_cannot_be_is_one_sentence(workdir, corpus, tmp_path, capsys):
    assert use(["similar", str(workdir), "quen"]) == 2
    assert "did you mean queen" in capsys.readouterr().err
    for words, message in (
        ("king man", "three words"),
        ("king - man +", "no sum"),
        ("king man + woman", "no sum"),
        ("king + + man", "no sum"),
    ):
        assert use(["analogy", str(workdir), *words.split()]) == 2
        assert message in capsys.readouterr().err
    assert use(["similar", str(workdir), "king", "--count", "0"]) == 2
    assert "at least one word" in capsys.readouterr().err
    assert use(["predict", str(workdir), "king"]) == 2
    assert "similar or analogy" in capsys.readouterr().err
    assert train(command(corpus, tmp_path / "a", 1, "--data.window", "0")) == 2
    assert "data.window is 0" in capsys.readouterr().err
    assert train(command(corpus, tmp_path / "b", 1, "--task", "text")) == 2
    assert "data and model of the experiment is for word vectors" in capsys.readouterr().err
    assert train(command(corpus, tmp_path / "c", 1, "--batching.pack")) == 2
    assert "batching.pack" in capsys.readouterr().err
    other = dataclasses.replace(read_config(CONFIG), model=variants()["rnn"].PRESETS["elman-tiny"])
    with pytest.raises(UserError, match="data and task"):
        check(other)


# Files.


@pytest.fixture(scope="module")
def table() -> vectors.WordVectors:
    rng = np.random.default_rng(0)
    numbers = (rng.standard_normal((4, 3)) * 10.0 ** rng.integers(-30, 30, (4, 3))).astype(np.float32)
    return vectors.WordVectors(["a", "über", "</s>x", "日本"], numbers)


@pytest.mark.parametrize("name", ["table.txt", "table.bin"])
def test_files_of_the_word2vec_tool_round_trip(table, tmp_path, name):
    vector_files.write(table, tmp_path / name)
    found = vectors.load(tmp_path / name)
    assert found.words == table.words
    np.testing.assert_array_equal(found.vectors, table.vectors)


def test_a_text_file_is_what_the_tool_writes(tmp_path):
    """As the tool itself prints it: six decimals, and a space at the end of each line."""
    (tmp_path / "x.vec").write_bytes(b"2 3\n</s> 0.001000 -0.500000 1.000000 \nthe 1.5 2 -3e-2 \n")
    found = vectors.load(tmp_path / "x.vec")
    assert found.words == ["</s>", "the"]
    np.testing.assert_allclose(found["the"], [1.5, 2, -0.03])
    vector_files.write(vectors.WordVectors(["the"], np.array([[1.5, -2, 0.25]], np.float32)), tmp_path / "y.txt")
    assert (tmp_path / "y.txt").read_bytes() == b"1 3\nthe 1.5 -2 0.25\n"
    vector_files.write(vectors.WordVectors(["the"], np.array([[1.5, -2]], np.float32)), tmp_path / "y.bin")
    assert (tmp_path / "y.bin").read_bytes() == b"1 2\nthe " + np.array([1.5, -2], "<f4").tobytes() + b"\n"


def test_export_and_use(workdir, tmp_path, capsys):
    for name in ("v.txt", "v.bin"):
        assert use(["export", str(workdir), str(tmp_path / name), "--format", "word2vec"]) == 0
        assert f"similar {tmp_path / name} WORD" in capsys.readouterr().out
        assert vectors.load(tmp_path / name).similar("king") == zoo.load(workdir).similar("king")
    assert use(["export", str(workdir), str(tmp_path / "v.txt"), "--format", "word2vec"]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert use(["export", str(workdir), str(tmp_path / "zoo")]) == 0
    np.testing.assert_array_equal(zoo.load(tmp_path / "zoo").vectors, zoo.load(workdir).vectors)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "two numbers"),
        (b"the 1 2\n", "two numbers"),
        (b"2 x\n", "two numbers"),
        (b"1 0\n", "cannot be"),
        (b"9999999999 5\na 1\n", "cannot be"),
        (b"1 99999999\na 1\n", "cannot be"),
        (b"2 2\na 1 2\n", "2 words, but has 1"),
        (b"1 2\na 1 2\nb 1 2\n", "1 words, but has more"),
        (b"1 2\na 1 2 3\n", "line 2"),
        (b"2 2\na 1 2\nb 1\n", "line 3"),
        (b"1 2\na 1 x\n", "line 2"),
        (b"1 2\n\n", "line 2"),
        (b"1 2\n 1 2\n", "line 2"),
        (b"1 2\na nan 2\n", "not finite"),
    ],
)
def test_a_malformed_text_file_is_one_error(tmp_path, content, message):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        vectors.load(tmp_path / "x.txt")


@given(st.integers(0, 60), st.binary(max_size=3), st.sampled_from(["x.txt", "x.bin"]))
def test_a_damaged_file_is_read_or_one_error(table, ground, at, junk, name):
    vector_files.write(table, ground / name)
    whole = (ground / name).read_bytes()
    (ground / name).write_bytes(whole[:at] + junk)
    found = None
    with contextlib.suppress(UserError):
        found = vectors.load(ground / name)
    assert found is None or len(found.words) == len(set(found.words)) == len(found.vectors) <= len(table.words)


def test_words_that_the_format_cannot_hold(tmp_path):
    with pytest.raises(UserError, match="white space"):
        vector_files.write(vectors.WordVectors(["a b"], np.ones((1, 2), np.float32)), tmp_path / "x.txt")
    with pytest.raises(UserError, match="word vectors, which this is not"):
        vector_files.save(object(), tmp_path / "x.txt")


# Embeddings that start from vectors.


def test_embeddings_of_known_tokens_start_from_their_vectors(workdir):
    source = Tokenizer.train("words", ["king man dragon"])
    target = Tokenizer.train("words", ["queen", "castle"])
    config = dataclasses.replace(
        variants()["rnn"].PRESETS["elman-tiny"], embed_dim=8, source_vocab_size=7, target_vocab_size=target.vocab_size
    )
    before = jax.jit(config.build().init)(jax.random.key(0), *config.example())["params"]
    words = vectors.load(workdir)
    after, lines = embeddings.fill(before, words, {"source": source, "target": target}, "runs/w")
    assert lines == [
        "source_embedding/embedding: 2 of 7 tokens start from runs/w",
        "target_embedding/embedding: 1 of 6 tokens start from runs/w",
    ]
    old, new = flatten_params(before), flatten_params(after)
    for side, tokenizer, known in (("source", source, ["king", "man"]), ("target", target, ["queen"])):
        path = f"{side}_embedding/embedding"
        ids = [tokenizer.tokens().index(word) for word in known]
        others = [i for i in range(tokenizer.vocab_size) if i not in ids]
        np.testing.assert_array_equal(np.asarray(new[path])[others], np.asarray(old[path])[others])
        rows = np.stack([words[word] for word in known])
        scale = np.sqrt((np.asarray(old[path]) ** 2).mean() / (rows**2).mean())
        np.testing.assert_allclose(np.asarray(new[path])[ids], scale * rows, rtol=1e-5)
    untouched = {path for path in old if not path.endswith("_embedding/embedding")}
    chex.assert_trees_all_equal({path: old[path] for path in untouched}, {path: new[path] for path in untouched})

    wide = jax.tree.map(lambda x: x, before) | {"source_embedding": {"embedding": jnp.ones((7, 9))}}
    with pytest.raises(UserError, match="have 8 numbers, but source_embedding/embedding of the model has 9"):
        embeddings.fill(wide, words, {"source": source, "target": target}, "runs/w")
    letters = Tokenizer.train("characters", ["xyz"])
    with pytest.raises(UserError, match="none of the tokens"):
        embeddings.fill(before, words, {"source": letters, "target": letters}, "runs/w")
    with pytest.raises(UserError, match="no table"):
        embeddings.fill({"output": {"kernel": jnp.ones((3, 8))}}, words, {"source": source, "target": target}, "runs/w")


def test_every_variant_that_reads_tokens_has_such_tables():
    for name, module in variants().items():
        for preset, config in module.PRESETS.items():
            if preset.endswith("tiny"):
                paths = [path for path in flatten_params(abstract_params(config)) if embeddings.TABLES.fullmatch(path)]
                assert paths, f"{name} {preset} has none of the names that train/embeddings.py knows"


def test_a_run_starts_from_vectors(workdir, corpus, tmp_path, capsys):
    """By the command, from a file: the first checkpoint has them, and so does its average."""
    use(["export", str(workdir), str(tmp_path / "v.bin"), "--format", "word2vec"])
    capsys.readouterr()
    more = ("--init-embeddings", str(tmp_path / "v.bin"), "--optimizer.ema", "0.9", "--data.predict", "centre")
    assert train(command(corpus, tmp_path / "run", 1, *more)) == 0
    learned = zoo.load(workdir)
    tokens = len(learned.source_tokenizer.tokens())
    known = tokens - len(SPECIAL_TOKENS)
    assert f"source_embedding/embedding: {known} of {tokens} tokens start from {tmp_path / 'v.bin'}" in capsys.readouterr().out
    first = zoo.load(tmp_path / "run" / "checkpoints" / "0")  # reads the average
    assert first.words.words == learned.words.words
    ratio = first.words.vectors / learned.words.vectors
    np.testing.assert_allclose(ratio, np.full_like(ratio, ratio[0, 0]), rtol=1e-4)
    np.testing.assert_allclose(np.abs(first.words.vectors).mean(), 0.25 / 8, rtol=0.3)  # of uniform numbers within 1 / 2D

    config = variants()["rnn"].PRESETS["elman-tiny"]
    letters = Tokenizer.train("characters", [chr(97 + i) for i in range(26)])
    config = dataclasses.replace(config, source_vocab_size=30, target_vocab_size=30)
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), abstract_params(config))
    zoo.save(zoo.Predictor(config.build(), params, letters, letters), tmp_path / "other")
    with pytest.raises(UserError, match="Sutskever, which is no model of word vectors"):
        vectors.load(tmp_path / "other")
