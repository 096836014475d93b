"""XLM-R, mBART, mBART-50 and Pegasus without a tokenizer.json: SentencePiece files whose pieces have other ids in the model.

fairseq puts <s>, <pad>, </s> and <unk> before the fourth piece of the file, where it has <unk>, <s> and </s>, and what a model
has of its own behind the last; Pegasus puts 103 tokens of its pre-training between </s> and <unk>.

Texts are cut by the SentencePiece library itself, as the models' own code had it. What transformers 5 makes of these files
is the same but for spaces (a literal "▁", white space at an end, beside a special token or more than once in a row), and but
for mBART's normalisation, which it leaves out.
"""

from __future__ import annotations

from collections.abc import Iterable

from zoo.core import UserError
from zoo.pretrained_text.pieces import PieceTokenizer

FAIRSEQ = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}  # in the order of their ids
LANGUAGES = (  # mBART-50's codes, in the order of their ids; mBART has the first 25
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP nl_XX ro_RO "
    "ru_RU si_LK tr_TR vi_VN zh_CN af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF "
    "pt_XX sv_SE sw_KE ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI"
)


class ShiftedTokenizer(PieceTokenizer):
    """Base: fairseq's numbers; subclasses define ``around`` and ``languages``.

    Attributes:
      languages: codes that have a token each, after the pieces.
    """

    file = "sentencepiece.bpe.model"
    languages: tuple[str, ...] = ()

    def prepare(self) -> None:
        self.reader = self.writer = self.piece_model(self.file)
        first, special, last = self.layout()
        pieces = [self.reader.id_to_piece(number) for number in range(first, self.reader.get_piece_size())]
        tokens = [*special, *pieces, *last]
        self.ids = {token: number for number, token in enumerate(tokens)}
        if len(self.ids) < len(tokens):
            raise UserError(f"the tokenizer's {self.file} has a piece twice, or one that is a special token: fetch it again")
        self.split_at([*special, *last, self.special("unk_token", "<unk>"), *self.added_special()])
        self.check_added()

    def layout(self) -> tuple[int, list[str], list[str]]:
        """The first of the pieces that have a number in the model, and what stands before and after them."""
        special = [self.special(name, default) for name, default in FAIRSEQ.items()]
        return 3, special, [*self.languages, self.special("mask_token", "<mask>")]

    def check_added(self) -> None:
        """Raises UserError for a token that the files have added to those of the published model."""
        numbered = self.settings.get("added_tokens_decoder")
        added = numbered.items() if isinstance(numbered, dict) else ()
        given = {str(token.get("content") if isinstance(token, dict) else token): str(number) for number, token in added}
        if "added_tokens.json" in self.files:
            given |= {token: str(number) for token, number in self.vocabulary("added_tokens.json").items()}
        for token, number in given.items():
            if str(self.ids.get(token)) != number:
                raise UserError(
                    f"the tokenizer's files give {token!r} the id {number}, which {self.file} does not: save a tokenizer.json "
                    "beside it, which tells all"
                )

    def around(self, ids: list[int]) -> list[int]:
        """A text's ids with the special tokens that the model wants around it."""
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        return self.around(self.numbers(text))

    def encode_pairs(self, pairs: Iterable[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """For each pair the ids of both texts in one sequence, and which text each is of: these models are not told."""
        rows = [self.encode(first) + self.encode_second(second) for first, second in pairs]
        return [(row, [0] * len(row)) for row in rows]

    def encode_second(self, text: str) -> list[int]:
        """What follows the first text of a pair."""
        raise UserError("this model's tokenizer reads one text at a time: give single texts")

    def text(self, ids: list[int]) -> str:
        return self.joined(ids)

    @property
    def wrapping(self) -> frozenset[int]:
        """The ids that stand around every text."""
        return frozenset(self.around([]))

    @property
    def mask_id(self) -> int:
        """The token that stands for a missing one."""
        return self.ids[self.special("mask_token", "<mask>")]

    def language_token(self, code: str) -> str:
        if not self.languages:
            raise UserError(f"this tokenizer is not told a language, such as {code!r}: leave it out")
        if code not in self.languages:
            raise UserError(f"this model has no language {code!r}: use one of {', '.join(self.languages)}")
        return code


class XlmRobertaTokenizer(ShiftedTokenizer):
    """XLM-R's: a text stands between <s> and </s>, as does each of a pair but that the second begins with </s>."""

    kind = "xlm_roberta"

    def around(self, ids: list[int]) -> list[int]:
        start, end = (self.ids[self.special(name, FAIRSEQ[name])] for name in ("bos_token", "eos_token"))
        return [start, *ids, end]

    def encode_second(self, text: str) -> list[int]:
        end = self.ids[self.special("eos_token", "</s>")]
        return [end, *self.numbers(text), end]


class MBartTokenizer(ShiftedTokenizer):
    """mBART's: the language stands after the end of a text; a decoder reads it first."""

    kind = "mbart"
    languages = tuple(LANGUAGES.split()[:25])
    language_is_read = True

    def prepare(self) -> None:
        super().prepare()
        code = self.settings.get("src_lang") or "en_XX"
        self.language = (self.settings.get("tgt_lang") or code) if self.side == "target" else code
        self.language_id(self.language)

    def around(self, ids: list[int]) -> list[int]:
        return [*ids, self.end_id, self.language_id(self.language)]


class MBart50Tokenizer(MBartTokenizer):
    """mBART-50's: more languages, and a text begins with its own."""

    kind = "mbart50"
    languages = tuple(LANGUAGES.split())
    language_is_read = False

    def around(self, ids: list[int]) -> list[int]:
        return [self.language_id(self.language), *ids, self.end_id]


class PegasusTokenizer(ShiftedTokenizer):
    """Pegasus's: sentences and words were masked by <mask_1> and <mask_2>, and <unk_2> ... were never used."""

    kind = "pegasus"
    file = "spiece.model"

    def layout(self) -> tuple[int, list[str], list[str]]:
        offset = self.settings.get("offset", 103)
        if type(offset) is not int or not 2 <= offset <= 10_000:
            raise UserError(
                f"offset in tokenizer_config.json is {offset!r}: Pegasus's 103 is wanted, or a whole number near it"
            )
        defaults = {"pad_token": "<pad>", "eos_token": "</s>", "mask_token_sent": "<mask_1>", "mask_token": "<mask_2>"}
        special = [self.special(name, default) for name, default in defaults.items()]
        return 2, [*special, *(f"<unk_{i}>" for i in range(2, offset))], []

    def around(self, ids: list[int]) -> list[int]:
        return [*ids, self.end_id]

    @property
    def mask_id(self) -> int:
        return self.ids[self.special("mask_token", "<mask_2>")]


KINDS_OF_CLASSES = {
    "XLMRoberta": XlmRobertaTokenizer,
    "MBart": MBartTokenizer,
    "MBart50": MBart50Tokenizer,
    "Pegasus": PegasusTokenizer,
}


def shifted_kind(name: str, model_type: str) -> type[ShiftedTokenizer] | None:
    """The tokenizer of a class of transformers, without its ending; where the files name none, of a model_type."""
    by_type = {"xlm-roberta": "XLMRoberta", "mbart": "MBart", "pegasus": "Pegasus"}
    return KINDS_OF_CLASSES.get(name or by_type.get(model_type, ""))
