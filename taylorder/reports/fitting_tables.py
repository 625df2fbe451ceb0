"""Tables and headings that lose nothing where the terminal is narrow: they take more lines instead."""

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
    """A table that comes in pieces, one below the other, where its columns do not fit side by side.

    Each piece begins with the first column. Rich would leave out the last columns without a word.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table, or its pieces."""
        room = options.max_width
        wide = options.update(width=_WIDE)
        if len(self.columns) < 3 or self._needs(self.columns, console, wide) <= room:
            yield from super().__rich_console__(console, options)
            return
        first, *left = self.columns
        while left:
            taken = 1
            while taken < len(left) and self._needs([first, *left[: taken + 1]], console, wide) <= room:
                taken += 1
            if len(left) < len(self.columns) - 1:
                yield Text()
            yield self._piece([first, *left[:taken]])
            left = left[taken:]

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


def dense_table() -> FittingTable:
    """A table of figures as reports have them: a rule below the titles, no frame, one space between columns."""
    return FittingTable(**_LOOK)


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
