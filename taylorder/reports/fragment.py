"""Sections as a piece of HTML that stands anywhere, such as below a notebook's cell: no script, no style sheet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import singledispatch
from html import escape

from taylorder.reports.fitting_tables import fold
from taylorder.reports.sections import Block, Cell, Command, HeadGrid, Legend, Paragraph, Section, Table

_WIDTH = 80


def fragment(sections: Iterable[Section]) -> str:
    """The sections one below the other, their colours in the elements themselves."""
    parts = (f"<p><b>{escape(section.title)}</b></p>{''.join(map(_html, section.blocks))}" for section in sections)
    return f"<div>{''.join(parts)}</div>"


@singledispatch
def _html(block: Block) -> str:
    raise TypeError(f"no way to write {type(block).__name__} as HTML")


@_html.register
def _(block: Paragraph) -> str:
    lines = "<br>".join(map(escape, block.lines))
    return f"<p>{f'<b>{lines}</b>' if block.style == 'strong' else lines}</p>"


@_html.register
def _(block: Command) -> str:
    return f'<pre style="white-space: pre-wrap">{escape(block.text)}</pre>'


@_html.register
def _(block: Table) -> str:
    shown = fold(block, _WIDTH) if block.folds else block
    titles = [column.title for column in shown.columns] if shown.headed else []
    figures = [column.figures for column in shown.columns]
    return _table(titles, shown.rows, figures)


@_html.register
def _(block: HeadGrid) -> str:
    heads = len(block.rows[0].heads)
    titles = ["layer", *map(str, range(heads)), *(column.title for column in block.beside)]
    rows = [(row.label, *row.heads, *row.beside) for row in block.rows]
    return _table(titles, rows, [True] * len(titles))


@_html.register
def _(block: Legend) -> str:
    return "".join(
        f"<p>{', '.join(escape(mark.text) for mark in key.marks)}: {escape(key.meaning)}</p>" for key in block.keys
    )


def _table(titles: Sequence[str], rows: Iterable[Sequence[Cell]], figures: Sequence[bool]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join(f"<tr>{''.join(map(_cell, row, figures))}</tr>" for row in rows)
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if titles else ''}<tbody>{body}</tbody></table>"


def _cell(cell: Cell, figure: bool) -> str:
    style = f"text-align: {'right' if figure else 'left'}"
    if cell.fill is not None:
        style += f"; background: {cell.fill.ground}; color: {cell.fill.ink}"
    return f'<td style="{style}">{escape(cell.text + cell.mark)}</td>'
