"""A plot in characters: every figure at its place, axes that name it, and nothing wider than the terminal."""

from __future__ import annotations

import math

import pytest

from taylorder.claims.claim import Plot, Series
from taylorder.reports.character_plot import LINES, lines

ONE = Series("one", (32.0, 64.0, 128.0), (0.2, 0.1, 0.0), (0.15, 0.05, -0.05), (0.25, 0.15, 0.05))
OTHER = Series("the other", (32.0, 64.0), (0.4, 0.1))
PLOT = Plot("Loss against bytes", "KiB per KV head", "NLL above exact", (ONE, OTHER), log_x=True)


def places(drawn, character):
    """Line and column of every such character between the axes."""
    sheet = [line.partition("|")[2] for line in drawn[1 : LINES + 1]]
    return [(row, column) for row, line in enumerate(sheet) for column, found in enumerate(line) if found == character]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_points_are_where_their_figures_say(width):
    drawn = lines(PLOT, width)
    assert max(map(len, drawn)) <= width
    assert drawn[0] == "Loss against bytes: NLL above exact"
    first, last = places(drawn, "o")
    assert first[0] < last[0]
    assert first[1] < last[1]
    [several] = places(drawn, "*")
    assert abs(several[1] - (first[1] + last[1]) / 2) <= 1, "on a logarithmic axis 64 is halfway from 32 to 128"
    [other] = places(drawn, "x")
    assert other[1] == first[1]
    assert other[0] < first[0]
    between = places(drawn, "|")
    assert {column for _, column in between} == {first[1], several[1], last[1]}


def test_axes_and_keys_name_what_is_drawn():
    drawn = lines(PLOT, 80)
    down = [float(label) for line in drawn[1 : LINES + 1] if (label := line.partition("|")[0].strip())]
    assert down == sorted(down, reverse=True)
    assert {0, 0.4} <= set(down)
    figures = drawn[LINES + 2].split()
    assert figures == sorted(figures, key=float)
    assert {"60", "100"} <= set(figures)
    assert drawn[LINES + 3].strip() == "KiB per KV head"
    assert drawn[-1] == "o one   x the other   * several of these   | 95% interval"


def test_what_has_no_figure_is_not_drawn():
    nothing = Plot("A", "x", "y", (Series("a", (1.0,), (math.nan,)),))
    assert lines(nothing, 80) == ["A: no figure to draw"]
    some = Plot("A", "x", "y", (Series("a", (1.0, 2.0), (None, 3.0)), Series("b", (1.0,), (None,))))
    drawn = lines(some, 80)
    assert len(places(drawn, "o")) == 1
    assert drawn[-1] == "o a"
