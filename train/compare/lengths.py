"""How right a model is by the length of what it reads, within what it was trained on and beyond."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from train import evaluate
from train.data import Example
from train.experiment import Tokenizers
from train.tasks import TASKS
from zoo.predictor import Prediction, Predictor

BANDS = 14  # of lengths up to the longest that is read, which is twice the longest trained on
EXAMPLES = 64  # of a band at most
ANSWERS = 64  # of a joined example at most


def by_length(predictor: Predictor, test: Sequence[Example], longest: int, tokenizers: Tokenizers, task: str) -> list[dict]:
    """The task's scores on the test split in bands of source length, and beyond training on joined examples.

    A source longer than any that was trained on is made of several of the test split, one behind the other; its right answers
    are those of its parts, one behind the other.

    Args:
      predictor: the model; its limits of length are lifted.
      test: the test split.
      longest: tokens of the longest source that it was trained on.
      tokenizers: for what stands between two texts.
      task: a key of ``TASKS``.

    Returns:
      For each band ``low`` and ``high``, in tokens with the end token, ``examples``, whether they are ``beyond`` what was
      trained on, and the ``scores``; null for a model that cannot read so far.
    """
    width = max(1, -(-2 * longest // BANDS))
    joined = beyond(predictor, test, longest, tokenizers)
    bands: dict[tuple[int, bool], list[Example]] = {}
    for example, is_joined in itertools.chain(zip(test, itertools.repeat(False)), zip(joined, itertools.repeat(True))):
        length = length_of(predictor, example.source)
        if length <= 2 * longest:
            bands.setdefault(((length - 1) // width, is_joined or length > longest), []).append(example)
    chosen = {band: evaluate.spread(found, EXAMPLES) for band, found in sorted(bands.items())}
    outputs = written(predictor, [example for found in chosen.values() for example in found])
    score = TASKS[task].score
    return [
        {"low": band * width + 1, "high": (band + 1) * width, "beyond": is_beyond, "examples": len(found)}
        | {"scores": score([outputs[e.source] for e in found], [e.references for e in found]) if fits(found, outputs) else None}
        for (band, is_beyond), found in chosen.items()
    ]


def fits(examples: Sequence[Example], outputs: dict[str, Prediction]) -> bool:
    """Whether the model could read them all."""
    return all(example.source in outputs for example in examples)


def written(predictor: Predictor, examples: Sequence[Example]) -> dict[str, Prediction]:
    """Source -> output of those that the model can read, with as much room as all of them want: few programs are compiled."""
    most = getattr(predictor.model.config, "max_len", 2**20)  # learned positions end somewhere
    room = 8 + max(map(len, predictor.target_tokenizer.encode_batch([example.target for example in examples])))
    sources = sorted({e.source for e in examples if length_of(predictor, e.source) <= most})
    return dict(zip(sources, predictor.predictions(sources, max_source_len=most, max_len=min(room, most)), strict=True))


def beyond(predictor: Predictor, test: Sequence[Example], longest: int, tokenizers: Tokenizers) -> Iterator[Example]:
    """Examples joined to sources of more than ``longest`` and at most twice as many tokens."""
    between = ["" if kind == "characters" else " " for kind in (tokenizers.source, tokenizers.target)]
    pool = evaluate.spread(test, 8 * EXAMPLES)
    for count in range(2, 9):
        for start in range(0, len(pool) - count + 1, count):
            parts = pool[start : start + count]
            example = Example(
                between[0].join(part.source for part in parts),
                between[1].join(part.target for part in parts),
                tuple(map(between[1].join, itertools.islice(itertools.product(*(p.references for p in parts)), ANSWERS))),
            )
            if longest < length_of(predictor, example.source) <= 2 * longest:
                yield example


def length_of(predictor: Predictor, source: str) -> int:
    return len(predictor.source_tokenizer.encode_batch([source])[0])
