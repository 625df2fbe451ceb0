"""A grid of layer x head as lines of text: how wide its cells are, and what is left out where it does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.text import Text

from taylorder.reports.sections import Beside, Cell, GridLayout, GridRow, HeadGrid

_GAP = "  "
"""Between the heads of a layer and the columns beside them."""

Styled = Callable[[Cell], Text]


class _HeadRow:
    """One grid row: a cell per head, a gap between heads, a bar between the groups that share a KV head."""

    def __init__(self, heads: int, group: int, cell: int, gap: str) -> None:
        self.cell, self.gap, self.heads = cell, gap, heads
        # Where every head has a KV head of its own, or all share one, there is nothing to set apart.
        self.group = group if 1 < group < heads else heads
        self.bar = f"{gap}\u2502{gap}" if gap or cell > 1 else " "

    @property
    def width(self) -> int:
        """Characters of one row."""
        bars = self.heads // self.group - 1
        return self.heads * self.cell + (self.heads - 1 - bars) * len(self.gap) + bars * len(self.bar)

    def line(self, cells: Sequence[Text]) -> Text:
        """Join one cell per head."""
        groups = [Text(self.gap).join(cells[start : start + self.group]) for start in range(0, self.heads, self.group)]
        return Text(self.bar).join(groups)

    def header(self, after: str) -> Text:
        """Head numbers above their columns, ``after`` behind each, or only their range where columns are too narrow."""
        if self.cell < len(str(self.heads - 1)):
            return Text(f"head 0-{self.heads - 1}".ljust(self.width))
        return self.line([Text(f"{head}{after}".rjust(self.cell)) for head in range(self.heads)])


def grid_lines(grid: HeadGrid, width: int, styled: Styled) -> Iterator[Text]:
    """The lines of a grid in ``width`` characters; ``styled`` makes the text of a cell."""
    label = max(5, *(len(row.label.text) for row in grid.rows))
    gap = _GAP if grid.rows[0].heads else ""
    room = width - label - 3 - len(gap)
    narrowest = min(_width(grid, layout) for layout in grid.layouts)
    heads, header = _heads(grid, room - narrowest, styled)
    fitting = (layout for layout in grid.layouts if _width(grid, layout) <= room - header.cell_len)
    layout = next(fitting, grid.layouts[-1])
    shown = [grid.beside[column] for column in layout.columns]
    titles = [_column(Cell(column.title), column) for column in shown]
    top = Text(f"{'layer':>{label}}   ") + header + Text(gap + "".join(titles))
    top.stylize("bold")
    yield top
    for row, cells in zip(grid.rows, heads, strict=True):
        beside = "".join(_column(row.beside[column], grid.beside[column]) for column in layout.columns)
        yield Text(f"{row.label.text:>{label}}{row.label.mark or ' '}  ") + cells + Text(gap + beside)
    if layout.left_out:
        yield Text(layout.left_out)


def _width(grid: HeadGrid, layout: GridLayout) -> int:
    return sum(grid.beside[column].width for column in layout.columns)


def _column(cell: Cell, column: Beside) -> str:
    if column.marked:
        return f"{cell.text:>{column.width - 1}}{cell.mark or ' '}"
    return f"{cell.text:>{column.width}}"


def _heads(grid: HeadGrid, room: int, styled: Styled) -> tuple[list[Text], Text]:
    """The heads of every row, and what stands above them; a summary where they do not fit in ``room``."""
    count = len(grid.rows[0].heads)
    if not count:
        return [Text() for _ in grid.rows], Text()
    rows = (_HeadRow(count, grid.group, cell, gap) for cell, gap in grid.spacing)
    row = next((row for row in rows if row.width <= room), None)
    if row is None:
        return _summaries(grid, styled)
    lines = [row.line([_cell(cell, row.cell, grid.figures, styled) for cell in layer.heads]) for layer in grid.rows]
    return lines, row.header(" " if grid.figures else "")


def _cell(cell: Cell, width: int, figures: bool, styled: Styled) -> Text:
    text = styled(cell)
    if figures:
        return Text(f"{cell.text}{cell.mark or ' '}".rjust(width), style=text.style)
    return Text(" " * (width - text.cell_len)) + text


def _summaries(grid: HeadGrid, styled: Styled) -> tuple[list[Text], Text]:
    """Figures in columns of eight characters, or words."""
    if grid.figures:
        lines = [
            Text("    ").join([Text(), *(_cell(cell, 4, True, styled) for cell in row.summary)]) for row in grid.rows
        ]
        return lines, Text("".join(f"{column.title:>7} " for column in grid.summary))
    wide = max(len(text) for text in (grid.summary[0].title, *(_words(row) for row in grid.rows)))
    return [Text(_words(row).ljust(wide)) for row in grid.rows], Text(grid.summary[0].title.ljust(wide))


def _words(row: GridRow) -> str:
    return ", ".join(cell.text for cell in row.summary)
