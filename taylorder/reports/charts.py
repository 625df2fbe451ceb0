"""Plots of claims laid out: where every mark goes, for the template that makes them SVG and needs no script.

Places across are percentages, so that a drawing is as wide as the page lets it be and its letters keep their size;
places down are pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, zip_longest

from taylorder.claims.claim import Plot, Series
from taylorder.reports.claims import cell

TOP, BOTTOM, RIGHT = 26, 230, 82
"""Where axes end, for the templates and the script, too."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Figures, or their logarithms, from ``low`` to ``high``, which lie between the places ``start`` and ``end``."""

    log: bool
    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, figures: Iterable[float | None], log: bool, start: float, end: float) -> Axis | None:
        """An axis for all figures that can be shown, with some room beside them; None where none can."""
        shown = [scaled for figure in figures if (scaled := _scaled(figure, log)) is not None]
        if not shown:
            return None
        low, high = min(shown), max(shown)
        room = 0.04 * (high - low) or (math.log10(2) if log else abs(low) / 2 or 1.0)
        return cls(log, low - room, high + room, start, end)

    def place(self, figure: float | None) -> float | None:
        """Where a figure lies; None where it cannot be shown."""
        scaled = _scaled(figure, self.log)
        if scaled is None:
            return None
        return round(self.start + (scaled - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self, most: int) -> list[tuple[float | None, str]]:
        """Round figures: powers of ten with others between them where these are few, or else even steps."""
        decades = self.high - self.low
        if self.log and decades >= 0.7:
            factors = (1, 2, 5) if decades < 1.6 else (1, 3) if decades < 2.6 else (1,)
            every = math.ceil(decades / most)
            powers = range(every * math.floor(self.low / every), math.floor(self.high) + 1, every)
            figures = [factor * 10.0**power for power in powers for factor in factors]
        else:
            low, high = (10**self.low, 10**self.high) if self.log else (self.low, self.high)
            unit = 10.0 ** math.floor(math.log10((high - low) / most))
            step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit * most >= high - low)
            figures = [step * count for count in range(math.ceil(low / step), math.floor(high / step) + 1)]
        return [(self.place(figure), cell(figure)) for figure in figures if self._reaches(figure)]

    def _reaches(self, figure: float) -> bool:
        scaled = _scaled(figure, self.log)
        return scaled is not None and self.low <= scaled <= self.high


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of a series, its interval from ``foot`` to ``top`` if it has one, and its figures in words."""

    x: float
    y: float
    foot: float | None
    top: float | None
    words: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A plot laid out. A series has None where a figure is missing or has no place, which ``missing`` counts."""

    plot: Plot
    across: list[tuple[float | None, str]]
    down: list[tuple[float | None, str]]
    series: list[tuple[str, list[Mark | None]]]
    missing: int


def chart(plot: Plot) -> Chart:
    """Lay a plot out."""
    x = Axis.around(chain(*(series.x for series in plot.series)), plot.log_x, 0, RIGHT)
    y = Axis.around(chain(*((*series.y, *series.low, *series.high) for series in plot.series)), plot.log_y, BOTTOM, TOP)
    if x is None or y is None:
        return Chart(plot, [], [], [], 0)
    drawn = [(series.name, marks(series, x, y)) for series in plot.series]
    return Chart(plot, x.ticks(5), y.ticks(6), drawn, sum(marks.count(None) for _, marks in drawn))


def across(orders: int) -> list[tuple[float | None, str]]:
    """Places of orders from 1 on, for the curves that a script draws."""
    axis = Axis.around(range(1, orders + 1), False, 0, RIGHT)
    return [] if axis is None else [(axis.place(order), str(order)) for order in range(1, orders + 1)]


def marks(series: Series, x: Axis, y: Axis) -> list[Mark | None]:
    """Where the points of a series lie between two axes, None for those that cannot be shown."""
    made: list[Mark | None] = []
    for along, value, low, high in zip_longest(series.x, series.y, series.low, series.high):
        at, up, foot, top = x.place(along), y.place(value), y.place(low), y.place(high)
        if at is None or up is None:
            made.append(None)
        else:
            made.append(Mark(at, up, y.start if foot is None else foot, top, f"{cell(along)}, {cell(value)}"))
    return made


def _scaled(figure: float | None, log: bool) -> float | None:
    if figure is None or not math.isfinite(figure) or (log and figure <= 0):
        return None
    return math.log10(figure) if log else figure
