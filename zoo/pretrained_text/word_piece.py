"""vocab.txt: WordPiece as BERT came with it, by the ``tokenizers`` library."""

from __future__ import annotations

from zoo.core import UserError
from zoo.pretrained_text.fast import FastTokenizer

# Special token -> its text, where the files say nothing.
SPECIAL = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}


class WordPieceTokenizer(FastTokenizer):
    """WordPiece (Wu et al. 2016) over words that BERT's rules cut: tokenizer_config.json says how."""

    kind = "word_piece"

    def prepare(self) -> None:
        import tokenizers
        from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

        tokens = self.files["vocab.txt"].decode("utf-8").removesuffix("\n").split("\n") if "vocab.txt" in self.files else []
        vocabulary = {token.rstrip("\r"): i for i, token in enumerate(tokens)}
        special = {name: self.special(name, default) for name, default in SPECIAL.items()}
        if missing := [token for name, token in special.items() if token not in vocabulary and name != "mask_token"]:
            raise UserError(f"the tokenizer's vocab.txt lacks {missing[0]}: fetch the model again")
        model = models.WordPiece(vocabulary, unk_token=special["unk_token"], max_input_chars_per_word=100)
        self.backend = tokenizers.Tokenizer(model)
        lower = self.flag("do_lower_case", True)
        self.backend.normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=self.flag("tokenize_chinese_chars", True),
            strip_accents=self.flag("strip_accents", None),
            lowercase=lower,
        )
        self.backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self.backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
        kept = [token for token in [*special.values(), *self.added_special()] if token in vocabulary]
        self.backend.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in kept])
        start, end = special["cls_token"], special["sep_token"]
        self.backend.post_processor = processors.TemplateProcessing(
            single=f"{start}:0 $A:0 {end}:0",
            pair=f"{start}:0 $A:0 {end}:0 $B:1 {end}:1",
            special_tokens=[(token, vocabulary[token]) for token in (start, end)],
        )
        self.ids = self.backend.get_vocab(with_added_tokens=True)

    def flag(self, name: str, default: bool | None) -> bool | None:
        """A setting of tokenizer_config.json. Raises UserError if it is neither true nor false."""
        value = self.settings.get(name)
        if value not in (None, True, False):
            raise UserError(f"{name} in the tokenizer's tokenizer_config.json is {value!r}: true or false is wanted")
        return default if value is None else value
