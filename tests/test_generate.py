"""The searches against enumeration, against a plain Python beam search, and at the edges."""

from __future__ import annotations

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import (
    MAX_LEN,
    WIDTH,
    Toy,
    assert_same,
    beam,
    every_hypothesis,
    gnmt,
    hypotheses,
    oracles,
    oracles_and_attention,
    path_sum,
    play,
    power,
    python_beam,
    table,
    toy,
)

from zoo import core, transformer
from zoo.core import BOS, EOS, PAD
from zoo.generate import Beam, Greedy, Rules, Sample, facade, generate, penalty, score, select
from zoo.generate.hypotheses import reorder


def search_of(kind: str | int, alpha: float = 1.0, **options):
    """``greedy``, ``sample``, or so many beams."""
    if kind == "sample":
        return Sample(jax.random.key(0))
    return Greedy() if kind == "greedy" else beam(kind, alpha, **options)


SEARCHES = pytest.mark.parametrize("kind", ["greedy", 1, 3])
ALL_SEARCHES = pytest.mark.parametrize("kind", ["greedy", "sample", 1, 3])

# --- against enumeration ------------------------------------------------------------------------------------------------------

EXACT = {
    "none": (penalty.none(), power(0.0)),
    "average": (penalty.average(), power(1.0)),
    **{f"gnmt_{alpha}": (penalty.gnmt(alpha), gnmt(alpha)) for alpha in (-1.0, 0.0, 0.6, 1.0, 3.0)},
    # These stop by rules of their own, but a beam that the space does not fill never meets them.
    **{f"huggingface_{alpha}": (penalty.huggingface(alpha, "never"), power(alpha)) for alpha in (-1.0, 1.0, 2.0)},
    **{f"marian_{a}_{word}": (penalty.marian(a, word), power(a, word)) for a, word in ((0.0, 0.5), (0.6, -1.0), (1.0, 2.0))},
}


@pytest.mark.parametrize("name", EXACT)
def test_a_beam_as_wide_as_the_space_finds_the_exact_best(name):
    rule, ranked = EXACT[name]
    for seed in range(6):
        model, params, source = toy(seed)
        limit_B, min_len = np.array([4, 3, 4]), seed % 3
        rules = Rules(limit=limit_B, min_len=min_len)
        out = generate(model, params, source, max_len=MAX_LEN, search=Beam(128, rule, n_best=20), rules=rules)
        for found, oracle, limit in zip(hypotheses(out), oracles(params, source), limit_B):
            assert_same(found, every_hypothesis(oracle, limit, ranked, min_len)[:20])


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
def test_fairseqs_space_is_what_ends_in_the_end_token(alpha):
    for seed in range(3):
        model, params, source = toy(seed)
        rules = Rules(limit=np.array([4, 3, 4]), min_len=seed)
        out = generate(model, params, source, max_len=4, search=Beam(128, penalty.fairseq(alpha), n_best=20), rules=rules)
        for found, oracle, limit in zip(hypotheses(out), oracles(params, source), [4, 3, 4]):
            assert_same(found, every_hypothesis(oracle, limit, power(alpha), seed, cut=False)[:20])


SHAPES = [(1, 1, 6, 1), (3, 2, 6, 2), (2, 3, 4, 2), (3, 8, 5, 3)]  # batch, beams, vocabulary, n_best


@settings(max_examples=50)
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
    options = {"max_len": MAX_LEN, "rules": Rules(limit=limit_B, min_len=min_len)}
    out = generate(model, params, source, search=beam(beams, alpha, n_best=keep), **options)
    first = generate(model, params, source, **options)
    for b, oracle in enumerate(oracles(params, source)):
        found = hypotheses(out)[b]
        assert_same(found, python_beam(oracle, beams, limit_B[b], gnmt(alpha), keep=keep, min_len=min_len))
        assert len({ids for _, ids in found}) == len(found)
        assert [s for s, _ in found] == sorted((s for s, _ in found), reverse=True)
        assert_same(hypotheses(first)[b], python_beam(oracle, 1, limit_B[b], gnmt(0.0), min_len=min_len))


LONG = 8


def stopping(mode, beams: int, ranked, alpha: float):
    """transformers' three ways to end a search, in plain Python, with the limit ``LONG``."""

    def stop(best, bank, length):
        reach = LONG if mode == "never" and alpha > 0 else length
        return len(bank) == beams and (mode is True or ranked(best, reach) <= bank[-1])

    return None if mode == "exact" else stop


@pytest.mark.parametrize("alpha", [-1.0, 0.7, 3.0])
def test_early_stopping_is_the_plain_one(alpha):
    """Two tokens beside the end, so that a beam of 3 fills its bank long before the limit."""
    beams, found_by = 3, {}
    for seed in range(12):
        model, params, source = toy(seed, vocab=5)
        oracle_B = oracles(params, source, LONG)
        for mode in ("exact", True, False, "never"):
            search = Beam(beams, penalty.gnmt(alpha, mode), n_best=2)
            found_by[seed, mode] = hypotheses(generate(model, params, source, max_len=LONG, search=search))
            stop = stopping(mode, beams, gnmt(alpha), alpha)
            for found, oracle in zip(found_by[seed, mode], oracle_B):
                assert_same(found, python_beam(oracle, beams, LONG, gnmt(alpha), keep=2, stop=stop))
    results = {mode: [found_by[seed, mode] for seed in range(12)] for mode in ("exact", True, False, "never")}
    if alpha > 0:
        assert results[True] != results["exact"], "nothing here stops early: the test has no power"
    if alpha > 1:
        assert results[False] != results["exact"]


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize(("beams", "groups", "vocab"), [(4, 2, 6), (3, 3, 6), (6, 2, 6), (8, 2, 5)])
def test_groups_of_beams_are_the_plain_ones(beams, groups, vocab, alpha):
    differ = 0
    for seed, diversity in enumerate([0.0, 0.4, 1.5, 20.0] * 2):
        model, params, source = toy(seed, vocab=vocab)
        limit_B, min_len = np.array([4, 3, 4]), seed % 3
        search = beam(beams, alpha, n_best=beams, groups=groups, diversity=diversity)
        out = generate(model, params, source, max_len=4, search=search, rules=Rules(limit=limit_B, min_len=min_len))
        options = {"keep": beams, "min_len": min_len, "groups": groups}
        for found, oracle, limit in zip(hypotheses(out), oracles(params, source), limit_B):
            expected = python_beam(oracle, beams, limit, gnmt(alpha), diversity=diversity, **options)
            # Groups that find the same hypothesis tie in exact arithmetic.
            np.testing.assert_allclose([s for s, _ in found], [s for s, _ in expected], rtol=1e-4, atol=1e-5)
            assert sorted(ids for _, ids in found) == sorted(ids for _, ids in expected)
            differ += sorted(found) != sorted(python_beam(oracle, beams, limit, gnmt(alpha), **options))
    assert differ, "diversity never changed a result: the test has no power"


def test_one_group_is_no_group_and_groups_without_diversity_repeat_each_other():
    model, params, source = toy(2)
    plain = generate(model, params, source, max_len=MAX_LEN, search=beam(4, n_best=4))
    one = generate(model, params, source, max_len=MAX_LEN, search=beam(4, n_best=4, groups=1, diversity=99.0))
    np.testing.assert_array_equal(plain.ids, one.ids)
    np.testing.assert_array_equal(plain.score, one.score)
    two = hypotheses(generate(model, params, source, max_len=4, search=beam(4, n_best=4, groups=2, diversity=0.0)))
    half = hypotheses(generate(model, params, source, max_len=4, search=beam(2, n_best=2)))
    assert two == [[h for h in found for _ in range(2)] for found in half]


def covered(total: float, ids: tuple, attention, real_S, beta: float, alpha: float) -> float:
    """GNMT's equation 14."""
    received_S = sum(attention[ids[:t]] for t in range(len(ids)))
    coverage = sum(math.log(max(min(x, 1.0), 1e-9)) for x, real in zip(received_S, real_S) if real)
    return gnmt(alpha)(total, len(ids)) + beta * coverage


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.2), (0.6, 0.2), (1.0, 2.0), (1.0, 0.0)])
def test_coverage_counts_the_attention_that_each_source_token_received(alpha, beta):
    changed = False
    for seed in range(4):
        model, params, source = toy(seed)
        run = functools.partial(generate, model, params, source, max_len=MAX_LEN)
        narrow, wide = (run(search=beam(W, alpha, n_best=n, coverage=beta)) for W, n in ((4, 4), (128, 20)))
        for b, (oracle, attention) in enumerate(oracles_and_attention(params, source)):
            rank = lambda ids: covered(path_sum(oracle, ids), ids, attention, source.mask[b], beta, alpha)  # noqa: B023, E731
            found = hypotheses(narrow)[b]
            np.testing.assert_allclose([s for s, _ in found], [rank(ids) for _, ids in found], rtol=1e-4, atol=1e-5)
            every = [ids for _, ids in every_hypothesis(oracle, MAX_LEN, gnmt(alpha))]
            expected = sorted(((rank(ids), ids) for ids in every), reverse=True)[:20]
            assert_same(hypotheses(wide)[b], expected)
            changed |= expected[0][1] != every[0]
    assert changed == (beta > 0), "coverage never changed the best: the test has no power"


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
        rules = Rules(min_len=seed % 4)
        one = generate(model, params, source, max_len=9, search=beam(1, 0.0, n_best=1), rules=rules)
        out = generate(model, params, source, max_len=9, rules=rules)
        assert np.array_equal(one.ids[:, 0], out.ids)
        assert np.array_equal(one.length[:, 0], out.length)
        np.testing.assert_allclose(one.score[:, 0], out.score, rtol=1e-6)
        np.testing.assert_allclose(one.log_probs[:, 0], out.log_probs, rtol=1e-6)


@pytest.mark.parametrize("kind", ["greedy", "sample", 1, 3])
def test_the_scores_are_those_of_teacher_forcing(kind):
    for seed in range(4):
        model, params, source = toy(seed)
        out = generate(model, params, source, max_len=8, search=search_of(kind, 0.7))
        target = core.Tokens(out.ids, jnp.arange(8)[None] < out.length[:, None])
        sums_B, log_probs_BT = score(model, params, source, target)
        np.testing.assert_allclose(out.log_probs, log_probs_BT, atol=1e-5)
        ranked = gnmt(0.7 if isinstance(kind, int) else 0.0)
        np.testing.assert_allclose(out.score, [ranked(s, n) for s, n in zip(sums_B.tolist(), out.length.tolist())], rtol=1e-5)


ISOLATED = {
    "greedy": Greedy(),
    "beam_1": beam(1, 1.5),
    "beam_4": beam(4, 1.5),
    "groups": beam(4, 1.5, n_best=4, groups=2),
    "coverage": beam(4, 1.5, coverage=0.3),
    "marian": Beam(4, penalty.marian(0.6, 0.2), n_best=2),
    "fairseq": Beam(4, penalty.fairseq(), n_best=2),
    "huggingface": Beam(4, penalty.huggingface(), n_best=2),
}


@pytest.mark.parametrize("name", ISOLATED)
def test_a_batch_gives_what_each_sentence_alone_gives(name):
    """Nor does it matter in which row of the batch a sentence stands, nor how much padding follows it."""
    for seed in range(3):
        model, params, source = toy(seed, batch=5)
        options = {"max_len": 10, "search": ISOLATED[name]}
        out = generate(model, params, source, **options)
        wider = jax.tree.map(lambda x: np.pad(x, ((0, 3), (0, 6)))[::-1], source)
        alone = [core.Tokens(source.ids[[b]], source.mask[[b]]) for b in range(5)]
        for row, found in enumerate([generate(model, params, one, **options) for one in alone]):
            assert np.array_equal(found.ids[0], out.ids[row])
            np.testing.assert_allclose(found.score[0], out.score[row], rtol=1e-5)
        found = generate(model, params, wider, **options)
        assert np.array_equal(found.ids[:2:-1], out.ids)
        np.testing.assert_allclose(found.score[:2:-1], out.score, rtol=1e-5)


# --- the loop -----------------------------------------------------------------------------------------------------------------


def test_the_loop_stops_when_the_last_sentence_has_ended():
    ends = [3, 1, 5]
    rows = [[{3: 5.0, 4: 0.0, EOS: -5.0}] * (n - 1) + [{EOS: 9.0, 3: 0.0, 4: 0.0}] + [{3: 0.0}] * (20 - n) for n in ends]
    table_BTV = np.concatenate([table(*row) for row in rows])
    out = play(table_BTV)
    assert out.steps == 5
    assert out.length.tolist() == ends
    assert play(table_BTV, limit=np.array([4, 4, 2])).steps == 3
    for beams in (1, 2):
        out = play(table_BTV, beam(beams, 0.0))
        assert out.steps == 5
        assert out.length.tolist() == ends


def test_a_beam_search_goes_on_while_a_longer_hypothesis_can_still_win():
    # Ending at once costs log 2; so does going on, but nothing after that: only the penalty tells the two apart.
    rows = table({EOS: 0.0, 3: 0.0}, *[{3: 0.0}] * 6, {EOS: 0.0}, {3: 0.0})
    assert play(rows, beam(2, 0.0)).length == 1
    assert play(rows, beam(2, 0.0)).steps == 1
    out = play(rows, beam(2, 1.0))
    assert out.length == out.steps == 8
    np.testing.assert_allclose(out.score, gnmt(1.0)(-np.log(2), 8), rtol=1e-6)


def test_the_loop_stops_once_nothing_live_can_win():
    # Ending costs log 1.2 = .18 now, going on log 6 = 1.79 once. Twenty tokens divide that by (25 / 6) ** alpha: by 17 if
    # alpha is 2, and .10 would win; by 2 or less if alpha is .5 or 0, and nothing live is worth another step.
    probable = {EOS: 0.0, 3: np.log(0.2)}
    rows = table(probable, *[{3: 0.0}] * 19)
    assert [int(play(rows, beam(1, alpha)).steps) for alpha in (-1.0, 0.0, 0.5, 2.0)] == [1, 1, 1, 20]
    assert [int(play(rows, beam(1, alpha)).length[0]) for alpha in (-1.0, 0.0, 0.5, 2.0)] == [1, 1, 1, 20]


def test_a_penalty_that_favours_the_short_stops_no_sooner():
    # Ending costs .97 now or .47 at the next token: under alpha -1 that is .55, but 1.03 for a beam that went on to the limit.
    rows = table({3: 0.5, EOS: 0.0}, {EOS: 0.0}, *[{3: 0.0}] * 6)
    assert play(rows, beam(3, -1.0)).ids[0, :3].tolist() == [3, EOS, PAD]


# --- programs and memory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["greedy", "sample", 2])
def test_one_program_serves_a_bucket_of_rows_and_a_bucket_of_lengths(kind):
    """Fifty random shapes: batches fill 1 or 4 rows, sources 8 or 16 tokens, results 8 or 16."""
    model, params, source = toy(0, batch=4, length=16)
    rng, buckets, before = np.random.default_rng(0), set(), facade._generate._cache_size()
    for batch, length, max_len in zip(rng.choice([1, 3, 4], 50).tolist(), *rng.integers(1, 17, (2, 50)).tolist()):
        part = core.Tokens(source.ids[:batch, :length], source.mask[:batch, :length])
        found = generate(model, params, part, max_len=max_len, search=search_of(kind))
        assert found.ids.shape == (batch, max_len)
        buckets.add((facade.bucket(batch, 1), facade.bucket(length, 8), facade.bucket(max_len, 8)))
        grown = facade._generate._cache_size() - before
        assert grown <= len(buckets), f"{grown} programs for {len(buckets)} buckets, the last for {batch, length, max_len}"
    assert len(buckets) == 8


TOKENS = {"start_id": 1, "end_id": 2, "pad_id": 0, "first_id": -1}
SOME_RULES = Rules(min_len=1, limit=np.array([5, 6, 7]), repetition=1.2, ngram=3, end_at_limit=True)
VALUES = {
    "greedy": [(Greedy(), SOME_RULES), (Greedy(), SOME_RULES)],
    "sample": [
        (Sample(jax.random.key(0), 0.7, top_k=3, top_p=0.9, min_p=0.1, typical=0.9), SOME_RULES),
        (Sample(jax.random.key(1), np.float64(2), top_k=np.int64(500), top_p=1, min_p=1.0, typical=0.5), SOME_RULES),
    ],
    "beam": [
        (Beam(4, penalty.gnmt(0.6), n_best=2, groups=2, coverage=0.2), SOME_RULES),
        *(
            (Beam(4, rule, n_best=2, groups=2, diversity=0, coverage=1), SOME_RULES)
            for rule in (
                penalty.gnmt(1),
                penalty.gnmt(np.float64(0.3), early_stopping=True),
                penalty.none("never"),
                penalty.average(False),
                penalty.huggingface(2, True),
                penalty.fairseq(0.5),
                penalty.marian(0.5, 1),
            )
        ),
    ],
}


@pytest.mark.parametrize("kind", VALUES)
def test_another_value_compiles_nothing(kind):
    model, params, source = toy(0)
    (search, rules), *others = VALUES[kind]
    generate(model, params, source, max_len=7, search=search, rules=rules)
    size = facade._generate._cache_size()
    changed = [
        {"min_len": np.array([1, 2, 3]), "repetition": 2},
        {"limit": 6, "ngram": np.int64(1)},
        {"limit": jnp.arange(3), "min_len": np.int64(9)},
        {"start_id": 3, "end_id": np.int64(4), "pad_id": 5, "first_id": 3},
        {"end_at_limit": False},
    ]
    for values in changed:
        found = generate(model, params, source, max_len=7, search=search, rules=rules._replace(**values))
        if "limit" in values:
            assert (found.length.reshape(3, -1).max(axis=1) <= np.asarray(values["limit"])).all()
    for search, rules in others:
        generate(model, params, source, max_len=7, search=search, rules=rules)
    generate(Toy(model.config), params, source, max_len=7, search=search, rules=rules)
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
        return (Greedy() if beams == 1 else Beam(beams))(decode, None, cache, 1, max_len)

    return jax.jit(search).lower().compile(), beams * max_len * width * 4


def test_the_cache_is_updated_in_place():
    compiled, size = big_cache_search(1)
    assert compiled.memory_analysis().temp_size_in_bytes < 1.1 * size
    compiled, size = big_cache_search(2)  # gathering by parent needs one more
    assert compiled.memory_analysis().temp_size_in_bytes < 2.1 * size


CACHE = {"d_model": 256, "d_ff": 32, "num_heads": 4, "num_layers": 1}  # one layer: two buffers that are all of the cache


def transformer_search(beams: int, batch: int, source: int, max_len: int, **sizes):
    """The lowered search, with decoder and memory as its arguments, of a Transformer; and the memory."""
    model = transformer.TransformerConfig(32, 32, dropout=0.0, **sizes).build()
    tokens = core.Tokens(np.full((batch, source), 5), np.ones((batch, source), bool))
    params = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"]
    memory = jax.eval_shape(lambda p: model.apply({"params": p}, tokens, method="encode"), params)

    def search(params, memory):
        def decode(tokens_RN, memory, cache):
            return model.apply({"params": params}, tokens_RN, memory, cache, method="decode")

        cache = model.apply({"params": params}, memory, max_len, beams, method="init_cache")
        return (Greedy() if beams == 1 else Beam(beams))(decode, memory, cache, batch, max_len)

    return jax.jit(search).lower(params, memory), memory


@pytest.mark.parametrize(("batch", "beams"), [(1, 1), (2, 1), (1, 4)])
def test_a_transformers_cache_is_written_where_it_is_and_never_moved(batch, beams):
    """Nothing as large as one buffer is made in the loop, but by writing a step into it; nothing waits beside the cache."""
    max_len = 8192 // beams
    compiled = transformer_search(beams, batch, 8, max_len, **CACHE)[0].compile()
    size = 2 * 4 * batch * beams * max_len * CACHE["d_model"]
    assert size <= compiled.memory_analysis().temp_size_in_bytes < 1.2 * size
    made = re.findall(r"= f32\[([\d,]+)\]\S* ([\w-]+)\((.*)", compiled.as_text())
    whole = [(op, rest) for dims, op, rest in made if math.prod(map(int, dims.split(","))) >= size // 8]
    assert not {op for op, _ in whole} & {"copy", "transpose", "select", "gather", "concatenate"}, whole
    assert sum(op == "dynamic-update-slice" for op, _ in whole) == 2, "the key and the value are written once each"


def test_the_memory_is_not_repeated_for_the_beams():
    """Nothing as long as the source is larger than the keys of one layer, in the program as written and as compiled."""
    B, H, S, K, W = 3, 2, 77, 16, 4
    lowered, memory = transformer_search(W, B, S, 8, d_model=H * K, d_ff=32, num_heads=H, num_layers=2)
    assert memory.keys[0].key.shape == (B, H, K, S)
    for text in (lowered.as_text(), lowered.compile().as_text()):
        shapes = [tuple(map(int, re.findall(r"\d+", dims))) for dims in re.findall(r"(?<=[\[<])\d+(?:[x,]\d+)*(?=[\]x])", text)]
        sizes = {math.prod(shape) for shape in shapes if S in shape}
        assert B * H * K * S in sizes, "the keys were not found: the test has no power"
        assert max(sizes) == B * H * K * S


def test_memory_is_never_copied_per_beam_and_the_cache_follows_its_beams():
    model, params, source = toy(0)
    seen = []

    def decode(tokens_RN, memory, cache):
        seen.append((tokens_RN.shape, memory["keys"].shape, cache["state"].shape))
        return model.apply({"params": params}, tokens_RN, memory, cache, method="decode")

    memory = jax.tree.map(jnp.asarray, model.apply({"params": params}, source, method="encode"))
    jax.jit(lambda: Beam(4)(decode, memory, model.init_cache(memory, 5, 4), 3, 5)).lower()
    assert set(seen) == {((12, 1), (3, 5, WIDTH), (12, WIDTH))}
    cache = {"rows": jnp.arange(6), "index": jnp.int32(9), "wide": jnp.arange(12).reshape(6, 2)}
    cache["stays"] = core.AppendOnly({"buffer": jnp.arange(6), "by_sentence": jnp.arange(2)})
    moved = reorder(cache, jnp.array([[2, 0, 0], [1, 1, 2]]))
    assert moved["rows"].tolist() == [2, 0, 0, 4, 4, 5]
    assert moved["wide"][:, 0].tolist() == [4, 0, 0, 8, 8, 10]
    assert moved["index"] == 9
    assert [x.tolist() for x in jax.tree.leaves(moved["stays"])] == [[0, 1, 2, 3, 4, 5], [0, 1]]
    assert reorder(cache, jnp.zeros((6, 1), jnp.int32)) is cache


# --- the edges ----------------------------------------------------------------------------------------------------------------


@ALL_SEARCHES
def test_padding_and_start_are_never_generated(kind):
    rows = [{PAD: 9.0, BOS: 8.0, 3: 1.0, 4: 0.0}, {PAD: 9.0, BOS: 8.0, EOS: 1.0, 4: 0.0}]
    if kind == "sample":
        rows = [{**logits, 4: -np.inf} for logits in rows]
    out = play(table(*rows), search_of(kind))
    assert out.ids.tolist() == [[3, EOS]]
    others = [9, 8, 1] if kind == "sample" else [9, 8, 1, 0]
    np.testing.assert_allclose(out.log_probs[0, 0], 1 - np.logaddexp.reduce(others), rtol=1e-5)


@SEARCHES
def test_the_lowest_id_wins_a_tie(kind):
    flat = {3: 1.0, 4: 1.0, 5: 1.0, EOS: -9.0}
    assert play(table(flat, flat, flat), search_of(kind, 0.0)).ids.tolist() == [[3, 3, 3]]
    zeros = {3: 0.0, 4: -0.0, 5: 0.0, EOS: -0.0}
    assert play(table({**zeros, 3: -0.0, EOS: -9.0}), search_of(kind)).ids.tolist() == [[3]]
    assert play(table(zeros, zeros), search_of(kind, 0.0)).ids.tolist() == [[EOS, PAD]]


def test_ties_among_hypotheses_go_to_the_better_ranked_beam_and_the_lower_id():
    flat = {3: 0.0, 4: 0.0, 5: 0.0}
    out = play(table(flat, flat), beam(4, 0.0, n_best=4))
    assert out.ids[0].tolist() == [[3, 3], [3, 4], [3, 5], [4, 3]]


@ALL_SEARCHES
def test_one_possible_token_is_taken(kind):
    out = play(table({4: -1e30}, {3: 1e30}, {EOS: 0.0}, {}), search_of(kind))
    assert out.ids.tolist() == [[4, 3, EOS, PAD]]
    assert out.score == 0


def test_where_no_token_is_possible_the_score_is_minus_infinity():
    for kind in ("greedy", "sample"):
        out = play(table({3: 0.0}, {}, {3: 0.0}), search_of(kind))
        assert out.ids.tolist() == [[3, EOS, PAD]]
        assert out.log_probs.tolist() == [[0.0, -np.inf, 0.0]]
        assert out.score.tolist() == [-np.inf]
    out = play(table({3: 0.0}, {}, {3: 0.0}), beam(2, n_best=2))
    assert out.ids.tolist() == [[[PAD] * 3] * 2]
    assert out.score.tolist() == [[-np.inf] * 2]
    assert out.length.tolist() == [[0, 0]]
    assert out.steps == 2


@SEARCHES
def test_nan_never_wins_and_infinity_does(kind):
    out = play(table({3: np.nan, 4: 0.0, 5: np.nan}, {3: np.inf, 4: 0.0}, {3: np.nan, EOS: 1.0}), search_of(kind))
    assert out.ids.tolist() == [[4, 3, EOS]]
    assert out.log_probs.tolist() == [[0.0, 0.0, 0.0]]


@SEARCHES
def test_minimum_and_limit(kind):
    rows, search = np.repeat(table(*[{EOS: 3.0, 3: 1.0, 4: 0.0}] * 6), 4, axis=0), search_of(kind, 0.0)
    out = play(rows, search, min_len=3, limit=np.array([6, 3, 2, 0]))
    assert out.length.tolist() == [3, 3, 2, 0]
    assert out.ids[:, :3].tolist() == [[3, 3, EOS], [3, 3, EOS], [3, 3, PAD], [PAD] * 3]
    assert out.score[3] == 0
    assert play(rows, search, min_len=np.array([1, 2, 3, 4])).length.tolist() == [1, 2, 3, 4]
    assert play(rows, search, limit=np.array([-1, 99, 1, 6])).length.tolist() == [0, 1, 1, 1]


@ALL_SEARCHES
def test_a_batch_without_room_takes_no_step(kind):
    out = play(np.repeat(table({3: 0.0}, {EOS: 0.0}), 2, axis=0), search_of(kind), limit=0)
    assert out.ids.tolist() == [[PAD, PAD]] * 2
    assert (out.score.tolist(), out.length.tolist(), int(out.steps)) == ([0.0, 0.0], [0, 0], 0)


@ALL_SEARCHES
def test_what_never_ends_is_cut(kind):
    rows = [{3: 1.0} if kind == "sample" else {3: 1.0, 4: 0.0}] * 7
    out = play(table(*rows), search_of(kind))
    assert out.ids.tolist() == [[3] * 7]
    assert (out.length, out.steps) == (7, 7)
    assert np.isfinite(out.score).all()


@ALL_SEARCHES
def test_what_ends_at_once_takes_one_step(kind):
    out = play(table({EOS: 0.0}, *[{3: 0.0}] * 6), search_of(kind))
    assert out.ids.tolist() == [[EOS, *[PAD] * 6]]
    assert (out.length, out.steps, out.score) == (1, 1, 0)


@ALL_SEARCHES
def test_one_token(kind):
    other = -np.inf if kind == "sample" else 0.0
    assert play(table({3: 1.0, EOS: other}), search_of(kind)).ids.tolist() == [[3]]
    assert play(table({3: other, EOS: 1.0}), search_of(kind)).ids.tolist() == [[EOS]]
    model, params, source = toy(0)
    assert generate(model, params, source, max_len=1, search=search_of(kind)).ids.shape == (3, 1)


def test_more_beams_than_there_are_hypotheses():
    out = play(table({EOS: 0.0, 3: 1.0}, {EOS: 0.0, 3: 1.0}, vocab=4), beam(9, 0.0, n_best=9))
    assert np.isfinite(out.score[0]).tolist() == [True] * 3 + [False] * 6
    assert out.ids[0].tolist() == [[3, 3], [EOS, PAD], [3, EOS]] + [[PAD, PAD]] * 6


@ALL_SEARCHES
def test_a_vocabulary_may_start_with_the_end_token(kind):
    rows = table({0: 5.0, 1: 1.0, 2: 0.0}, {0: -np.inf if kind == "sample" else 5.0, 2: 9.0})
    assert play(rows, search_of(kind), start_id=2, end_id=2, pad_id=1, min_len=2).ids.tolist() == [[0, 2]]


@pytest.mark.parametrize("length", [0, 5])
@ALL_SEARCHES
def test_a_source_of_padding_is_finite(kind, length):
    """A row of nothing but padding, and a batch without any column: the other rows never notice."""
    model, params, source = toy(3)
    mask = source.mask & np.array([[True], [False], [True]])
    part = core.Tokens(source.ids[:, :length], mask[:, :length])
    out = generate(model, params, part, max_len=6, search=search_of(kind))
    assert all(np.isfinite(x).all() for x in (out.log_probs, out.score))
    assert (out.length >= 1).all()
    assert np.isfinite(score(model, params, source._replace(mask=mask), core.pad_tokens([[3, 2], [4], []]))[0]).all()
    if length:
        whole = generate(model, params, source, max_len=6, search=search_of(kind))
        np.testing.assert_array_equal(out.ids[[0, 2]], whole.ids[[0, 2]])


@SEARCHES
def test_scores_are_float32_whatever_the_logits(kind):
    table_BTV = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 700), scale=0.1), jnp.bfloat16)
    out = play(np.asarray(table_BTV), search_of(kind, 0.0), min_len=8)
    assert out.score.dtype == out.log_probs.dtype == jnp.float32
    logits_TV = np.asarray(table_BTV[0], np.float64)
    log_probs_TV = logits_TV - np.log(np.exp(logits_TV).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(out.log_probs[0], log_probs_TV[np.arange(8), out.ids[0]], rtol=1e-6)


def test_samples_are_scored_in_float32_whatever_the_logits():
    table_BTV = np.random.default_rng(0).normal(size=(1, 8, 700), scale=0.1).astype(jnp.bfloat16)
    out = play(table_BTV, Sample(jax.random.key(3), 0.9, top_p=0.9), min_len=8, bias=np.zeros(700), repetition=1.1)
    assert out.score.dtype == out.log_probs.dtype == jnp.float32
    log_probs_TV = np.asarray(jax.nn.log_softmax(table_BTV[0].astype(np.float32)))
    np.testing.assert_allclose(out.log_probs[0], log_probs_TV[np.arange(8), out.ids[0]], rtol=1e-6)


def test_forced_scores_are_float32_whatever_the_logits():
    model, params, source = toy(2, dtype="bfloat16")
    target = core.pad_tokens([[3, 4, 2], [2], [5]])
    sums_B, log_probs_BT = score(model, params, source, target)
    assert sums_B.dtype == log_probs_BT.dtype == jnp.float32
    np.testing.assert_allclose(sums_B, score(toy(2)[0], params, source, target)[0], rtol=2e-2)


@ALL_SEARCHES
def test_attention_belongs_to_the_best_hypothesis(kind):
    model, params, source = toy(4)
    out = generate(model, params, source, max_len=6, search=search_of(kind), attention=True)
    plain = generate(model, params, source, max_len=6, search=search_of(kind))
    assert plain.attention == {}
    assert np.array_equal(plain.ids, out.ids)
    attention = model.apply({"params": params}, source, core.Tokens(out.ids, None), attention=True).attention
    real_BT = np.arange(6) < np.asarray(out.length)[:, None]
    assert list(out.attention) == ["layer/cross"]
    weights_BHTS = np.asarray(out.attention["layer/cross"])
    assert weights_BHTS.shape == (3, 1, 6, 5)
    np.testing.assert_allclose(weights_BHTS.sum(axis=3)[:, 0], real_BT, rtol=1e-5)
    np.testing.assert_allclose(weights_BHTS, np.asarray(attention["layer/cross"]) * real_BT[:, None, :, None], rtol=1e-5)


def test_scoring_ignores_what_the_mask_hides():
    model, params, source = toy(5)
    target = core.pad_tokens([[3, 4, 2], [2], []])
    sums_B, log_probs_BT = score(model, params, source, target)
    np.testing.assert_allclose(sums_B, np.sum(log_probs_BT, axis=1), rtol=1e-6)
    expected = [path_sum(oracle, ids) for oracle, ids in zip(oracles(params, source), [(3, 4, 2), (2,), ()])]
    np.testing.assert_allclose(sums_B, expected, rtol=1e-5)


def test_a_learned_position_table_is_no_shorter_for_the_buckets():
    """A source and a limit that fit the model fit it still once they are filled up to their buckets."""
    sizes = {"d_model": 8, "d_ff": 8, "num_heads": 2, "num_layers": 1, "dropout": 0.0}
    model = transformer.TransformerConfig(9, 9, positions="learned", max_len=10, **sizes).build()
    source, target = model.config.example(3, 10, 10)
    params = jax.jit(model.init)(jax.random.key(0), source, target)["params"]
    for kind in ("greedy", 2):
        assert generate(model, params, source, max_len=10, search=search_of(kind)).ids.shape == (3, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_len": 0}, "max_len is 0"),
        ({"search": beam(0)}, "beams is 0"),
        ({"search": beam(2, n_best=3)}, "1 to 2"),
        ({"search": beam(2, n_best=0)}, "n_best is 0"),
        ({"search": beam(3, groups=2)}, "groups is 2"),
        ({"search": beam(3, groups=0)}, "groups is 0"),
    ],
)
def test_impossible_requests_are_refused(options, message):
    model, params, source = toy(0)
    with pytest.raises(core.UserError, match=message):
        generate(model, params, source, **{"max_len": 5, **options})
    if "search" in options:
        with pytest.raises(core.UserError, match=message):
            options["search"](None, None, None, 3, 5)


def test_coverage_needs_a_mask_and_attention():
    with pytest.raises(core.UserError, match="coverage needs source_mask"):
        beam(2, coverage=0.1)(None, None, None, 3, 5)
    decode = lambda tokens_RN, *_, attention: (core.Outputs(jnp.zeros((2, 1, 5)), {}), None)  # noqa: E731
    with pytest.raises(core.UserError, match="cross-attention"):
        beam(2, coverage=0.1, source_mask=np.ones((1, 2), bool))(decode, None, jnp.int32(0), 1, 5)
    with pytest.raises(core.UserError, match="early_stopping is 'sometimes'"):
        penalty.gnmt(0.6, "sometimes")


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


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    shape=st.sampled_from([(1, 3, 1), (3, 1500, 2), (2, 4100, 2), (2, 20_001, 17)]),
    levels=st.integers(1, 60),
    seed=st.integers(0, 999),
)
def test_what_is_banned_is_not_selected(shape, levels, seed):
    rows, size, k = shape
    rng = np.random.default_rng(seed)
    x_RV = rng.geometric(1 / (1 + levels), (rows, size)).astype(np.float32)
    # The best of the first row, in some rows; a token that is no token; the last one, where the blocks are filled up.
    banned = ((np.int32(x_RV[0].argmax()), rng.random(rows) < 0.7), (np.int32(size), True), (np.int32(size - 1), True))
    expected_RV = x_RV.copy()
    expected_RV[banned[0][1], banned[0][0]] = expected_RV[:, size - 1] = -np.inf
    expected_RK = np.argsort(-expected_RV, axis=1, kind="stable")[:, :k]
    values_RK, index_RK = jax.jit(select.top_k, static_argnums=1)(x_RV, k, banned)
    assert np.array_equal(index_RK, expected_RK)
    assert np.array_equal(values_RK, np.take_along_axis(expected_RV, expected_RK, axis=1))
