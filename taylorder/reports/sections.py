"""What a report says, as values: sections of paragraphs, tables and grids, every figure with its finished text.

The terminal, plain text and the page render these (:mod:`taylorder.reports.render` and the templates in ``page``), so
a figure is written once and reads the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from taylorder.claims.claim import Plot
from taylorder.errors import UsageError

About: TypeAlias = Literal["run", "each head", "all heads", "config", "verdict"]
Style: TypeAlias = Literal["", "strong", "faint", "caption", "good", "bad", "doubtful"]


@dataclass(frozen=True, slots=True)
class Fill:
    """Colours as ``#rrggbb``: of the ground, and of what is written on it."""

    ground: str
    ink: str


@dataclass(frozen=True, slots=True)
class Cell:
    """A finished text, the value behind it where there is one, and how it is shown.

    ``mark`` is a single character behind a figure, such as the star of an error within the tolerance. ``bar`` has the
    shares of a bar that the page draws below the figure.
    """

    text: str
    value: float | int | str | None = None
    mark: str = ""
    style: Style = ""
    fill: Fill | None = None
    bar: tuple[float, ...] = ()


def even(rows: Iterable[Sequence[Cell]]) -> list[tuple[Cell, ...]]:
    """Rows as wide as the widest, with empty cells behind what they have."""
    given = [tuple(row) for row in rows]
    widest = max(map(len, given), default=0)
    return [(*row, *[Cell("")] * (widest - len(row))) for row in given]


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Sentences, each line beginning on a line of its own. ``tight``: right below the block above it."""

    lines: tuple[str, ...]
    style: Style = ""
    tight: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """A shell command that can be copied, however long it is."""

    text: str
    tight: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """Title of a column, with a newline where it may be folded; figures are set to the right.

    Cells that do not wrap are never folded. Where the columns of a table do not fit, ``spare`` ones are left out, the
    last one first, and named below it; where that is not enough, columns go below the others.
    """

    title: str = ""
    figures: bool = False
    wraps: bool = False
    spare: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of one cell per column.

    Without ``headed`` the titles are not shown in a terminal. A table that ``folds`` is narrow and long: it stands in
    several columns side by side where there is room. ``tight``: right below the block above it.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    headed: bool = True
    folds: bool = False
    indented: bool = False
    tight: bool = False


@dataclass(frozen=True, slots=True)
class Key:
    """What some marks mean."""

    marks: tuple[Cell, ...]
    meaning: str


@dataclass(frozen=True, slots=True)
class Legend:
    """What the marks of a grid mean, a line each."""

    keys: tuple[Key, ...]
    tight: bool = False


@dataclass(frozen=True, slots=True)
class Beside:
    """A column beside the heads of a grid: its title, its width, and whether its cells have room for a mark."""

    title: str
    width: int
    marked: bool = False


@dataclass(frozen=True, slots=True)
class GridLayout:
    """Some of the columns beside the heads, by their places, and what to say of those left out."""

    columns: tuple[int, ...]
    left_out: str = ""


@dataclass(frozen=True, slots=True)
class GridRow:
    """A layer: its label with a mark, a cell per head, what stands for all of them, and the cells beside them."""

    label: Cell
    heads: tuple[Cell, ...]
    summary: tuple[Cell, ...]
    beside: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class HeadGrid:
    """Layers down, heads across.

    Attributes:
        rows: one per layer; all of one shape. Where a layer's heads do not fit, its summary is shown instead.
        group: heads that share a KV head, set apart from the next ones.
        spacing: characters of a head's cell and what stands between two cells, the widest first.
        summary: columns of the summary.
        beside: columns beside the heads or their summary.
        layouts: which of those are shown, the widest first.
        figures: heads have figures, with room for a mark, filled from edge to edge; otherwise a mark alone.

    """

    rows: tuple[GridRow, ...]
    group: int
    spacing: tuple[tuple[int, str], ...]
    summary: tuple[Column, ...]
    beside: tuple[Beside, ...]
    layouts: tuple[GridLayout, ...]
    figures: bool = False
    tight: bool = False


@dataclass(frozen=True, slots=True)
class Drawing:
    """A plot: of characters in a terminal, lines and points on a page."""

    plot: Plot
    tight: bool = False


Block: TypeAlias = Paragraph | Command | Table | Legend | HeadGrid | Drawing


@dataclass(frozen=True, slots=True)
class Section:
    """What stands under one heading.

    ``about`` decides where a section stands on the page. A ``level`` of 1 is the title of a whole report, 2 a heading
    with a rule, 3 a line above what belongs to it. Without a title the blocks follow those of the section before.
    ``badge`` is a word behind such a line. By its ``name`` a section can be asked for.
    """

    title: str
    blocks: tuple[Block, ...]
    about: About = "all heads"
    level: Literal[1, 2, 3] = 2
    badge: Cell | None = None
    name: str = ""


def named(sections: Iterable[Section], names: Sequence[str]) -> list[Section]:
    """The sections of these names, in the order of the report.

    Raises:
        UsageError: there is no such section.

    """
    sections = list(sections)
    known = [section.name for section in sections]
    for name in names:
        if name not in known:
            raise UsageError(f"there is no section {name!r} in this report; it has {', '.join(known)}")
    return [section for section in sections if section.name in names]


def paragraph(*lines: str, style: Style = "", tight: bool = False) -> Paragraph:
    """Sentences, each on a line of its own."""
    return Paragraph(lines, style, tight)


def table(
    columns: Sequence[Column], rows: Iterable[Sequence[Cell | str]], *, folds: bool = False, indented: bool = False
) -> Table:
    """A table whose cells may be plain strings."""
    return Table(tuple(columns), tuple(map(_cells, rows)), folds=folds, indented=indented)


def facts(named: Mapping[str, Cell | str]) -> Table:
    """Names, and beside each what there is to say of it."""
    columns = (Column(wraps=True), Column(wraps=True))
    return Table(columns, tuple(_cells(pair) for pair in named.items()), headed=False, indented=True)


def _cells(row: Sequence[Cell | str]) -> tuple[Cell, ...]:
    return tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row)
