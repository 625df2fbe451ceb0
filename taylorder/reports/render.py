"""Sections in a terminal, as wide as it is, and as plain text. Pages render the same sections in their templates."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from functools import singledispatch
from pathlib import Path

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.style import Style
from rich.table import Table as RichTable
from rich.text import Text

from taylorder.reports.fitting_tables import dense_table, fold
from taylorder.reports.head_grids import grid_lines
from taylorder.reports.sections import Block, Cell, Command, HeadGrid, Legend, Paragraph, Section, Table
from taylorder.storage.files import replacing

_INDENT = (0, 0, 0, 2)
_STYLES = {
    "strong": Style(bold=True),
    "faint": Style(dim=True),
    "caption": Style(italic=True),
    "good": Style(color="green"),
    "bad": Style(color="red"),
    "doubtful": Style(color="yellow"),
}


def print_sections(sections: Iterable[Section], console: Console) -> None:
    """Print a report; the width of the console decides the layout."""
    for part in renderables(sections, console.width):
        console.print(part)


def plain_text(sections: Iterable[Section], width: int = 80) -> str:
    """A report without colour and trailing blanks, no wider than ``width``: what a pipe or a file gets."""
    console = Console(width=width, file=io.StringIO(), color_system=None, highlight=False)
    with console.capture() as captured:
        print_sections(sections, console)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def export_svg(sections: Iterable[Section], title: str, path: Path, width: int = 100) -> None:
    """Write a report as an SVG picture of a terminal that is ``width`` characters wide."""
    console = Console(
        record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor", highlight=False
    )
    print_sections(sections, console)
    svg = console.export_svg(title=title, unique_id="taylorder")
    # Rich points at web fonts; a report must not fetch anything, and any monospaced font will do.
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    svg = svg.replace(
        "font-family: Fira Code, monospace", "font-family: Fira Code, DejaVu Sans Mono, Menlo, Consolas, monospace"
    )
    with replacing(path) as temporary:
        temporary.write_text(svg, encoding="utf-8")


def renderables(sections: Iterable[Section], width: int) -> Iterator[RenderableType]:
    """What Rich prints of sections in ``width`` characters."""
    for section in sections:
        title = Text(section.title, style="bold")
        match section.level:
            case 1:
                yield title
            case 2 if section.title:
                # Over several lines where a line would cut it.
                fits = title.cell_len + 2 <= width
                yield Padding(Rule(title, align="left", style="dim") if fits else title, (1, 0))
            case 3:
                yield from (Text(), title if section.badge is None else title + "  " + styled(section.badge))
        for index, block in enumerate(section.blocks):
            if index and not block.tight:
                yield Text()
            yield from _rendered(block, width)


def styled(cell: Cell) -> Text:
    """The text of a cell with its mark, in its style and colours."""
    style = _STYLES.get(cell.style, Style())
    if cell.fill is not None:
        style += Style(color=cell.fill.ink, bgcolor=cell.fill.ground)
    return Text(cell.text + cell.mark, style=style)


@singledispatch
def _rendered(block: Block, width: int) -> Iterator[RenderableType]:
    raise TypeError(f"no way to print {type(block).__name__}")


@_rendered.register
def _(block: Paragraph, width: int) -> Iterator[RenderableType]:
    for line in block.lines:
        yield Padding(Text(line, style=_STYLES.get(block.style, Style())), _INDENT, expand=False)


@_rendered.register
def _(block: Command, width: int) -> Iterator[RenderableType]:
    yield Text(_folded(block.text, width - 6), style="bold", no_wrap=True, overflow="ignore")


@_rendered.register
def _(block: Table, width: int) -> Iterator[RenderableType]:
    made = dense_table() if block.headed else RichTable.grid(padding=(0, 2, 0, 0))
    shown = fold(block, width) if block.folds else block
    for column in shown.columns:
        made.add_column(
            column.title,
            justify="right" if column.figures else "left",
            no_wrap=not column.wraps,
            overflow="fold" if column.wraps else "ellipsis",
        )
    for row in shown.rows:
        made.add_row(*map(styled, row))
    yield Padding(made, _INDENT, expand=False) if block.indented else made


@_rendered.register
def _(block: Legend, width: int) -> Iterator[RenderableType]:
    for key in block.keys:
        yield Padding(Text(", ").join(map(styled, key.marks)) + f"  {key.meaning}", _INDENT, expand=False)


@_rendered.register
def _(block: HeadGrid, width: int) -> Iterator[RenderableType]:
    yield from grid_lines(block, width, styled)


def _folded(command: str, width: int) -> str:
    """A shell command over as many lines as it takes, so that it can still be copied."""
    lines = [""]
    begin, *asked = re.split(r" (?=--)", command)
    operands = re.findall(r"(?:'[^']*'|[^ '])+", begin)  # a quoted one may hold blanks
    for word in (*operands, *asked):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("  " + word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return " \\\n".join(f"    {line}" for line in lines)
