"""Tables where the terminal is narrow: columns that can be spared are left out and named, others go below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from taylorder.reports import sections

_WIDE = 10_000
_LOOK: dict[str, Any] = {
    "box": box.SIMPLE_HEAD,
    "padding": (0, 1),
    "pad_edge": False,
    "show_edge": False,
    "collapse_padding": True,
}


class FittingTable(Table):
    """A table that leaves out what can be spared where its columns do not fit side by side, and says what.

    If the others still do not fit, they come in pieces, one below the other, each of which begins with the first
    column. Rich would squeeze the columns, and leave out the last ones without a word.

    Attributes:
        spare: places of the columns that can be spared.

    """

    spare: tuple[int, ...] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table, or its pieces, and what was left out."""
        room = options.max_width
        wide = options.update(width=_WIDE)
        if len(self.columns) < 3 or self._needs(self.columns, console, wide) <= room:
            yield from super().__rich_console__(console, options)
            return
        left_out = 0
        while left_out < len(self.spare) and self._needs(self._without(left_out), console, wide) > room:
            left_out += 1
        first, *left = shown = self._without(left_out)
        while left:
            taken = 1
            while taken < len(left) and self._needs([first, *left[: taken + 1]], console, wide) <= room:
                taken += 1
            if len(left) < len(shown) - 1:
                yield Text()
            yield self._piece([first, *left[:taken]])
            left = left[taken:]
        if left_out:
            names = [" ".join(str(self.columns[place].header).split()) for place in self.spare[-left_out:]]
            yield Text(f"Too narrow for: {', '.join(names)}.")

    def _without(self, count: int) -> list[Column]:
        """The columns but the last ``count`` that can be spared."""
        left_out = self.spare[len(self.spare) - count :]
        return [column for place, column in enumerate(self.columns) if place not in left_out]

    def _needs(self, columns: Sequence[Column], console: Console, wide: ConsoleOptions) -> int:
        """Characters below which a column that is not to be wrapped would be cut."""
        saved = 0
        for column in columns:
            if not column.no_wrap:
                sizes = [Measurement.get(console, wide, cell) for cell in (column.header, *column.cells)]
                saved += max(size.maximum for size in sizes) - max(size.minimum for size in sizes)
        return Measurement.get(console, wide, self._piece(columns)).maximum - saved

    def _piece(self, columns: Sequence[Column]) -> Table:
        piece = Table(**_LOOK)
        for column in columns:
            piece.add_column(column.header, justify=column.justify, no_wrap=column.no_wrap, overflow=column.overflow)
        for cells in zip(*(column.cells for column in columns), strict=True):
            piece.add_row(*cells)
        return piece


def dense_table(spare: Sequence[int] = ()) -> FittingTable:
    """A table of figures as reports have them: a rule below the titles, no frame, one space between columns.

    ``spare`` are the places of columns that are left out first where they do not fit.
    """
    made = FittingTable(**_LOOK)
    made.spare = tuple(spare)
    return made


def fold(narrow: sections.Table, width: int) -> sections.Table:
    """The rows of a narrow table in as many columns side by side as there is room for in ``width`` characters."""
    rows, titles = narrow.rows, narrow.columns
    widest = max(len(cell.text) for row in rows for cell in row)
    times = max(1, (width - 2) // (len(titles) * (widest + 2) + 4))
    height = -(-len(rows) // times)
    times = -(-len(rows) // height)
    again = (replace(titles[0], title=f"  {titles[0].title}"), *titles[1:])
    filled = rows + ((sections.Cell(""),) * len(titles),) * (times * height - len(rows))
    lines = (tuple(cell for row in filled[line::height] for cell in row) for line in range(height))
    return replace(narrow, columns=titles + again * (times - 1), rows=tuple(lines), folds=False)
