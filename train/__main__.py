"""Train a model: ``python -m train CONFIG.py --workdir DIR [--field.name value ...]``.

CONFIG.py is a Python file that sets ``experiment``, a ``train.experiment.Experiment``; it is run. Every field can be changed
by an option; ``python -m train CONFIG.py --help`` lists them. Repeating a command continues its run.

Exit codes: 0 done; 1 a fault of the program, with a traceback, or no step for long (training.watchdog), with all stacks; 2 bad
input, with one sentence; 3 the disk is full or checkpoints cannot be written; 4 no finite loss or gradient; 42 stopped by
SIGTERM or Ctrl-C, with the step saved. After 3, 4 and 42 the same command continues. A second signal ends the process at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import runpy
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from train.survive import CANNOT_SAVE, INTERRUPTED, Stopped, disk_is_full
from zoo.core import UserError

USAGE = "usage: python -m train CONFIG.py --workdir DIR [--field.name value ...]"


def main(arguments: list[str] | None = None) -> int:
    """Run one experiment and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\n{USAGE}\n       python -m train CONFIG.py --help")
        return 0 if arguments else 2

    def work():
        experiment, workdir = parse(read_config(arguments[0]), arguments[1:], arguments[0])
        from train.loop import run

        run(experiment, workdir, "python -m train " + shlex.join(arguments))

    return exit_code(work)


def exit_code(work: Callable[[], None]) -> int:
    """Do the work of a command; what can go wrong becomes one sentence and the exit code of its kind."""
    try:
        work()
    except UserError as error:
        return complain(str(error))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("zoo", "train", "configs"):
            raise
        extra = "audio" if error.name == "soundfile" else "train"
        return complain(f"{error.name} is not installed: pip install 'seq2seq-zoo[{extra}]'")
    except Stopped as stopped:
        print(f"{'' if stopped.code == INTERRUPTED else 'error: '}{stopped}", file=sys.stderr)
        return stopped.code
    except OSError as error:
        if not disk_is_full(error):
            raise
        sentence = f"no disk space is left ({error.filename or error}): free some and repeat the command to continue"
        return complain(sentence, CANNOT_SAVE)
    except KeyboardInterrupt:  # before the run began
        return 130
    return 0


def complain(sentence: str, code: int = 2) -> int:
    """Print the one sentence; 2 is the exit code of bad input."""
    print(f"error: {sentence}", file=sys.stderr)
    return code


def read_config(name: str):
    """The ``experiment`` of a config file.

    Raises:
      UserError: there is no such file, it is no Python, or it sets no experiment.
    """
    from train.experiment import Experiment, check_types
    from zoo.variants import nearest

    path = Path(name)
    if name.startswith("-"):
        raise UserError(f"the first argument is {name}, but the config file comes first; {USAGE}")
    try:
        found = path.is_file()
    except OSError as error:
        raise UserError(f"the config file {name} cannot be looked up ({error}): check the path") from error
    if not found:
        others = [str(other) for other in sorted((path.parent if path.parent.is_dir() else Path("configs")).glob("*.py"))]
        raise UserError(f"there is no config file {name}{nearest(name, others) or ': configs/ holds some to start from'}")
    try:
        variables = runpy.run_path(name)
    except (UserError, ModuleNotFoundError):
        raise
    except (Exception, SystemExit) as error:  # whatever a file of the user's own raises: wrong syntax, an unknown field
        raise UserError(f"{name} cannot be used, {type(error).__name__}: {error}") from error
    if "experiment" not in variables:
        raise UserError(f"{name} sets no variable named experiment: see configs/quickstart.py")
    experiment = variables["experiment"]
    if not isinstance(experiment, Experiment):
        raise UserError(f"{name} sets experiment to {experiment!r}: it must be a train.experiment.Experiment")
    check_types(experiment)
    return experiment


def parse(experiment, options: list[str], name: str):
    """The experiment with the command line's changes, and the working directory.

    Raises:
      UserError: an unknown field (with the nearest one), or a value of the wrong type.
      SystemExit: after ``--help``.
    """
    from train.experiment import Experiment

    command = read_options(experiment, options, name)
    if not command.workdir:
        raise UserError(f"--workdir is missing: the directory that the run is written to; {USAGE}")
    if command.init_from:
        from train.start import filled

        # Its model and decoding are only known now: what was typed is changed in them.
        experiment = dataclasses.replace(experiment, init_from=command.init_from)
        command = read_options(filled(experiment, Path(command.workdir)), options, name)
    fields = shallow(command)
    workdir = fields.pop("workdir")
    return Experiment(**fields), Path(workdir)


def read_options(experiment, options: list[str], name: str):
    """A ``train.experiment.Command``: the experiment with the options. Raises as ``parse``."""
    import tyro

    from train.experiment import Command

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                Command,
                args=options,
                prog=f"python -m train {name}",
                default=Command(**shallow(experiment)),
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(one_sentence(said.getvalue(), f"python -m train {name} --help lists all options")) from None


def shallow(data) -> dict:
    """A dataclass's fields as they are."""
    return {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}


def one_sentence(box: str, otherwise: str) -> str:
    """What tyro says in a box with sections (drawn in ASCII on a plain terminal): the first, and the option it suggests."""
    _title, *lines = [re.sub(r"[│|╭╮╰╯─]|-{5,}", "", line).strip() for line in box.splitlines()]
    sections = re.split(r"\n{2,}", "\n".join(lines).strip())
    suggestion = re.search(r"^--[\w.-]+", "\n".join(sections[1:]), re.MULTILINE) if "Perhaps you meant" in box else None
    fault = " ".join(sections[0].split("\n")).rstrip(".")
    return f"{fault}: " + (f"did you mean {suggestion[0]}?" if suggestion else otherwise)


def command(main: Callable[[], int] = main) -> int:
    """The exit code of the whole process, which other hosts may be waiting for."""
    try:
        code = main()
    except Exception:
        traceback.print_exc()
        code = 1
    from train.hosts import leave

    return leave(code)


if __name__ == "__main__":
    sys.exit(command())
