"""Sections in a terminal: where blank lines, rules and marks go, and what a narrow terminal does to them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from taylorder.reports.fitting_tables import fold
from taylorder.reports.render import plain_text, print_sections
from taylorder.reports.sections import (
    Beside,
    Cell,
    Column,
    Command,
    Fill,
    GridLayout,
    GridRow,
    HeadGrid,
    Key,
    Legend,
    Section,
    facts,
    paragraph,
    table,
)


def test_blocks_stand_apart_unless_they_are_tight():
    figures = table([Column("name"), Column("size", figures=True)], [("a", Cell("1 B", 1)), ("b", "12 B")])
    told = plain_text(
        [
            Section("taylorder: it", (facts({"model": "M", "text": "T"}),), level=1),
            Section("Sizes", (figures, paragraph("One.", "Two."), paragraph("Three.", tight=True))),
            Section("Below a line", (paragraph("Four."),), level=3),
        ],
        30,
    )
    assert told.splitlines() == [
        "taylorder: it",
        "  model  M",
        "  text   T",
        "",
        "Sizes " + "\u2500" * 24,
        "",
        "name  size",
        "\u2500" * 10,
        "a      1 B",
        "b     12 B",
        "",
        "  One.",
        "  Two.",
        "  Three.",
        "",
        "Below a line",
        "  Four.",
    ]


def test_a_command_can_be_copied_at_any_width():
    words = "taylorder eval model --config a/orders.json --text a.txt"
    told = plain_text([Section("", (Command(words),))], 40)
    assert len(told.splitlines()) == 3
    assert " ".join(told.replace("\\\n", " ").split()) == words


@pytest.mark.parametrize(("width", "columns"), [(10, 1), (30, 2), (200, 5)])
def test_a_long_table_folds_into_columns(width, columns):
    long = table(
        [Column("layer", figures=True), Column("KV 0", figures=True)],
        [(str(n), f"{n:02}") for n in range(5)],
        folds=True,
    )
    shown = fold(long, width)
    assert len(shown.columns) == 2 * columns
    assert len(shown.rows) == -(-5 // columns)
    read = [row[place : place + 2] for place in range(0, 2 * columns, 2) for row in shown.rows]
    assert [tuple(cell.text for cell in cells) for cells in read if cells[0].text] == [
        (str(n), f"{n:02}") for n in range(5)
    ]


def grid(**changes):
    fill = Fill("#a9d6f5", "#000000")
    rows = tuple(
        GridRow(
            Cell(str(layer), mark="~" * layer),
            (Cell("7", 0.07, "*", fill=fill),) * 4,
            (Cell("7"),) * 3,
            (Cell("9"),) * 2,
        )
        for layer in range(2)
    )
    shape = dict(
        rows=rows, group=2, spacing=((4, " "), (4, "")), summary=tuple(map(Column, ("low", "mid", "high"))),
        beside=(Beside("zero", 5), Beside("all", 5)), layouts=(GridLayout((0, 1)), GridLayout((0,), "No room.")),
        figures=True,
    )  # fmt: skip
    return HeadGrid(**shape | changes)


def test_a_grid_takes_the_widest_form_that_fits():
    def lines(width):
        return plain_text([Section("", (grid(),))], width).splitlines()

    assert lines(80) == [
        "layer     0    1  \u2502   2    3    zero  all",
        "    0     7*   7* \u2502   7*   7*      9    9",
        "    1~    7*   7* \u2502   7*   7*      9    9",
    ]
    assert lines(34)[-2:] == ["    1~    7*  7*\u2502  7*  7*      9", "No room."]
    assert " ".join(lines(31)).split()[:5] == ["layer", "low", "mid", "high", "zero"]


def test_colours_are_those_of_the_cell():
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system="truecolor", highlight=False)
    legend = Legend((Key((Cell("3", style="strong", fill=Fill("#a9d6f5", "#000000")), Cell("w")), "an order"),))
    print_sections([Section("", (legend, table([Column("n")], [(Cell("bad", style="bad"),)])))], console)
    told = console.file.getvalue()
    assert "\x1b[1;38;2;0;0;0;48;2;169;214;245m3\x1b[0m, w  an order" in told
    assert "\x1b[31mbad\x1b[0m" in told
