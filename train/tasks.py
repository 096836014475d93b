"""What a task's outputs are scored by. Each scorer takes predictions and, for each, all the right answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from train.metrics import Metric, divide

References = Sequence[Sequence[str]]


class Task(NamedTuple):
    """One row of ``TASKS``.

    Attributes:
      score: (predictions, references) -> name -> value; None where nothing is generated.
      best: the metric that a run's best checkpoint is chosen by.
      higher_is_better: which way.
      unit: what a source is called in a summary.
      command: of ``python -m zoo``, which shows what was learned.
    """

    score: Callable[[Sequence[str], References], dict[str, float]] | None
    best: str
    higher_is_better: bool
    unit: str
    command: str = "predict"


def edit_rates(predictions: Sequence[str], references: References, split: Callable[[str], Sequence[str]]) -> dict[str, Metric]:
    """Edits (Levenshtein) per symbol of the nearest reference, and the share of predictions that equal none."""
    from rapidfuzz.distance import Levenshtein

    edits = symbols = wrong = 0
    for prediction, answers in zip(predictions, references, strict=True):
        distances = [(Levenshtein.distance(split(prediction), split(answer)), len(split(answer))) for answer in answers]
        nearest = min(distances, key=lambda pair: (pair[0] / max(pair[1], 1), pair[0]))
        edits, symbols = edits + nearest[0], symbols + nearest[1]
        wrong += all(distance for distance, _ in distances)
    return {"symbol": Metric(edits, symbols), "sequence": Metric(wrong, len(predictions))}


def pronunciation(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Phone and word error rate in percent, each word against the pronunciation that fits best of those listed.

    >>> pronunciation(["K AE T", "D AO G"], [["K AE T"], ["D AA G Z", "D AA G"]])["wer"]
    50.0
    """
    rates = divide(edit_rates(predictions, references, str.split))
    return {"per": 100 * rates["symbol"], "wer": 100 * rates["sequence"]}


def text(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Character error rate and share of wrong outputs, in percent."""
    rates = divide(edit_rates(predictions, references, list))
    return {"cer": 100 * rates["symbol"], "error": 100 * rates["sequence"]}


def translation(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Corpus BLEU and chrF as sacreBLEU computes them, on the text as it is, in percent."""
    import sacrebleu

    most = max(map(len, references), default=1)
    columns = [[answers[i] if i < len(answers) else None for answers in references] for i in range(most)]
    return {
        "bleu": sacrebleu.corpus_bleu(list(predictions), columns).score,
        "chrf": sacrebleu.corpus_chrf(list(predictions), columns).score,
    }


def language(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Nothing: a language model is scored by the perplexity that teacher forcing gives."""
    del predictions, references
    return {}


TASKS = {
    "pronunciation": Task(pronunciation, "per", higher_is_better=False, unit="words"),
    "translation": Task(translation, "bleu", higher_is_better=True, unit="sentences"),
    "text": Task(text, "error", higher_is_better=False, unit="texts"),
    "language": Task(language, "perplexity", higher_is_better=False, unit="texts"),
    "vectors": Task(None, "loss", higher_is_better=False, unit="lines", command="similar"),
}
