"""What a person sees in the terminal: a parameter table, a progress bar (plain lines elsewhere), samples and a summary."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from train.data import Example
from train.tasks import Confusion
from zoo.core import PyTree
from zoo.predictor import Prediction


class View(logging.Handler):
    """Prints on the host with index 0; silent on the others."""

    def __init__(self, steps: int, console: Console | None = None):
        super().__init__()
        self.console = console or Console(quiet=jax.process_index() > 0, highlight=False, soft_wrap=True)
        self.steps = steps
        self.progress: Progress | None = None

    def say(self, text: str) -> None:
        """A plain line."""
        self.console.print(escape(text))

    def emit(self, record: logging.LogRecord) -> None:
        """A message of a logger."""
        (self.warn if record.levelno >= logging.WARNING else self.say)(record.getMessage())

    def warn(self, text: str) -> None:
        """A line that must not be overlooked."""
        self.console.print(f"[bold red]warning:[/bold red] {escape(text)}")

    def parameters(self, name: str, params: PyTree) -> None:
        """How many parameters each part has."""
        table = Table("part", "parameters", title=f"{name}: parameters")
        table.columns[1].justify = "right"
        for part, tree in params.items():
            table.add_row(part, f"{sum(leaf.size for leaf in jax.tree.leaves(tree)):,}")
        table.add_section()
        table.add_row("all", f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,}")
        self.console.print(table)

    def start(self, step: int) -> None:
        """Show the bar, if this is a terminal, and what models say of how they compute."""
        logging.getLogger("zoo").setLevel(logging.INFO)
        logging.getLogger("zoo").addHandler(self)
        if not self.console.is_terminal:
            return
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[message]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.task = self.progress.add_task("training", total=self.steps, completed=step, message="compiling")
        self.progress.start()

    def step(self, step: int, values: dict[str, float], seconds_left: float) -> None:
        """Loss, speed and time left at a logged step."""
        message = f"loss {values['train/loss']:.3f}  {values['train/tokens_per_second']:,.0f} tokens/s"
        if self.progress is not None:
            self.progress.update(self.task, completed=step, message=message)
        else:
            self.say(f"step {step}/{self.steps}  {message}  {seconds_left:,.0f} s left")

    def evaluation(self, step: int, values: dict[str, float], examples: Sequence[Example], found: Sequence[Prediction]) -> None:
        """Scores, and a few decoded samples beside what is right."""
        scores = "  ".join(f"{name.removeprefix('validation/')} {value:.4g}" for name, value in values.items())
        self.console.print(f"[bold]step {step}[/bold]  {escape(scores)}")
        for example, prediction in zip(examples, found, strict=False):
            self.say(f"    {example.source}  ->  {prediction.text}   (right: {' | '.join(example.references)})")

    def confusion(self, found: Confusion) -> None:
        """How often each label was taken for which."""
        table = Table("right \\ predicted", *map(escape, found.labels), title="confusion")
        for label, counts in zip(found.labels, found.counts, strict=True):
            table.add_row(escape(label), *map(str, counts))
        self.console.print(table)

    def stop(self) -> None:
        """Take the bar away."""
        logging.getLogger("zoo").removeHandler(self)
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def summary(self, result: dict, heatmap: Path | None, workdir: Path, command: str, example: str) -> None:
        """The test scores, where everything is, and the next command to type."""
        table = Table("metric", "value", title="test")
        for name, value in result.items():
            if name.startswith("test/") and not isinstance(value, dict):
                table.add_row(name.removeprefix("test/"), f"{value:,}" if isinstance(value, int) else f"{value:.4g}")
        self.console.print(table)
        self.say(f"checkpoint  {result['checkpoint']}")
        if heatmap is not None:
            self.say(f"heatmap     {heatmap}")
        self.say(f"next        {python()} -m zoo {command} {workdir} {shlex.quote(example)}")


def python() -> str:
    """This Python as one would type it here: by its name if the shell finds it, else by its path."""
    if shutil.which("python") == sys.executable:
        return "python"
    relative = os.path.relpath(sys.executable)
    return sys.executable if relative.startswith("..") else relative
