"""Strings on which a tokenizer has to agree with its reference: many scripts, emoji, control characters, spaces, nothing."""

from __future__ import annotations

import random

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "Wie spät ist es? Es ist schon fünf Uhr!",
    "L'été dernier, j'ai vu un œuf à 3,50 € — cher, non?",
    "Привет, как дела? Всё хорошо.",
    "我今天很高兴，因为天气好。",
    "日本語のテキストと、カタカナ。",
    "안녕하세요 세계",
    "مرحبا بالعالم، كيف حالك؟",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "Γειά σου Κόσμε",
    "don't can't I'm you're we've it's 1,000.00 $5 50% C++ e-mail@example.org https://example.org/?a=b&c=d",
)
SPANS = (
    *((0x20, 0x7F), (0xA0, 0x17F), (0x300, 0x370), (0x370, 0x400), (0x400, 0x500), (0x590, 0x600), (0x600, 0x700)),
    *((0x900, 0x980), (0xE00, 0xE80), (0x1E00, 0x2000), (0x2000, 0x2070), (0x20A0, 0x20C0), (0x2100, 0x2200), (0x3040, 0x3100)),
    *((0x4E00, 0x4F00), (0xAC00, 0xAD00), (0xFB00, 0xFB10), (0xFE00, 0xFE10), (0xFF00, 0xFF60), (0x1D400, 0x1D440)),
    *((0x1F300, 0x1F650), (0x0, 0x20), (0x7F, 0xA0), (0xE000, 0xE010)),
)
PARTS = (
    *(" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2009", "\u3000", "\u200b", "\u200d", "\ufeff", "\ufffd", "\x00", "▁", "##"),
    *(
        "👩‍👩‍👧",
        "🇩🇪",
        "👍🏽",
        "❤️",
        "e\u0301",
        "ﬁ",
        "①",
        "½",
        "İ",
        "ß",
        "</s>",
        "<s>",
        "<pad>",
        "<unk>",
        "<mask>",
        "[CLS]",
        "[SEP]",
    ),
    *("[MASK]", "[UNK]", "<|endoftext|>", "<extra_id_0>", ">>fra<<", "...", "--", "''", "``", "'s", " n't", "123456789"),
)


def strings(count: int = 5000, seed: int = 0) -> list[str]:
    """The same list each time: the sentences, then mixtures of words, characters and parts."""
    draw = random.Random(seed)  # noqa: S311
    pick = lambda options: options[int(draw.random() * len(options))]  # noqa: E731
    words = [word for sentence in SENTENCES for word in sentence.split()]

    def part() -> str:
        kind = draw.random()
        if kind < 0.45:
            return pick(words) + pick((" ", " ", " ", "", ", "))
        if kind < 0.65:
            return pick(PARTS)
        first, end = pick(SPANS)
        return "".join(chr(first + int(draw.random() * (end - first))) for _ in range(1 + int(draw.random() * 5)))

    made = ["", " ", *PARTS, *SENTENCES, *(f"  {sentence}  " for sentence in SENTENCES), " ".join(SENTENCES)]
    while len(made) < count:
        made.append("".join(part() for _ in range(1 + int(draw.random() ** 2 * 12))))
    return made[:count]


def plain(text: str) -> str:
    """The text without spaces that not all make the same of: other than one between words, and before what may be a token."""
    return " ".join(text.replace("▁", " ").replace("\u200b", " ").split()).replace(" <", "<")
