"""Text to token ids and back: characters, whitespace-separated symbols, BPE or Unigram, all by the ``tokenizers`` library.

A ``Tokenizer`` is saved as one standard ``tokenizer.json``, from which everything is recovered, its kind too. The four
``zoo.core.SPECIAL_TOKENS`` hold ids 0 to 3, and every encoded text ends with the end token, which the file's own
post-processor appends.

Text that spells a special token ("</s>") is only text: the pre-tokenizer of every kind breaks it after its "<", so that no
model can find it whole, and the library's search for special tokens in text is off.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from zoo.core import EOS, SPECIAL_TOKENS, UNK, UserError

Kind = Literal["characters", "words", "bpe", "unigram"]

SUBWORDS = 8000  # tokens of a BPE or Unigram vocabulary unless told otherwise
NO_LIMIT = 2**31
SPACE = "▁"  # what stands for a space inside BPE and Unigram tokens
INSIDE_SPECIAL = "<(?=({})>)".format("|".join(token[1:-1] for token in SPECIAL_TOKENS))
SURROGATE = re.compile("[\ud800-\udfff]")  # half a UTF-16 pair: Python's strings may hold one, the library's may not


class Tokenizer:
    """Text to token ids and back.

    >>> tokenizer = Tokenizer.train("characters", ["abba"])
    >>> tokenizer.encode("ab"), tokenizer.decode([4, 5, 2])
    ([4, 5, 2], 'ab')
    """

    def __init__(self, backend: Any):
        """Args: backend: a ``tokenizers.Tokenizer`` that follows the conventions of this file, else UserError."""
        self._backend = backend
        self.kind: Kind = _kind(backend)
        self._backend.encode_special_tokens = True  # "</s>" in a text is text; the file format does not keep this switch

    @classmethod
    def train(
        cls,
        kind: Kind,
        texts: Iterable[str],
        vocab_size: int | None = None,
        min_count: int = 1,
        lowercase: bool = False,
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

        Raises:
          UserError: unknown kind, a vocabulary too small for anything, or texts without a single token.
        """
        if kind not in get_args(Kind):
            raise UserError(f"the tokenizer kind {kind!r} does not exist: choose one of {', '.join(get_args(Kind))}")
        if vocab_size is not None and vocab_size <= len(SPECIAL_TOKENS):
            raise UserError(
                f"a vocab_size of {vocab_size} leaves no room beside the {len(SPECIAL_TOKENS)} special tokens: raise it"
            )
        backend, trainer = _untrained(kind, vocab_size, min_count, lowercase)
        _fit(backend, trainer, map(without_surrogates, texts))
        if backend.get_vocab_size() <= len(SPECIAL_TOKENS):
            raise UserError(f"the texts hold no token to train a {kind!r} tokenizer on: give it text that is not empty")
        return cls(backend)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read what ``save`` wrote. Raises UserError if the file is missing, damaged or another program's."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"there is no tokenizer file {path}: give the path of a tokenizer.json that seq2seq-zoo saved")
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")), str(path))
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} is not a readable tokenizer ({error}): save it again") from error

    @classmethod
    def from_json(cls, data: Any, where: str) -> Tokenizer:
        """The inverse of ``to_json``; ``where`` names the file in a UserError."""
        import tokenizers

        try:
            backend = tokenizers.Tokenizer.from_str(json.dumps(data))
        except Exception as error:  # the library raises plain Exception for anything it cannot read
            raise UserError(f"{where} is not a readable tokenizer ({error}): save it again") from error
        try:
            return cls(backend)
        except UserError as error:
            raise UserError(f"{where} is not a tokenizer of seq2seq-zoo: train one with zoo.text.Tokenizer.train") from error

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

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, the last one EOS: an empty text is ``[EOS]``."""
        return self._backend.encode(without_surrogates(text)).ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """``[encode(text) for text in texts]``, faster."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(map(without_surrogates, texts)))]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids up to the first EOS, special tokens left out. Raises UserError for an id out of range."""
        ids = self._in_range(ids)
        return self._backend.decode(ids[: ids.index(EOS)] if EOS in ids else ids, skip_special_tokens=True)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """One printable label a token, for the axes of a plot: a space is "␣", a line feed "\\n"."""
        return [printable(self._backend.id_to_token(i)) for i in self._in_range(ids)]

    def _in_range(self, ids: Iterable[int]) -> list[int]:
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise UserError(
                    f"token id {i} is outside the vocabulary of {self.vocab_size}: use the tokenizer of the same model"
                )
        return ids


def _untrained(kind: Kind, vocab_size: int | None, min_count: int, lowercase: bool) -> tuple[Any, Any]:
    """A ``tokenizers.Tokenizer`` without a vocabulary and the trainer that will give it one."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    unk = SPECIAL_TOKENS[UNK]
    common = {"special_tokens": list(SPECIAL_TOKENS), "show_progress": False}
    normalize = [normalizers.Lowercase()] if lowercase else []
    break_special = pre_tokenizers.Split(Regex(INSIDE_SPECIAL), "isolated")
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

    backend.train_from_iterator(texts, trainer)
    if isinstance(backend.model, models.Unigram):
        backend.model = models.Unigram(_canonical(json.loads(backend.to_str())["model"]["vocab"]), unk_id=UNK)
    eos = SPECIAL_TOKENS[EOS]
    backend.post_processor = TemplateProcessing(single=f"$A {eos}", special_tokens=[(eos, EOS)])


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


def _kind(backend: Any) -> Kind:
    """Which kind a ``tokenizers.Tokenizer`` is, told by its model and decoder; UserError if it is none of ours."""
    file = json.loads(backend.to_str())
    model, decoder = file["model"]["type"], (file["decoder"] or {}).get("type")
    kinds = {("WordLevel", "Fuse"): "characters", ("WordLevel", None): "words", ("BPE", "Sequence"): "bpe"}
    kind = (kinds | {("Unigram", "Sequence"): "unigram"}).get((model, decoder))
    specials = tuple(map(backend.id_to_token, range(len(SPECIAL_TOKENS))))
    if kind is None or specials != SPECIAL_TOKENS or backend.encode("").ids != [EOS]:
        raise UserError("this is not a tokenizer of seq2seq-zoo: train one with zoo.text.Tokenizer.train")
    return kind


def without_surrogates(text: str) -> str:
    """The text with "\ufffd" for each half of a UTF-16 pair, so that it can be written as UTF-8."""
    return SURROGATE.sub("\ufffd", text)


def printable(token: str) -> str:
    return "".join("␣" if c == " " else c if c.isprintable() else c.encode("unicode_escape").decode() for c in token)
