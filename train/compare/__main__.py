"""Compare architectures: ``python -m train.compare [CONFIG.py ...] --workdir DIR [--seeds 3] [--field.name value ...]``.

Trains each config with several seeds, each an ordinary run of ``python -m train`` in DIR/runs/<config>-<seed>, then measures
them and writes DIR/report.html, one page that opens from disk, with report.md, plots/*.png and report.json beside it. Without
a CONFIG these are the configs/*_g2p.py of the current directory. What is done is never done again: repeating the command goes
on where it was stopped, at whatever point. Options with a dot, such as --batching.tokens 2048, change that field of all.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from train.__main__ import command, exit_code
from zoo.core import UserError

LENGTHS = (64, 128, 256, 512, 1024)


def main(arguments: list[str] | None = None) -> int:
    """Train, measure and report; returns the exit code, one of those of ``python -m train``."""
    arguments = sys.argv[1:] if arguments is None else arguments
    first_option = next((i for i, text in enumerate(arguments) if text.startswith("-")), len(arguments))
    options, overrides = parser().parse_known_args(arguments[first_option:])

    def work() -> None:
        from train.compare import page, runs

        settings = runs.Settings(
            configs=tuple(arguments[:first_option]) or family(Path("configs")),
            workdir=Path(options.workdir),
            seeds=options.seeds,
            steps=options.steps,
            tokens=options.tokens,
            overrides=tuple(overrides),
            reach=options.reach,
            lengths=tuple(options.lengths),
            texts=tuple(options.texts),
            command="python -m train.compare " + shlex.join(arguments),
        )
        page.write(settings)

    return exit_code(work)


def family(folder: Path) -> tuple[str, ...]:
    """The grapheme-to-phoneme configs."""
    found = tuple(str(path) for path in sorted(folder.glob("*_g2p.py")))
    if not found:
        raise UserError(f"there is no {folder}/*_g2p.py here: name the config files to compare")
    return found


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m train.compare [CONFIG.py ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--workdir", required=True, help="a new directory, or that of the same command before")
    made.add_argument("--seeds", type=int, default=3, help="runs of each config, with the seeds 0, 1, ... (3)")
    budget = made.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, default=0, help="batches that each run sees; without it those of each config")
    budget.add_argument("--tokens", type=int, default=0, help="the same in target tokens, rounded up to a whole batch")
    made.add_argument(
        "--reach", type=float, help="time is taken to this validation score; without it to the best that all reach"
    )
    made.add_argument(
        "--lengths", type=int, nargs="+", default=LENGTHS, help="at which training speed is measured (64 ... 1024)"
    )
    made.add_argument(
        "--texts", nargs="+", default=(), help="sources whose attention is drawn; without it some of the test split"
    )
    return made


if __name__ == "__main__":
    sys.exit(command(main))
