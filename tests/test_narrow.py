"""Narrow terminals: columns that do not fit come below, and what is left out is named."""

from __future__ import annotations

import io

import pytest
import synthetic
from rich.console import Console

from taylorder.reports.fitting_tables import FittingTable, dense_table
from taylorder.reports.render import plain_text
from taylorder.reports.sections import Column, Section
from taylorder.reports.sections import table as rows_of

TITLES = [f"column {place}" for place in range(7)]


def table(no_wrap=True):
    made = dense_table()
    made.add_column("name", no_wrap=True)
    for column in TITLES:
        made.add_column(column, justify="right", no_wrap=no_wrap)
    for row in range(3):
        made.add_row(f"row {row}", *(f"{row}.{place}" for place in range(7)))
    return made


def printed(renderable, width):
    console = Console(width=width, file=io.StringIO(), color_system=None, highlight=False)
    console.print(renderable)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


@pytest.mark.parametrize("width", [22, 30, 40, 60, 79, 80, 200])
def test_every_cell_is_printed_whole(width):
    text = printed(table(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "\u2026" not in text
    for cell in (*TITLES, *(f"{row}.{place}" for row in range(3) for place in range(7))):
        assert text.count(cell) == 1
    pieces = text.count("name")
    assert text.count("row 0") == text.count("row 2") == pieces
    assert (pieces > 1) == (width < 76)


def test_a_table_that_fits_is_what_rich_makes_of_it():
    class Plain(FittingTable):
        __rich_console__ = FittingTable.__mro__[1].__rich_console__

    made = table()
    plain = table()
    plain.__class__ = Plain
    assert printed(made, 100) == printed(plain, 100)


def test_words_are_wrapped_before_columns_move():
    assert printed(table(no_wrap=False), 64).count("name") == 1


def test_a_long_heading_is_wrapped():
    words = "How far the heads are from 7%, and what it would take"
    assert " ".join(plain_text([Section(words, ())], 20).split()) == words
    assert plain_text([Section("short", ())], 20).strip().startswith("short \u2500")


@pytest.mark.parametrize(("width", "left_out"), [(40, {3, 5}), (50, {5}), (80, set()), (16, {3, 5})])
def test_columns_that_can_be_spared_are_left_out_last_first_and_named(width, left_out):
    columns = [Column(f"column\n{place}", figures=True, spare=place in {3, 5}) for place in range(7)]
    cells = [f"cell {place}" for place in range(7)]
    text = plain_text([Section("", (rows_of(columns, [cells]),))], width)
    assert max(map(len, text.splitlines()[:-2])) <= width
    words = " ".join(text.split())
    for place in range(7):
        assert (f"cell {place}" in words) == (place not in left_out)
    named = ", ".join(f"column {place}" for place in sorted(left_out))
    assert words.endswith(f"Too narrow for: {named}.") if left_out else "Too narrow" not in words


@pytest.mark.parametrize("width", [30, 40, 50, 60])
def test_the_report_of_an_analysis_loses_no_column_without_a_word(width):
    measured = synthetic.analysis(layers=3)
    chosen = synthetic.selection(measured)
    wide, narrow = (synthetic.report(measured, chosen, width=each) for each in (100, width))
    for title_ in ("zero", "centre", "mean", "breaks", "lowest", "highest", "needs order"):
        assert title_ in wide
        assert title_ in narrow
    assert ("Too narrow for: breaks even at, pays off." in " ".join(narrow.split())) == (width < 60)
    assert "Too narrow" not in wide
    assert "\u2026" not in narrow
    console = Console(width=width)
    assert console.width == width
    assert max(map(len, narrow.splitlines()[:-6])) <= width  # commands are not folded, so that they can be copied


def test_alphas_without_a_column_are_named():
    measured = synthetic.analysis(layers=3)
    chosen = synthetic.selection(measured)
    text = " ".join(synthetic.report(measured, chosen, width=36).split())
    assert "Too narrow for the alphas of v and o and every D: spectral.csv has them." in text
