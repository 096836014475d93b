"""What a decoder alone does that the contract test and the golden directories do not show."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from train.data import Batching, Files, Tokenized, bucket_shapes, eval_batches
from zoo import gpt2
from zoo.checkpoint import generation_config
from zoo.checkpoint.fields import Fields
from zoo.checkpoint.rules import from_reference, to_reference
from zoo.core import Tokens, UserError, flatten_params, pad_tokens, unflatten_params
from zoo.generate import Beam, Rules, Sample, generate, penalty, speculative, stream
from zoo.nn.attention import dot_product_attention, joint_attention
from zoo.nn.cache import KeyValue, causal_mask
from zoo.text import Tokenizer, encoders
from zoo.variants import abstract_params, count_parameters

GOLDEN = Path(__file__).parent / "golden"
PROMPTS = [[9, 4, 17], [5], [], [21, 8, 8, 30, 11, 6, 19]]


@functools.cache
def subject():
    """A tiny model whose outputs are diverse."""
    model = gpt2.PRESETS["tiny"].build()
    params = flatten_params(jax.jit(model.init)(jax.random.key(4), *model.config.example())["params"])
    larger = {name: x * (1 if x.ndim == 1 else 8 if "embedding" in name else 20) for name, x in params.items()}
    return model, unflatten_params(larger)


@functools.cache
def teacher():
    model, _ = subject()
    return jax.jit(lambda params, source, target: model.apply({"params": params}, source, target).logits)


def padded(side: str, length: int = 9) -> Tokens:
    source = pad_tokens(PROMPTS, length)
    if side == "right":
        return source
    return Tokens(*(np.stack([np.roll(x, length - n) for x, n in zip(part, map(len, PROMPTS))]) for part in source[:2]))


def read_anew(steps: int, rules_end: int) -> list[list[int]]:
    """Greedy search that reads prompt and output from the beginning for every token, as one sequence without a prompt."""
    model, params = subject()
    forward, found = teacher(), []
    for prompt in PROMPTS:
        tokens, new = [*prompt] or [model.config.start_id], []
        while len(new) < steps and rules_end not in new:
            # Teacher forcing reads the start token and all but the last: the first of ours stands in the source instead.
            read = [*tokens, *new, 0]
            target = pad_tokens([read[1:]], 20)
            logits = forward(params, Tokens(np.array([[read[0]]], np.int32), np.ones((1, 1), bool)), target)
            row = np.array(logits[0, len(read) - 2])
            row[model.config.pad_id] = -np.inf
            new.append(int(row.argmax()))
        found.append(new)
    return found


@pytest.mark.parametrize("side", ["right", "left"])
def test_greedy_search_is_that_which_reads_all_anew(side):
    model, params = subject()
    found = generate(model, params, padded(side), max_len=9)
    ours = [row[:n].tolist() for row, n in zip(found.ids, found.length)]
    assert ours == read_anew(9, model.config.end_id)
    assert len({tuple(row) for row in ours}) == len(ours)
    assert len({token for row in ours for token in row}) > 8, "outputs say little"


def test_a_ragged_batch_is_each_prompt_alone():
    """Prompts of one bucket, bit for bit whatever their neighbours; another bucket changes rounding alone."""
    model, params = subject()
    together = generate(model, params, padded("right", 8), max_len=8, search=Sample(jax.random.split(jax.random.key(1), 4)))
    keys = jax.random.split(jax.random.key(1), 4)
    for row in range(len(PROMPTS)):
        source = jax.tree.map(lambda x, row=row: np.repeat(x[row : row + 1], 4, axis=0), padded("right", 8))
        alone = generate(model, params, source, max_len=8, search=Sample(keys[jnp.full(4, row)]))
        np.testing.assert_array_equal(alone.ids[0], together.ids[row])
        np.testing.assert_array_equal(alone.log_probs[0], together.log_probs[row])
        single = generate(model, params, pad_tokens([PROMPTS[row]]), max_len=8, search=Sample(keys[row][None]))
        np.testing.assert_array_equal(single.ids[0], together.ids[row])
        np.testing.assert_allclose(single.log_probs[0], together.log_probs[row], atol=1e-5)


def test_searches_agree_and_end_with_the_positions():
    """A stream and speculative search give the greedy tokens; a row ends where prompt and output have used all positions."""
    model, params = subject()
    config = dataclasses.replace(model.config, max_len=9)
    short = config.build()
    params = {**params, "position_embedding": {"embedding": params["position_embedding"]["embedding"][:9]}}
    source, rules = padded("left"), Rules(end_id=1)  # an end that is never said, so that only the limits end rows
    found = generate(short, params, source, max_len=8, rules=rules._replace(bias=zoo.generate.bias(32, suppress=[1])))
    assert found.length.tolist() == [min(8, 10 - max(len(prompt), 1)) for prompt in PROMPTS]
    rules = rules._replace(bias=zoo.generate.bias(32, suppress=[1]))
    steps = list(stream(short, params, source, max_len=8, rules=rules))
    np.testing.assert_array_equal(np.stack([step.token for step in steps], axis=1), found.ids[:, : len(steps)])
    guessed = speculative(short, params, short, params, source, max_len=6, draft_len=2, rules=rules)
    np.testing.assert_array_equal(guessed.ids, found.ids[:, :6])
    with pytest.raises(UserError, match="leaves no position"):
        generate(short, params, pad_tokens([[5] * 10]), max_len=4)


def test_repetition_counts_the_prompt():
    """Greedy search whose n-grams of one token may not recur says no token of its prompt."""
    model, params = subject()
    for search in (Beam(3, penalty.none()), Sample(jax.random.key(0))):
        found = generate(model, params, padded("left"), max_len=8, search=search, rules=Rules(ngram=1))
        for row, prompt in zip(found.ids, PROMPTS):
            said = [token for token in row.tolist() if token not in (model.config.pad_id,)]
            assert len(set(said)) == len(said)
            assert not set(said) & set(prompt)


def test_attention_over_two_blocks_is_attention_over_both_joined():
    key = jax.random.split(jax.random.key(0), 5)
    B, W, H, T, K, S = 2, 3, 2, 2, 4, 5
    q = jax.random.normal(key[0], (B * W, H, T, K))
    shared = KeyValue(jax.random.normal(key[1], (B, H, K, S)), jax.random.normal(key[2], (B, H, S, K)))
    own = KeyValue(jax.random.normal(key[3], (B * W, H, K, T)), jax.random.normal(key[4], (B * W, H, T, K)))
    seen = np.array([[True] * 5, [False] * 5])[:, None, None]
    mixed, weights = jax.jit(joint_attention)(q, (shared, own), (seen, causal_mask(T, T)))
    whole = jax.tree.map(lambda x, y: jnp.concatenate([jnp.repeat(x, W, axis=0), y], axis=3), shared.key, own.key)
    values = jnp.concatenate([jnp.repeat(shared.value, W, axis=0), own.value], axis=2)
    mask = np.concatenate(
        [np.broadcast_to(np.repeat(seen, W, axis=0), (B * W, 1, T, S)), np.tile(causal_mask(T, T), (B * W, 1, 1, 1))], axis=3
    )
    wanted, wanted_weights = dot_product_attention(q, whole, values, mask)
    np.testing.assert_allclose(mixed, wanted, atol=1e-6)
    np.testing.assert_allclose(np.concatenate(weights, axis=3), wanted_weights, atol=1e-6)


def test_published_sizes():
    """Counted at one and two layers: the others are like the second."""

    def count(config):
        one, two = (count_parameters(dataclasses.replace(config, num_layers=layers)) for layers in (1, 2))
        return one + (config.num_layers - 1) * (two - one)

    assert {name: count(config) for name, config in gpt2.PRESETS.items() if name != "tiny"} == {
        "gpt2": 124_439_808,
        "medium": 354_823_168,
        "large": 774_030_080,
        "xl": 1_557_611_200,
        "distilgpt2": 81_912_576,
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scale_attn_weights": False}, "scale_attn_weights in here is False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx in here is True"),
        ({"add_cross_attention": True}, "add_cross_attention in here is True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings in here is False"),
        ({"activation_function": "mish"}, "activation_function in here is 'mish'"),
        ({"n_embd": 770}, "model.d_model is 770"),
        ({"eos_token_id": 60_000}, "eos_token_id in here is 60000"),
    ],
)
def test_a_config_that_is_not_computed(change, words):
    with pytest.raises(UserError, match=words):
        gpt2.HUGGINGFACE["GPT2LMHeadModel"].read(Fields(change, "here")).build()


def test_conv1d_is_cut_along_its_outputs():
    """A packed kernel of another width is one error; each third is where the reference has it."""
    model, params = subject()
    tensors = to_reference(params, model.RULES)
    packed = tensors["transformer.h.1.attn.c_attn.weight"]
    np.testing.assert_array_equal(packed[:, 32:64], params["layers_1"]["attention"]["key"]["kernel"])
    for bad in (packed[:, :-1], packed.T, packed[0]):
        with pytest.raises(UserError, match=r"c_attn\.weight gives layers_1"):
            from_reference(tensors | {"transformer.h.1.attn.c_attn.weight": bad}, model.RULES, abstract_params(model.config))


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({}, (20, 0, 0)),
        ({"max_new_tokens": 7, "max_length": 30}, (7, 0, 0)),
        ({"max_length": 30}, (29, 30, 0)),
        ({"min_new_tokens": 2}, (20, 0, 3)),
    ],
)
def test_lengths_of_the_reference(said, wanted):
    config = gpt2.PRESETS["tiny"]
    decoding = generation_config.read(said, "here", config)
    assert (decoding.max_len, decoding.max_total_len, decoding.min_len) == wanted
    changed = dataclasses.replace(decoding, beams=2)
    assert generation_config.read(generation_config.write(changed, config, said), "here", config) == changed
    with pytest.raises(UserError, match="min_length in here is 4, which counts the prompt"):
        generation_config.read({"min_length": 4}, "here", config)


def test_text_goes_on(tmp_path):
    """Outputs are the continuation alone, streamed or not; a long prompt keeps its end; scores are those of the tokens."""
    predictor = zoo.load(GOLDEN / "gpt2")
    prompts = ["The quick brown", "Wie", "", "日本語の"]
    found = predictor.predict(prompts)
    assert "".join(predictor.stream(prompts[3])) == found[3]
    long = " ".join(["word"] * 30) + " The quick brown"
    cut = len(predictor.source_tokenizer.encode("The quick brown"))
    ids = predictor.source_tokenizer.encode(long)
    assert predictor.sources([long], dataclasses.replace(predictor.decoding, max_source_len=cut))[0] == ids[-cut:]
    targets = [" fox jumps", "", " x", "テキスト"]
    scores = predictor.score(prompts, targets)
    end = predictor.model.config.end_id
    outputs = [[*predictor.source_tokenizer.encode(text), end] for text in targets]
    source = pad_tokens([predictor.source_tokenizer.encode(text) for text in prompts], 16)
    sums, _ = zoo.generate.score(predictor.model, predictor.params, source, pad_tokens(outputs, 16))
    np.testing.assert_allclose(scores, sums, rtol=1e-5)
    with pytest.raises(UserError, match="more tokens than the model's max_len"):
        predictor.score(["a b c d e f g h i j k l m n o p q r s t u v w x y z"] * 2, ["1 " * 40, "a"])
    fresh = dataclasses.replace(predictor, origin=None)
    zoo.save(fresh, tmp_path / "out", format="huggingface")
    again = zoo.load(tmp_path / "out")
    assert (again.model.config, again.decoding) == (predictor.model.config, predictor.decoding)
    jax.tree.map(np.testing.assert_array_equal, again.params, predictor.params)


def test_a_file_of_plain_text(tmp_path):
    """Lines are documents after empty prompts, parted by their own hash; prompts of pairs have no end token."""
    lines = [f"line {i} of the text" for i in range(60)]
    (tmp_path / "a.txt").write_text("\n".join(["", *lines, ""]))
    files = Files(train=str(tmp_path / "a.txt"))
    parts = {split: list(files.load(split)) for split in ("train", "validation", "test")}
    assert sorted(e.target for part in parts.values() for e in part) == sorted(lines)
    assert {e.source for part in parts.values() for e in part} == {""}
    assert {len(parts["validation"]), len(parts["test"])} == {3}
    tokenizer = Tokenizer.train("characters", lines)
    config = dataclasses.replace(gpt2.PRESETS["tiny"], source_vocab_size=tokenizer.vocab_size)
    source, target = encoders(config, tokenizer, tokenizer)
    assert source.encode_batch(["line", ""]) == [tokenizer.encode("line")[:-1], []]
    assert target.encode_batch(["line"]) == [tokenizer.encode("line")]
    data = Tokenized(parts["train"], source, target)
    shapes = bucket_shapes(Batching(tokens=256, max_source_len=0, max_target_len=32), 1, data.sample_lengths())
    batches = list(eval_batches(data, shapes))
    assert {batch.source.ids.shape[1] for batch in batches} == {0}
    assert sorted(i for batch in batches for i in batch.example_ids if i >= 0) == list(range(len(data)))


def test_training_refuses_what_has_no_positions():
    model, params = subject()
    source, target = model.config.example(2, 33, 33)
    with pytest.raises(UserError, match=r"do not fit model\.max_len = 64 together"):
        jax.eval_shape(lambda: model.apply({"params": params}, source, target, train=True, rngs={"dropout": jax.random.key(0)}))
