"""Losses above exact attention as points with whiskers, laid out: a strip for every contender on one axis.

The axis is wide enough for the config and for one window of the same bytes; what lies beyond stands at its end, with
its figure. Places across are percentages, places down are pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from taylorder.evaluation import rivals
from taylorder.evaluation.comparison import Comparison
from taylorder.evaluation.intervals import Interval
from taylorder.reports.charts import Axis
from taylorder.reports.evaluation_words import with_bracket

LEFT, RIGHT = 2, 98
_ABOVE, _STRIP = 14, 46
"""Pixels above the first strip, and of each."""


@dataclass(frozen=True, slots=True)
class Strip:
    """One contender: its name, its figures as text, its point and interval, and whether the point lies beyond."""

    name: str
    text: str
    y: int
    at: float
    low: float
    high: float
    beyond: bool


@dataclass(frozen=True, slots=True)
class LossStrips:
    """All of them, where exact attention is, and the figures below the axis."""

    strips: tuple[Strip, ...]
    exact: float
    ticks: list[tuple[float | None, str]]
    bottom: int


def loss_strips(comparison: Comparison | None) -> LossStrips | None:
    """Lay out the losses of all contenders that ran; None where there are none but exact attention's."""
    standings = () if comparison is None else comparison.standings
    deltas = {one.name: one.delta_exact for one in standings if one.delta_exact is not None}
    shown = [deltas[name] for name in (rivals.CONFIG, rivals.WINDOW) if name in deltas]
    ends = [0.0, *(end for delta in shown for end in (delta.low, delta.estimate, delta.high) if math.isfinite(end))]
    axis = Axis.around(ends, False, LEFT, RIGHT)
    if not shown or axis is None:
        return None
    strips = [_strip(name, delta, place, axis) for place, (name, delta) in enumerate(deltas.items())]
    return LossStrips(tuple(strips), axis.place(0.0) or LEFT, axis.ticks(5), _ABOVE + _STRIP * len(strips))


def _strip(name: str, delta: Interval, place: int, axis: Axis) -> Strip:
    low, high = (delta.low, delta.high) if delta.bounded else (delta.estimate, delta.estimate)
    return Strip(
        name,
        with_bracket(delta, signed=True),
        _ABOVE + _STRIP * place,
        _within(axis, delta.estimate),
        _within(axis, low),
        _within(axis, high),
        not axis.low <= delta.estimate <= axis.high,
    )


def _within(axis: Axis, figure: float) -> float:
    """The place of a figure, or of the end of the axis that it lies beyond."""
    return axis.place(min(axis.high, max(axis.low, figure))) or 0.0
