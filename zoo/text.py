"""Text to token ids and back: characters, whitespace-separated symbols, BPE or Unigram, all by the ``tokenizers`` library.

A ``Tokenizer`` is saved as one standard ``tokenizer.json``, from which everything is recovered, its kind too. The four
``zoo.core.SPECIAL_TOKENS`` hold ids 0 to 3, and every encoded text ends with the end token, which the file's own
post-processor appends.

Text that spells a special token ("</s>") is only text: the pre-tokenizer of every kind breaks it after its "<", so that no
model can find it whole, and the library's search for special tokens in text is off. Sentinels, which stand for spans of a text
that are taken away (``train.data.corrupt.spans``), are the last tokens of a vocabulary that was learned with some, and the same
holds of them.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from zoo.core import BOS, EOS, SPECIAL_TOKENS, UNK, ModelConfig, UserError

Kind = Literal["characters", "words", "bpe", "unigram"]

SUBWORDS = 8000  # tokens of a BPE or Unigram vocabulary unless told otherwise
NO_LIMIT = 2**31
LONGEST_WORD = 1000  # characters: the time that the library takes to learn subwords grows with the square of a word's length
SPACE = "▁"  # what stands for a space inside BPE and Unigram tokens
INSIDE_SPECIAL = "<(?=({})>)".format("|".join(token[1:-1] for token in SPECIAL_TOKENS))
INSIDE_SENTINEL = INSIDE_SPECIAL.replace(")>)", r"|extra_id_\d+)>)")  # and so of the kinds with sentinels
MOST_SENTINELS = 10_000
SURROGATE = re.compile("[\ud800-\udfff]")  # half a UTF-16 pair: Python's strings may hold one, the library's may not


class Tokenizer:
    """Text to token ids and back.

    >>> tokenizer = Tokenizer.train("characters", ["abba"])
    >>> tokenizer.encode("ab"), tokenizer.decode([4, 5, 2])
    ([4, 5, 2], 'ab')
    """

    wrapping = frozenset({EOS})  # the ids that stand around every text
    mask_id = BOS  # what an encoder reads in the place of a missing token: its sources hold no other
    sentinels: range  # the ids that stand for the first, second, ... span of a text that is taken away

    def __init__(self, backend: Any):
        """Args: backend: a ``tokenizers.Tokenizer`` that follows the conventions of this file, else UserError."""
        self._backend = backend
        self.kind: Kind
        self.kind, has_sentinels = _kind(backend)
        self.sentinels = _sentinels(self.tokens()) if has_sentinels else range(0)
        self._backend.encode_special_tokens = True  # "</s>" in a text is text; the file format does not keep this switch

    @classmethod
    def train(
        cls,
        kind: Kind,
        texts: Iterable[str],
        vocab_size: int | None = None,
        min_count: int = 1,
        lowercase: bool = False,
        sentinels: int = 0,
    ) -> Tokenizer:
        """Learn a vocabulary. The same texts in the same order always give the same ids.

        Args:
          kind: "characters"; "words" (whatever stands between white space); "bpe" (Sennrich et al. 2016) or
            "unigram" (Kudo 2018), where a space is part of the token it precedes.
          texts: read once.
          vocab_size: at most this many tokens, the 4 special ones included; None: all for characters and words,
            8,000 for BPE and Unigram. Characters and words get ids by falling count, then by text.
          min_count: leave out characters and words (for BPE: merges) seen less often. Unigram ignores it.
          lowercase: make text lower case before anything else.
          sentinels: tokens beyond ``vocab_size`` for spans that are taken away; no text holds them.

        Raises:
          UserError: unknown kind, a vocabulary too small for anything or too large for ids, or texts without a single token.
        """
        if kind not in get_args(Kind):
            raise UserError(f"the tokenizer kind {kind!r} does not exist: choose one of {', '.join(get_args(Kind))}")
        if vocab_size is not None and not len(SPECIAL_TOKENS) < vocab_size <= NO_LIMIT:
            raise UserError(
                f"a vocab_size of {vocab_size} leaves no room beside the {len(SPECIAL_TOKENS)} special tokens, or for ids: "
                f"choose {len(SPECIAL_TOKENS) + 1} to {NO_LIMIT}"
            )
        if not 0 <= min_count <= NO_LIMIT:
            raise UserError(f"a min_count of {min_count} cannot be meant: give 1 to keep everything")
        if not 0 <= sentinels <= MOST_SENTINELS:
            raise UserError(f"{sentinels} sentinels cannot be meant: give 0 to {MOST_SENTINELS:,}, such as T5's 100")
        backend, trainer = _untrained(kind, vocab_size, min_count, lowercase, sentinels > 0)
        _fit(backend, trainer, map(without_surrogates, texts))
        if backend.get_vocab_size() <= len(SPECIAL_TOKENS):
            raise UserError(f"the texts hold no token to train a {kind!r} tokenizer on: give it text that is not empty")
        return cls(_with_sentinels(backend, sentinels))

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read what ``save`` wrote. Raises UserError if the file is missing, damaged or another program's."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"there is no tokenizer file {path}: give the path of a tokenizer.json that seq2seq-zoo saved")
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")), str(path))
        except UserError:
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} is not a readable tokenizer ({error}): save it again") from error

    @classmethod
    def from_json(cls, data: Any, where: str) -> Tokenizer:
        """The inverse of ``to_json``; ``where`` names the file in a UserError."""
        import tokenizers

        if not _is_ours(data):
            raise UserError(f"{where} is not a tokenizer of seq2seq-zoo: train one with zoo.text.Tokenizer.train")
        try:
            return cls(tokenizers.Tokenizer.from_str(json.dumps(data)))
        except Exception as error:  # the library raises plain Exception for anything it cannot read
            raise UserError(f"{where} is not a readable tokenizer ({error}): save it again") from error

    def save(self, path: str | Path) -> None:
        """Write a standard tokenizer.json."""
        Path(path).write_text(self._backend.to_str(pretty=True), encoding="utf-8")

    def to_json(self) -> Any:
        """The content of a standard tokenizer.json."""
        return json.loads(self._backend.to_str())

    @property
    def vocab_size(self) -> int:
        """Number of ids, the special tokens included."""
        return self._backend.get_vocab_size()

    def tokens(self) -> list[str]:
        """Every token of the vocabulary, by its id."""
        ids = self._backend.get_vocab()
        return sorted(ids, key=ids.get)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, the last one EOS: an empty text is ``[EOS]``."""
        return self._backend.encode(without_surrogates(text)).ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """``[encode(text) for text in texts]``, faster."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(map(without_surrogates, texts)))]

    def encode_prompts(self, texts: Iterable[str]) -> list[list[int]]:
        """Texts to be gone on after: without the end token."""
        return [ids[:-1] for ids in self.encode_batch(texts)]

    def encode_continuations(self, texts: Iterable[str]) -> list[list[int]]:
        """What goes on after a prompt, up to the end token."""
        return self.encode_batch(texts)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids up to the first EOS, special tokens left out. Raises UserError for an id out of range."""
        ids = in_range(ids, self.vocab_size)
        words = [i for i in (ids[: ids.index(EOS)] if EOS in ids else ids) if i not in self.sentinels]
        return self._backend.decode(words, skip_special_tokens=True)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """One printable label a token, for the axes of a plot: a space is "␣", a line feed "\\n"."""
        return [printable(self._backend.id_to_token(i)) for i in in_range(ids, self.vocab_size)]


class Encoder(NamedTuple):
    """One side of a model's text.

    Attributes:
      encode_batch: texts -> lists of token ids.
      vocab_size: number of ids.
    """

    encode_batch: Callable[[Iterable[str]], list[list[int]]]
    vocab_size: int


def encoders(config: ModelConfig, source: Any, target: Any) -> tuple[Encoder, Encoder]:
    """What makes a model's sources and targets of texts, by tokenizers of either sort: a prompt has no end token.

    Args:
      config: the model's.
      source, target: the tokenizers.
    """
    both = (
        (source.encode_prompts, target.encode_continuations)
        if config.decoder_only
        else (source.encode_batch, target.encode_batch)
    )
    return Encoder(both[0], source.vocab_size), Encoder(both[1], target.vocab_size)


def _untrained(kind: Kind, vocab_size: int | None, min_count: int, lowercase: bool, sentinels: bool = False) -> tuple[Any, Any]:
    """A ``tokenizers.Tokenizer`` without a vocabulary and the trainer that will give it one."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    unk = SPECIAL_TOKENS[UNK]
    common = {"special_tokens": list(SPECIAL_TOKENS), "show_progress": False}
    normalize = [normalizers.Lowercase()] if lowercase else []
    break_special = pre_tokenizers.Split(Regex(INSIDE_SENTINEL if sentinels else INSIDE_SPECIAL), "isolated")
    if kind in ("characters", "words"):
        backend = Tokenizer(models.WordLevel(unk_token=unk))
        one_character = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        split = one_character if kind == "characters" else pre_tokenizers.WhitespaceSplit()
        if kind == "characters":
            backend.decoder = decoders.Fuse()  # words have no decoder: the library then joins them by spaces
        trainer = trainers.WordLevelTrainer(vocab_size=vocab_size or NO_LIMIT, min_frequency=min_count, **common)
    else:
        backend = Tokenizer(models.BPE(unk_token=unk) if kind == "bpe" else models.Unigram())
        normalize.append(normalizers.Prepend(SPACE))  # always, even before a space, so that decoding may always strip one
        split = pre_tokenizers.Metaspace(SPACE, prepend_scheme="never")
        to_spaces = decoders.Metaspace(SPACE, prepend_scheme="never")
        backend.decoder = decoders.Sequence([to_spaces, decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        common["vocab_size"] = vocab_size or SUBWORDS
        bpe = kind == "bpe"
        trainer = (
            trainers.BpeTrainer(min_frequency=min_count, **common) if bpe else trainers.UnigramTrainer(unk_token=unk, **common)
        )
    backend.normalizer = normalizers.Sequence(normalize)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, break_special])
    return backend, trainer


def _fit(backend: Any, trainer: Any, texts: Iterator[str]) -> None:
    """Train in place, and let every encoded text end with EOS."""
    from tokenizers import models
    from tokenizers.processors import TemplateProcessing

    if not isinstance(backend.model, models.WordLevel):
        texts = _for_subwords(texts, backend.normalizer, trainer.vocab_size)
    backend.train_from_iterator(texts, trainer)
    if isinstance(backend.model, models.Unigram):
        backend.model = models.Unigram(_canonical(json.loads(backend.to_str())["model"]["vocab"]), unk_id=UNK)
    eos = SPECIAL_TOKENS[EOS]
    backend.post_processor = TemplateProcessing(single=f"$A {eos}", special_tokens=[(eos, EOS)])


def _with_sentinels(backend: Any, count: int) -> Any:
    """The same with this many more tokens at the end of its vocabulary."""
    import tokenizers

    if not count:
        return backend
    file = json.loads(backend.to_str())
    vocab, names = file["model"]["vocab"], [f"<extra_id_{i}>" for i in range(count)]
    if isinstance(vocab, dict):
        vocab |= {name: len(vocab) + i for i, name in enumerate(names)}
    else:
        vocab += [[name, 0.0] for name in names]
    return tokenizers.Tokenizer.from_str(json.dumps(file))


def _sentinels(tokens: list[str]) -> range:
    """The ids of the sentinels, the last tokens of a vocabulary. Raises UserError if they are not."""
    last = re.fullmatch(r"<extra_id_(\d{1,5})>", tokens[-1])
    count = int(last[1]) + 1 if last else 0
    if not count or tokens[-count:] != [f"<extra_id_{i}>" for i in range(count)]:
        raise UserError("this is not a tokenizer of seq2seq-zoo: its sentinels are not the last tokens, so train one anew")
    return range(len(tokens) - count, len(tokens))


def _for_subwords(texts: Iterator[str], normalizer: Any, vocab_size: int) -> Iterator[str]:
    """The texts, with endless words broken; an error at their end if the characters, each a token, leave the library no room.

    It would keep to no limit then (BPE), or try for ever (Unigram).
    """
    characters = {SPACE}
    for text in texts:
        characters.update(normalizer.normalize_str(text).replace(" ", SPACE))
        yield re.sub(f"[^ ]{{{LONGEST_WORD}}}", r"\g<0> ", text)
    least = len(characters) + len(SPECIAL_TOKENS)
    if least > vocab_size:
        raise UserError(
            f"the texts hold {len(characters):,} different characters, too many for a vocab_size of {vocab_size:,}: "
            f"raise it to {least:,} or more"
        )


def _canonical(vocab: list) -> list[tuple[str, float]]:
    """A Unigram vocabulary without what differs between two trainings on the same texts.

    These are the order of equal scores, the last digits of all scores, and the scores of characters that no learned piece
    covers: the trainer deals out the lowest score plus 0, 1, 2, ... ten-thousandths at random. Here all get the lowest.
    """
    count = len(SPECIAL_TOKENS)
    specials, learned = vocab[:count], [(piece, round(score, 6)) for piece, score in vocab[count:]]
    lowest = min((score for _, score in learned), default=0.0)
    dealt = {round(lowest + number / 10_000, 6) for number in range(sum(len(piece) == 1 for piece, _ in learned))}
    learned = [(piece, lowest if len(piece) == 1 and score in dealt else score) for piece, score in learned]
    return [*map(tuple, specials), *sorted(learned, key=lambda entry: (-entry[1], entry[0]))]


def _kind(backend: Any) -> tuple[Kind, bool]:
    """Which kind a ``tokenizers.Tokenizer`` is, and whether it has sentinels; UserError if it is none of ours."""
    file = json.loads(backend.to_str())
    found = next((said for *said, form in _forms() if form == _form(file)), None)
    if found is None or not _is_sound(file["model"]):
        raise UserError("this is not a tokenizer of seq2seq-zoo: train one with zoo.text.Tokenizer.train")
    return tuple(found)


@functools.cache
def _forms() -> list[tuple[Kind, bool, Any]]:
    """What a file of each kind, without and with sentinels, holds around its vocabulary in this version of the library."""
    forms = []
    for kind, lowercase, sentinels in product(get_args(Kind), (False, True), (False, True)):
        backend, trainer = _untrained(kind, None, 1, lowercase, sentinels)
        _fit(backend, trainer, iter(["a"]))
        forms.append((kind, sentinels, _form(json.loads(backend.to_str()))))
    return forms


def _form(file: dict[str, Any]) -> dict[str, Any]:
    return {**file, "model": {key: value for key, value in file["model"].items() if key not in ("vocab", "merges")}}


def _is_ours(file: Any) -> bool:
    """Whether a file may be given to the library, which panics, aborts or takes all memory over some that it cannot use.

    What an older version of it left out it fills in itself.
    """
    if not isinstance(file, dict) or not isinstance(file.get("model"), dict) or not _is_sound(file["model"]):
        return False
    return any(_within(_form(file), form) for *_, form in _forms())


def _within(part: Any, whole: Any) -> bool:
    """Whether JSON is the same but for keys that it lacks."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return part.keys() <= whole.keys() and all(_within(value, whole[key]) for key, value in part.items())
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) == len(whole) and all(map(_within, part, whole))
    return type(part) is type(whole) and part == whole


def _is_sound(model: dict[str, Any]) -> bool:
    """Whether each id below the vocabulary's size has one token, the special ones first, and merges make tokens of tokens."""
    vocab, merges = model.get("vocab"), model.get("merges", [])
    if isinstance(vocab, dict):
        if not all(type(i) is int for i in vocab.values()) or sorted(vocab.values()) != list(range(len(vocab))):
            return False
        tokens = sorted(vocab, key=vocab.get)
    elif _are(vocab, str, (int, float)) and all(map(math.isfinite, (score for _, score in vocab))):
        tokens = [token for token, _ in vocab]
    else:
        return False
    known = set(tokens)
    return (
        len(known) == len(tokens)
        and tuple(tokens[: len(SPECIAL_TOKENS)]) == SPECIAL_TOKENS
        and _are(merges, str, str)
        and all({left, right, left + right} <= known for left, right in merges)
    )


def _are(pairs: Any, *types: Any) -> bool:
    """Whether JSON is a list of pairs of these types."""
    fits = lambda pair: isinstance(pair, list) and len(pair) == 2 and all(map(isinstance, pair, types))  # noqa: E731
    return isinstance(pairs, list) and all(map(fits, pairs))


def without_surrogates(text: str) -> str:
    """The text with "\ufffd" for each half of a UTF-16 pair, so that it can be written as UTF-8."""
    return SURROGATE.sub("\ufffd", text)


def printable(token: str) -> str:
    return "".join("␣" if c == " " else c if c.isprintable() else c.encode("unicode_escape").decode() for c in token)


def in_range(ids: Iterable[int], vocab_size: int) -> list[int]:
    """The ids as they are. Raises UserError for one outside the vocabulary."""
    ids = [int(i) for i in ids]
    for i in ids:
        if not 0 <= i < vocab_size:
            raise UserError(f"token id {i} is outside the vocabulary of {vocab_size}: use the tokenizer of the same model")
    return ids
