"""What papers report for grapheme to phoneme on CMUdict, to stand beside what was measured.

The split, stress marks and how several pronunciations of a word count move word error rates by about ten points, so that none
of these is measured exactly as here: phones without stress, any listed pronunciation being right.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """Error rates in percent; None where a source gives none.

    ``papers`` are those of the architecture (``ModelConfig.PAPER``).
    """

    papers: tuple[str, ...]
    method: str
    per: float | None
    wer: str
    source: str


G2P = (
    Published(("Sutskever et al. 2014",), "bidirectional LSTM over given alignments", 5.45, "23.55", "Yao & Zweig 2015"),
    Published(("Bahdanau et al. 2015", "Luong et al. 2015"), "attention, ensemble", 4.69, "20.24", "Toshniwal & Livescu 2016"),
    Published(("Vaswani et al. 2017",), "Transformer, this dictionary, no stress", None, "30 to 31", "CMUSphinx g2p-seq2seq"),
    Published((), "convolutional encoder", 4.81, "25.13", "Yolchuyeva et al. 2019"),
    Published((), "weighted transducers (Phonetisaurus), this dictionary", None, "33.9", "CMUSphinx g2p-seq2seq"),
)


def beside(paper: str) -> Published | None:
    """The figure that is nearest to an architecture."""
    return next((row for row in G2P if paper in row.papers), None)
