"""Corruption of texts, and a masked language model that is pre-trained on plain text."""

from __future__ import annotations

import json

import numpy as np
import pytest

import zoo
from train.__main__ import main
from train.data import Batching, Example, Tokenized, eval_batches, train_batches
from train.data.corrupt import IGNORED, masking
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
        **{"training.steps": 100, "training.eval-every": 100, "parallel.devices": 1},
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
