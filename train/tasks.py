"""What a task's outputs are scored by. Each scorer takes what a predictor says and, for each, all the right answers."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from train import classify
from train.metrics import Metric, divide
from zoo.core import UserError

References = Sequence[Sequence[str]]
CURLY = "\N{RIGHT SINGLE QUOTATION MARK}"


class Task(NamedTuple):
    """One row of ``TASKS``.

    Attributes:
      score: (predictions, references) -> name -> value; predictions are those of ``Predictor`` or ``EncoderPredictor``;
        None where nothing is generated.
      best: the metric that a run's best checkpoint is chosen by.
      higher_is_better: which way.
      unit: what a source is called in a summary.
      command: of ``python -m zoo``, which shows what was learned.
    """

    score: Callable[[Sequence[Any], References], dict[str, float]] | None
    best: str
    higher_is_better: bool
    unit: str
    command: str = "predict"


class Confusion(NamedTuple):
    """How often each label was taken for which.

    Attributes:
      labels: their names.
      counts: a row for each right label, a column for each that was predicted.
    """

    labels: list[str]
    counts: list[list[int]]


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


def speech(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Word and character error rate of transcripts, in percent: of the texts as they are, and of their words alone.

    >>> scores = speech(["Hello, world"], [["hello word"]])
    >>> scores["wer"], scores["wer_of_words"], round(scores["cer"], 1)
    (100.0, 50.0, 30.0)
    """
    rate = lambda split: 100 * divide(edit_rates(predictions, references, split))["symbol"]  # noqa: E731
    return {
        "wer": rate(str.split),
        "cer": rate(lambda text: " ".join(text.split())),
        "wer_of_words": rate(lambda text: words(text).split()),
    }


def words(text: str) -> str:
    """Lower case, with a space for what is no letter, mark, digit or apostrophe; compatible characters are one (NFKC).

    As Whisper's evaluation has it for languages other than English (Radford et al. 2022, appendix C), which leaves out marks
    too, and what stands in brackets: that is kept here.

    >>> words("Don't (do it) — ½ Äpfel!").split()
    ["don't", 'do', 'it', '1', '2', 'äpfel']
    """
    kept = lambda c: c == "'" or unicodedata.category(c)[0] in "LMN"  # noqa: E731
    return "".join(c if kept(c) else " " for c in unicodedata.normalize("NFKC", text.replace(CURLY, "'")).lower())


def translation(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Corpus BLEU and chrF as sacreBLEU computes them, on the text as it is, in percent."""
    import sacrebleu

    most = max(map(len, references), default=1)
    columns = [[answers[i] if i < len(answers) else None for answers in references] for i in range(most)]
    return {
        "bleu": sacrebleu.corpus_bleu(list(predictions), columns).score,
        "chrf": sacrebleu.corpus_chrf(list(predictions), columns).score,
    }


def language(predictions: Sequence[Any], references: References) -> dict[str, float]:
    """Nothing: a language model is scored by the perplexity that teacher forcing gives."""
    del predictions, references
    return {}


def labels(predictions: Sequence[Any], references: References) -> dict[str, float]:
    """Accuracy, F1 and area under the ROC curve of labels, from 0 to 1 (``train.classify``)."""
    return classify.scores(*told(predictions, references))


def confusion(predictions: Sequence[Any], references: References) -> Confusion:
    """The confusion matrix of labels."""
    names, (probabilities_NC, truth_N) = list(predictions[0].probabilities), told(predictions, references)
    return Confusion(names, classify.confusion(probabilities_NC.argmax(axis=1), truth_N, len(names)).tolist())


def told(predictions: Sequence[Any], references: References) -> tuple[np.ndarray, np.ndarray]:
    """(N, C) probabilities and (N,) right labels.

    Raises:
      UserError: an example has a label that the model does not know.
    """
    names = list(predictions[0].probabilities)
    for answers in references:
        if answers[0] not in names:
            raise UserError(f"an example has the label {answers[0]!r}, which is not one of {', '.join(names[:20])}: correct it")
    truth_N = np.array([names.index(answers[0]) for answers in references])
    return np.array([list(prediction.probabilities.values()) for prediction in predictions]), truth_N


def of_texts(score: Callable[[Sequence[str], References], dict[str, float]]) -> Callable:
    """A scorer of texts as one of predictions."""
    return lambda predictions, references: score([prediction.text for prediction in predictions], references)


TASKS = {
    "pronunciation": Task(of_texts(pronunciation), "per", higher_is_better=False, unit="words"),
    "translation": Task(of_texts(translation), "bleu", higher_is_better=True, unit="sentences"),
    "speech": Task(of_texts(speech), "wer", higher_is_better=False, unit="recordings"),
    "text": Task(of_texts(text), "error", higher_is_better=False, unit="texts"),
    "classify": Task(labels, "accuracy", higher_is_better=True, unit="texts"),
    "language": Task(language, "perplexity", higher_is_better=False, unit="texts"),
    "vectors": Task(None, "loss", higher_is_better=False, unit="lines", command="similar"),
}
