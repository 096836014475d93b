"""Corruption of texts, and models that are pre-trained on plain text by undoing it."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain, pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import zoo
from train.__main__ import main
from train.data import Batching, Example, Tokenized, eval_batches, train_batches
from train.data.corrupt import IGNORED, infilling, masking, sentence_ends, spans
from train.data.spans import infill, permute_sentences
from train.experiment import check_same
from zoo.core import EOS
from zoo.text import Tokenizer

TOKENIZER = Tokenizer.train("words", ["a b c d e f g h i j"])


def test_masking():
    """15 % of the tokens, never the last; of these 80 % masked, 10 % any token, 10 % left; the others are not learned."""
    ids_N = np.array([*np.random.default_rng(0).integers(4, 14, 40_000), EOS], np.int32)
    source_N, target_N = masking(TOKENIZER)(ids_N, np.random.default_rng(1))
    chosen_N = target_N != IGNORED
    assert not chosen_N[-1]
    np.testing.assert_array_equal(target_N[chosen_N], ids_N[chosen_N])
    np.testing.assert_array_equal(source_N[~chosen_N], ids_N[~chosen_N])
    masked_N = source_N[chosen_N] == TOKENIZER.mask_id
    same_N = source_N[chosen_N] == ids_N[chosen_N]
    # Of the 10 % that are any of 14 tokens, one in 14 is the token itself and one the mask.
    shares = chosen_N.mean(), masked_N.mean(), same_N.mean()
    assert shares == pytest.approx((0.15, 0.8 + 0.1 / 14, 0.1 + 0.1 / 14), abs=0.02)


def test_batches_of_corrupted_texts():
    """New masks each epoch, the same ones for the same state; in evaluation the same ones each time."""
    text = " ".join("abcdefghij")
    examples = [Example("", text, (text,))] * 4
    data = Tokenized(examples, TOKENIZER, TOKENIZER, corrupt=masking(TOKENIZER, share=0.5))
    batching, shapes = Batching(tokens=64, max_source_len=16, max_target_len=16), ((4, 16, 16),)
    stream = train_batches(data, batching, shapes, seed=0)
    state = stream.get_state()
    first, second = next(stream), next(stream)
    rows = [{tuple(row) for row in batch.source.ids.tolist()} for batch in (first, second)]
    assert rows[0] != rows[1], "both epochs have the same masks"
    assert (first.source.mask.sum(axis=1) == 11).all()
    assert len(rows[0]) > 1, "rows of a batch are masked alike"
    learned = first.target.mask
    assert 5 < learned.sum() < 35
    np.testing.assert_array_equal(first.target.ids[learned], np.tile([*range(4, 14), EOS] + [0] * 5, (4, 1))[learned])
    stream.set_state(state)
    np.testing.assert_array_equal(next(stream).source.ids, first.source.ids)
    batches = eval_batches(data, shapes)
    np.testing.assert_array_equal(next(iter(batches)).source.ids, next(iter(batches)).source.ids)


def test_a_model_learns_to_fill_in(tmp_path, capsys):
    """What stands beside a word tells which it was; and the trained model's directory does so by itself."""
    file = tmp_path / "texts.txt"
    file.write_text("one red cat\ntwo blue dogs\nthree green birds\n" * 60, encoding="utf-8")
    options = {
        **{
            "data.train": tmp_path / "texts.txt",
            "data.validation": tmp_path / "texts.txt",
            "data.test": tmp_path / "texts.txt",
        },
        **{"tokenizers.source": "words", "tokenizers.target": "words", "model.d-model": 32, "model.d-ff": 32},
        **{"model.num-layers": 1, "model.max-len": 16, "batching.max-source-len": 16, "batching.max-target-len": 16},
        **{"batching.tokens": 512, "batching.buckets": 1, "optimizer.learning-rate": 1e-2, "optimizer.warmup-steps": 10},
        **{"training.steps": 300, "training.eval-every": 300, "parallel.devices": 1},
    }
    given = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    assert main(["configs/bert_mlm.py", "--workdir", str(tmp_path / "run"), *given]) == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["test/perplexity"] < 2
    predictor = zoo.load(tmp_path / "run")
    texts = ["two [MASK] dogs", "[MASK] green [MASK]", "one red [MASK]"]
    assert predictor.predict(texts) == ["two blue dogs", "three green birds", "one red cat"]
    assert main(["configs/bert_mlm.py", "--workdir", str(tmp_path / "other"), *given, "--corruption", "none"]) == 2
    assert "corruption" in capsys.readouterr().err


@given(length=st.integers(0, 200), seed=st.integers(0, 2**31))
def test_infilling(length, seed):
    """30 % of the tokens are gone, the others stand in order, masks never touch, and the text has not grown."""
    found = infill(range(10, 10 + length), np.random.default_rng(seed), mask_id=1)
    kept = [token for token in found if token != 1]
    assert kept == sorted(set(kept))
    assert length - len(kept) == round(0.3 * length)
    assert len(found) <= length
    assert (1, 1) not in pairwise(found)
    around = [9, *found, 10 + length]
    gaps = [after - before - 1 for before, token, after in zip(around, around[1:], around[2:], strict=False) if token == 1]
    assert sum(gaps) == length - len(kept), "a token is gone without a mask in its place"


def test_spans_are_of_poisson_lengths():
    """Their mean is 3, a twentieth of them are empty; each place is as likely."""
    found = [infill(range(2, 302), np.random.default_rng(seed), mask_id=1) for seed in range(300)]
    masks = np.mean([tokens.count(1) for tokens in found])
    assert masks == pytest.approx(90 / 3, rel=0.05)
    gone = np.mean([~np.isin(np.arange(2, 302), tokens) for tokens in found], axis=0)
    assert np.abs(gone[5:-5] - 0.3).max() < 0.12
    assert np.abs(gone.reshape(10, 30).mean(axis=1) - 0.3).max() < 0.03


@given(st.lists(st.integers(0, 5), max_size=9), st.sets(st.integers(0, 2)), st.integers(0, 2**31))
def test_sentences_in_another_order(ids, ends, seed):
    """Each sentence whole and once, the end tokens of one together; the same for the same seed."""
    sentences: list[list[int]] = [[]]
    for i, token in enumerate(ids):
        sentences[-1].append(token)
        if token in ends and i + 1 < len(ids) and ids[i + 1] not in ends:
            sentences.append([])
    moved = permute_sentences(ids, np.random.default_rng(seed), ends)
    assert moved == permute_sentences(ids, np.random.default_rng(seed), ends)
    assert tuple(moved) in {tuple(chain(*order)) for order in permutations(sentences)}


def test_each_order_of_sentences_is_as_likely():
    found = Counter(tuple(permute_sentences([5, 1, 6, 1, 7, 1], np.random.default_rng(i), {1})) for i in range(1200))
    assert {order[::2] for order in found} == set(permutations([5, 6, 7]))
    assert all(count == pytest.approx(200, abs=60) for count in found.values())


def test_infilling_moves_sentences():
    """Those of the tokenizer's marks, and not the tokens around the text; the target stays."""
    tokenizer = Tokenizer.train("words", ["a b. c d? e f! g h.'' i"] * 3)
    ids_N = np.array(tokenizer.encode("a b. c d? e f! g h.'' i"), np.int32)
    assert {tokenizer.pieces([i])[0] for i in sentence_ends(tokenizer)} == {"b.", "d?", "f!", "h.''"}
    found = [infilling(tokenizer)(ids_N, np.random.default_rng(seed)) for seed in range(50)]
    assert all(target is ids_N and source[-1] == EOS for source, target in found)
    first = {int(source[0]) for source, _ in found}
    assert {tokenizer.encode(word)[0] for word in "acegi"} <= first
    bart = zoo.load(Path(__file__).parent / "golden" / "bart").source_tokenizer
    ids_N = np.array(bart.encode("One.Two.Six."), np.int32)
    read = [infilling(bart)(ids_N, np.random.default_rng(seed))[0] for seed in range(20)]
    assert all((row[0], row[-1]) == (ids_N[0], ids_N[-1]) for row in read)
    assert len({int(row[1]) for row in read} - {bart.mask_id}) >= 3


def test_the_end_is_never_taken():
    ids_N = np.array([4, 5, 6, 7, 8, 9, 10, 11, 12, EOS], np.int32)
    source, target = infilling(TOKENIZER)(ids_N, np.random.default_rng(0))
    assert (source[-1], TOKENIZER.mask_id in source) == (EOS, True)
    np.testing.assert_array_equal(target, ids_N)
    tokenizer = zoo.load(Path(__file__).parent / "golden" / "t5").source_tokenizer
    ids_N = np.array(tokenizer.encode("the quick brown fox jumps over the lazy dog"), np.int32)
    first = tokenizer.ids["<extra_id_0>"]
    source, target = spans(tokenizer)(ids_N, np.random.default_rng(0))
    assert source[-1] == target[-1] == ids_N[-1] == tokenizer.end_id
    assert (target[0], first in source) == (first, True)
    assert len(source) < len(ids_N)
    with pytest.raises(zoo.UserError, match="no <extra_id_0>: start from a T5"):
        spans(TOKENIZER)


@pytest.mark.parametrize(("config", "most"), [("bart_denoise", 1.2), ("t5_spans", 1.6)])
def test_an_encoder_decoder_learns_to_fill_in(config, most, tmp_path, capsys):
    """By the configs of BART and T5: a few words tell which line it was."""
    file = tmp_path / "texts.txt"
    file.write_text("one red cat sat down\ntwo blue dogs ran off\nthree green birds flew by\n" * 60, encoding="utf-8")
    sizes = {
        "bart_denoise": {"model.max-len": 16, "model.encoder-d-ff": 32, "model.decoder-d-ff": 32},
        "t5_spans": {"model.d-ff": 32, "model.d-kv": 8, "tokenizers.sentinels": 3, "optimizer.name": "adam"},
    }
    options = {
        **{f"data.{split}": file for split in ("train", "validation", "test")},
        **{"tokenizers.source": "words", "tokenizers.target": "words", "model.d-model": 32, **sizes[config]},
        **{f"model.{side}-layers": 1 for side in ("encoder", "decoder")},
        **{"batching.max-source-len": 16, "batching.max-target-len": 16},
        **{"batching.tokens": 512, "batching.buckets": 1, "optimizer.learning-rate": 1e-2, "optimizer.warmup-steps": 10},
        **{"training.steps": 60, "training.eval-every": 60, "parallel.devices": 1},
    }
    given = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    assert main([f"configs/{config}.py", "--workdir", str(tmp_path / "run"), *given]) == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["test/perplexity"] < most
    if config == "t5_spans":
        assert len(zoo.load(tmp_path / "run").target_tokenizer.sentinels) == 3
        other = ["--workdir", str(tmp_path / "other"), *given, "--tokenizers.sentinels", "0"]
        assert main([f"configs/{config}.py", *other]) == 2
        assert "tokenizers.sentinels is 0" in capsys.readouterr().err


def test_a_run_that_is_older_than_a_field_goes_on():
    """Where the field is off; not where it changes what is learned."""
    now = {"tokenizers": {"source": "bpe", "sentinels": 0}}
    check_same({"tokenizers": {"source": "bpe"}}, now, "runs/old")
    now["tokenizers"]["sentinels"] = 100
    with pytest.raises(zoo.UserError, match=r"tokenizers\.sentinels was None and is 100"):
        check_same({"tokenizers": {"source": "bpe"}}, now, "runs/old")
