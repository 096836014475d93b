"""The contract, for the model of every config in configs/: at its tiny size, with the config's own choices."""

from __future__ import annotations

import dataclasses
import functools
import runpy
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from toys import gnmt, hypotheses, python_beam

import zoo
from train import optim, parallel
from train.data import Batch
from train.metrics import divide
from train.optim import Optimizer
from train.parallel import Parallel
from train.step import init_state, make_train_step
from zoo.checkpoint.rules import from_reference, to_reference
from zoo.core import EOS, PAD, AppendOnly, EncoderOnly, Frames, Tokens, pad_tokens, random_tokens, shift_right
from zoo.generate import Beam, Greedy, Rules, Sample, generate, penalty, score
from zoo.variants import abstract_params, variants

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
BATCH, SOURCE, TARGET, VOCAB = 4, 7, 6, 32


def tiny(config):
    """The variant's tiny preset with the config's choices (norm, score, ...): sizes are numbers, choices are not."""
    module = variants()[type(config).__module__.removeprefix("zoo.")]
    presets = [preset for name, preset in module.PRESETS.items() if name.endswith("tiny") and type(preset) is type(config)]
    assert presets, f"{type(config).__name__} has no tiny preset"
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return dataclasses.replace(presets[0], **{name: value for name, value in fields.items() if isinstance(value, (str, bool))})


def model_of(path: Path):
    """The configuration that a config trains."""
    return runpy.run_path(str(path))["experiment"].model


class Subject(NamedTuple):
    """A tiny model with parameters, a ragged batch, and its methods compiled."""

    model: zoo.Seq2Seq
    params: dict
    source: Tokens
    target: Tokens

    def apply(self, *args, method=None, **kw):
        return compiled(self.model, method, tuple(sorted(kw.items())))(self.params, *args)


@functools.cache
def compiled(model, method, static):
    return jax.jit(lambda params, *args: model.apply({"params": params}, *args, method=method, **dict(static)))


def distinct() -> dict[zoo.core.ModelConfig, str]:
    """The tiny models of all configs -> the names of their configs: what two have in common is tested once."""
    found: dict = {}
    for path in CONFIGS:
        config = tiny(model_of(path))
        found[config] = f"{found[config]}+{path.stem}" if config in found else path.stem
    return found


@functools.cache
def subject_of(config: zoo.core.ModelConfig) -> Subject:
    model = config.build()
    source, target = model.config.example(BATCH, SOURCE, TARGET, seed=1)
    params = jax.jit(model.init)(jax.random.key(0), source, target)["params"]
    # Biases start at zero and norms at one: noise makes a forgotten or swapped one visible.
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    leaves = [leaf + 0.05 * rng.standard_normal(leaf.shape).astype(leaf.dtype) for leaf in leaves]
    return Subject(model, jax.tree.unflatten(tree, leaves), source, target)


# All tests of a model go to one worker, which compiles it once.
SUBJECTS = [pytest.param(config, id=names, marks=pytest.mark.xdist_group(names)) for config, names in distinct().items()]


def those(wanted) -> list:
    return [param for param in SUBJECTS if wanted(param.values[0].build())]


@pytest.fixture(params=SUBJECTS, scope="module")
def subject(request):
    return subject_of(request.param)


@pytest.fixture(params=those(lambda model: not isinstance(model, EncoderOnly)), scope="module")
def decoder(request):
    """A subject that has something to decode."""
    return subject_of(request.param)


@pytest.fixture(params=those(lambda model: not model.VECTORS), scope="module")
def sequential(request):
    """A subject that knows the order of what it reads: not a model of word vectors, which has no dropout either."""
    return subject_of(request.param)


def logits_of(s: Subject, source: Tokens):
    """Of every target token; of an encoder's, those of its real tokens, one row after the other."""
    logits = s.apply(source, s.target).logits
    whole = logits.shape[1] == 1
    return np.asarray(logits)[source.mask] if isinstance(s.model, EncoderOnly) and not whole else logits


def test_shapes_and_finiteness(subject):
    s = subject
    outputs = s.apply(s.source, s.target, attention=True)
    chex.assert_shape(outputs.logits, (*s.target.ids.shape, VOCAB))
    chex.assert_tree_all_finite(outputs)
    chex.assert_type(outputs.logits, jnp.float32)
    for name, weights in outputs.attention.items():
        assert name.rsplit("/")[-1] in ("self", "cross")
        if name.endswith("cross"):
            chex.assert_shape(weights, (BATCH, None, TARGET, -(-SOURCE // 2) if s.model.SOUND else SOURCE))
            mask = np.asarray(s.source.mask)[:, :: 2 if s.model.SOUND else 1]
            hidden = np.broadcast_to(~mask[:, None, None, :], weights.shape)
            assert not np.asarray(weights)[hidden].any(), "attention looks at padding"
            assert (np.asarray(weights).sum(-1) <= 1 + 1e-5).all()
    assert not s.apply(s.source, s.target).attention, "attention came unasked"


def test_logits_are_made_of_the_hidden_state(subject):
    """All of them, or a chunk of positions at a time; whoever reads the hidden state alone computes no (B, T, V)."""
    s = subject
    outputs = s.apply(s.source, s.target)
    chex.assert_trees_all_close(s.apply(outputs.hidden, method="logits"), outputs.logits, atol=1e-6)
    chex.assert_trees_all_close(s.apply(outputs.hidden[:, 2:4], method="logits"), outputs.logits[:, 2:4], atol=1e-6)

    config = dataclasses.replace(s.model.config, source_vocab_size=43, target_vocab_size=43)  # a number seen nowhere else
    model, params = config.build(), abstract_params(config)
    both = jax.jit(lambda params: model.apply({"params": params}, s.source, s.target)).lower(params).as_text()
    hidden = jax.jit(lambda params: model.apply({"params": params}, s.source, s.target).hidden).lower(params).as_text()
    tensor = f"tensor<{BATCH}x{s.target.ids.shape[1]}x43xf32>"
    assert tensor in both
    assert tensor not in hidden


def test_parameters_do_not_depend_on_the_example(subject):
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract_params(subject.model.config), subject.params)


def test_causal(decoder):
    """The prediction of token t has a gradient for tokens before t only, and for each of these."""
    s = decoder
    memory = s.apply(s.source, method="encode")
    table_path = "target_embedding" if "target_embedding" in s.params else "embedding"
    table = s.params[table_path]["embedding"]
    ids = jnp.arange(4, 4 + TARGET)[None].repeat(BATCH, 0)  # each token once: its row of the table is its own

    @jax.jit
    def gradient(t):
        def f(table):
            params = {**s.params, table_path: {"embedding": table}}
            outputs, _ = s.model.apply({"params": params}, ids, memory, method="decode")
            return jax.nn.log_softmax(outputs.logits[0, t, :4]).sum() * 100  # special tokens: none of them is read

        return jax.grad(f)(table)

    for t in (0, TARGET // 2, TARGET - 1):
        moved = np.abs(np.asarray(gradient(t)))[4 : 4 + TARGET].sum(axis=1) > 0
        assert not moved[t + 1 :].any(), f"position {t} sees {np.flatnonzero(moved[t + 1 :]) + t + 1}"
        assert moved[: t + 1].all(), f"position {t} does not see {np.flatnonzero(~moved[: t + 1])}"


def test_source_reaches_every_output(subject):
    s = subject
    changed = s.source._replace(values=1 - s.source.values) if s.model.SOUND else next_words(s.source)
    difference = np.abs(s.apply(s.source, s.target).logits - s.apply(changed, s.target).logits).max(axis=(0, 2))
    assert (difference > 1e-6).all()


def next_words(source: Tokens) -> Tokens:
    return source._replace(ids=(np.asarray(source.ids) + 1 - 4) % (VOCAB - 4) + 4)


def part(source, rows: slice, length: int | None, mask=None):
    """Some rows of a source up to a length, with its mask or another one."""
    mask = source.mask if mask is None else mask
    return type(source)(np.asarray(source[0])[rows, :length], np.asarray(mask)[rows, :length])


def test_source_padding_is_invisible(subject):
    """What stands in the padding changes no bit; how much there is, and on which side, nothing beyond rounding."""
    s = subject
    right = logits_of(s, s.source)
    kind, (content, mask) = type(s.source), s.source[:2]
    garbage = kind(np.where(mask if content.ndim == 2 else mask[..., None], content, content.dtype.type(9)), mask)
    np.testing.assert_array_equal(right, logits_of(s, garbage))
    for side in ((0, 3), (3, 0)):
        padded = kind(np.pad(content, [(0, 0), side, (0, 0)][: content.ndim]), np.pad(mask, ((0, 0), side)))
        chex.assert_trees_all_close(logits_of(s, padded), right, atol=5e-6)


def test_each_sentence_alone(subject):
    s = subject
    together = s.apply(s.source, s.target).logits
    for row in range(BATCH):
        length, target_length = int(s.source.mask[row].sum()), int(s.target.mask[row].sum())
        alone = part(s.source, slice(row, row + 1), length)
        target = Tokens(s.target.ids[row : row + 1, :target_length], s.target.mask[row : row + 1, :target_length])
        chex.assert_trees_all_close(s.apply(alone, target).logits[0], together[row, :target_length], atol=5e-6)


@pytest.mark.parametrize("length", [0, SOURCE])
def test_empty_source_is_finite(subject, length):
    """A row of nothing but padding, or no column at all, gives finite outputs and gradients and leaves other rows alone.

    What an encoder reads has one at least: the end token.
    """
    s = subject
    columns = max(length, isinstance(s.model, EncoderOnly))
    mask = np.array(s.source.mask[:, :columns])
    mask[1:2] = False
    source = part(s.source, slice(None), columns, mask)

    def loss(params):
        return s.model.apply({"params": params}, source, s.target).logits.var()

    logits = s.apply(source, s.target).logits
    chex.assert_tree_all_finite((logits, jax.jit(jax.grad(loss))(s.params)))
    if length:
        keep = np.array([0, 2, 3])
        chex.assert_trees_all_close(logits[keep], s.apply(s.source, s.target).logits[keep], atol=5e-6)


@pytest.mark.parametrize("chunks", [(1,) * TARGET, (1, 3, 2)])
def test_step_by_step_equals_all_at_once(decoder, chunks):
    s = decoder
    everything = s.apply(s.source, s.target).logits
    memory = s.apply(s.source, method="encode")
    cache = s.apply(memory, method="init_cache", max_len=TARGET + 2)
    tokens, parts, start = shift_right(jnp.asarray(s.target.ids), s.model.config.first(s.source)), [], 0
    for size in chunks:
        outputs, cache = s.apply(tokens[:, start : start + size], memory, cache, method="decode")
        parts.append(outputs.logits)
        start += size
    chex.assert_trees_all_close(jnp.concatenate(parts, axis=1), everything, atol=5e-6)


def test_beams_share_the_memory(decoder):
    """W rows a sentence with one row of memory give what each row gives alone; a cache's leaves have R rows or none.

    The buffers of ``AppendOnly`` belong to sentences, alone or folded together with other axes.
    """
    s, W = decoder, 3
    memory = s.apply(s.source, method="encode")
    cache = s.apply(memory, method="init_cache", max_len=4, beams=W)
    leaves = jax.tree.leaves(cache, is_leaf=lambda x: isinstance(x, AppendOnly))
    stay = jax.tree.leaves([x for x in leaves if isinstance(x, AppendOnly)])
    assert all(isinstance(x, AppendOnly) or x.ndim == 0 or x.shape[0] == BATCH * W for x in leaves)
    assert all(x.shape[0] % BATCH == 0 for x in stay)
    tokens = np.random.default_rng(0).integers(4, VOCAB, (BATCH * W, 2)).astype(np.int32)
    for t in range(2):
        outputs, cache = s.apply(tokens[:, t : t + 1], memory, cache, method="decode")
    repeated = jax.tree.map(lambda x: jnp.repeat(x, W, axis=0), memory)
    alone, _ = s.apply(tokens, repeated, None, method="decode")
    chex.assert_trees_all_close(outputs.logits[:, 0], alone.logits[:, 1], atol=5e-6)


SEARCHES = {
    "greedy": Greedy(),
    "sample": Sample(jax.random.key(0)),
    "samples": Sample(jax.random.key(0), 0.8, top_k=20, samples=3),
    "beam_1": Beam(1, penalty.none()),
    "beam_3": Beam(3, penalty.none()),
    "n_best": Beam(3, penalty.none(), n_best=3),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_generation_ends_pads_and_agrees_with_rescoring(decoder, name):
    s, max_len = decoder, 6
    found = generate(s.model, s.params, s.source, max_len=max_len, search=SEARCHES[name])
    found = [x.reshape(BATCH, -1, *x.shape[found.score.ndim :]) for x in found[:4]]
    for n in range(found[0].shape[1]):
        ids_BT, log_probs_BT, score_B, length_B = (x[:, n] for x in found)
        for ids, length in zip(ids_BT, length_B, strict=True):
            assert 1 <= length <= max_len
            assert (ids[length:] == PAD).all()
            assert EOS not in ids[: length - 1]
            assert length == max_len or ids[length - 1] == EOS
        sums, tokens = score(s.model, s.params, s.source, Tokens(ids_BT, np.arange(max_len) < length_B[:, None]))
        chex.assert_trees_all_close(log_probs_BT, tokens, atol=2e-5)
        chex.assert_trees_all_close(score_B, sums, atol=5e-5)


class Redecoded(dict):
    """prefix -> log-probabilities of the next token: every prefix read again from the start, alone and without a cache."""

    def __init__(self, subject: Subject, row: int, length: int):
        super().__init__()
        self.subject, self.length = subject, length
        self.memory = jax.tree.map(lambda x: x[row : row + 1], subject.apply(subject.source, method="encode"))
        self.first = int(np.broadcast_to(subject.model.config.first(subject.source), (BATCH,))[row])

    def __missing__(self, prefix: tuple) -> np.ndarray:
        read = np.array([[self.first, *prefix] + [PAD] * (self.length - len(prefix) - 1)], np.int32)
        outputs, _ = self.subject.apply(read, self.memory, None, method="decode")
        logits_V = np.asarray(outputs.logits[0, len(prefix)], np.float64)
        self[prefix] = log_probs_V = logits_V - np.logaddexp.reduce(logits_V)
        return log_probs_V


def test_beams_are_those_of_a_search_that_reads_every_hypothesis_anew(decoder):
    """However a model keeps and reorders its cache: five steps, beams that change places, three hypotheses of each sentence."""
    s, max_len, beams = decoder, 5, 4
    params = jax.tree.map(lambda x: 1.5 * x, s.params)  # sharper distributions: hypotheses that differ by more than rounding
    s = s._replace(params=params)
    rules = Rules(min_len=np.array([0, 3, 5, 4]), limit=np.array([5, 5, 5, 4]))
    search = Beam(beams, penalty.gnmt(0.6), n_best=3)
    found = hypotheses(generate(s.model, params, s.source, max_len=max_len, search=search, rules=rules))
    for row in range(BATCH):
        limit, min_len = int(rules.limit[row]), int(rules.min_len[row])
        expected = python_beam(Redecoded(s, row, max_len), beams, limit, gnmt(0.6), keep=3, min_len=min_len)
        chex.assert_trees_all_close([score for score, _ in found[row]], [float(score) for score, _ in expected], atol=5e-5)
        assert [ids for _, ids in found[row]] == [ids for _, ids in expected]


def test_conversion_round_trip(subject):
    """Our parameters under the reference's names and back: every tensor, byte for byte, and nothing else."""
    s = subject
    tensors = to_reference(s.params, s.model.RULES)
    chex.assert_trees_all_equal(from_reference(tensors, s.model.RULES, s.params), jax.tree.map(np.asarray, s.params))
    first = next(iter(tensors))
    with pytest.raises(zoo.UserError, match="missing"):
        from_reference({name: x for name, x in tensors.items() if name != first}, s.model.RULES, s.params)
    with pytest.raises(zoo.UserError, match="not taken stray"):
        from_reference({**tensors, "stray": tensors[first]}, s.model.RULES, s.params)


def test_orbax_round_trip(subject, tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", subject.params)
        checkpointer.wait_until_finished()
        chex.assert_trees_all_equal(checkpointer.restore(tmp_path / "params", subject.params), subject.params)


def uneven_batch(model, rows: int) -> Batch:
    """Rows of very different lengths, the last two empty: a mean of per-device means would be far off."""
    rng = np.random.default_rng(3)
    source, target = model.config.example(rows, SOURCE, TARGET, seed=3)
    if isinstance(model, EncoderOnly):  # whose targets are as long as its sources, or one label
        mask = target.mask & (np.arange(rows) < rows - 2)[:, None]
        noise = rng.integers(4, VOCAB, (*mask.shape, 3)).astype(np.int32) if model.VECTORS else None
        return Batch(source, Tokens(target.ids, mask, noise=noise), np.arange(rows, dtype=np.int32))
    lengths = np.linspace(1, TARGET, rows - 2).astype(int)
    target = pad_tokens([[*rng.integers(4, VOCAB, n - 1), EOS] for n in lengths] + [[], []], TARGET)
    return Batch(source, target, np.arange(rows, dtype=np.int32))


@functools.cache
def two_steps_on_one_device(model):
    """The start, and the parameters and metrics after two steps of SGD with momentum."""
    tx = optim.make(Optimizer("sgd", learning_rate=0.5, clip=0.0), abstract_params(model.config), steps=2)
    train_step = make_train_step(model, tx)
    init = functools.partial(init_state, model, tx, model.config.example(1), jax.random.key(5))
    # Random bits may depend on the sharding of the computation that asks for them: all start from these values.
    start = state = jax.device_get(jax.jit(init)())
    batch, one = uneven_batch(model, 16), jax.jit(train_step)
    for _ in range(2):
        state, metrics = one(state, batch)
    return init, train_step, batch, start, jax.device_get(state.params), divide(jax.device_get(metrics))


@pytest.mark.parametrize("kind", [Parallel(), Parallel("mesh", fsdp=2, model=2)], ids=["pmap", "mesh"])
def test_many_devices_equal_one(subject, kind):
    """Eight devices, uneven padding: the parameters and the metrics of one device."""
    model = without_dropout(subject.model)
    init, train_step, batch, start, params, metrics = two_steps_on_one_device(model)
    many = parallel.make(kind, model.SHARDING)
    assert len(many.devices) == 8
    places = jax.tree.map(lambda x: x.sharding, many.abstract(init))
    start = start._replace(key=jax.random.key(5))  # its own: a key is placed without a copy, and the step consumes it
    state, step = jax.device_put(start, places), many.compile_train(train_step)
    for _ in range(2):
        state, shared_metrics = step(state, many.put(batch))
    chex.assert_trees_all_close(jax.device_get(state.params), params, atol=2e-6)
    chex.assert_trees_all_close(divide(jax.device_get(shared_metrics)), metrics, rtol=1e-5)
    same = jax.tree.map(lambda x, place: x.sharding.is_equivalent_to(place, x.ndim), state, places)
    assert all(jax.tree.leaves(same)), "a step moved the state to other places"
    if kind.kind == "mesh":
        assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state.params)), "no rule shards anything"


@functools.cache
def without_dropout(model):
    return dataclasses.replace(model.config, dropout=0.0).build() if hasattr(model.config, "dropout") else model


def test_learns_to_copy(sequential):
    """The loss of copying short random sequences falls to a small part of its start."""
    model, rng = without_dropout(sequential.model), np.random.default_rng(0)
    # Warmed up: a Transformer that is normalised after each sum may else not recover from its first steps.
    tx = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 1e-2, 50, 300))

    @jax.jit
    def train(params, sources):
        def step(carry, source):
            params, opt_state = carry
            loss = lambda p: copy_loss(model, p, source)  # noqa: E731
            value, grads = jax.value_and_grad(loss)(params)
            updates, opt_state = tx.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), value

        return jax.lax.scan(step, (params, tx.init(params)), sources)[1]

    # Eight symbols, up to three of them: 300 steps suffice even for one vector of 32 numbers.
    batches = [random_tokens(rng, 32, 4, 12) for _ in range(300)]
    losses = np.asarray(train(sequential.params, jax.tree.map(lambda *x: np.stack(x), *batches)))
    assert losses[-20:].mean() < 0.25 * losses[:5].mean(), (losses[:5], losses[-20:])


def copy_loss(model, params, source: Tokens):
    """For a classifier of the whole source, a copy of its first token."""
    heard = as_sound(source, model.config.mels) if model.SOUND else source
    logits = model.apply({"params": params}, heard, source).logits
    ids, mask = (x[:, : logits.shape[1]] for x in (source.ids, source.mask))
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
    return jnp.where(mask, nll, 0).sum() / mask.sum()


def as_sound(source: Tokens, mels: int) -> Frames:
    """Each token as two frames that hold its bits."""
    bits_BNM = (source.ids[..., None] >> jnp.expand_dims(jnp.arange(mels), (0, 1))) & 1
    return Frames(*(jnp.repeat(x, 2, axis=1) for x in (bits_BNM.astype(jnp.float32), source.mask)))


def test_dropout_is_explicit(sequential):
    """Training differs from evaluation and from key to key, and not for the same key; evaluation needs no key."""
    model = dataclasses.replace(sequential.model.config, dropout=0.5).build()

    @jax.jit
    def logits(key):
        return model.apply(
            {"params": sequential.params}, sequential.source, sequential.target, train=True, rngs={"dropout": key}
        ).logits

    first, again, other = logits(jax.random.key(1)), logits(jax.random.key(1)), logits(jax.random.key(2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first - sequential.apply(sequential.source, sequential.target).logits).max() > 1e-3
