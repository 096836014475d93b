"""The command line: ``python -m zoo list | predict | attend | similar | analogy | export``. Exit codes: 0 done, 2 bad input."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import zoo
from zoo import vectors
from zoo.checkpoint.directory import FORMATS, load_average
from zoo.core import EncoderOnly
from zoo.page import attention
from zoo.predictor import Prediction
from zoo.predictor_base import PredictorBase
from zoo.transcribe.settings import Transcription
from zoo.transcribe.transcript import Transcript
from zoo.variants import table

CHUNK = 256  # lines of standard input predicted together


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options, rest = parser().parse_known_args(arguments)
    # argparse takes no text that follows an option ("predict DIR --json TEXT") for one: those are left in ``rest``.
    if any(text.startswith("-") and text != "-" for text in rest) or (rest and not hasattr(options, "texts")):
        parser().error(f"unknown argument {rest[0]}")
    options.texts = [*getattr(options, "texts", []), *rest]
    try:
        options.run(options)
    except zoo.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        extra = {"sentencepiece": "hub", "soundfile": "audio"}.get(error.name, "train")
        print(f"error: {error.name} is not installed: pip install 'seq2seq-zoo[{extra}]'", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has left: that is not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m zoo", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="command")
    command = commands.add_parser("list", help="print the table of variants")
    command.set_defaults(run=print_table)
    command = commands.add_parser("predict", help="the output for texts or sound files, or for each line of standard input")
    command.add_argument("directory", help="the --workdir of a training run, or an exported model")
    command.add_argument("texts", nargs="*", metavar="text", help="none: read standard input")
    command.add_argument(
        "--json",
        action="store_true",
        help="one JSON object a line: source, prediction, score, ...; or label, probabilities",
    )
    command.add_argument("--stream", action="store_true", help="print each output as it is made")
    add_options(command, zoo.Decoding, Transcription)
    command.set_defaults(run=predict)
    command = commands.add_parser("attend", help="write a page that shows what the model looked at while it wrote")
    command.add_argument("directory", help="the --workdir of a training run, or an exported model")
    command.add_argument("text")
    command.add_argument("--out", default="attention.html", help="the page; it opens from disk in any browser")
    add_options(command, zoo.Decoding)
    command.set_defaults(run=attend)
    command = commands.add_parser("similar", help="the words whose vectors are nearest to a word's")
    add_vectors(command)
    command.add_argument("word")
    command.set_defaults(run=similar)
    command = commands.add_parser("analogy", help="the words nearest to a sum of vectors: king - man + woman")
    add_vectors(command)
    command.add_argument("words", nargs="+", metavar="word", help="a sum, or three words: a b c is b - a + c")
    command.set_defaults(run=analogy)
    command = commands.add_parser("export", help="write safetensors, config.json and tokenizers that zoo.load reads back")
    command.add_argument("directory", help="the --workdir of a training run, or an exported model")
    command.add_argument("out", help="a directory that does not exist yet; for stablehlo and word2vec a file")
    command.add_argument(
        "--average", type=int, metavar="N", help="the mean of a run's last N checkpoints instead of its best one"
    )
    command.add_argument(
        "--format",
        choices=FORMATS,
        default="zoo",
        help="huggingface: what transformers loads; stablehlo: generation as one file; onnx: encoder and decoder step; "
        "word2vec: word vectors as text, or binary if the file's name ends in .bin",
    )
    add_options(command, zoo.Decoding)
    command.set_defaults(run=export)
    return top


def add_vectors(command: argparse.ArgumentParser) -> None:
    command.add_argument("directory", help="a model of word vectors, or a file of the word2vec tool")
    command.add_argument("--count", type=int, default=10, help="most words that are printed")
    command.add_argument("--json", action="store_true", help="print one JSON list of objects: word, score")


def add_options(command: argparse.ArgumentParser, *classes: type) -> None:
    """An option for each field of these classes; those not given stay as the model was saved with, export saves the others."""
    for cls in classes:
        hints, notes = get_type_hints(cls), field_notes(cls)
        for field in dataclasses.fields(cls):
            kind = hints[field.name]
            how = {"action": "store_true", "default": None} if kind is bool else {"type": kind}
            if get_origin(kind) is tuple:
                how = {"nargs": "*", "type": get_args(kind)[0]}
            elif get_args(kind):
                how = {"choices": get_args(kind)}
            command.add_argument("--" + field.name.replace("_", "-"), help=notes[field.name], **how)


def chosen_options(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of ``Decoding`` and ``Transcription`` that were given."""
    names = [field.name for cls in (zoo.Decoding, Transcription) for field in dataclasses.fields(cls)]
    chosen = {name: getattr(options, name, None) for name in names}
    return {name: tuple(x) if isinstance(x, list) else x for name, x in chosen.items() if x is not None}


def field_notes(cls: type) -> dict[str, str]:
    """What a dataclass's docstring says of each attribute, each on a line of its own."""
    lines = (line.strip().partition(": ") for line in cls.__doc__.splitlines())
    return {name: note.replace("``", "") for name, _, note in lines if note}


def print_table(options: argparse.Namespace) -> None:
    """The table of variants as Markdown, so that it is readable in a terminal and in the README."""
    rows = [("variant", "preset", "paper", "parameters", "task")]
    rows += [(f"zoo.{row.variant}", row.preset, row.paper, f"{row.parameters:,}", row.task) for row in table()]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for i, row in enumerate(rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
        if i == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def predict(options: argparse.Namespace) -> None:
    chosen, predictor = chosen_options(options), zoo.load(options.directory)
    if options.stream:
        return print_pieces(predictor, options, chosen)
    for texts in chunks(options.texts or lines()):
        for text, prediction in zip(texts, predictor.predictions(texts, **chosen), strict=True):
            if options.json:
                print(json.dumps(as_json(text, prediction), ensure_ascii=False))
            elif isinstance(prediction, Transcript):
                print(*prediction.lines() if chosen.get("timestamps", "none") != "none" else [prediction.text], sep="\n")
            else:
                several = isinstance(prediction, Prediction) and chosen.get("risk", "none") == "none"
                for output, _ in prediction.n_best if several else [(prediction.text, 0)]:
                    print(output.replace("\n", " "))
        sys.stdout.flush()


def print_pieces(predictor: PredictorBase, options: argparse.Namespace, chosen: dict) -> None:
    if not isinstance(predictor, zoo.Predictor):
        raise zoo.UserError("--stream prints text as it is made, and this model makes none: leave it out")
    if options.json:
        raise zoo.UserError("--stream prints text as it is made and --json whole objects: choose one")
    for text in options.texts or lines():
        for piece in predictor.stream(text, **chosen):
            print(piece.replace("\n", " "), end="", flush=True)
        print(flush=True)


def as_json(text: str, prediction) -> dict:
    """One output as JSON has it: a number that is not finite is null."""
    if isinstance(prediction, Transcript):
        return prediction.to_json(text)

    def number(value: float) -> float | None:
        return float(value) if math.isfinite(value) else None

    if not isinstance(prediction, Prediction):  # an encoder's: labels, or words filled in
        return {"source": text, **prediction._asdict()}
    return {
        "source": text,
        "prediction": prediction.text,
        "score": number(prediction.score),
        "tokens": prediction.target_pieces,
        "log_probs": [number(value) for value in prediction.log_probs],
        "n_best": [{"prediction": output, "score": number(score)} for output, score in prediction.n_best],
    }


def attend(options: argparse.Namespace) -> None:
    page = attention.page(zoo.load(options.directory), options.text, **chosen_options(options))
    try:
        Path(options.out).write_text(page, encoding="utf-8")
    except OSError as error:
        raise zoo.UserError(f"--out {options.out} cannot be written ({error.strerror or error}): choose another") from error
    print(f"wrote {options.out}: open it in a browser")


def similar(options: argparse.Namespace) -> None:
    print_words(vectors.load(options.directory).similar(options.word, options.count), options.json)


def analogy(options: argparse.Namespace) -> None:
    positive, negative = terms(options.words)
    print_words(vectors.load(options.directory).analogy(positive, negative, options.count), options.json)


def terms(words: list[str]) -> tuple[list[str], list[str]]:
    """What is added and what is taken away.

    >>> terms("king - man + woman".split()), terms("man king woman".split())
    ((['king', 'woman'], ['man']), (['king', 'woman'], ['man']))
    """
    if not {"+", "-"} & set(words):
        if len(words) != 3:
            raise zoo.UserError(f"an analogy has three words or signs between its words, not {' '.join(words)!r}")
        return [words[1], words[2]], [words[0]]
    signs, names = ["+", *words[1::2]], words[::2]
    if len(signs) != len(names) or not set(signs) <= {"+", "-"} or {"+", "-"} & set(names):
        raise zoo.UserError(f"{' '.join(words)!r} is no sum of words: write king - man + woman, with spaces")
    return tuple([name for sign, name in zip(signs, names, strict=True) if sign == kind] for kind in "+-")


def print_words(found: list[tuple[str, float]], as_json: bool) -> None:
    if as_json:
        print(json.dumps([{"word": word, "score": score} for word, score in found], ensure_ascii=False))
        return
    for word, score in found:
        print(f"{score:.4f}  {word}")


def lines() -> Iterator[str]:
    """The lines of standard input; what is not UTF-8 is one clear error."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise zoo.UserError(f"line {number} of standard input is not UTF-8 ({error.reason}): convert it first") from error


def chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in lists of CHUNK; from a terminal one by one, so that each is answered as it is typed."""
    size = 1 if not isinstance(texts, list) and sys.stdin.isatty() else CHUNK
    texts = iter(texts)
    while chunk := list(islice(texts, size)):
        yield chunk


def export(options: argparse.Namespace) -> None:
    average = options.average is not None
    predictor = load_average(options.directory, options.average) if average else zoo.load(options.directory)
    if chosen := chosen_options(options):
        if isinstance(predictor.model, EncoderOnly):
            raise zoo.UserError(f"{next(iter(chosen))} is for models that generate, which this one does not: leave it out")
        predictor = dataclasses.replace(predictor, decoding=predictor.settings(chosen))
    zoo.save(predictor, options.out, options.format)
    others = {"stablehlo": "jax.export.deserialize", "onnx": "onnxruntime"}
    command = "similar {} WORD" if isinstance(predictor, vectors.VectorPredictor) else "predict {} TEXT"
    use = others.get(options.format, f"python -m zoo {command.format(options.out)}")
    print(f"exported to {options.out}; use it with: {use}")


if __name__ == "__main__":
    sys.exit(main())
