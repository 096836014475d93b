"""Tokenizers: round trips, special tokens, files, determinism and bad input."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.core import BOS, EOS, PAD, SPECIAL_TOKENS, UNK, UserError
from zoo.text import Tokenizer

KINDS = ("characters", "words", "bpe", "unigram")
CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "pack my box with five dozen liquor jugs",
    "how vexingly quick daft zebras jump",
    "the five boxing wizards jump quickly",
    'sphinx of black quartz, judge my vow! 0123456789 <>/|"',
]
LETTERS = "abcdefghijklmnopqrstuvwxyz <>/!0123456789"


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {kind: Tokenizer.train(kind, CORPUS, vocab_size=120) for kind in KINDS}


@pytest.mark.parametrize("kind", ["characters", "bpe", "unigram"])
@settings(max_examples=100, deadline=None)
@given(text=st.text(LETTERS))
def test_text_survives_the_round_trip_spaces_included(tokenizers, kind, text):
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids[-1] == EOS
    assert not {PAD, BOS, EOS, UNK} & set(ids[:-1])


@settings(max_examples=50, deadline=None)
@given(words=st.lists(st.sampled_from(" ".join(CORPUS[:4]).split())))
def test_words_survive_the_round_trip(tokenizers, words):
    ids = tokenizers["words"].encode("  ".join(words))
    assert len(ids) == len(words) + 1
    assert tokenizers["words"].decode(ids) == " ".join(words)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.text(st.characters(codec=None), max_size=20), max_size=8))
def test_any_string_encodes_and_a_batch_encodes_alike(tokenizers, kind, texts):
    tokenizer = tokenizers[kind]
    batch = tokenizer.encode_batch(texts)
    assert batch == [tokenizer.encode(text) for text in texts]
    for ids in batch:
        assert ids[-1] == EOS
        assert not {PAD, BOS, EOS} & set(ids[:-1])
        assert max(ids) < tokenizer.vocab_size
        tokenizer.decode(ids)
        assert all(piece.isprintable() for piece in tokenizer.pieces(ids))


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_stand_first_and_the_vocabulary_keeps_its_limit(tokenizers, kind):
    assert tuple(tokenizers[kind].pieces(range(4))) == SPECIAL_TOKENS
    assert tokenizers[kind].vocab_size <= 120
    assert Tokenizer.train(kind, CORPUS, vocab_size=60).vocab_size <= 60
    assert tokenizers[kind].encode("") == [EOS]
    assert tokenizers[kind].decode([]) == ""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("special", SPECIAL_TOKENS)
def test_special_tokens_spelt_in_text_are_only_text(kind, special, tmp_path):
    trained_on_them = Tokenizer.train(kind, [f"{special} a {special} b"] * 20)
    trained_on_them.save(tmp_path / "tokenizer.json")
    for tokenizer in (trained_on_them, Tokenizer.load(tmp_path / "tokenizer.json")):
        ids = tokenizer.encode(f"a {special}")
        assert set(ids[:-1]) & set(range(4)) == set()
        if kind != "words":
            assert tokenizer.decode(ids) == f"a {special}"


def test_decoding_stops_at_the_end_token_and_leaves_out_special_ones(tokenizers):
    tokenizer = tokenizers["characters"]
    a, b = tokenizer.encode("ab")[:-1]
    assert tokenizer.decode([BOS, a, PAD, UNK, b, EOS, a]) == "ab"


def test_characters_and_words_are_numbered_by_count_then_text():
    assert Tokenizer.train("characters", ["cab", "bac", "b"]).pieces(range(4, 7)) == ["b", "a", "c"]
    assert Tokenizer.train("words", ["y x", "x z"]).pieces(range(4, 7)) == ["x", "y", "z"]
    assert Tokenizer.train("words", ["y x", "x z"], vocab_size=5).pieces([4]) == ["x"]
    assert Tokenizer.train("words", ["y x", "x z"], min_count=2).vocab_size == 5


@pytest.mark.parametrize("kind", KINDS)
def test_lowercase(kind):
    tokenizer = Tokenizer.train(kind, ["ABBA abba"], lowercase=True)
    assert tokenizer.encode("AbBa") == tokenizer.encode("abba")
    assert tokenizer.decode(tokenizer.encode("ABBA")) == "abba" or kind == "words"


def test_pieces_are_printable(tokenizers):
    tokenizer = Tokenizer.train("characters", ["a b\n\t"])
    assert sorted(tokenizer.pieces(tokenizer.encode("a \n\t"))) == ["</s>", "\\n", "\\t", "a", "␣"]
    assert tokenizers["bpe"].pieces(tokenizers["bpe"].encode("the")) == ["▁the", "</s>"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_is_the_same(tokenizers, kind, tmp_path):
    tokenizers[kind].save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.kind == kind
    assert loaded.vocab_size == tokenizers[kind].vocab_size
    assert [loaded.encode(text) for text in CORPUS] == [tokenizers[kind].encode(text) for text in CORPUS]
    assert loaded.decode(loaded.encode("fox  dog")) == tokenizers[kind].decode(tokenizers[kind].encode("fox  dog"))


def test_training_is_the_same_in_another_process(tokenizers, tmp_path):
    code = (
        "import sys, json; from zoo.text import Tokenizer; corpus = json.load(sys.stdin)\n"
        f"for kind in {KINDS}: Tokenizer.train(kind, corpus, vocab_size=120).save(sys.argv[1] + '/' + kind)"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, tmp_path], input=json.dumps(CORPUS).encode(), check=True, env=environment)
    for kind in KINDS:
        tokenizers[kind].save(tmp_path / "here")
        assert (tmp_path / kind).read_text() == (tmp_path / "here").read_text(), kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lowercase", [False, True])
def test_sentinels_are_the_last_tokens_and_in_no_text(kind, lowercase, tmp_path):
    """Also of a text that spells one; what else is learned is learned without them alike."""
    texts = [*CORPUS, "<extra_id_0> fox <extra_id_12>"]
    trained = Tokenizer.train(kind, texts, vocab_size=120, sentinels=3, lowercase=lowercase)
    trained.save(tmp_path / "tokenizer.json")
    for tokenizer in (trained, Tokenizer.load(tmp_path / "tokenizer.json")):
        assert tokenizer.kind == kind
        first, size = tokenizer.sentinels[0], tokenizer.vocab_size
        assert (list(tokenizer.sentinels), size <= 123) == ([size - 3, size - 2, size - 1], True)
        assert tokenizer.pieces(tokenizer.sentinels) == ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"]
        ids = tokenizer.encode("fox <extra_id_1>")
        assert max(ids) < first
        assert tokenizer.decode([first, *ids[:-1], first + 2, EOS]) == tokenizer.decode(ids)
        assert kind == "words" or tokenizer.decode(ids) == "fox <extra_id_1>"
    assert len(Tokenizer.train(kind, CORPUS).sentinels) == 0
    file = json.loads((tmp_path / "tokenizer.json").read_text())
    vocab = file["model"]["vocab"]
    if isinstance(vocab, dict):
        vocab["<extra_id_9>"] = vocab.pop("<extra_id_1>")
    else:
        vocab[-2][0] = "<extra_id_9>"
    with pytest.raises(UserError, match="its sentinels are not the last tokens"):
        Tokenizer.from_json(file, "here")
    with pytest.raises(UserError, match="-1 sentinels cannot be meant"):
        Tokenizer.train(kind, CORPUS, sentinels=-1)


@pytest.mark.parametrize("bad", [-1, 10_000])
def test_ids_out_of_range_are_refused(tokenizers, bad):
    with pytest.raises(UserError, match=f"token id {bad} .* vocabulary of"):
        tokenizers["characters"].decode([5, bad])
    with pytest.raises(UserError, match=f"token id {bad} "):
        tokenizers["characters"].pieces([bad])


@pytest.mark.parametrize("kind", KINDS)
def test_training_refuses_what_cannot_work(kind):
    with pytest.raises(UserError, match="no token to train"):
        Tokenizer.train(kind, ["", ""])
    with pytest.raises(UserError, match="leaves no room"):
        Tokenizer.train(kind, CORPUS, vocab_size=4)


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match=r"'letters' does not exist: choose one of characters, words, bpe, unigram"):
        Tokenizer.train("letters", CORPUS)


def test_files_that_are_not_ours_are_refused(tmp_path):
    import tokenizers as library

    path = tmp_path / "tokenizer.json"
    with pytest.raises(UserError, match=r"no tokenizer file .*tokenizer\.json"):
        Tokenizer.load(path)
    for content in (b"", b'{"model"', b"\xff\xfe\x00", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"tokenizer\.json is not a readable tokenizer"):
            Tokenizer.load(path)
    library.Tokenizer(library.models.WordLevel({"a": 0}, "a")).save(str(path))
    for content in (path.read_bytes(), b"{}", b'{"model": {"vocab": {}}}'):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer of seq2seq-zoo"):
            Tokenizer.load(path)


def test_importing_the_module_imports_no_tokenizers():
    code = "import sys, zoo.text; sys.exit('tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
