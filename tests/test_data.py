"""The data room: files, TFDS sets, CMUdict, batches, resuming, hosts, prefetch, and every bad input."""

import dataclasses
import gzip
import itertools
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from train.data import Batching, Example, Files, Tfds, Tokenized, bucket_shapes, eval_batches, prefetch_to_device, train_batches
from train.data.cmudict import dictionary_path, read_dictionary, split_of
from zoo.core import EOS, UserError
from zoo.text import Tokenizer

pytestmark = pytest.mark.xdist_group("data")  # one worker: CMUdict is prepared once

PAIRS = [("one", "eins"), ("two", "zwei"), ("drei ", "three")]

# ---------------------------------------------------------------- files


def write(folder, name, content):
    """A file with this text or these bytes, gzipped if its name says so; its path as a string."""
    content = content.encode() if isinstance(content, str) else content
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return str(folder / name)


def load(path, split="train", **fields):
    """The examples of a file that is training, validation and test set in one, so that nothing is carved."""
    return Files(train=path, validation=path, test=path, **fields).load(split)


def jsonl(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


TSV = "one\teins\ntwo\tzwei\ndrei \tthree\textra\n"
JSONL = jsonl(*({"source": source, "target": target} for source, target in PAIRS))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", TSV),
        ("a.tsv.gz", TSV),
        ("bom.tsv", "\ufeff" + TSV),
        ("crlf.tsv", TSV.replace("\n", "\r\n")),
        ("blank.tsv", TSV + "\n\n"),
        ("no_end.tsv", TSV.strip("\n")),
        ("header.tsv", "id\ttarget\tsource\n1\teins\tone\n2\tzwei\ttwo\n3\tthree\tdrei \n"),
        ("a.jsonl", JSONL),
        ("a.jsonl.gz", JSONL + "\n"),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_text_files(tmp_path, name, content, split):
    examples = load(write(tmp_path, name, content), split)
    assert list(examples) == [Example(source, target, (target,)) for source, target in PAIRS]
    assert examples[-1] == examples[2] == Example("drei ", "three", ("three",))
    assert examples.__getitems__([2, 0]) == [examples[2], examples[0]]
    with pytest.raises(IndexError):
        examples[3]


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_parallel_files_keep_empty_lines(tmp_path, ending):
    left, right = (
        write(tmp_path, name + ending, text) for name, text in (("a.en", "one\n\ntwo\n"), ("a.de", "eins\nleer\nzwei\n"))
    )
    examples = load(f"{left},{right}")
    assert list(examples) == [("one", "eins", ("eins",)), ("", "leer", ("leer",)), ("two", "zwei", ("zwei",))]


def test_parquet_and_named_columns(tmp_path):
    pq.write_table(pa.table({"en": ["one", "two"], "de": ["eins", "zwei"], "n": [1, 2]}), tmp_path / "a.parquet")
    assert list(load(str(tmp_path / "a.parquet"), source="en", target="de")) == [
        ("one", "eins", ("eins",)),
        ("two", "zwei", ("zwei",)),
    ]


def test_whole_numbers_are_labels(tmp_path):
    records = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    for path in (write(tmp_path, "a.jsonl", jsonl(*records)), str(tmp_path / "a.parquet")):
        assert list(load(path, source="text", target="label")) == [("a", "1", ("1",)), ("b", "0", ("0",))]


def test_lists_of_targets_are_references(tmp_path):
    records = [{"source": "a", "target": ["x", "y"]}, {"source": "b", "target": ["z"]}]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    for path in (write(tmp_path, "a.jsonl", jsonl(*records)), str(tmp_path / "a.parquet")):
        assert list(load(path)) == [("a", "x", ("x", "y")), ("b", "z", ("z",))]


def test_a_lone_surrogate_is_replaced(tmp_path):
    assert load(write(tmp_path, "a.jsonl", '{"source": "\\ud800x", "target": "y"}'))[0].source == "\ufffdx"


def test_many_rows_stay_in_order(tmp_path):
    path = write(tmp_path, "a.tsv", "".join(f"{i}\t{-i}\n" for i in range(70_000)))
    examples = load(path)
    assert len(examples) == 70_000
    assert examples[69_999] == ("69999", "-69999", ("-69999",))
    assert [e.source for e in itertools.islice(examples, 65_530, 65_540)] == [str(i) for i in range(65_530, 65_540)]


def test_missing_splits_are_carved_out_without_overlap(tmp_path):
    rows = [(f"word{i % 300}", f"target{i}") for i in range(600)]  # every source twice
    path = write(tmp_path, "a.tsv", "".join(f"{source}\t{target}\n" for source, target in rows))
    parts = {split: list(Files(train=path).load(split)) for split in ("train", "validation", "test")}
    sources = {split: {e.source for e in examples} for split, examples in parts.items()}
    assert sorted(e[:2] for examples in parts.values() for e in examples) == sorted(rows)
    assert [len(parts[split]) for split in parts] == [540, 30, 30]
    assert (
        not sources["train"] & sources["validation"]
        | sources["train"] & sources["test"]
        | sources["test"] & sources["validation"]
    )
    reordered = write(tmp_path, "b.tsv", "".join(f"{source}\t{target}\n" for source, target in reversed(rows)))
    assert {e.source for e in Files(train=reordered).load("test")} == sources["test"]
    only_test = Files(train=path, validation=path)
    assert [len(only_test.load(split)) for split in parts] == [570, 600, 30]


def test_three_examples_are_enough_to_carve_and_two_are_not(tmp_path):
    path = write(tmp_path, "a.tsv", TSV)
    assert [len(Files(train=path).load(split)) for split in ("train", "validation", "test")] == [1, 1, 1]
    path = write(tmp_path, "b.tsv", "a\tb\nc\td\n")
    assert len(Files(train=path).load("train")) == 2
    with pytest.raises(UserError, match=r"b\.tsv has too few different sources .* give a file for validation"):
        Files(train=path).load("validation")


def damaged_gzip():
    whole = gzip.compress(TSV.encode() * 1000)
    return whole[: len(whole) // 2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.tsv", "", r"empty\.tsv holds no examples"),
        ("empty.jsonl", "", r"empty\.jsonl holds no examples"),
        ("header.tsv", "source\ttarget\n", r"header\.tsv holds no examples"),
        ("one.tsv", "a\tb\nonly one\n", r"one\.tsv line 2 has 1 column where 2 are needed"),
        ("utf.tsv", b"a\tb\nc\t\xff\n", r"utf\.tsv line 2 is not UTF-8 \(byte 3 of the line\)"),
        ("utf.jsonl", b"\xff\n", r"utf\.jsonl line 1 is not UTF-8"),
        ("broken.jsonl", jsonl({"source": "a", "target": "b"}) + "{\n", r"broken\.jsonl line 2 is not JSON"),
        ("deep.jsonl", "[" * 100_000, r"deep\.jsonl line 1 is not JSON"),
        ("array.jsonl", "[]\n", r"array\.jsonl line 1 is not a JSON object"),
        ("key.jsonl", jsonl({"source": "a", "goal": "b"}), r"line 1 has no key 'target' \(it has source, goal\)"),
        ("null.jsonl", jsonl({"source": None, "target": "b"}), r"line 1 has None for 'source': write a string"),
        ("number.jsonl", jsonl({"source": "a", "target": 3.5}), r"line 1 has 3\.5 for 'target'"),
        ("list.jsonl", jsonl({"source": "a", "target": ["b", 3]}), r"line 1 has 3 for 'target'"),
        ("none.jsonl", jsonl({"source": "a", "target": []}), r"line 1 has \[\] for 'target'"),
        ("bad.parquet", b"PAR1 nonsense", r"bad\.parquet is not a readable Parquet file"),
        ("a.csv", "a,b\n", r"ending of .*a\.csv does not tell its format: set the field format"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises(UserError, match=message) as caught:
        load(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [damaged_gzip(), b"not gzip at all", gzip.compress(b"x" * 100)[:12] + b"\xff" * 60],
    ids=["cut short", "no gzip", "damaged"],
)
def test_a_damaged_gzip_file_is_named(tmp_path, content):
    (tmp_path / "a.tsv.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tsv\.gz after line \d+ cannot be read"):
        load(str(tmp_path / "a.tsv.gz"))


def test_bad_parquet_columns_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"source": ["a", None], "n": [1.5, 2.5]}), path)
    with pytest.raises(UserError, match=r"a\.parquet has no column 'target': set the field target to one of source, n"):
        load(str(path))
    with pytest.raises(UserError, match=r"a\.parquet has double in column 'n': write strings"):
        load(str(path), target="n")
    with pytest.raises(UserError, match=r"a\.parquet row 2 has None for 'source'"):
        load(str(path), target="source")
    invalid = pa.array([b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"source": invalid, "target": invalid}), path)
    with pytest.raises(UserError, match=r"a\.parquet is not a readable Parquet file"):
        load(str(path))


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no file nowhere\.tsv"):
        load("nowhere.tsv")
    (tmp_path / "folder.tsv").mkdir()
    with pytest.raises(UserError, match=r"folder\.tsv is a folder"):
        load(str(tmp_path / "folder.tsv"))
    with pytest.raises(UserError, match="no training file is given"):
        Files().load("train")


def test_parallel_files_must_match(tmp_path):
    long, short = write(tmp_path, "long.en", "a\nb\nc\n"), write(tmp_path, "short.de", "x\ny\n")
    for name in (f"{long},{short}", f"{short},{long}"):
        with pytest.raises(UserError, match=r"short\.de ends after line 2 but .*long\.en goes on"):
            load(name)
    with pytest.raises(UserError, match="not 3"):
        load(f"{long},{long},{long}")
    with pytest.raises(UserError, match="there is no file absent"):
        load(f"{long},absent")


# ---------------------------------------------------------------- TFDS and CMUdict


@pytest.fixture(scope="session")
def cmudict(tmp_path_factory) -> Tfds:
    """CMUdict, prepared once from the real dictionary."""
    source = Tfds("cmudict", "word", "pronunciation", "pronunciations", data_dir=str(tmp_path_factory.mktemp("tfds")))
    source.load("test")
    return source


def test_cmudict_holds_every_word_once_and_in_one_split(cmudict, capfd):
    dictionary = read_dictionary(dictionary_path())
    assert len(dictionary) == 126_052
    assert sum(map(len, dictionary.values())) == 134_860
    assert dictionary["inspiring"] == ["IH N S P AY R IH NG", "IH N S P AY ER IH NG"]
    splits = {split: list(cmudict.load(split)) for split in ("train", "validation", "test")}
    words = {split: {e.source for e in examples} for split, examples in splits.items()}
    assert sum(map(len, words.values())) == len(set().union(*words.values())) == len(dictionary)
    assert [len(examples) for examples in splits.values()] == [121_344, 6_395, 6_295]  # the hash of a word never changes
    for split, examples in splits.items():
        listed = [(w, p) for w in words[split] for p in (dictionary[w] if split == "train" else dictionary[w][:1])]
        assert sorted(e[:2] for e in examples) == sorted(listed)
        assert all(e.references == tuple(dictionary[e.source]) for e in examples)
        assert all(split_of(word) == split for word in words[split])
    assert capfd.readouterr() == ("", "")  # nothing on the terminal


def test_large_splits_are_decoded_on_demand(cmudict, monkeypatch):
    in_memory = cmudict.load("test")
    monkeypatch.setattr("train.data.sources.IN_MEMORY", 10)
    on_demand = cmudict.load("test")
    assert type(on_demand) is not type(in_memory)
    assert on_demand[3] == in_memory[3]
    assert on_demand[-1] == in_memory[-1]
    assert list(on_demand) == list(in_memory)
    with pytest.raises(IndexError):
        on_demand[len(on_demand)]


@pytest.mark.parametrize(
    ("name", "source", "target"),
    [
        ("ted_hrlr_translate/ru_to_en", "ru", "en"),
        ("wmt14_translate/de-en", "de", "en"),
        ("cnn_dailymail", "article", "highlights"),
    ],
)
def test_registered_text_pair_sets(name, source, target, monkeypatch):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.testing import mocking

    # the mock forgets that __getitems__, unlike __getitem__, is called without self
    monkeypatch.setattr(mocking, "_getitems", lambda keys, generator: [generator[key] for key in keys])
    with tfds.testing.mock_data(num_examples=5):
        examples = Tfds(name, source, target).load("train")
        assert len(examples) == 5
        assert all(e.source and e.target and e.source != e.target and e.references == (e.target,) for e in examples)


def test_labels_of_a_registered_set_are_words(monkeypatch):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.testing import mocking

    monkeypatch.setattr(mocking, "_getitems", lambda keys, generator: [generator[key] for key in keys])
    with tfds.testing.mock_data(num_examples=20):
        examples = Tfds("imdb_reviews", "text", "label").load("train")
        assert {e.target for e in examples} == {"neg", "pos"}
        assert all(e.references == (e.target,) for e in examples)
        unlabelled = lambda keys, generator: [{**generator[key], "label": np.array(-1)} for key in keys]  # noqa: E731
        monkeypatch.setattr(mocking, "_getitems", unlabelled)
        with pytest.raises(UserError, match="'test' of imdb_reviews has examples without a label"):
            Tfds("imdb_reviews", "text", "label").load("test")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "cmudikt"}, "no data set 'cmudikt': did you mean cmudict"),
        ({"name": "wmt14_translate/de-eng", "source": "de", "target": "en"}, "did you mean wmt14_translate/de-en"),
        ({"name": "../x"}, "'../x' is not a data set name"),
        ({"name": "someone:cmudict"}, "no data set 'someone:cmudict'"),
        ({"name": "cmudict:9.9.9"}, "'cmudict:9.9.9' cannot be built"),
        ({"source": "wurd"}, "no feature 'wurd': set the field source to one of .*word"),
        ({"target": "wurd"}, "no feature 'wurd': set the field target to one of .*pronunciation"),
        ({"references": "wurd"}, "no feature 'wurd': set the field references to one of"),
        ({"train_split": "trian"}, "split 'trian' of cmudict cannot be read .* choose from .*train"),
    ],
)
def test_bad_tfds_fields_are_named(cmudict, fields, message):
    known = {"name": "cmudict", "source": "word", "target": "pronunciation", "data_dir": cmudict.data_dir}
    with pytest.raises(UserError, match=message) as caught:
        Tfds(**(known | fields)).load("train")
    assert "\n" not in str(caught.value)


def test_a_set_that_cannot_be_prepared_is_named(tmp_path):
    (tmp_path / "cmudict").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"cmudict/1\.0\.0 could not be prepared in .*data_dir"):
        Tfds("cmudict", "word", "pronunciation", data_dir=str(tmp_path)).load("train")


def test_a_set_that_another_process_has_prepared_in_the_meantime_is_read(cmudict, tmp_path, monkeypatch):
    """TFDS prepares a set beside its place, and finds that place taken."""
    import tensorflow_datasets as tfds

    late = dataclasses.replace(cmudict, data_dir=str(tmp_path))

    def download_and_prepare(builder, **options):
        shutil.copytree(Path(cmudict.data_dir) / "cmudict", tmp_path / "cmudict")
        builder.info.set_splits(tfds.core.splits.SplitDict([]))  # what it holds was of its own work
        raise OSError(f"Cannot rename. Destination {builder.data_dir} already exists")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", download_and_prepare)
    assert list(late.load("test")) == list(cmudict.load("test"))


def test_tensorflow_is_never_imported(cmudict):
    code = (
        "import sys; from train.data import *; from train.data.sources import Tfds\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        "assert len(Tfds('cmudict', 'word', 'pronunciation', data_dir=sys.argv[1]).load('test')) > 6000\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, cmudict.data_dir], check=True)


# ---------------------------------------------------------------- batches


LETTER = Tokenizer.train("characters", ["a"])


def corpus(lengths, remember=2**20):
    """Tokenized examples whose sources and targets have these numbers of letters."""
    examples = [Example("a" * s, "a" * t, ("a" * t,)) for s, t in lengths]
    return Tokenized(examples, LETTER, LETTER, remember)


LENGTHS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 40)), min_size=1, max_size=60)
BATCHING = st.builds(
    Batching,
    tokens=st.sampled_from([1, 64, 300]),
    max_source_len=st.integers(1, 40),
    max_target_len=st.integers(1, 40),
    buckets=st.integers(1, 5),
    window=st.integers(1, 5),
)
SLOW_IS_FINE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])


def admitted(lengths, batching):
    """Indices of the examples within the limits, the end token counted."""
    return {i for i, (s, t) in enumerate(lengths) if s + 1 <= batching.max_source_len and t + 1 <= batching.max_target_len}


def check_batch(batch, lengths, shapes, hosts=1):
    """Shape, contents, masks and padding of a batch; returns the ids of its examples."""
    rows, source_len, target_len = len(batch.example_ids), batch.source.ids.shape[1], batch.target.ids.shape[1]
    assert (rows * hosts, source_len, target_len) in shapes
    for side, (ids, mask, segments, *_) in enumerate((batch.source, batch.target)):
        assert segments is None
        assert ids.dtype == batch.example_ids.dtype == np.int32
        assert mask.dtype == bool
        assert ids.shape == mask.shape == (rows, (source_len, target_len)[side])
        for row, example in enumerate(batch.example_ids):
            letters = min(lengths[example][side], ids.shape[1] - 1) if example >= 0 else -1
            expected = [4] * letters + [EOS] if example >= 0 else []
            assert mask[row].tolist() == [n <= letters for n in range(ids.shape[1])]
            assert ids[row].tolist() == expected + [0] * (ids.shape[1] - len(expected))
    return [int(i) for i in batch.example_ids if i >= 0]


@SLOW_IS_FINE
@given(lengths=LENGTHS, batching=BATCHING, multiple_of=st.sampled_from([1, 2, 4]))
def test_shapes_are_few_and_admit_every_example(lengths, batching, multiple_of):
    lengths_N2 = np.array(lengths) + 1
    if not admitted(lengths, batching):
        with pytest.raises(UserError, match="no training example is within max_source_len"):
            bucket_shapes(batching, multiple_of, lengths_N2)
        return
    shapes = bucket_shapes(batching, multiple_of, lengths_N2)
    assert 1 <= len(shapes) <= batching.buckets
    assert all(short[1] <= long[1] and short[2] <= long[2] for short, long in itertools.pairwise(shapes))
    assert batching.covered_by(shapes[-1])
    for rows, source_len, target_len in shapes:
        assert rows % multiple_of == 0
        assert rows == multiple_of or rows * max(source_len, target_len) <= batching.tokens


def test_shapes_follow_the_lengths():
    lengths_N2 = np.array([(9, 8)] * 900 + [(15, 14)] * 95 + [(30, 30)] * 5)
    assert [shape[1:] for shape in bucket_shapes(Batching(), 8, lengths_N2)] == [(10, 8), (16, 14), (32, 32), (256, 256)]


@SLOW_IS_FINE
@given(lengths=LENGTHS, batching=BATCHING, seed=st.integers(0, 5), remember=st.sampled_from([0, 500, 2**20]))
def test_every_epoch_holds_every_admitted_example_once(lengths, batching, seed, remember):
    expected = admitted(lengths, batching)
    data = corpus(lengths, remember)
    if not expected:
        return
    shapes = bucket_shapes(batching, 1, data.sample_lengths())
    batches = train_batches(data, batching, shapes, seed)
    for _ in range(3):
        seen = []
        while len(seen) < len(expected):
            seen += check_batch(next(batches), lengths, shapes)
        assert sorted(seen) == sorted(expected)
    assert batches.dropped == len(lengths) - len(expected)


def equal(left, right):
    return jax.tree.all(jax.tree.map(np.array_equal, left, right))


@SLOW_IS_FINE
@given(lengths=LENGTHS, batching=BATCHING, cut=st.integers(0, 40))
def test_resuming_is_exact(lengths, batching, cut):
    if not admitted(lengths, batching):
        return
    data = corpus(lengths)
    shapes = bucket_shapes(batching, 1, data.sample_lengths())
    first = train_batches(data, batching, shapes, seed=1)
    for _ in range(cut):
        next(first)
    state = json.dumps(first.get_state())
    expected = [next(first) for _ in range(25)]
    resumed = train_batches(corpus(lengths), batching, shapes, seed=1)
    resumed.set_state(json.loads(state))
    assert all(equal(batch, next(resumed)) for batch in expected)


@SLOW_IS_FINE
@given(lengths=LENGTHS, batching=BATCHING)
def test_the_slices_of_the_hosts_make_up_the_global_batch(lengths, batching):
    if not admitted(lengths, batching):
        return
    data = corpus(lengths)
    shapes = bucket_shapes(batching, 4, data.sample_lengths())
    whole = train_batches(data, batching, shapes, seed=2)
    for hosts in (2, 4):
        parts = [train_batches(data, batching, shapes, 2, host=(i, hosts)) for i in range(hosts)]
        whole = train_batches(data, batching, shapes, seed=2)
        for batch, *slices in itertools.islice(zip(whole, *parts), 12):
            for part in slices:
                check_batch(part, lengths, shapes, hosts)
            assert equal(jax.tree.map(lambda *arrays: np.concatenate(arrays), *slices), batch)


@SLOW_IS_FINE
@given(lengths=LENGTHS, batching=BATCHING)
def test_evaluation_holds_every_example_once_and_truncates(lengths, batching):
    if not admitted(lengths, batching):
        return
    data = corpus(lengths)
    shapes = bucket_shapes(batching, 1, data.sample_lengths())
    batches = eval_batches(data, shapes)
    seen = [i for batch in batches for i in check_batch(batch, lengths, shapes)]
    assert sorted(seen) == list(range(len(lengths)))
    assert seen == [i for batch in batches for i in check_batch(batch, lengths, shapes)]
    assert batches.truncated == sum(s + 1 > shapes[-1][1] or t + 1 > shapes[-1][2] for s, t in lengths)
    assert len(batches) == sum(1 for _ in batches)


def test_a_window_wastes_little_and_leaves_one_batch_short():
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 28, (5000, 1)) + rng.integers(0, 2, (5000, 2))
    data, batching = corpus(lengths.tolist()), Batching(tokens=512, max_source_len=32, max_target_len=32, window=1000)
    batches = train_batches(data, batching, bucket_shapes(batching, 1, data.sample_lengths()), seed=0)
    seen, short, real, size = 0, 0, 0, 0
    while seen < len(lengths):
        batch = next(batches)
        seen += (batch.example_ids >= 0).sum()
        short += (batch.example_ids < 0).any()
        real, size = real + batch.source.mask.sum(), size + batch.source.mask.size
    assert short <= 1
    assert real / size > 0.8  # 0.5 without sorting


def test_seeds_give_different_orders_and_the_same_seed_the_same():
    data, batching = corpus([(n % 20, n % 17) for n in range(200)]), Batching(tokens=100)
    shapes = bucket_shapes(batching, 1, data.sample_lengths())
    orders = [
        [b.example_ids.tolist() for b in itertools.islice(train_batches(data, batching, shapes, s), 20)] for s in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_batches_of_one_window_do_not_come_in_order_of_length():
    data, batching = corpus([(n, n) for n in range(200)]), Batching(tokens=800)
    batches = train_batches(data, batching, bucket_shapes(batching, 1, data.sample_lengths()), 0)
    longest = [int(b.source.mask.sum(axis=1).max()) for b in itertools.islice(batches, 20)]
    assert longest != sorted(longest, reverse=True)


def test_examples_are_encoded_once_while_there_is_room():
    class Counted(list):
        fetched = 0

        def __getitems__(self, indices):
            self.fetched += len(indices)
            return [self[i] for i in indices]

    for remember, once in ((2**20, True), (0, False)):
        examples = Counted([Example("a" * (n % 9), "a", ("a",)) for n in range(50)])
        data, batching = Tokenized(examples, LETTER, LETTER, remember), Batching(tokens=64)
        batches = train_batches(data, batching, bucket_shapes(batching, 1, data.sample_lengths()), 0)
        assert sum((next(batches).example_ids >= 0).sum() for _ in range(30)) > 50
        assert (examples.fetched == 50) == once


def test_every_epoch_batches_other_examples_together():
    data, batching = corpus([(3, 3)] * 100), Batching(tokens=40, max_source_len=4, max_target_len=4, window=2)
    batches = train_batches(data, batching, bucket_shapes(batching, 1, data.sample_lengths()), 0)
    epochs = [{frozenset(next(batches).example_ids.tolist()) for _ in range(10)} for _ in range(3)]
    assert all(set().union(*epoch) == set(range(100)) for epoch in epochs)
    assert not epochs[0] & epochs[1] | epochs[1] & epochs[2]


def test_training_sets_without_anything_to_learn_are_refused():
    with pytest.raises(UserError, match="training set holds no examples"):
        train_batches(corpus([]), Batching(), ((8, 256, 256),), 0)
    with pytest.raises(UserError, match=r"max_source_len 4 .*shortest source has 10 tokens.*raise these limits"):
        train_batches(corpus([(9, 1)]), Batching(max_source_len=4), ((8, 256, 256),), 0)
    with pytest.raises(ValueError, match="smaller than the limits"):
        train_batches(corpus([(9, 1)]), Batching(), ((8, 16, 16),), 0)


# ---------------------------------------------------------------- prefetch


class Counter:
    """0, 1, 2, ... up to an end, with a state; may fail on the way."""

    def __init__(self, end, fail_at=None):
        self.next, self.end, self.fail_at = 0, end, fail_at

    def __iter__(self):
        return self

    def __next__(self):
        if self.next == self.fail_at:
            raise RuntimeError("broken disk")
        if self.next == self.end:
            raise StopIteration
        self.next += 1
        return self.next - 1

    def get_state(self):
        return {"next": self.next}


def test_prefetch_delivers_in_order_and_its_state_is_that_of_the_last_delivered():
    ahead = threading.Event()

    def put(item):
        if item == 3:
            ahead.set()
        return item * 10

    with prefetch_to_device(Counter(8), put, depth=3) as batches:
        assert batches.get_state() == {"next": 0}
        assert next(batches) == 0
        assert ahead.wait(10)  # three more have been read
        assert batches.get_state() == {"next": 1}
        assert list(batches) == [10, 20, 30, 40, 50, 60, 70]
        assert batches.get_state() == {"next": 8}
        assert list(batches) == []


def test_prefetch_reads_no_further_than_its_depth():
    counter = Counter(100)
    with prefetch_to_device(counter, lambda item: item, depth=2) as batches:
        assert next(batches) == 0
        threading.Event().wait(0.1)
        assert counter.next <= 3
    assert not batches._thread.is_alive()


def test_prefetch_raises_the_workers_exception_in_its_place():
    with prefetch_to_device(Counter(8, fail_at=2), lambda item: item) as batches:
        assert [next(batches), next(batches)] == [0, 1]
        with pytest.raises(RuntimeError, match="broken disk"):
            next(batches)
    with prefetch_to_device(Counter(8), lambda item: 1 // item) as batches, pytest.raises(ZeroDivisionError):
        next(batches)


def test_prefetch_resumes_training_exactly():
    data, batching = corpus([(n % 20, n % 17) for n in range(100)]), Batching(tokens=60, window=3)
    shapes = bucket_shapes(batching, 1, data.sample_lengths())
    with prefetch_to_device(train_batches(data, batching, shapes, 0), lambda batch: batch) as batches:
        for _ in range(17):
            next(batches)
        state = json.loads(json.dumps(batches.get_state()))
        expected = [next(batches) for _ in range(10)]
    resumed = train_batches(data, batching, shapes, 0)
    resumed.set_state(state)
    assert all(equal(batch, next(resumed)) for batch in expected)
