"""Hugging Face directories: damaged files, layouts, settings, devices, names on the hub. test_pretrained has the models."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import zoo
from zoo import marian, pretrained_text
from zoo.__main__ import main
from zoo.checkpoint import generation_config, tensors
from zoo.checkpoint.rules import Constant, Copy, Renamed, from_reference, linear, makers
from zoo.checkpoint.tensors import Shape, Tensors
from zoo.core import flatten_params
from zoo.pretrained_text import FastTokenizer
from zoo.text import Tokenizer

SOURCE = Path(__file__).parent / "golden" / "marian"
TEXTS = ["The quick brown fox", "我今天很高兴"]


@pytest.fixture(scope="module")
def predictor():
    return zoo.load(SOURCE)


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(SOURCE, tmp_path / "model", ignore=shutil.ignore_patterns("*.npz"))
    return tmp_path / "model"


def change(directory: Path, file: str = "config.json", **fields) -> None:
    data = json.loads((directory / file).read_text())
    (directory / file).write_text(json.dumps(data | fields))


def craft(path: Path, header: dict | bytes, data: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HUGE = 10**12
FILES = {
    "empty": (b"", b"", None, "a header of 0 bytes"),
    "header larger than the file": ({"a": entry()}, b"\0" * 8, 1 << 60, "does not fit a file"),
    "truncated": ({"a": entry()}, b"\0" * 7, None, "end at byte"),
    "trailing bytes": ({"a": entry()}, b"\0" * 9, None, "end at byte"),
    "overlapping": ({"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12, None, "begins at byte 4"),
    "gap": ({"a": entry(), "b": entry(offsets=(12, 20))}, b"\0" * 20, None, "begins at byte 12"),
    "wrong size": ({"a": entry(shape=(3,))}, b"\0" * 8, None, "which cannot be"),
    "huge": ({"a": entry(shape=(HUGE,), offsets=(0, 4 * HUGE))}, b"\0" * 8, None, "end at byte"),
    "negative": ({"a": entry(shape=(-2,), offsets=(0, -8))}, b"", None, "which cannot be"),
    "backwards": ({"a": entry(offsets=(8, 0))}, b"\0" * 8, None, "which cannot be"),
    "unknown dtype": ({"a": entry(dtype="F8_E5M2")}, b"\0" * 8, None, "F8_E5M2"),
    "dtype of another kind": ({"a": entry(dtype=["F32"])}, b"\0" * 8, None, "dtype"),
    "no JSON": (b"{", b"", None, "not readable JSON"),
    "nested": (b"[" * 100_000, b"", None, "not readable JSON"),
    "no table": (b"[]", b"", None, "no table of tensors"),
    "twice": (b'{"a": 1, "a": 1}', b"", None, "stands twice"),
    "no entry": ({"a": 1}, b"", None, "lacks dtype"),
}


@pytest.mark.parametrize("case", FILES)
def test_damaged_files_are_one_clear_error_and_allocate_nothing(case, copy):
    header, data, length, words = FILES[case]
    if case == "empty":
        (copy / tensors.WEIGHTS).write_bytes(b"")
        words = "damaged"
    else:
        craft(copy / tensors.WEIGHTS, header, data, length)
    tracemalloc.start()
    with pytest.raises(zoo.UserError, match=words) as error:
        Tensors.open(copy)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(error.value)
    assert peak < 2_000_000


def test_a_truncated_checkpoint_is_refused(copy):
    path = copy / tensors.WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(zoo.UserError, match="is damaged"):
        zoo.load(copy)


def rewritten(directory: Path, edit) -> None:
    """The weights with the dictionary of arrays as ``edit`` leaves it."""
    arrays = {name: np.array(x) for name, x in Tensors.open(directory).items()}
    edit(arrays)
    shapes = {name: Shape(x.dtype, x.shape) for name, x in arrays.items()}
    tensors.write(directory, shapes, arrays.__getitem__)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda a: a.pop("model.encoder.layers.0.fc1.weight"), "missing model.encoder.layers.0.fc1.weight"),
        (lambda a: a.update(stray=np.zeros(2)), "not taken stray"),
        (lambda a: a.update({"model.shared.weight": np.zeros((3, 4), np.float32)}), "model.shared.weight gives"),
        (lambda a: a.update({"lm_head.weight": a["model.shared.weight"] + 1}), "lm_head.weight differs from model.shared"),
        (lambda a: a.update({"lm_head.weight": a["model.shared.weight"].astype(np.float16)}), "differs"),
        (lambda a: a.update({"model.encoder.embed_positions.weight": np.zeros((64, 24))}), "is not what this model computes"),
    ],
)
def test_a_checkpoint_of_another_model(edit, words, copy):
    rewritten(copy, edit)
    with pytest.raises(zoo.UserError, match=words):
        zoo.load(copy)


def test_missing_and_extra_tensors_are_named_together(copy):
    def edit(arrays):
        arrays["model.odd"] = arrays.pop("model.decoder.layers.1.fc2.bias")

    rewritten(copy, edit)
    with pytest.raises(zoo.UserError, match=r"missing model\.decoder\.layers\.1\.fc2\.bias; not taken model\.odd"):
        zoo.load(copy)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"vocab_size": HUGE}, "vocab_size .* is 1000000000000"),
        ({"vocab_size": -1}, "vocab_size .* is -1"),
        ({"d_model": 0}, "d_model .* is 0"),
        ({"d_model": 24.0}, "d_model .* is 24.0"),
        ({"d_model": True}, "d_model .* is True"),
        ({"d_model": 26}, "must be even and a multiple"),
        ({"d_model": 28}, "wants"),
        ({"encoder_layers": 10**9}, "encoder_layers .* is 1000000000"),
        ({"encoder_layers": 3}, "missing model.encoder.layers.2"),
        ({"decoder_attention_heads": 1 << 40}, "decoder_attention_heads"),
        ({"dropout": float("nan")}, "dropout .* is nan"),
        ({"activation_function": "__import__"}, "activation_function .* '__import__'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"decoder_start_token_id": 162}, "decoder_start_token_id"),
        ({"eos_token_id": [0, 1]}, "eos_token_id"),
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"architectures": ["os.system"]}, "os.system"),
        ({"architectures": "MarianMTModel"}, "architectures"),
        ({"architectures": []}, "architectures"),
        ({"model_type": "m2m_100"}, "model_type"),
    ],
)
def test_absurd_settings(fields, words, copy):
    change(copy, **fields)
    tracemalloc.start()
    with pytest.raises(zoo.UserError, match=words):
        zoo.load(copy)
    assert tracemalloc.get_traced_memory()[1] < 30_000_000
    tracemalloc.stop()


def test_absent_files(copy):
    (copy / "source.spm").write_bytes(b"no model")
    with pytest.raises(zoo.UserError, match=r"source\.spm is no SentencePiece model"):
        zoo.load(copy)
    (copy / "source.spm").unlink()
    with pytest.raises(zoo.UserError, match="no tokenizer that this zoo reads"):
        zoo.load(copy)
    (copy / tensors.WEIGHTS).rename(copy / tensors.TORCH)
    with pytest.raises(zoo.UserError, match=r"weights_only=True.*model\.safetensors"):
        zoo.load(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(zoo.UserError, match=r"config\.json is not readable"):
        zoo.load(copy)


def sharded(directory: Path) -> dict:
    """The weights of a directory in four files; the index."""
    arrays = {name: np.array(x) for name, x in Tensors.open(directory).items()}
    (directory / tensors.WEIGHTS).unlink()
    shapes = {name: Shape(x.dtype, x.shape) for name, x in arrays.items()}
    tensors.write(directory, shapes, arrays.__getitem__, shard=sum(s.size for s in shapes.values()) // 3)
    return json.loads((directory / tensors.INDEX).read_text())


def test_shards_and_their_index(copy, predictor):
    index = sharded(copy)
    files = sorted(set(index["weight_map"].values()))
    assert files == sorted(path.name for path in copy.glob("*.safetensors"))
    assert len(files) >= 3
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in Tensors.open(SOURCE).values())
    jax.tree.map(np.testing.assert_array_equal, zoo.load(copy).params, predictor.params)
    (copy / files[0]).rename(copy / "elsewhere")
    with pytest.raises(zoo.UserError, match="is missing"):
        zoo.load(copy)


@pytest.mark.parametrize(
    "name", ["../a.safetensors", "/etc/a.safetensors", "a/b.safetensors", "..\\a.safetensors", "a.bin", "", 5]
)
def test_an_index_opens_only_files_beside_it(name, copy):
    index = sharded(copy)
    first = next(iter(index["weight_map"]))
    index["weight_map"][first] = name
    (copy / tensors.INDEX).write_text(json.dumps(index))
    with pytest.raises(zoo.UserError, match=r"only \.safetensors files beside it"):
        zoo.load(copy)


def test_an_index_that_does_not_agree_with_its_files(copy):
    index = sharded(copy)
    first, *_, last = index["weight_map"]
    index["weight_map"][first] = index["weight_map"][last]
    (copy / tensors.INDEX).write_text(json.dumps(index))
    with pytest.raises(zoo.UserError, match="do not agree on the tensor"):
        zoo.load(copy)


def test_dtypes_are_kept_or_cast(copy, predictor):
    def halve(arrays):
        arrays["model.shared.weight"] = arrays["model.shared.weight"].astype(jnp.bfloat16)

    rewritten(copy, halve)
    kept = zoo.load(copy)
    assert kept.params["embedding"]["embedding"].dtype == jnp.bfloat16
    assert kept.params["output_bias"].dtype == jnp.float32
    zoo.save(kept, copy.parent / "out", format="huggingface")
    ours, theirs = Tensors.open(copy.parent / "out"), Tensors.open(copy)
    assert {n: (x.dtype, x.tobytes()) for n, x in ours.items()} == {n: (x.dtype, x.tobytes()) for n, x in theirs.items()}
    cast = zoo.load(SOURCE, dtype=jnp.bfloat16)
    for path, leaf in flatten_params(cast.params).items():
        np.testing.assert_array_equal(leaf, flatten_params(predictor.params)[path].astype(jnp.bfloat16))


def test_a_mesh_shares_the_parameters(predictor):
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3)
    shared = zoo.load(SOURCE, mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, shared.params, predictor.params)
    kernel = shared.params["encoder_0"]["feed_forward"]["inner"]["kernel"]
    assert kernel.sharding.spec == P("fsdp", "model")
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(12, 16)}
    assert shared.params["encoder_0"]["attention_residual"]["norm"]["scale"].sharding.is_fully_replicated


def test_the_largest_tensors_are_read_first_and_each_once(monkeypatch):
    """So that the host holds least beside the parameters when those are nearly all there."""
    sizes, read = [], Tensors.__getitem__

    def spy(self, name):
        array = read(self, name)
        sizes.append(array.size)
        return array

    monkeypatch.setattr(Tensors, "__getitem__", spy)
    loaded = zoo.load(SOURCE)
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == len(jax.tree.leaves(loaded.params))


def test_parameters_do_not_alias_the_file(copy, predictor):
    loaded = zoo.load(copy)
    path = copy / tensors.WEIGHTS
    with path.open("r+b") as file:
        file.seek(-1000, 2)
        file.write(b"\1" * 1000)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, predictor.params)


COPIES = (
    *linear("a", "a"),
    Copy(r"b\.weight", "a.weight"),
    Constant("ids", lambda shape: np.arange(shape[0])[None].repeat(1, 0).reshape(shape)),
    Renamed(r"(.*)\.gamma", r"\1.weight"),
    Renamed(r"old\.(.*)", r"\1"),
)


def test_copies_constants_and_old_names_come_back_as_they_were():
    weight, bias = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(2, np.float32)
    template = {"a": {"kernel": np.zeros((3, 2)), "bias": np.zeros(2)}}
    files = [
        {"a.weight": weight, "a.bias": bias},
        {"b.weight": weight, "a.bias": bias},
        {"a.weight": weight, "b.weight": weight, "a.bias": bias, "ids": np.arange(4)},
        {"a.gamma": weight, "a.bias": bias},
        {"old.a.weight": weight, "old.a.bias": bias},
    ]
    for file in files:
        params = from_reference(file, COPIES, template)
        np.testing.assert_array_equal(params["a"]["kernel"], weight.T)
        made = makers(params, COPIES, {name: x.shape for name, x in file.items()})
        assert set(made) == set(file)
        for name, x in file.items():
            np.testing.assert_array_equal(made[name](), x)
    for file, words in (
        ({"a.weight": weight, "a.gamma": weight, "a.bias": bias}, "a second time"),
        ({"a.weight": weight, "a.bias": bias, "ids": np.arange(4)[::-1]}, "ids is not what"),
        ({"a.weight": weight, "b.weight": weight + 1, "a.bias": bias}, "b.weight differs"),
        ({"a.weight": weight, "c.weight": weight, "a.bias": bias}, "not taken c.weight"),
        ({"a.bias": bias}, "missing a.weight"),
    ):
        with pytest.raises(zoo.UserError, match=words):
            from_reference(file, COPIES, template)


CONFIG = marian.PRESETS["opus-mt"]
SETTINGS = [
    ({}, {"beams": 1, "penalty": "huggingface", "max_len": 20, "anything": True}),
    ({"max_length": 512, "num_beams": 6, "bad_words_ids": [[58100]]}, {"beams": 6, "max_len": 511, "anything": False}),
    ({"max_new_tokens": 7, "max_length": 99}, {"max_len": 7}),
    ({"min_length": 5}, {"min_len": 5}),
    ({"min_new_tokens": 5, "min_length": 2}, {"min_len": 6}),
    ({"min_new_tokens": 0}, {"min_len": 1}),
    ({"length_penalty": 0.6, "early_stopping": True}, {"length_penalty": 0.6, "early_stopping": "yes"}),
    ({"early_stopping": "never"}, {"early_stopping": "never"}),
    ({"forced_eos_token_id": 0}, {"end_at_limit": True}),
    ({"forced_bos_token_id": 9}, {"first_id": 9}),
    ({"no_repeat_ngram_size": 3, "repetition_penalty": 1.2}, {"no_repeat_ngram": 3, "repetition_penalty": 1.2}),
    ({"suppress_tokens": [7, 5], "bad_words_ids": [[9], [0]]}, {"suppress": (5, 7, 9), "anything": True}),
    ({"begin_suppress_tokens": [4, 0]}, {"suppress_first": (4, 0)}),
    ({"do_sample": True, "temperature": 0.5, "top_p": 0.9}, {"sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 50}),
    ({"temperature": 0.5, "top_k": 9}, {"temperature": 1.0, "top_k": 0}),
    ({"num_beams": 2, "num_return_sequences": 2}, {"n_best": 2}),
    ({"unheard_of": [1]}, {}),
]


@pytest.mark.parametrize(("data", "wanted"), SETTINGS)
def test_generation_settings(data, wanted):
    decoding = generation_config.read(data, "here", CONFIG)
    assert {name: getattr(decoding, name) for name in wanted} == wanted
    assert generation_config.write(decoding, CONFIG, data or {"unheard_of": 1}) == (data or {"unheard_of": 1})
    again = generation_config.read(generation_config.write(decoding, CONFIG, {}), "there", CONFIG)
    assert again == decoding


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"num_beam_groups": 2}, "num_beam_groups"),
        ({"bad_words_ids": [[1, 2]]}, "bad_words_ids"),
        ({"do_sample": True, "num_beams": 2}, "do_sample"),
        ({"forced_eos_token_id": 7}, "forced_eos_token_id"),
        ({"num_beams": 0}, "num_beams"),
        ({"max_length": "long"}, "max_length"),
        ({"forced_bos_token_id": 58_101}, "forced_bos_token_id"),
        ({"suppress_tokens": [-1]}, "suppress_tokens"),
        ({"early_stopping": "maybe"}, "early_stopping"),
    ],
)
def test_generation_settings_that_cannot_be_kept(data, words):
    with pytest.raises(zoo.UserError, match=words):
        generation_config.read(data, "here", CONFIG)


def test_changed_settings_are_written(predictor, tmp_path):
    changed = zoo.load(SOURCE)
    object.__setattr__(changed, "decoding", predictor.settings({"beams": 2, "no_repeat_ngram": 2}))
    zoo.save(changed, tmp_path / "out", format="huggingface")
    data = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (data["num_beams"], data["no_repeat_ngram_size"], data["max_length"]) == (2, 2, 24)
    assert zoo.load(tmp_path / "out").decoding == changed.decoding


def test_generation_config_goes_before_config(copy):
    change(copy, "generation_config.json", decoder_start_token_id=3)
    assert zoo.load(copy).model.config.start_id == 3
    (copy / "generation_config.json").unlink()
    change(copy, num_beams=3, max_length=9)
    older = zoo.load(copy)
    assert (older.model.config.start_id, older.decoding.beams, older.decoding.max_len) == (161, 3, 8)


def test_a_model_of_ours_goes_out_and_comes_back(tmp_path):
    """Trained from scratch with our tokenizer: the format's fields, and the same predictions."""
    tokenizer = Tokenizer.train("bpe", TEXTS, vocab_size=40)
    config = marian.MarianConfig(
        *(tokenizer.vocab_size,) * 2,
        **{"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_heads": 2, "decoder_heads": 2},
        **{"encoder_d_ff": 8, "decoder_d_ff": 8},
    )
    for name, choices in {"marian": {}, "m2m_100": marian.M2M}.items():
        keep = {"activation", "norm", "positions", "output_bias"}
        model = marian.dataclasses.replace(config, **{k: v for k, v in choices.items() if k in keep}).build()
        params = jax.jit(model.init)(jax.random.key(0), *model.config.example())["params"]
        ours = zoo.Predictor(model, params, tokenizer, tokenizer, zoo.Decoding(max_len=5))
        zoo.save(ours, tmp_path / name, format="huggingface")
        assert json.loads((tmp_path / name / "config.json").read_text())["model_type"] == name
        back = zoo.load(tmp_path / name)
        assert back.model.config == model.config
        jax.tree.map(np.testing.assert_array_equal, back.params, params)
        assert back.predict(TEXTS) == ours.predict(TEXTS)


def test_a_model_without_a_counterpart(tmp_path):
    from zoo import rnn

    tokenizer = Tokenizer.train("characters", TEXTS)
    config = rnn.ElmanConfig(tokenizer.vocab_size, tokenizer.vocab_size, embed_dim=4, hidden_dim=4)
    model = config.build()
    predictor = zoo.Predictor(model, jax.jit(model.init)(jax.random.key(0), *config.example())["params"], *(tokenizer,) * 2)
    with pytest.raises(zoo.UserError, match="ElmanConfig with these settings has no counterpart"):
        zoo.save(predictor, tmp_path / "out", format="huggingface")
    with pytest.raises(zoo.UserError, match="format is 'pickle'"):
        zoo.save(predictor, tmp_path / "out", format="pickle")


def test_the_command_line(tmp_path, capsys, predictor):
    assert main(["export", str(SOURCE), str(tmp_path / "out"), "--format", "huggingface"]) == 0
    assert main(["predict", str(tmp_path / "out"), "--beams", "1", "--suppress", "0", "--json", TEXTS[0]]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])["prediction"]
    assert said == predictor.predict(TEXTS[:1], beams=1, suppress=(0,))[0]
    assert said != predictor.predict(TEXTS[:1], beams=1)[0]


def fast(language_class: str, **settings) -> dict[str, bytes]:
    """The files of a tokenizer.json that pads, cuts and surrounds texts with tokens."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, processors

    words = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", ".", "deu_Latn", "fra_Latn"]
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "deu_Latn", "fra_Latn"])
    backend.post_processor = processors.TemplateProcessing("deu_Latn $A </s>", None, [("deu_Latn", 7), ("</s>", 2)])
    backend.enable_padding(length=9)
    backend.enable_truncation(2)
    settings = {"tokenizer_class": language_class, **settings}
    return {"tokenizer.json": backend.to_str().encode(), "tokenizer_config.json": json.dumps(settings).encode()}


def test_a_tokenizer_json_is_read_as_it_stands():
    tokenizer = FastTokenizer(fast("NllbTokenizerFast"), "source", 12, 2)
    assert tokenizer.encode("a b a b . </s>") == [7, 4, 5, 4, 5, 6, 2, 2]
    assert tokenizer.encode_batch(["", "a \ud83d"]) == [[7, 2], [7, 4, 3, 2]]
    assert tokenizer.with_language("fra_Latn").encode("a") == [8, 4, 2]
    assert tokenizer.encode("a") == [7, 4, 2]
    assert tokenizer.decode([8, 4, 6, 2, 5]) == "a ."
    assert FastTokenizer(fast("T", clean_up_tokenization_spaces=True), "source", 12, 2).decode([4, 6]) == "a."
    assert tokenizer.pieces([4, 11]) == ["a", "<11>"]
    again = pretrained_text.from_json(json.loads(json.dumps(tokenizer.with_language("fra_Latn").to_json())), "here")
    assert (again.encode("b"), again.files) == ([8, 5, 2], tokenizer.files)
    with pytest.raises(zoo.UserError, match="is not told a language"):
        FastTokenizer(fast("T5Tokenizer"), "source", 12, 2).with_language("fra_Latn")
    with pytest.raises(zoo.UserError, match="ids up to 8, but the model a vocabulary of 8"):
        FastTokenizer(fast("T"), "source", 8, 2)
    with pytest.raises(zoo.UserError, match="outside the vocabulary of 12"):
        tokenizer.decode([12])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "slow"}, "of the kind 'slow'"),
        ({"files": {"../x": ""}}, r"holds the file '\.\./x'"),
        ({"files": {"tokenizer.json": {"base64": "*"}}}, "not a readable tokenizer"),
        ({"files": {"tokenizer.json": 5}}, "not a readable tokenizer"),
        ({"files": {"tokenizer.json": "{}"}}, "not a readable tokenizer"),
        ({"files": {}}, "lacks tokenizer.json"),
        ({"vocab_size": "9"}, "not a readable tokenizer"),
        ({"more": 1}, "not a readable tokenizer"),
    ],
)
def test_a_saved_tokenizer_that_cannot_be(change, words):
    data = FastTokenizer(fast("T"), "source", 12, 2).to_json()
    with pytest.raises(zoo.UserError, match=words):
        pretrained_text.from_json(data | change, "here")


def test_names_on_the_hub(tmp_path, monkeypatch, predictor):
    """A cache as the client lays it out, offline: no connection is tried."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--Some-Org--tiny.model"
    shutil.copytree(SOURCE, repository / "snapshots" / commit, ignore=shutil.ignore_patterns("*.npz"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    found = zoo.load("Some-Org/tiny.model")
    jax.tree.map(np.testing.assert_array_equal, found.params, predictor.params)
    with pytest.raises(zoo.UserError, match="no directory Some-Org/other, and the hub gave no model"):
        zoo.load("Some-Org/other")
    with pytest.raises(zoo.UserError, match="there is no directory runs"):
        zoo.load("runs")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Some-Org" / "tiny.model").mkdir(parents=True)
    with pytest.raises(zoo.UserError, match="holds no model"):  # a directory of that name goes first
        zoo.load("Some-Org/tiny.model")
