"""Plots of claims laid out: round ticks, places that keep the order of figures, gaps where a figure is missing."""

from __future__ import annotations

import math

import pytest

from taylorder.claims.claim import Plot, Series
from taylorder.reports.charts import Axis, chart


@pytest.mark.parametrize(
    ("figures", "log", "ticks"),
    [
        ((1.0, 5.0), False, ["1", "2", "3", "4", "5"]),
        ((-0.4, 0.5), False, ["-0.4", "-0.2", "0", "0.2", "0.4"]),
        ((16.0, 128.0), True, ["20", "50", "100"]),
        ((0.1, 10.0), True, ["0.1", "0.3", "1", "3", "10"]),
        ((1e-6, 1e6), True, ["1e-06", "0.001", "1", "1,000", "1,000,000"]),
        ((0.61, 0.75), True, ["0.65", "0.7", "0.75"]),
        ((3.0,), False, ["2", "3", "4"]),
    ],
)
def test_ticks_are_round_and_few(figures, log, ticks):
    assert [words for _, words in Axis.around(figures, log, 0, 100).ticks(5)] == ticks


@pytest.mark.parametrize("log", [False, True])
def test_places_keep_the_order_of_figures(log):
    figures = [0.01, 0.5, 1.0, 2.0, 100.0]
    axis = Axis.around(figures, log, 100, 0)
    places = [axis.place(figure) for figure in figures]
    assert places == sorted(places, reverse=True)
    assert 100 > places[0] > places[-1] > 0
    assert axis.place(1.0) == pytest.approx(50 if log else 95.4)


def test_what_has_no_place_is_counted_and_breaks_the_line():
    series = Series("a", (1.0, 2.0, 3.0, 4.0), (1.0, None, -2.0, 3.0), (0.5, 0.0, 0.0, -1.0), (2.0, 0.0, 0.0, 4.0))
    made = chart(Plot("t", "x", "y", (series, Series("b", (1.0,), (math.inf,))), log_y=True))
    (_, (first, second, third, last)), (_, other) = made.series
    assert (second, third, other) == (None, None, [None])
    assert made.missing == 3
    assert first.top < first.y < first.foot < last.foot, "an interval down to what a logarithmic axis cannot show"
    assert last.words == "4, 3"


def test_a_plot_without_figures_has_no_axes():
    made = chart(Plot("t", "x", "y", (Series("a", (1.0,), (None,)),)))
    assert (made.series, made.across, made.down) == ([], [], [])
