"""vocab.json and merges.txt: byte-level BPE as GPT-2 came with it, by the ``tokenizers`` library."""

from __future__ import annotations

from typing import NamedTuple

from zoo.core import UserError
from zoo.pretrained_text.fast import FastTokenizer


class Style(NamedTuple):
    """What the classes of transformers that read these files do differently.

    Attributes:
      special: special token -> its text or a description of it, where the files say nothing.
      wrapped: whether a text stands between ``cls_token`` and ``sep_token``.
      prefix_space: whether a text begins with a space, where the files say nothing.
      told: whether a text stands between what its model is told of language, task and times, and ``eos_token``.
    """

    special: dict[str, str | dict]
    wrapped: bool = False
    prefix_space: bool = False
    told: bool = False


# In the order in which those that the vocabulary lacks are given ids.
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
GPT2 = Style(dict.fromkeys(SPECIAL[:3], "<|endoftext|>"))
ROBERTA = Style(dict(zip(SPECIAL, ("<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"), strict=True)), wrapped=True)
BLENDERBOT = Style(ROBERTA.special | {"mask_token": {"content": "<mask>", "lstrip": True}}, prefix_space=True)
WHISPER = Style(GPT2.special, told=True)
STYLES = {"GPT2": GPT2, "Roberta": ROBERTA, "Bart": ROBERTA, "Blenderbot": BLENDERBOT, "Whisper": WHISPER}


class ByteLevelTokenizer(FastTokenizer):
    """Byte-level BPE (Radford et al. 2019, section 2.2) from its two files; what stands around a text differs by class."""

    kind = "byte_level"

    def prepare(self) -> None:
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers

        vocabulary, merges = self.vocabulary("vocab.json"), merges_of(self.files, "merges.txt")
        style = self.style(vocabulary)
        space = self.settings.get("add_prefix_space")
        space = space if isinstance(space, bool) else style.prefix_space
        try:
            self.backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        except Exception as error:  # the library raises plain Exception for a merge of tokens that the vocabulary lacks
            raise UserError(f"the tokenizer's vocab.json and merges.txt do not fit ({error}): fetch the model again") from error
        self.backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
        self.backend.decoder = decoders.ByteLevel()
        special = self.special_tokens(style)
        self.add(special)
        self.backend.post_processor = self.around(style, special, space)
        self.ids = self.backend.get_vocab(with_added_tokens=True)

    def style(self, vocabulary: dict[str, int]) -> Style:
        """By the class that tokenizer_config.json names; else by how the vocabulary spells its special tokens."""
        name = self.settings.get("tokenizer_class")
        if name in (None, "PreTrainedTokenizerFast", "TokenizersBackend"):
            if "normalizer.json" in self.files:
                return WHISPER
            return GPT2 if "<|endoftext|>" in vocabulary or "<s>" not in vocabulary else ROBERTA
        short = str(name).removesuffix("Fast").removesuffix("Tokenizer")
        if short not in STYLES:
            raise UserError(
                f"tokenizer_class in tokenizer_config.json is {name!r}, which this zoo reads from tokenizer.json alone: "
                f"save that file beside it, or use one of {', '.join(STYLES)}"
            )
        return STYLES[short]

    def special_tokens(self, style: Style) -> dict[str, dict]:
        """Special token -> its text as "content", and how it is found; special_tokens_map.json goes first."""
        older = "special_tokens_map.json" in self.files and "added_tokens_decoder" not in self.settings
        given = {**style.special, **self.settings, **(self.json("special_tokens_map.json") if older else {})}
        return {name: as_token(given[name]) for name in SPECIAL if given.get(name) is not None}

    def add(self, special: dict[str, dict]) -> None:
        """Have the tokens that are found before a text is cut under the ids that the files say, or the next."""
        import tokenizers

        numbered = self.settings.get("added_tokens_decoder")
        if isinstance(numbered, dict):
            tokens = [(int(number), as_token(token)) for number, token in numbered.items() if str(number).isdecimal()]
        elif "added_tokens.json" in self.files:
            tokens = [(number, as_token(token)) for token, number in self.vocabulary("added_tokens.json").items()]
        else:
            tokens = []
        tokens = sorted(tokens, key=lambda pair: pair[0])
        named = [*special.values(), *map(as_token, self.added_special())]
        contents, seen = {token["content"] for token in named}, set()
        for number, token in [*tokens, *((None, token) for token in named)]:
            if (content := token["content"]) in seen:
                continue
            seen.add(content)
            flags = {name: token.get(name) is True for name in ("lstrip", "rstrip", "single_word")}
            is_special = content in contents or token.get("special") is True
            self.backend.add_tokens([tokenizers.AddedToken(content, **flags, special=is_special)])
            if number not in (None, self.backend.token_to_id(content)):
                raise UserError(f"the tokenizer gives {content!r} the id {number}, which is not the next: fetch them again")

    def around(self, style: Style, special: dict[str, dict], space: bool):
        """What is put around each text."""
        from tokenizers import processors

        pair = lambda name: (special[name]["content"], self.backend.token_to_id(special[name]["content"]))  # noqa: E731
        if style.wrapped:
            wanted = ("cls_token", "sep_token")
            if lacking := [name for name in wanted if name not in special]:
                raise UserError(
                    f"{lacking[0]} in tokenizer_config.json is null, but texts of this model stand between two tokens"
                )
            return processors.RobertaProcessing(pair("sep_token"), pair("cls_token"), True, space)
        if style.told:
            return self.around_speech(special["eos_token"]["content"])
        names = [name for name in SPECIAL[:2] if self.settings.get(f"add_{name}") is True and name in special]
        parts = {"bos_token": [], "eos_token": []} | {name: [special[name]["content"]] for name in names}
        template = [*parts["bos_token"], "$A", *parts["eos_token"]]
        return processors.TemplateProcessing(single=template, special_tokens=[pair(name) for name in names])

    def around_speech(self, end: str):
        """What Whisper's decoder reads and says around a text.

        tokenizer_config.json rarely names a language; what it names that is no token, such as "german", is not told.
        """
        from tokenizers import processors

        told = [f"<|{self.settings.get(name)}|>" for name in ("language", "task")]
        times = [] if self.settings.get("predict_timestamps") is True else ["<|notimestamps|>"]
        known = self.backend.get_vocab(with_added_tokens=True)
        tokens = ["<|startoftranscript|>", *(token for token in told if token in known), *times]
        ids = {token: self.backend.token_to_id(token) for token in [*tokens, end]}
        if lacking := [token for token, number in ids.items() if number is None]:
            raise UserError(f"the tokenizer lacks {lacking[0]}, which stands around a text of Whisper: fetch the model again")
        return processors.TemplateProcessing(single=[*tokens, "$A", end], special_tokens=list(ids.items()))


def merges_of(files: dict[str, bytes], name: str) -> list[tuple[str, str]]:
    """The pairs of merges.txt, one a line, after a line that says the version. Raises UserError if it is missing or other."""
    if name not in files:
        raise UserError(f"the tokenizer lacks {name}: fetch the model again")
    lines = (line.rstrip("\r") for line in files[name].decode("utf-8").split("\n"))
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 2:
            raise UserError(f"merge {number} of the tokenizer's {name} is no pair of tokens: fetch the model again")
    return pairs


def as_token(value: str | dict) -> dict:
    """A token of tokenizer_config.json, which may be its text alone. Raises UserError if it is neither."""
    token = value if isinstance(value, dict) else {"content": value}
    if not isinstance(token.get("content"), str) or not token["content"]:
        raise UserError(f"the tokenizer's files name the token {value!r}: a text is wanted, so fetch the model again")
    return token
