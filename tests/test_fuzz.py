"""Whatever text, data file or saved tokenizer comes in: a result or one ``UserError``, no crash, no hang, bounded memory."""

from __future__ import annotations

import copy
import decimal
import gzip
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from train.data import Files, Tfds
from zoo.core import EOS, UserError
from zoo.text import Tokenizer

ROOT = Path(__file__).parent.parent
KINDS = ("characters", "words", "bpe", "unigram")
ODD = "\0\t\r\n\x1b\x1c\x85\u2028\ufeff\u202e\u0301\ud800\U0001f600▁<"  # controls, breaks, a mark of bidi, half a pair, ...
one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # each example writes its files again

texts = st.text(st.characters(codec=None) | st.sampled_from(ODD), max_size=30)
leaves = st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.floats() | texts
keys = st.sampled_from(["source", "target"]) | texts
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
)


def attempt(call: Callable, *arguments, **keywords):
    """What a call returns; None if it raises a UserError that is one readable line. Whatever else it raises comes through."""
    try:
        return call(*arguments, **keywords)
    except UserError as caught:
        error = str(caught)
    assert error.isprintable()
    assert 20 < len(error) <= 2100
    return None


# ---------------------------------------------------------------- tokenizers


@pytest.mark.parametrize("kind", KINDS)
@given(
    corpus=st.lists(texts, max_size=6),
    lowercase=st.booleans(),
    size=st.none() | st.integers(-1, 40) | st.just(10**30),
    sentinels=st.sampled_from([0, 0, 2, -1]),
)
def test_any_text_trains_a_tokenizer_that_is_read_back(kind, corpus, lowercase, size, sentinels):
    tokenizer = attempt(Tokenizer.train, kind, corpus, size, lowercase=lowercase, sentinels=sentinels)
    assume(tokenizer)
    loaded = Tokenizer.from_json(json.loads(json.dumps(tokenizer.to_json())), "file")
    assert (loaded.kind, loaded.vocab_size, len(loaded.sentinels)) == (kind, tokenizer.vocab_size, sentinels)
    for text in [*corpus, "", ODD]:
        ids = tokenizer.encode(text)
        assert ids == loaded.encode(text)
        assert ids[-1] == EOS
        assert 0 <= min(ids) <= max(ids) < tokenizer.vocab_size - sentinels
        assert tokenizer.decode(ids) == loaded.decode(ids)


def places(tree, path=()):
    """The path of each value inside JSON, and of the whole."""
    yield path
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


DELETED = object()
WRONG = [DELETED, None, True, 0, -1, 2**31, 10**30, 1.5, math.nan, -math.inf, "", "</s>", "\ud800", [], {}, ["a"], {"a": 1}]


def changed(tree, path, value):
    if not path:
        return value
    tree = copy.deepcopy(tree)
    node = tree
    for key in path[:-1]:
        node = node[key]
    if value is DELETED:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return tree


@pytest.mark.parametrize("kind", KINDS)
def test_any_value_anywhere_in_a_tokenizer_file(kind):
    """The library panics, aborts the process or takes all memory over some of these, were they given to it."""
    good = Tokenizer.train(kind, ["ab ba abba", "a é <x"], sentinels=1)
    file = good.to_json()
    refused = 0
    for path in places(file):
        for value in WRONG:
            tokenizer = attempt(Tokenizer.from_json, changed(file, path, value), "file")
            if tokenizer is None:
                refused += 1
                continue
            assert tokenizer.kind == kind
            for text in ("", "ab <s> b", "é\ud800 zz"):
                ids = tokenizer.encode(text)
                assert ids[-1] == EOS
                assert max(ids) < tokenizer.vocab_size
                assert len(tokenizer.pieces(ids)) == len(ids)
                tokenizer.decode(ids)
            if path[:2] not in (("model", "vocab"), ("model", "merges")):
                assert tokenizer.encode("ab abba") == good.encode("ab abba"), (path, value)
    assert refused > 500


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("model", "vocab", "a"), 10**6),  # a gap: more ids than tokens
        (("model", "vocab", "a"), 2**32 - 2),  # the library would count up to it when it saves
        (("model", "vocab", "a"), 0),  # two tokens of one id
        (("model", "vocab", "</s>"), 5),
        (("added_tokens", 3, "id"), 77),
        (("post_processor", "special_tokens", "</s>", "ids"), [77]),
        (("model", "continuing_subword_prefix"), "abcdefgh"),  # aborts the process
        (("pre_tokenizer", "pretokenizers", 1, "pattern"), {"Regex": "(a*)*b"}),  # takes for ever
        (("model", "merges", 0), ["a", "</s>"]),  # panics when it encodes
    ],
)
def test_a_tokenizer_file_that_would_do_harm(path, value):
    file = Tokenizer.train("bpe", ["ab abba aab"] * 3).to_json()
    assert Tokenizer.from_json(file, "here").encode("ab")
    with pytest.raises(UserError, match="here is not a tokenizer of seq2seq-zoo"):
        Tokenizer.from_json(changed(file, path, value), "here")


def test_duplicate_keys_and_deep_nesting_in_a_tokenizer_file(tmp_path):
    content = json.dumps(Tokenizer.train("words", ["a b c"]).to_json())
    assert content.count('"a": 4') == 1
    for bad in (content.replace('"a": 4', '"a": 4, "a": 5'), '{"model":' * 5000 + "1" + "}" * 5000, "1" * 5000, "NaN", "1e999"):
        (tmp_path / "tokenizer.json").write_text(bad)
        with pytest.raises(UserError, match=r"tokenizer\.json is not a"):
            Tokenizer.load(tmp_path / "tokenizer.json")


# ---------------------------------------------------------------- data files


def read(name: str, form: str = "auto", split: str = "train", **fields) -> int:
    """How many sound examples a file gives; 0 if it is refused as it should be."""
    examples = attempt(lambda: list(Files(train=name, format=form, **fields).load(split)))
    if examples is None:
        return 0
    assert examples
    for example in examples:
        assert example.references
        for text in (example.source, example.target, *example.references):
            text.encode()  # nothing is left that cannot be written
    return len(examples)


def as_json(*pair) -> bytes:
    return json.dumps(dict(zip(("source", "target"), pair))).encode()


lines = st.one_of(
    st.binary(max_size=30),
    texts.map(lambda text: text.encode("utf-8", "surrogatepass")),
    values.map(lambda value: json.dumps(value).encode()),
    st.builds(as_json, texts | values, texts | values),
    st.sampled_from(
        [
            b'{"source": 1e999, "target": NaN}',
            b'{"source": "a", "source": 3, "target": "b"}',
            b'{"source": "a", "target": ' + b"[" * 5000 + b"]" * 5000 + b"}",
            b'{"source": ' + b"1" * 5000 + b', "target": "b"}',
            b'{"source": "a", "target": "\\ud800"}',
            b"\xef\xbb\xbfa\tb",
            b"a\tb",
            b"[" * 100_000,
        ]
    ),
)
contents = st.builds(
    lambda parts, end: end.join(parts), st.lists(lines, max_size=5), st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\xef\xbb\xbf"])
)


def damaged(content: bytes, how: str, at: int) -> bytes:
    """The content cut short, with a bit flipped, or with eight bytes zeroed."""
    at %= len(content)
    if how == "cut":
        return content[:at]
    new = bytes([content[at] ^ 1 << at % 8]) if how == "flip" else bytes(8)
    return content[:at] + new + content[at + len(new) :]


@pytest.mark.parametrize("form", ["tsv", "jsonl"])
@one_folder
@given(
    content=contents,
    harm=st.sampled_from(["no", "no", "cut", "flip", "zero"]),
    at=st.integers(0, 10**6),
    split=st.sampled_from(["train", "validation", "test"]),
    column=texts,
)
def test_any_bytes_as_a_text_file(tmp_path, form, content, harm, at, split, column):
    path = tmp_path / f"a.{form}"
    path.write_bytes(content)
    found = read(str(path), split=split)
    read(str(path), split=split, source=column)
    packed = gzip.compress(content)
    (tmp_path / f"a.{form}.gz").write_bytes(packed if harm == "no" else damaged(packed, harm, at))
    again = read(str(tmp_path / f"a.{form}.gz"), split=split)
    assert again in ((found,) if harm == "no" else (found, 0))


@one_folder
@given(left=contents, right=contents, split=st.sampled_from(["train", "test"]))
def test_any_bytes_as_parallel_files(tmp_path, left, right, split):
    (tmp_path / "a.en").write_bytes(left)
    (tmp_path / "a.de").write_bytes(right)
    assert read(f"{tmp_path / 'a.en'},{tmp_path / 'a.de'}", split=split) <= 1 + min(left.count(b"\n"), right.count(b"\n"))


@given(name=texts | st.sampled_from(["x" * 5000, "~nobody-of-that-name/a.tsv", "\0.tsv", ",", "a,b,c", "/", "."]))
@pytest.mark.parametrize("form", ["auto", "tsv", "parquet", "parallel"])
def test_any_name_of_a_file(form, name):
    assert read(name, form) == 0  # no such file


some = st.text(max_size=8)  # Arrow itself refuses lone surrogates
COLUMNS = {
    pa.string(): some,
    pa.large_string(): some,
    pa.list_(pa.string()): st.lists(st.none() | some, max_size=3),
    pa.list_(pa.binary()): st.lists(st.binary(max_size=3), max_size=3),
    pa.dictionary(pa.int32(), pa.string()): some,
    pa.binary(): st.binary(max_size=8),
    pa.null(): st.none(),
    pa.int64(): st.integers(-5, 5),
    pa.float32(): st.floats(width=32),
    pa.timestamp("ns"): st.integers(-(2**62), 2**62),
    pa.decimal128(5, 2): st.just(decimal.Decimal("1.5")),
    pa.struct([("a", pa.int32())]): st.just({"a": 1}),
    pa.map_(pa.string(), pa.int32()): st.just([("a", 1)]),
}


@st.composite
def tables(draw) -> pa.Table:
    rows = draw(st.integers(0, 4))
    columns = []
    for kind in draw(st.lists(st.sampled_from(list(COLUMNS)), min_size=2, max_size=2)):
        cells = COLUMNS[kind] | st.none() if draw(st.booleans()) else COLUMNS[kind]
        columns.append(pa.array(draw(st.lists(cells, min_size=rows, max_size=rows)), kind))
    names = draw(st.sampled_from([["source", "target"]] * 3 + [["source", "source"], ["source", "goal"]]))
    return pa.Table.from_arrays(columns, names)


@one_folder
@given(table=tables(), harm=st.sampled_from(["cut", "flip", "zero"]), at=st.integers(0, 10**6))
def test_any_parquet_file_whole_and_damaged(tmp_path, table, harm, at):
    path = tmp_path / "a.parquet"
    pq.write_table(table, path)
    assert read(str(path)) <= len(table)
    path.write_bytes(damaged(path.read_bytes(), harm, at))
    assert read(str(path)) <= len(table)


def test_text_in_parquet_that_is_not_utf8(tmp_path):
    invalid = pa.array([b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"source": invalid, "target": invalid}), tmp_path / "a.parquet")
    assert read(str(tmp_path / "a.parquet")) == 0


# ---------------------------------------------------------------- long lines


LONG = """
import json, resource, sys
from pathlib import Path
from train.data import Files
from zoo.text import Tokenizer

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB; Linux counts KiB

folder = Path(sys.argv[1])
line = "a" * 2**20
(folder / "short.tsv").write_text("a\\tb\\n")
(folder / "a.tsv").write_text(line + "\\tb\\n")
(folder / "a.jsonl").write_text(json.dumps({"source": line, "target": ["b", line]}))
read = lambda name: Files(*[str(folder / name)] * 3).load("train")
list(read("short.tsv"))
before, grown = peak(), {}
for name in ("a.tsv", "a.jsonl"):
    (example,) = read(name)
    assert example.source == line
    grown[name] = peak() - before
for kind in ("words", "bpe", "unigram", "characters"):
    Tokenizer.train(kind, ["ab"])
    before = peak()
    tokenizer = Tokenizer.train(kind, [line, "a b"])
    assert kind != "characters" or len(tokenizer.encode(line)) == 2**20 + 1
    grown[kind] = peak() - before
print(json.dumps(grown))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_a_line_of_a_megabyte_takes_little_memory_and_time(tmp_path):
    """A library that learns subwords needs hours for a word of this length, and a child that hangs is ended."""
    found = subprocess.run([sys.executable, "-c", LONG, tmp_path], capture_output=True, cwd=ROOT, timeout=300, check=True)
    grown = json.loads(found.stdout)
    assert max(grown["a.tsv"], grown["a.jsonl"]) < 48, grown
    assert max(grown.values()) < 600, grown  # the library's own 300 bytes a token


# ---------------------------------------------------------------- TFDS


@pytest.fixture
def evil(tmp_path, monkeypatch) -> Path:
    """A module that leaves a trace when it is imported, and a folder of data sets whose files name it."""
    (tmp_path / "evil_module.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    features = {
        "pythonClassName": "evil_module.Evil",
        "jsonFeature": {"json": "{}"},
    }
    for name in ("cmudict", "evil_set"):
        folder = tmp_path / "data" / name / "1.0.0"
        folder.mkdir(parents=True)
        (folder / "features.json").write_text(json.dumps(features))
        info = {"name": name, "version": "1.0.0", "moduleName": "evil_module", "fileFormat": "array_record"}
        (folder / "dataset_info.json").write_text(json.dumps(info))
        (folder / "evil_set.py").write_text((tmp_path / "evil_module.py").read_text())
    return tmp_path


def test_a_prepared_data_set_imports_nothing(evil):
    """TFDS can be told by a folder's features.json what to import: ours are read through builders imported by name."""
    import tensorflow_datasets as tfds

    for name in ("cmudict", "evil_set", "evil_set/1.0.0", "evil_module.Evil", str(evil / "data" / "evil_set" / "1.0.0")):
        assert attempt(Tfds(name, "word", "pronunciation", data_dir=str(evil / "data")).load, "train") is None
    assert not (evil / "ran").exists()
    assert "evil_module" not in sys.modules
    with pytest.raises(Exception, match=r"evil_module|from_json_content"):  # the trap works: so TFDS itself reads such a folder
        tfds.builder_from_directory(str(evil / "data" / "cmudict" / "1.0.0"))
    assert (evil / "ran").exists()


@one_folder
@given(name=texts, content=st.binary(max_size=40) | values.map(lambda value: json.dumps(value).encode()))
def test_any_name_and_any_prepared_folder_of_a_data_set(tmp_path, name, content):
    nowhere = str(tmp_path / "nowhere") + name
    for source in (Tfds(name, "no feature", "pronunciation"), Tfds("cmudict", "no feature", name, data_dir=nowhere)):
        assert attempt(source.load, "train") is None
    folder = tmp_path / "cmudict" / "1.0.0"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_info.json").write_bytes(content)
    assert attempt(Tfds("cmudict", "word", "pronunciation", data_dir=str(tmp_path)).load, "train") is None
