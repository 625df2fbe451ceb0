"""Sections as Markdown, for the card of a model on the Hub."""

from __future__ import annotations

from collections.abc import Iterable
from functools import singledispatch

from taylorder.reports.sections import Block, Command, Paragraph, Section, Table

_STYLES = {"strong": "**", "caption": "*"}


def markdown(sections: Iterable[Section]) -> str:
    """Sections one below the other, headings by their level.

    Raises:
        TypeError: there is a grid or a drawing, which belongs on a page.

    """
    parts = (part for section in sections for part in (_heading(section), *map(_written, section.blocks)))
    return "\n\n".join(filter(None, parts)) + "\n"


def _heading(section: Section) -> str:
    return f"{'#' * section.level} {section.title}" if section.title else ""


@singledispatch
def _written(block: Block) -> str:
    raise TypeError(f"no way to write {type(block).__name__} as Markdown")


@_written.register
def _(block: Paragraph) -> str:
    mark = _STYLES.get(block.style, "")
    return "  \n".join(f"{mark}{line}{mark}" for line in block.lines)


@_written.register
def _(block: Command) -> str:
    return f"```\n{block.text}\n```"


@_written.register
def _(block: Table) -> str:
    rows = [[f"{cell.text}{cell.mark}".strip() for cell in row] for row in block.rows]
    if not block.headed:
        return "\n".join(f"* **{name}**: {', '.join(rest)}" for name, *rest in rows)
    titles = [" ".join(column.title.split()) for column in block.columns]
    marks = ["---:" if column.figures else "---" for column in block.columns]
    return "\n".join(map(_row, (titles, marks, *rows)))


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
