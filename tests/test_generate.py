"""The searches against enumeration, against a plain Python beam search, and at the edges."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo import core
from zoo.core import BOS, EOS, PAD
from zoo.generate import Generated, beam, beam_search, facade, generate, greedy, score, select

MAX_LEN = 4
WIDTH = 6


@dataclasses.dataclass(frozen=True)
class ToyConfig(core.ModelConfig):
    dtype: str = "float32"


class Toy(core.Seq2Seq):
    """A tiny attentive RNN: its logits depend on the whole prefix, through a cache, and on the whole source."""

    def setup(self):
        normal, config = nn.initializers.normal(1.5), self.config
        self.source = self.param("source", normal, (config.source_vocab_size, WIDTH))
        self.embed = self.param("embed", normal, (config.target_vocab_size, WIDTH))
        self.mix = self.param("mix", normal, (WIDTH, WIDTH))
        self.out = self.param("out", normal, (WIDTH, config.target_vocab_size))

    def encode(self, source, train=False, attention=False):
        return {"keys": self.source[source.ids], "mask": jnp.asarray(source.mask)}

    def init_cache(self, memory, max_len, beams=1):
        return {"state": jnp.zeros((memory["mask"].shape[0] * beams, WIDTH)), "index": jnp.int32(0)}

    def decode(self, tokens_BT, memory, cache=None, train=False, attention=False):
        cache = self.init_cache(memory, 0, tokens_BT.shape[0] // memory["mask"].shape[0]) if cache is None else cache
        state_BD, states = cache["state"], []
        for token_B in tokens_BT.T:
            state_BD = jnp.tanh(self.embed[token_B] + state_BD @ self.mix)
            states.append(state_BD)
        x_BTD = jnp.stack(states, axis=1)
        x_bWTD = x_BTD.reshape(memory["mask"].shape[0], -1, *x_BTD.shape[1:])
        scores_bWTS = jnp.einsum("bwtd,bsd->bwts", x_bWTD, memory["keys"])
        weights_bWTS = jax.nn.softmax(jnp.where(memory["mask"][:, None, None], scores_bWTS, -1e9), axis=-1)
        context_BTD = jnp.einsum("bwts,bsd->bwtd", weights_bWTS, memory["keys"]).reshape(x_BTD.shape)
        logits_BTV = ((x_BTD + 0.5 * context_BTD) @ self.out).astype(self.config.dtype)
        weights = {"layer/cross": weights_bWTS.reshape(len(tokens_BT), 1, *weights_bWTS.shape[2:])} if attention else {}
        return core.Outputs(logits_BTV, weights), {"state": state_BD, "index": cache["index"] + tokens_BT.shape[1]}


def toy(seed: int, batch: int = 3, vocab: int = 6, dtype: str = "float32"):
    """A toy model with random weights, and a ragged batch for it."""
    config = ToyConfig(source_vocab_size=7, target_vocab_size=vocab, dtype=dtype)
    rng = np.random.default_rng(seed)
    shapes = {"source": (7, WIDTH), "embed": (vocab, WIDTH), "mix": (WIDTH, WIDTH), "out": (WIDTH, vocab)}
    params = {name: rng.normal(size=shape, scale=0.9).astype(np.float32) for name, shape in shapes.items()}
    return Toy(config), jax.tree.map(jnp.asarray, params), core.random_tokens(rng, batch, 5, 7)


@jax.jit
def forced_log_probs(params, source, ids_WT):
    """The toy's log-probabilities after each prefix of W sequences for each of B sentences: (B, W, T + 1, V)."""
    model = Toy(ToyConfig(source_vocab_size=7, target_vocab_size=params["embed"].shape[0]))
    memory = model.apply({"params": params}, source, method="encode")
    tokens_WT = jnp.pad(ids_WT, ((0, 0), (1, 0)), constant_values=BOS)
    batch = source.mask.shape[0]
    outputs, _ = model.apply({"params": params}, jnp.tile(tokens_WT, (batch, 1)), memory, method="decode")
    return jax.nn.log_softmax(outputs.logits).reshape(batch, *tokens_WT.shape, -1)


def oracles(params, source, length: int = MAX_LEN) -> list[dict[tuple, np.ndarray]]:
    """For each sentence: every prefix of tokens that may be generated -> the log-probabilities of the next token."""
    usable = range(EOS + 1, params["embed"].shape[0])
    sequences = list(itertools.product(usable, repeat=length - 1))
    log_probs_BWTV = np.asarray(forced_log_probs(params, source, np.asarray(sequences, np.int32)), np.float64)
    return [
        {seq[:t]: sentence_WTV[w, t] for w, seq in enumerate(sequences) for t in range(length)}
        for sentence_WTV in log_probs_BWTV
    ]


def penalised(total: float, length: int, alpha: float) -> float:
    return total / ((5 + length) / 6) ** alpha


def every_hypothesis(oracle, limit: int, alpha: float = 0.0, min_len: int = 0) -> list[tuple[float, tuple]]:
    """The whole space, best first: every sequence that ends within the limit or is cut there."""
    found = []
    for prefix, log_probs in oracle.items():
        if len(prefix) >= limit:
            continue
        total = sum(oracle[prefix[:t]][token] for t, token in enumerate(prefix))
        last = [] if len(prefix) + 1 < min_len else [EOS]
        last += range(EOS + 1, len(log_probs)) if len(prefix) + 1 == limit else []
        found += [(penalised(total + log_probs[token], len(prefix) + 1, alpha), (*prefix, token)) for token in last]
    return sorted(found, reverse=True)


def python_beam(oracle, beams: int, keep: int, limit: int, alpha: float, min_len: int) -> list[tuple[float, tuple]]:
    """Beam search by the rules of zoo/generate/beam.py, to the limit: it never stops early."""
    live, bank = [(0.0, ())], []
    for length in range(1, limit + 1):
        candidates = [
            (total + oracle[prefix][token], (*prefix, token))
            for total, prefix in live
            for token in range(EOS, len(oracle[prefix]))
            if token != EOS or length >= min_len
        ]
        candidates.sort(key=lambda c: -c[0])
        bank += [(penalised(total, length, alpha), seq) for total, seq in candidates[:beams] if seq[-1] == EOS]
        live = [c for c in candidates if c[1][-1] != EOS][:beams]
    bank += [(penalised(total, limit, alpha), seq) for total, seq in live]
    return sorted(bank, key=lambda c: -c[0])[:keep]


def hypotheses(out: Generated) -> list[list[tuple[float, tuple]]]:
    """Each sentence's real hypotheses as (score, ids without padding); also checks how they are padded and scored."""
    ids_BNT, log_probs_BNT, score_BN, length_BN = (np.asarray(x) for x in out[:4])
    assert [x.dtype for x in out[:4]] == [jnp.int32, jnp.float32, jnp.float32, jnp.int32]
    if score_BN.ndim == 1:
        ids_BNT, log_probs_BNT, score_BN, length_BN = (x[:, None] for x in (ids_BNT, log_probs_BNT, score_BN, length_BN))
    after_BNT = np.arange(ids_BNT.shape[2]) >= length_BN[..., None]
    assert (ids_BNT[after_BNT] == PAD).all()
    assert (log_probs_BNT[after_BNT] == 0).all()
    assert not np.isin(ids_BNT[~after_BNT], [PAD, BOS]).any()
    return [
        [(float(s), tuple(ids[:n].tolist())) for s, ids, n in zip(*sentence) if s > -np.inf]
        for sentence in zip(score_BN, ids_BNT, length_BN)
    ]


def assert_same(found: list[tuple[float, tuple]], expected: list[tuple[float, tuple]]) -> None:
    assert [ids for _, ids in found] == [ids for _, ids in expected]
    np.testing.assert_allclose([s for s, _ in found], [s for s, _ in expected], rtol=1e-4, atol=1e-5)


def play(table_BTV, beams: int = 0, *, alpha=1.0, limit_B=None, min_len=0, **static) -> Generated:
    """Greedy (``beams`` 0) or beam search over logits by position, whatever was generated before.

    The table is padded to a few lengths, so that the tests share programs; the rows' limits hide it.
    """
    length = table_BTV.shape[1]
    bucket = next(n for n in (1, 8, 20) if n >= length)
    table_BTV = np.pad(table_BTV, ((0, 0), (0, bucket - length), (0, 0)), constant_values=-np.inf)
    limit_B = np.broadcast_to(np.minimum(length, length if limit_B is None else limit_B), len(table_BTV)).astype(np.int32)
    out = _play(table_BTV, jnp.float32(alpha), limit_B, jnp.asarray(min_len), beams=beams, static=tuple(static.items()))
    return out._replace(ids=out.ids[..., :length], log_probs=out.log_probs[..., :length])


@functools.partial(jax.jit, static_argnames=("beams", "static"))
def _play(table_BTV, alpha, limit_B, min_len, *, beams, static):
    def decode(tokens_RN, memory, cache):
        logits_BV = jax.lax.dynamic_index_in_dim(table_BTV, cache, axis=1, keepdims=False)
        return core.Outputs(core.per_beam(logits_BV, len(tokens_RN))[:, None], {}), cache + 1

    options = {"limit_B": limit_B, "min_len": min_len, **dict(static)}
    batch, max_len, _ = table_BTV.shape
    if not beams:
        return greedy(decode, None, jnp.int32(0), batch, max_len, **options)
    return beam_search(decode, None, jnp.int32(0), batch, max_len, beams=beams, alpha=alpha, **options)


def table(*rows, vocab: int = 6) -> np.ndarray:
    """Logits (1, T, V) from one {token: logit} a position; every other token is impossible."""
    table_TV = np.full((len(rows), vocab), -np.inf, np.float32)
    for row_V, logits in zip(table_TV, rows):
        row_V[list(logits)] = list(logits.values())
    return table_TV[None]


# --- against enumeration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.6, 1.0, 3.0])
def test_a_beam_as_wide_as_the_space_finds_the_exact_best(alpha):
    model, params, source = toy(1)
    for seed in range(6):
        _, params, source = toy(seed)
        limit_B, min_len = np.array([4, 3, 4]), seed % 3
        out = generate(
            model, params, source, max_len=MAX_LEN, beams=128, alpha=alpha, n_best=20, limit_B=limit_B, min_len=min_len
        )
        for found, oracle, limit in zip(hypotheses(out), oracles(params, source), limit_B):
            assert_same(found, every_hypothesis(oracle, limit, alpha, min_len)[:20])


SHAPES = [(1, 1, 6, 1), (3, 2, 6, 2), (2, 3, 4, 2), (3, 8, 5, 3)]  # batch, beams, vocabulary, n_best


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 999),
    alpha=st.sampled_from([-2.0, -0.5, 0.0, 0.6, 1.0, 2.0, 4.0]),
    limits=st.lists(st.integers(1, MAX_LEN), min_size=3, max_size=3),
    min_len=st.integers(0, MAX_LEN),
)
def test_a_narrow_beam_is_the_plain_one(shape, seed, alpha, limits, min_len):
    batch, beams, vocab, keep = shape
    model, params, source = toy(seed, batch, vocab)
    limit_B = np.array(limits[:batch])
    options = {"max_len": MAX_LEN, "limit_B": limit_B, "min_len": min_len}
    out = generate(model, params, source, beams=beams, n_best=keep, alpha=alpha, **options)
    first = generate(model, params, source, **options)
    for b, oracle in enumerate(oracles(params, source)):
        found = hypotheses(out)[b]
        assert_same(found, python_beam(oracle, beams, keep, limit_B[b], alpha, min_len))
        assert len({ids for _, ids in found}) == len(found)
        assert [s for s, _ in found] == sorted((s for s, _ in found), reverse=True)
        assert_same(hypotheses(first)[b], python_beam(oracle, 1, 1, limit_B[b], 0.0, min_len))


def test_greedy_is_the_path_of_the_most_probable_token():
    for seed in range(8):
        model, params, source = toy(seed)
        out = generate(model, params, source, max_len=MAX_LEN)
        for found, oracle in zip(hypotheses(out), oracles(params, source)):
            path, total = (), 0.0
            while len(path) < MAX_LEN and path[-1:] != (EOS,):
                token = EOS + int(np.argmax(oracle[path][EOS:]))
                path, total = (*path, token), total + oracle[path][token]
            assert_same(found, [(total, path)])


def test_one_beam_without_a_penalty_is_greedy():
    for seed in range(12):
        model, params, source = toy(seed)
        one = generate(model, params, source, max_len=9, beams=1, alpha=0.0, n_best=1, min_len=seed % 4)
        out = generate(model, params, source, max_len=9, min_len=seed % 4)
        assert np.array_equal(one.ids[:, 0], out.ids)
        assert np.array_equal(one.length[:, 0], out.length)
        np.testing.assert_allclose(one.score[:, 0], out.score, rtol=1e-6)
        np.testing.assert_allclose(one.log_probs[:, 0], out.log_probs, rtol=1e-6)


@pytest.mark.parametrize("beams", [1, 3])
def test_the_scores_are_those_of_teacher_forcing(beams):
    for seed in range(4):
        model, params, source = toy(seed)
        out = generate(model, params, source, max_len=8, beams=beams, alpha=0.7)
        target = core.Tokens(out.ids, jnp.arange(8)[None] < out.length[:, None])
        sums_B, log_probs_BT = score(model, params, source, target)
        np.testing.assert_allclose(out.log_probs, log_probs_BT, atol=1e-5)
        scores_B = sums_B if beams == 1 else [penalised(s, n, 0.7) for s, n in zip(sums_B.tolist(), out.length.tolist())]
        np.testing.assert_allclose(out.score, scores_B, rtol=1e-5)


@pytest.mark.parametrize("beams", [1, 4])
def test_a_batch_gives_what_each_sentence_alone_gives(beams):
    for seed in range(4):
        model, params, source = toy(seed, batch=5)
        options = {"max_len": 10, "beams": beams, "alpha": 1.5}
        out = generate(model, params, source, **options)
        for b in range(5):
            alone = generate(model, params, jax.tree.map(lambda x, b=b: x[b : b + 1], source), **options)
            assert np.array_equal(alone.ids[0], out.ids[b])
            np.testing.assert_allclose(alone.score[0], out.score[b], rtol=1e-5)


# --- the loop -----------------------------------------------------------------------------------------------------------------


def test_the_loop_stops_when_the_last_sentence_has_ended():
    ends = [3, 1, 5]
    rows = [[{3: 5.0, 4: 0.0, EOS: -5.0}] * (n - 1) + [{EOS: 9.0, 3: 0.0, 4: 0.0}] + [{3: 0.0}] * (20 - n) for n in ends]
    table_BTV = np.concatenate([table(*row) for row in rows])
    out = play(table_BTV)
    assert out.steps == 5
    assert out.length.tolist() == ends
    assert play(table_BTV, limit_B=np.array([4, 4, 2])).steps == 3
    for beams in (1, 2):
        out = play(table_BTV, beams, alpha=0.0)
        assert out.steps == 5
        assert out.length.tolist() == ends


def test_a_beam_search_goes_on_while_a_longer_hypothesis_can_still_win():
    # Ending at once costs log 2; so does going on, but nothing after that: only the penalty tells the two apart.
    rows = table({EOS: 0.0, 3: 0.0}, *[{3: 0.0}] * 6, {EOS: 0.0}, {3: 0.0})
    assert play(rows, 2, alpha=0.0).length == 1
    assert play(rows, 2, alpha=0.0).steps == 1
    out = play(rows, 2, alpha=1.0)
    assert out.length == out.steps == 8
    np.testing.assert_allclose(out.score, penalised(-np.log(2), 8, 1.0), rtol=1e-6)


def test_the_loop_stops_once_nothing_live_can_win():
    # Ending costs log 1.2 = .18 now, going on log 6 = 1.79 once. Twenty tokens divide that by (25 / 6) ** alpha: by 17 if
    # alpha is 2, and .10 would win; by 2 or less if alpha is .5 or 0, and nothing live is worth another step.
    probable = {EOS: 0.0, 3: np.log(0.2)}
    rows = table(probable, *[{3: 0.0}] * 19)
    assert [int(play(rows, 1, alpha=alpha).steps) for alpha in (-1.0, 0.0, 0.5, 2.0)] == [1, 1, 1, 20]
    assert [int(play(rows, 1, alpha=alpha).length[0]) for alpha in (-1.0, 0.0, 0.5, 2.0)] == [1, 1, 1, 20]


def test_a_penalty_that_favours_the_short_stops_no_sooner():
    # Ending costs .97 now or .47 at the next token: under alpha -1 that is .55, but 1.03 for a beam that went on to the limit.
    rows = table({3: 0.5, EOS: 0.0}, {EOS: 0.0}, *[{3: 0.0}] * 6)
    assert play(rows, 3, alpha=-1.0).ids[0, :3].tolist() == [3, EOS, PAD]


def test_no_program_is_compiled_for_another_penalty_or_limit():
    model, params, source = toy(0)
    for beams in (1, 2):
        generate(model, params, source, max_len=7, beams=beams, limit_B=np.array([5, 6, 7]))
        size = facade._generate._cache_size()
        for alpha, limit_B, min_len in [(0, [1, 2, 3], 2), (0.3, (7, 7, 7), np.int64(0)), (np.float32(2), jnp.arange(3), 1)]:
            out = generate(
                model, params, source, max_len=7, beams=beams, alpha=alpha, limit_B=np.array(limit_B), min_len=min_len
            )
            assert (np.asarray(out.length) <= np.asarray(limit_B)).all()
        assert facade._generate._cache_size() == size
        generate(Toy(model.config), params, source, max_len=7, beams=beams, limit_B=np.array([5, 6, 7]))
        assert facade._generate._cache_size() == size


def big_cache_search(beams: int):
    """A compiled search whose cache (16 MiB a beam) dwarfs all else, and the size of that cache in bytes."""
    max_len, width = 4096, 1024

    def decode(tokens_RN, memory, cache):
        rows = jnp.sin(tokens_RN + jnp.arange(width)[None].astype(jnp.float32))[:, None]
        history = jax.lax.dynamic_update_slice_in_dim(cache["history"], rows, cache["index"], axis=1)
        logits_RV = jax.lax.dynamic_slice_in_dim(history, cache["index"] // 2, 1, axis=1)[:, 0, :6]
        return core.Outputs(logits_RV[:, None], {}), {"history": history, "index": cache["index"] + 1}

    def search():
        cache = {"history": jnp.zeros((beams, max_len, width)), "index": jnp.int32(0)}
        if beams == 1:
            return greedy(decode, None, cache, 1, max_len)
        return beam_search(decode, None, cache, 1, max_len, beams=beams)

    return jax.jit(search).lower().compile(), beams * max_len * width * 4


def test_the_cache_is_updated_in_place():
    compiled, size = big_cache_search(1)
    assert compiled.memory_analysis().temp_size_in_bytes < 1.1 * size
    compiled, size = big_cache_search(2)  # gathering by parent needs one more
    assert compiled.memory_analysis().temp_size_in_bytes < 2.1 * size


def test_memory_is_never_copied_per_beam_and_the_cache_follows_its_beams():
    model, params, source = toy(0)
    seen = []

    def decode(tokens_RN, memory, cache):
        seen.append((tokens_RN.shape, memory["keys"].shape, cache["state"].shape))
        return model.apply({"params": params}, tokens_RN, memory, cache, method="decode")

    memory = jax.tree.map(jnp.asarray, model.apply({"params": params}, source, method="encode"))
    jax.jit(lambda: beam_search(decode, memory, model.init_cache(memory, 5, 4), 3, 5, beams=4)).lower()
    assert set(seen) == {((12, 1), (3, 5, WIDTH), (12, WIDTH))}
    cache = {"rows": jnp.arange(6), "index": jnp.int32(9), "wide": jnp.arange(12).reshape(6, 2)}
    moved = beam.reorder(cache, jnp.array([[2, 0, 0], [1, 1, 2]]))
    assert moved["rows"].tolist() == [2, 0, 0, 4, 4, 5]
    assert moved["wide"][:, 0].tolist() == [4, 0, 0, 8, 8, 10]
    assert moved["index"] == 9


# --- the edges ----------------------------------------------------------------------------------------------------------------

SEARCHES = pytest.mark.parametrize("beams", [0, 1, 3])  # 0: greedy


@SEARCHES
def test_padding_and_start_are_never_generated(beams):
    out = play(table({PAD: 9.0, BOS: 8.0, 3: 1.0, 4: 0.0}, {PAD: 9.0, BOS: 8.0, EOS: 1.0, 4: 0.0}), beams)
    assert out.ids.tolist() == [[3, EOS]]
    np.testing.assert_allclose(out.log_probs[0, 0], 1 - np.logaddexp.reduce([9, 8, 1, 0]), rtol=1e-5)


@SEARCHES
def test_the_lowest_id_wins_a_tie(beams):
    flat = {3: 1.0, 4: 1.0, 5: 1.0, EOS: -9.0}
    assert play(table(flat, flat, flat), beams, alpha=0.0).ids.tolist() == [[3, 3, 3]]
    zeros = {3: 0.0, 4: -0.0, 5: 0.0, EOS: -0.0}
    assert play(table({**zeros, 3: -0.0, EOS: -9.0}), beams).ids.tolist() == [[3]]
    assert play(table(zeros, zeros), beams, alpha=0.0).ids.tolist() == [[EOS, PAD]]


def test_ties_among_hypotheses_go_to_the_better_ranked_beam_and_the_lower_id():
    flat = {3: 0.0, 4: 0.0, 5: 0.0}
    out = play(table(flat, flat), 4, n_best=4, alpha=0.0)
    assert out.ids[0].tolist() == [[3, 3], [3, 4], [3, 5], [4, 3]]


@SEARCHES
def test_one_possible_token_is_taken(beams):
    out = play(table({4: -1e30}, {3: 1e30}, {EOS: 0.0}, {}), beams)
    assert out.ids.tolist() == [[4, 3, EOS, PAD]]
    assert out.score == 0


def test_where_no_token_is_possible_the_score_is_minus_infinity():
    out = play(table({3: 0.0}, {}, {3: 0.0}))
    assert out.ids.tolist() == [[3, EOS, PAD]]
    assert out.log_probs.tolist() == [[0.0, -np.inf, 0.0]]
    out = play(table({3: 0.0}, {}, {3: 0.0}), 2, n_best=2)
    assert out.ids.tolist() == [[[PAD] * 3] * 2]
    assert out.score.tolist() == [[-np.inf] * 2]
    assert out.length.tolist() == [[0, 0]]
    assert out.steps == 2


@SEARCHES
def test_nan_never_wins_and_infinity_does(beams):
    out = play(table({3: np.nan, 4: 0.0, 5: np.nan}, {3: np.inf, 4: 0.0}, {3: np.nan, EOS: 1.0}), beams)
    assert out.ids.tolist() == [[4, 3, EOS]]
    assert out.log_probs.tolist() == [[0.0, 0.0, 0.0]]


@SEARCHES
def test_minimum_and_limit(beams):
    rows = np.repeat(table(*[{EOS: 3.0, 3: 1.0, 4: 0.0}] * 6), 4, axis=0)
    out = play(rows, beams, min_len=3, limit_B=np.array([6, 3, 2, 0]), alpha=0.0)
    assert out.length.tolist() == [3, 3, 2, 0]
    assert out.ids[:, :3].tolist() == [[3, 3, EOS], [3, 3, EOS], [3, 3, PAD], [PAD] * 3]
    assert out.score[3] == 0
    assert play(rows, beams, min_len=np.array([1, 2, 3, 4]), alpha=0.0).length.tolist() == [1, 2, 3, 4]
    assert play(rows, beams, limit_B=np.array([-1, 99, 1, 6]), alpha=0.0).length.tolist() == [0, 1, 1, 1]


@SEARCHES
def test_what_never_ends_is_cut(beams):
    out = play(table(*[{3: 1.0, 4: 0.0}] * 7), beams)
    assert out.ids.tolist() == [[3] * 7]
    assert (out.length, out.steps) == (7, 7)
    assert np.isfinite(out.score).all()


@SEARCHES
def test_one_token(beams):
    assert play(table({3: 1.0, EOS: 0.0}), beams).ids.tolist() == [[3]]
    assert play(table({3: 0.0, EOS: 1.0}), beams).ids.tolist() == [[EOS]]


def test_more_beams_than_there_are_hypotheses():
    out = play(table({EOS: 0.0, 3: 1.0}, {EOS: 0.0, 3: 1.0}, vocab=4), 9, n_best=9, alpha=0.0)
    assert np.isfinite(out.score[0]).tolist() == [True] * 3 + [False] * 6
    assert out.ids[0].tolist() == [[3, 3], [EOS, PAD], [3, EOS]] + [[PAD, PAD]] * 6


@SEARCHES
def test_a_vocabulary_may_start_with_the_end_token(beams):
    decode_table = table({0: 5.0, 1: 1.0, 2: 0.0}, {0: 5.0, 2: 9.0})
    assert play(decode_table, beams, start_id=2, end_id=2, pad_id=1, min_len=2).ids.tolist() == [[0, 2]]


@pytest.mark.parametrize("beams", [1, 3])
def test_a_source_of_padding_is_finite(beams):
    model, params, source = toy(3)
    source = core.Tokens(source.ids, source.mask & np.array([[True], [False], [True]]))
    out = generate(model, params, source, max_len=6, beams=beams)
    assert all(np.isfinite(x).all() for x in (out.log_probs, out.score))
    assert np.isfinite(score(model, params, source, core.pad_tokens([[3, 2], [4], []]))[0]).all()


@SEARCHES
def test_scores_are_float32_whatever_the_logits(beams):
    table_BTV = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 700), scale=0.1), jnp.bfloat16)
    out = play(np.asarray(table_BTV), beams, min_len=8, alpha=0.0)
    assert out.score.dtype == out.log_probs.dtype == jnp.float32
    logits_TV = np.asarray(table_BTV[0], np.float64)
    log_probs_TV = logits_TV - np.log(np.exp(logits_TV).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(out.log_probs[0], log_probs_TV[np.arange(8), out.ids[0]], rtol=1e-6)


def test_forced_scores_are_float32_whatever_the_logits():
    model, params, source = toy(2, dtype="bfloat16")
    target = core.pad_tokens([[3, 4, 2], [2], [5]])
    sums_B, log_probs_BT = score(model, params, source, target)
    assert sums_B.dtype == log_probs_BT.dtype == jnp.float32
    np.testing.assert_allclose(sums_B, score(toy(2)[0], params, source, target)[0], rtol=2e-2)


@pytest.mark.parametrize("beams", [1, 3])
def test_attention_belongs_to_the_best_hypothesis(beams):
    model, params, source = toy(4)
    out = generate(model, params, source, max_len=6, beams=beams, attention=True)
    plain = generate(model, params, source, max_len=6, beams=beams)
    assert plain.attention == {}
    assert np.array_equal(plain.ids, out.ids)
    forced = model.apply({"params": params}, source, core.Tokens(out.ids, None), attention=True).attention
    real_BT = np.arange(6) < np.asarray(out.length)[:, None]
    assert list(out.attention) == ["layer/cross"]
    weights_BHTS = np.asarray(out.attention["layer/cross"])
    assert weights_BHTS.shape == (3, 1, 6, 5)
    np.testing.assert_allclose(weights_BHTS.sum(axis=3)[:, 0], real_BT, rtol=1e-5)
    np.testing.assert_allclose(weights_BHTS, np.asarray(forced["layer/cross"]) * real_BT[:, None, :, None], rtol=1e-5)


def test_scoring_ignores_what_the_mask_hides():
    model, params, source = toy(5)
    target = core.pad_tokens([[3, 4, 2], [2], []])
    sums_B, log_probs_BT = score(model, params, source, target)
    np.testing.assert_allclose(sums_B, np.sum(log_probs_BT, axis=1), rtol=1e-6)
    expected = [
        sum(oracle[ids[:t]][ids[t]] for t in range(len(ids)))
        for oracle, ids in zip(oracles(params, source), [(3, 4, 2), (2,), ()])
    ]
    np.testing.assert_allclose(sums_B, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_len": 0}, "max_len is 0"),
        ({"max_len": 5, "beams": 0}, "beams is 0"),
        ({"max_len": 5, "beams": 2, "n_best": 3}, "1 to 2"),
        ({"max_len": 5, "beams": 2, "n_best": 0}, "n_best is 0"),
    ],
)
def test_impossible_requests_are_refused(options, message):
    model, params, source = toy(0)
    with pytest.raises(core.UserError, match=message):
        generate(model, params, source, **options)


# --- selection ----------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    shape=st.sampled_from([(1, 3, 1), (2, 700, 1), (3, 1500, 2), (2, 4100, 5), (1, 129, 129), (2, 20_001, 17)]),
    levels=st.integers(1, 60),
    seed=st.integers(0, 999),
)
def test_selection_is_exact_with_ties(shape, levels, seed):
    rows, size, k = shape
    # A long tail: the best are few, in few blocks, and the next best tie across them.
    x_RV = np.random.default_rng(seed).geometric(1 / (1 + levels), (rows, size)).astype(np.float32)
    x_RV[x_RV == 1] = -np.inf
    values_RK, index_RK = jax.jit(select.top_k, static_argnums=1)(x_RV, k)
    expected_RK = np.argsort(-x_RV, axis=1, kind="stable")[:, :k]
    assert np.array_equal(index_RK, expected_RK)
    assert np.array_equal(values_RK, np.take_along_axis(x_RV, expected_RK, axis=1))
    value_R, index_R = jax.jit(select.argmax)(x_RV)
    assert np.array_equal(index_R, expected_RK[:, 0])
    assert np.array_equal(value_R, np.asarray(values_RK)[:, 0])
