"""Searches against the systems that they imitate: what transformers, fairseq and Marian found, token for token.

The golden files come from golden/make_golden.py: each holds a model (or, for fairseq, a table of logits by sentence and last
token), its sources, and under the name of each setting what the system found with it.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import transformer
from zoo.checkpoint.rules import from_reference
from zoo.core import Outputs, Tokens
from zoo.generate import Beam, Greedy, Rules, bias, generate, penalty

GOLDEN = Path(__file__).parent / "golden"
SYSTEMS = ("transformers", "fairseq", "marian")
SIZES = {"d_model": 32, "d_ff": 64, "num_heads": 4, "num_layers": 2, "dropout": 0.0}


@functools.cache
def load(system: str) -> SimpleNamespace:
    """A golden file: its arrays, its settings completed by what is common to them, and the ids of special tokens."""
    with np.load(GOLDEN / f"generate_{system}.npz", allow_pickle=False) as arrays:
        arrays = dict(arrays)
    facts = json.loads(str(arrays["in:json"]))
    settings = {name: {**facts["common"], **setting} for name, setting in facts["settings"].items()}
    return SimpleNamespace(arrays=arrays, settings=settings, ids=facts.get("ids"))


def settings_of(system: str):
    return pytest.mark.parametrize("name", load(system).settings)


@functools.cache
def subject(system: str):
    """(model, params, source) of a file that holds a Transformer: normalised after the sum, one embedding for all."""
    arrays = load(system).arrays
    vocab, _ = arrays["param:embedding.weight"].shape
    lengths = {"max_len": arrays["param:source_positions.weight"].shape[0], "positions": "learned"}
    model = transformer.TransformerConfig(vocab, vocab, **SIZES, **lengths).build()
    source = Tokens(arrays["in:source_ids"].astype(np.int32), arrays["in:source_mask"])
    template = jax.eval_shape(model.init, jax.random.key(0), source, source)["params"]
    tensors = {key.removeprefix("param:"): value for key, value in arrays.items() if key.startswith("param:")}
    return model, jax.tree.map(jnp.asarray, from_reference(tensors, model.RULES, template)), source


def same(found, ids_BNT, score_BN, pad_id: int, atol: float = 2e-4, rtol: float = 0.0) -> None:
    """Every token of every hypothesis, and every score."""
    ids = np.asarray(found.ids).reshape(*ids_BNT.shape[:2], -1)
    length = max(ids.shape[2], ids_BNT.shape[2])
    ids, ids_BNT = (np.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2])), constant_values=pad_id) for x in (ids, ids_BNT))
    np.testing.assert_array_equal(ids, ids_BNT)
    if score_BN is not None:
        np.testing.assert_allclose(np.asarray(found.score).reshape(score_BN.shape), score_BN, atol=atol, rtol=rtol)


def test_each_golden_file_has_a_test():
    assert {path.stem for path in GOLDEN.glob("generate_*.npz")} == {f"generate_{system}" for system in SYSTEMS}


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_settings_differ_in_what_they_find(system):
    """Else a test that ignores a setting would pass."""
    golden = load(system)
    outputs = [key for key in golden.arrays if key.startswith("out:") and key.rsplit(":")[-1] in ("sequences", "tokens", "ids")]
    assert {key.split(":")[1] for key in outputs} == set(golden.settings)
    assert len({golden.arrays[key].tobytes() for key in outputs}) > len(golden.settings) / 2


@settings_of("transformers")
def test_transformers(name):
    golden, (model, params, source) = load("transformers"), subject("transformers")
    setting = dict(golden.settings[name])
    assert setting.pop("bad_words_ids")[-1:] in ([[59]], [[41]])  # the start token, which no search of ours generates
    banned = [token for (token,) in golden.settings[name]["bad_words_ids"] if token != 59]
    pad_id, minimum, first, last = (
        setting.pop("pad_token_id"),
        setting.pop("min_new_tokens", 0),
        setting.pop("forced_bos_token_id", -1),
        setting.pop("forced_eos_token_id", None),
    )
    rules = Rules(
        start_id=setting.pop("decoder_start_token_id"),
        end_id=setting.pop("eos_token_id"),
        pad_id=pad_id,
        min_len=minimum + 1 if minimum else 0,  # transformers does not count the end token
        end_at_limit=last is not None,
        first_id=first,
        bias=bias(60, suppress=banned) if banned else None,
        repetition=setting.pop("repetition_penalty", None),
        ngram=setting.pop("no_repeat_ngram_size", None),
    )
    search, max_len = Greedy(), setting.pop("max_new_tokens")
    if beams := setting.pop("num_beams", None):
        rule = penalty.huggingface(setting.pop("length_penalty", 1.0), setting.pop("early_stopping", False))
        search = Beam(beams, rule, n_best=setting.pop("num_return_sequences", 1))
    assert not setting, "a setting is not carried over"
    found = generate(model, params, source, max_len=max_len, search=search, rules=rules)
    scores = golden.arrays.get(f"out:{name}:sequences_scores")
    assert (scores is None) == isinstance(search, Greedy)
    same(found, golden.arrays[f"out:{name}:sequences"], scores, pad_id)


@functools.partial(jax.jit, static_argnames="max_len")
def search_table(table_BVV, search, rules, max_len):
    """Search with the logits of each sentence after each token."""

    def decode(tokens_RN, memory, cache):
        sentence_R = jnp.arange(len(tokens_RN)) // (len(tokens_RN) // len(table_BVV))
        return Outputs(table_BVV[sentence_R, tokens_RN[:, 0]][:, None], {}), cache

    return search(decode, None, jnp.int32(0), len(table_BVV), max_len, rules)


@settings_of("fairseq")
def test_fairseq(name):
    golden = load("fairseq")
    setting, ids, table_BVV = dict(golden.settings[name]), golden.ids, golden.arrays["in:table"]
    batch, vocab, _ = table_BVV.shape
    assert setting.pop("max_len_a") == 0
    beams, max_len = setting.pop("beam_size"), setting.pop("max_len_b") + 1  # fairseq does not count the end token
    alpha = setting.pop("len_penalty", 1.0) if setting.pop("normalize_scores", True) else 0.0
    rules = Rules(
        start_id=ids["eos"],
        end_id=ids["eos"],
        pad_id=ids["pad"],
        min_len=setting.pop("min_len") + 1,
        bias=bias(vocab, add={ids["unk"]: -setting.pop("unk_penalty", 0.0)}),
    )
    assert not setting, "a setting is not carried over"
    search = Beam(beams, penalty.fairseq(alpha), n_best=beams)
    found = search_table(table_BVV, search.canonical(batch, batch), rules.canonical(batch, batch), max_len)
    same(found, golden.arrays[f"out:{name}:tokens"], golden.arrays[f"out:{name}:score"], ids["pad"])
    if "unk" not in name:  # its positional scores hold the penalty, our log-probabilities are the model's own
        positional = golden.arrays[f"out:{name}:positional_scores"]
        np.testing.assert_allclose(found.log_probs, np.nan_to_num(positional), atol=2e-4)


class WithoutStart:
    """A model that cannot say its start token: Marian leaves it out of the softmax. ``generate`` takes it for a model."""

    def __init__(self, model, token: int):
        self.key = (model, token)

    def __hash__(self):
        return hash(self.key)

    def __eq__(self, other):
        return self.key == other.key

    def apply(self, variables, *args, method=None, **kw):
        model, token = self.key
        results = model.apply(variables, *args, method=method, **kw)
        if method != "decode":
            return results
        outputs, cache = results
        return outputs._replace(logits=outputs.logits.at[..., token].set(-jnp.inf)), cache


@settings_of("marian")
def test_marian(name):
    golden, (model, params, source) = load("marian"), subject("marian")
    setting, ids = dict(golden.settings[name]), golden.ids
    beams, factor = setting.pop("beam-size"), setting.pop("max-length-factor")
    rule = penalty.marian(setting.pop("normalize"), setting.pop("word-penalty"))
    suppress = [] if setting.pop("allow-unk", False) else [ids["unk"]]
    assert not setting, "a setting is not carried over"
    limit_B = np.ceil(factor * source.mask.sum(axis=1) - 1e-6).astype(np.int32)
    rules = Rules(ids["start"], ids["eos"], ids["start"], limit=limit_B, bias=bias(60, suppress=suppress))
    search = Beam(beams, rule, n_best=beams)
    found = generate(WithoutStart(model, ids["start"]), params, source, max_len=26, search=search, rules=rules)
    # Marian sums unnormalised scores of up to 26 tokens in float32: a few units in the sixth place.
    same(found, golden.arrays[f"out:{name}:ids"], golden.arrays[f"out:{name}:score"], ids["start"], rtol=1e-5)
