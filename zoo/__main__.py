"""The command line: ``python -m zoo list | predict | export``. Exit codes: 0 done, 2 bad input."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import islice

import zoo
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
        print(f"error: {error.name} is not installed: pip install 'seq2seq-zoo[train]'", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has left: that is not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m zoo", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="command")
    command = commands.add_parser("list", help="print the table of variants")
    command.set_defaults(run=print_table)
    command = commands.add_parser("predict", help="generate the output for texts, or for each line of standard input")
    command.add_argument("directory", help="the --workdir of a training run, or an exported model")
    command.add_argument("texts", nargs="*", metavar="text", help="none: read standard input")
    command.add_argument("--json", action="store_true", help="print one JSON object a line: source, prediction, score")
    command.add_argument("--beams", type=int, help="hypotheses kept a sentence; 1 is greedy search")
    command.add_argument("--max-len", type=int, help="most tokens of an output")
    command.set_defaults(run=predict)
    command = commands.add_parser("export", help="write safetensors, config.json and tokenizers that zoo.load reads back")
    command.add_argument("directory", help="the --workdir of a training run, or an exported model")
    command.add_argument("out", help="a directory that does not exist yet")
    command.set_defaults(run=export)
    return top


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
    chosen = {"beams": options.beams, "max_len": options.max_len}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    predictor = zoo.load(options.directory)
    for texts in chunks(options.texts or lines()):
        for text, prediction in zip(texts, predictor.predictions(texts, **chosen), strict=True):
            if options.json:
                score = prediction.score if math.isfinite(prediction.score) else None
                print(json.dumps({"source": text, "prediction": prediction.text, "score": score}, ensure_ascii=False))
            else:
                print(prediction.text.replace("\n", " "))
        sys.stdout.flush()


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
    zoo.save(zoo.load(options.directory), options.out)
    print(f"exported to {options.out}; use it with: python -m zoo predict {options.out} TEXT")


if __name__ == "__main__":
    sys.exit(main())
