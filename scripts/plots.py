"""Draw the pictures of docs/fresh.md from the records in benchmarks/results.

    python scripts/plots.py [--check]

``--check`` writes nothing and fails if a picture shows other figures than the results.
"""

from __future__ import annotations

import sys
from html import escape

from page_tables.table import RESULTS
from written import write

sys.path.append(str(RESULTS.parent))

from fresh_models.log import Log
from fresh_models.plots import PLOTS

from taylorder.claims.claim import Plot
from taylorder.reports.charts import BOTTOM, RIGHT, TOP, Chart, Mark, chart

WIDTH, LEFT, HEIGHT = 760, 56, 292
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17838f", "#8c564b", "#5f6b76")
Points = list[Mark | None]


def picture(plot: Plot) -> str:
    """A plot as an SVG file: axes, intervals, marks, and the names of the series beside them."""
    drawn = chart(plot)
    series = "".join(
        _series(name, points, COLOURS[number % len(COLOURS)], number, plot)
        for number, (name, points) in enumerate(drawn.series)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="11" fill="#333" role="img"><title>{escape(plot.title)}</title>'
        f'<rect width="100%" height="100%" fill="#fff"/><text x="{LEFT}" y="14" font-size="13">{escape(plot.title)}'
        f"</text>{_axes(plot, drawn)}{series}</svg>\n"
    )


def _across(percent: float) -> float:
    return round(LEFT + percent / 100 * (WIDTH - LEFT), 1)


def _axes(plot: Plot, drawn: Chart) -> str:
    right = _across(RIGHT)
    made = [f'<path d="M{LEFT} {TOP}V{BOTTOM}H{right}" fill="none" stroke="#888"/>']
    for percent, words in drawn.across:
        if percent is not None:
            made.append(f'<text x="{_across(percent)}" y="{BOTTOM + 16}" text-anchor="middle">{escape(words)}</text>')
    for y, words in drawn.down:
        if y is not None:
            made.append(f'<path d="M{LEFT} {y}H{right}" stroke="#ddd"/>')
            made.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{escape(words)}</text>')
    made.append(
        f'<text x="{(LEFT + right) / 2:g}" y="{BOTTOM + 36}" text-anchor="middle">{escape(plot.x_label)}</text>'
    )
    made.append(
        f'<text transform="translate(14 {(TOP + BOTTOM) / 2:g}) rotate(-90)" text-anchor="middle">'
        f"{escape(plot.y_label)}</text>"
    )
    return "".join(made)


def _series(name: str, points: Points, colour: str, number: int, plot: Plot) -> str:
    shown = [(_across(mark.x), mark) for mark in points if mark is not None]
    made = [f'<g fill="{colour}" stroke="{colour}">']
    if plot.kind == "lines" and len(shown) > 1:
        path = "L".join(f"{x} {mark.y}" for x, mark in shown)
        made.append(f'<path d="M{path}" fill="none" stroke-width="1.6"/>')
    for x, mark in shown:
        if mark.foot is not None and mark.top is not None and mark.top != mark.foot:
            made.append(f'<path d="M{x} {mark.foot}V{mark.top}" stroke-width="1.2"/>')
        made.append(f'<circle cx="{x}" cy="{mark.y}" r="3"><title>{escape(f"{name}: {mark.words}")}</title></circle>')
    legend = _across(RIGHT) + 10, TOP + 10 + 15 * number
    made.append(f'<circle cx="{legend[0]}" cy="{legend[1]}" r="3"/>')
    made.append(f'<text x="{legend[0] + 8}" y="{legend[1] + 4}" stroke="none">{escape(name)}</text></g>')
    return "".join(made)


def main() -> None:
    """Write the pictures, or say which are out of date."""
    records, docs = Log(RESULTS / "fresh.jsonl").records(), RESULTS.parents[1] / "docs"
    pictures = {docs / f"{name}.svg": picture(plot(records)) for name, plot in PLOTS.items()}
    write(pictures, __doc__, "not of benchmarks/results; run python scripts/plots.py")


if __name__ == "__main__":
    main()
