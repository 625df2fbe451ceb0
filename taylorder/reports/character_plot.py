"""A plot in characters, for a terminal: points with their intervals between two axes.

Places are those of :mod:`taylorder.reports.charts`, in characters across and lines down instead of percent and pixels.
"""

from __future__ import annotations

from itertools import chain

from taylorder.claims.claim import Plot
from taylorder.reports.charts import Axis, Mark, marks

LINES, WIDEST = 12, 64
"""Lines between the axes, and the most characters across."""

MARKS = "ox#+@%"
"""A character per series."""

_WHISKER, _SEVERAL = "|", "*"


def lines(plot: Plot, width: int) -> list[str]:
    """The plot in at most ``width`` characters: its title, the points, both axes, and what the characters mean."""
    down = Axis.around(
        chain(*((*series.y, *series.low, *series.high) for series in plot.series)), plot.log_y, LINES - 1, 0
    )
    values = chain(*(series.x for series in plot.series))
    if down is None:
        return [f"{plot.title}: no figure to draw"]
    names = {round(place): text for place, text in down.ticks(5) if place is not None}
    margin = max(map(len, names.values())) + 1
    columns = max(10, min(width - margin - 2, WIDEST))
    across = Axis.around(values, plot.log_x, 0, columns - 1)
    if across is None:
        return [f"{plot.title}: no figure to draw"]
    sheet = [[" "] * columns for _ in range(LINES)]
    points = [[mark for mark in marks(series, across, down) if mark is not None] for series in plot.series]
    for mark in chain(*points):
        _draw_interval(sheet, mark)
    for character, of_series in zip(MARKS, points, strict=False):
        for mark in of_series:
            row, column = round(mark.y), round(mark.x)
            sheet[row][column] = _SEVERAL if sheet[row][column] in {*MARKS, _SEVERAL} else character
    drawn = [f"{names.get(row, ''):>{margin}} |{''.join(line)}".rstrip() for row, line in enumerate(sheet)]
    return [
        f"{plot.title}: {plot.y_label}",
        *drawn,
        f"{'':>{margin}} +{'-' * columns}",
        *_below(across, columns, margin + 2, plot.x_label),
        *_keys(plot, points, sheet, width),
    ]


def _draw_interval(sheet: list[list[str]], mark: Mark) -> None:
    if mark.top is None or mark.foot is None:
        return
    for row in range(round(mark.top), round(mark.foot) + 1):
        sheet[row][round(mark.x)] = _WHISKER


def _below(across: Axis, columns: int, margin: int, label: str) -> list[str]:
    """Figures below the axis, as many as there is room for between them, and what they are figures of."""
    line = " " * columns
    for place, text in across.ticks(max(2, columns // 10)):
        start = min(columns - len(text), max(0, round(place or 0) - len(text) // 2))
        if not line[max(0, start - 2) : start + len(text) + 2].strip():
            line = line[:start] + text + line[start + len(text) :]
    return [" " * margin + line.rstrip(), " " * margin + label]


def _keys(plot: Plot, points: list[list[Mark]], sheet: list[list[str]], width: int) -> list[str]:
    """What the characters mean, over as many lines as it takes."""
    keys = [
        f"{character} {series.name}"
        for character, series, drawn in zip(MARKS, plot.series, points, strict=False)
        if drawn
    ]
    here = set(chain(*sheet))
    keys += [f"{_SEVERAL} several of these"] if _SEVERAL in here else []
    keys += [f"{_WHISKER} 95% interval"] if _WHISKER in here else []
    folded = [""]
    for key in keys:
        if folded[-1] and len(folded[-1]) + 3 + len(key) > width:
            folded.append("")
        folded[-1] += f"   {key}" if folded[-1] else key
    return folded
