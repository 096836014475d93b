"""Line charts: as SVG in a page, in the page's own colours, and as PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from zoo.page import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 290, 62, 14, 12, 48
COLOURS = 8  # of the page's styles, s0 to s7
MARKERS = "os^Dv*Pp"  # of matplotlib


class Series(NamedTuple):
    """One curve: ``points`` are (x, y), ``band`` (x, lowest y, highest y); ``place`` chooses colour and marker.

    What is dashed belongs to the curve of the same place: one box shows and hides both.
    """

    name: str
    points: list[tuple[float, float]]
    place: int
    band: list[tuple[float, float, float]] = []  # noqa: RUF012
    dashed: bool = False


class Chart(NamedTuple):
    """What is drawn. ``name`` is that of its file; ``mark`` a vertical line with a text, as (x, text)."""

    name: str
    title: str
    note: str
    x_label: str
    y_label: str
    series: list[Series]
    x_log: bool = False
    y_log: bool = False
    mark: tuple[float, str] | None = None


class Axis(NamedTuple):
    """A scale from values to positions between ``start`` and ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(x) if self.log else x for x in (self.low, self.high, value))
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """A few round numbers within the scale."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1,) if len(decades) > 3 else (1, 2, 5)
            every = -(-len(decades) // 6)
            found = [step * 10.0**decade for decade in decades[::every] for step in steps]
        else:
            raw = (self.high - self.low) / 5
            size = 10 ** math.floor(math.log10(raw))
            step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
            found = [step * i for i in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]
        slack = 1e-9 * abs(self.high)
        return [x for x in found if self.low - slack <= x <= self.high + slack]


def axis(values: Sequence[float], start: float, end: float, log: bool) -> Axis:
    """From the least to the greatest value; a linear one begins at 0, if no value is below."""
    low, high = min(values), max(values)
    if not log:
        low, high = min(low, 0.0), high * 1.04 if high > 0 else 1.0
    elif low == high:
        low, high = low / 2, high * 2
    return Axis(low, high, start, end, log)


def number(value: float) -> str:
    """A short form.

    >>> [number(x) for x in (0, 0.0001, 0.25, 12, 1500, 25_000, 2e6)]
    ['0', '1e-4', '0.25', '12', '1,500', '25k', '2M']
    """
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "-"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.3g}k"
    if abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def figure(chart: Chart) -> str:
    """HTML: the picture, a box for each curve, and the numbers in a table."""
    boxes = "".join(
        f'<label style="--c:var(--s{one.place % COLOURS})"><input type="checkbox" checked data-series="{one.place}">'
        f'<span class="swatch"></span>{escape(one.name)}</label>'
        for one in chart.series
        if not one.dashed
    )
    return f"""<figure data-chart="{chart.name}">
<figcaption><strong>{escape(chart.title)}</strong><p>{escape(chart.note)}</p></figcaption>
{svg(chart)}
<fieldset class="legend" aria-label="Curves shown">{boxes}</fieldset>
<details><summary>Numbers</summary><div class="scroll">{numbers(chart)}</div></details>
</figure>"""


def svg(chart: Chart) -> str:
    xs = [x for one in chart.series for x, _ in one.points]
    ys = [y for one in chart.series for y in [*(y for _, y in one.points), *(y for _, *ends in one.band for y in ends)]]
    if not xs:
        return "<p>Nothing was measured.</p>"
    x, y = axis(xs, LEFT, WIDTH - RIGHT, chart.x_log), axis(ys, HEIGHT - BOTTOM, TOP, chart.y_log)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">']
    for tick in sorted(set(xs)) if chart.x_log and len(set(xs)) <= 6 else x.ticks():
        parts.append(f'<path class="grid" d="M{x(tick)} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x(tick)}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{number(tick)}</text>')
    for tick in y.ticks():
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick)}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4}" text-anchor="end">{number(tick)}</text>')
    if chart.mark and x.low <= chart.mark[0] <= x.high:
        at = x(chart.mark[0])
        parts.append(f'<path class="mark" d="M{at} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{at + 4}" y="{TOP + 11}">{escape(chart.mark[1])}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(chart.x_label)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(chart.y_label)}</text>')
    parts += [curve(one, x, y) for one in chart.series]
    return "\n".join([*parts, "</svg>"])


def curve(one: Series, x: Axis, y: Axis) -> str:
    places = [f"{x(a)} {y(b)}" for a, b in one.points]
    dashes = ' stroke-dasharray="6 4"' if one.dashed else ""
    parts = [f'<g data-series="{one.place}" style="--c:var(--s{one.place % COLOURS})">']
    if one.band:
        there = [f"{x(a)} {y(low)}" for a, low, _ in one.band]
        back = [f"{x(a)} {y(high)}" for a, _, high in reversed(one.band)]
        parts.append(f'<path class="band" d="M{"L".join(there + back)}Z"/>')
    if places:
        parts.append(f'<path class="curve"{dashes} d="M{"L".join(places)}"/>')
    for a, b in one.points:
        said = escape(f"{one.name}: {number(a)}, {number(b)}")
        parts.append(f'<path class="point" d="{marker(one.place, x(a), y(b))}"><title>{said}</title></path>')
    return "".join([*parts, "</g>"])


def marker(place: int, x: float, y: float) -> str:
    """A circle, square, triangle or diamond: curves differ by more than colour."""
    if place % 4 == 0:
        return f"M{x - 3:.1f} {y}a3 3 0 1 0 6 0a3 3 0 1 0-6 0Z"
    if place % 4 == 1:
        return f"M{x - 3:.1f} {y - 3:.1f}h6v6h-6Z"
    return f"M{x} {y - 4:.1f}{'l4 7h-8Z' if place % 4 == 2 else 'l4 4l-4 4l-4-4Z'}"


def numbers(chart: Chart) -> str:
    """The curves as a table."""
    xs = sorted({x for one in chart.series for x, _ in one.points})
    columns = [dict(one.points) for one in chart.series]
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in [chart.x_label, *(one.name for one in chart.series)])
    rows = "".join(
        f'<tr><th scope="row">{number(x)}</th>'
        + "".join(f"<td>{number(column[x]) if x in column else ''}</td>" for column in columns)
        + "</tr>"
        for x in xs
    )
    return f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def png(chart: Chart, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(8.6, 4.6), dpi=120, layout="constrained")
    axes = drawn.add_subplot()
    for one in chart.series:
        x, y = zip(*one.points, strict=True) if one.points else ((), ())
        style = {"color": f"C{one.place}", "marker": MARKERS[one.place % len(MARKERS)], "markersize": 4}
        axes.plot(x, y, label=one.name.replace("$", r"\$"), linestyle="--" if one.dashed else "-", **style)
        if one.band:
            x, low, high = zip(*one.band, strict=True)
            axes.fill_between(x, low, high, color=f"C{one.place}", alpha=0.15)
    axes.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
    if chart.x_log:
        axes.set_xscale("log")
    if chart.y_log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    if chart.mark:
        axes.axvline(chart.mark[0], color="grey", linestyle="--")
    axes.grid(alpha=0.3)
    drawn.legend(loc="outside right upper")  # with this many curves it would hide some of them
    FigureCanvasAgg(drawn).print_png(path)
