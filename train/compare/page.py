"""The report: report.html, report.md with plots/*.png, and report.json with all numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train import report
from train.compare import charts, plots
from train.compare.measures import gather
from train.compare.published import G2P
from train.compare.runs import Settings
from train.tasks import TASKS
from zoo.page import document, escape
from zoo.page.attention import SCALE
from zoo.predictor import Prediction

TITLE = "Architectures compared"


def write(settings: Settings) -> dict[str, Any]:
    """Do all of a comparison that is left to do, and write its report; returns what report.json holds."""
    said = gather(settings)
    sections = plots.sections(said)
    folder = settings.workdir / "plots"
    folder.mkdir(exist_ok=True)
    for drawn in (chart for _, _, found in sections for chart in found):
        charts.png(drawn, folder / f"{drawn.name}.png")
    heatmaps = [png(each, folder / f"attention-{i}.png") for i, each in enumerate(said["attention"])]
    report.write_atomically(settings.workdir / "report.json", json.dumps(said, indent=1) + "\n")
    report.write_atomically(settings.workdir / "report.md", markdown(said, sections, heatmaps))
    report.write_atomically(settings.workdir / "report.html", html(said, sections))
    print(f"wrote {settings.workdir / 'report.html'}: open it in a browser")
    return said


def html(said: dict[str, Any], sections: Sequence[tuple]) -> str:
    """The page."""
    head, rows = cells(said)
    parts = [
        f"<h1>{TITLE}</h1>",
        f'<p class="lead">{escape(summary(said))}</p>',
        f"<p><code>{escape(said['command'])}</code></p>",
    ]
    parts += [
        f'<p class="warning" role="note"><strong>Not a fair setting.</strong> {escape(text)}</p>' for text in said["warnings"]
    ]
    parts.append(f'<h2>The table</h2><div class="scroll" tabindex="0">{html_table(head, rows)}</div>')
    parts.append(f'<p class="quiet">{escape(legend(said))}</p>')
    if any(row["published"] for row in said["table"]):
        parts.append(
            "<h3>Published</h3><p class='quiet'>On CMUdict, each by its own split and rules; none exactly as here.</p>"
        )
        parts.append(f'<div class="scroll" tabindex="0">{html_table(*published())}</div>')
    for title, note, found in sections:
        drawn = "\n".join(map(charts.figure, found))
        parts.append(f'<h2>{escape(title)}</h2><p>{escape(note)}</p><div class="charts">{drawn}</div>')
    if said["attention"]:
        parts.append(f"<h2>Attention</h2><p>{escape(plots.ATTENTION)}</p><section data-attention></section>")
    return document(TITLE, "\n".join(parts), {"attention": said["attention"]})


def markdown(said: dict[str, Any], sections: Sequence[tuple], heatmaps: Sequence[tuple[str, Path]]) -> str:
    parts = [f"# {TITLE}", marked(summary(said)), f"    {' '.join(said['command'].splitlines())}"]
    parts += [f"**Not a fair setting.** {marked(text)}" for text in said["warnings"]]
    parts += ["## The table", markdown_table(*cells(said)), marked(legend(said))]
    if any(row["published"] for row in said["table"]):
        parts += [
            "### Published",
            "On CMUdict, each by its own split and rules; none exactly as here.",
            markdown_table(*published()),
        ]
    for title, note, found in sections:
        parts += [f"## {title}", marked(note)]
        for each in found:
            said_of_it = f"**{marked(each.title)}.** {marked(each.note)}".strip()
            parts += [said_of_it, f"![{marked(each.title)}](plots/{each.name}.png)"]
    if heatmaps:
        parts += ["## Attention", plots.ATTENTION]
        parts += [f"![{marked(name)}](plots/{path.name})" for name, path in heatmaps]
    return "\n\n".join(parts) + "\n"


def summary(said: dict[str, Any]) -> str:
    finished = [run for runs in said["runs"].values() for run in runs]
    steps = " or ".join(f"{n:,}" for n in sorted({run["steps"] for run in finished}))
    tokens = " or ".join(f"{n:,}" for n in sorted(set(said["target_tokens"].values())))
    devices = ", ".join(sorted({run["devices"] for run in finished}))
    return (
        f"{', '.join(said['runs'])}: {steps} steps and about {tokens} target tokens a run, "
        f"{said['seeds']} seed{'s' if said['seeds'] > 1 else ''} each, on {devices}."
    )


def legend(said: dict[str, Any]) -> str:
    return (
        "Training tokens are source and target. The time to a score is that of training until an evaluation on the validation "
        "split gave it, compilation included, evaluation not. Step memory is what the compiler sets aside for a step on the "
        "largest batch on one device. Test scores are those of the best checkpoint: the mean over the seeds, and from the "
        "least to the greatest. Decoding is measured with each config's own search."
    )


def cells(said: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table as text: head and rows."""
    rows = [as_text(row, said) for row in said["table"]]
    return list(rows[0]), [list(row.values()) for row in rows]


def as_text(row: dict[str, Any], said: dict[str, Any]) -> dict[str, str]:
    """One row: what stands over each column, and in it."""
    size, known = row["step_bytes"], row["published"]
    text = {
        "model": row["config"],
        "paper": row["paper"],
        "parameters": f"{row['parameters']:,}",
        "training, tokens/s": f"{row['tokens_per_second']:,.0f}",
        f"to {said['score'].upper()} {charts.number(said['reach'])}, s": text_of(
            row["seconds_to_reach"], ",.0f", "not reached"
        ),
        "step memory, MiB": charts.number(size / 2**20) if size else "not known",
        "best validation loss, nats/token": text_of(row["best_nll"], ".3f"),
        **{f"test {name.upper()} %": spread(values) for name, values in row["test"].items()},
        f"decoding, {TASKS[said['task']].unit}/s": text_of(row["decoding"]["outputs_per_second"], ",.0f"),
    }
    if any(each["published"] for each in said["table"]):
        text["published PER / WER %"] = f"{rates(known)} ({known['source']})" if known else ""
    return text


def text_of(value: float | None, form: str, otherwise: str = "-") -> str:
    return otherwise if value is None else f"{value:{form}}"


def spread(values: dict[str, float]) -> str:
    """The mean, and the ends where they differ."""
    ends = f" ({values['low']:.1f} to {values['high']:.1f})" if values["low"] != values["high"] else ""
    return f"{values['mean']:.1f}{ends}"


def rates(known: dict[str, Any]) -> str:
    return f"{'-' if known['per'] is None else known['per']} / {known['wer']}"


def published() -> tuple[list[str], list[list[str]]]:
    rows = [[each.method, "-" if each.per is None else str(each.per), each.wer, each.source] for each in G2P]
    return ["system", "PER %", "WER %", "source"], rows


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    said = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f'<table class="numbers"><thead><tr>{said}</tr></thead><tbody>{body}</tbody></table>'


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(map(marked, head)), ["---"] * len(head), *(list(map(marked, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def marked(text: str) -> str:
    """Text as Markdown shows it."""
    return escape(" ".join(text.split())).replace("|", "\\|").replace("[", "\\[").replace("`", "\\`").replace("&#x27;", "'")


def png(found: dict[str, Any], path: Path) -> tuple[str, Path]:
    """A heatmap of what was read of the source: a text for it, and the file."""
    weights = {each["name"]: np.array(each["weights"]) / SCALE for each in found["maps"] if each["name"].endswith("cross")}
    tokens = found["tokens"]
    report.heatmap(Prediction(found["output"], 0.0, tokens["source"], tokens["target"], np.zeros(0), weights, []), path)
    return f"{found['model']}: {found['text']}", path
