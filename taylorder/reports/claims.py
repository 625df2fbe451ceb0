"""What ``claims`` prints: a verdict for every claim with the figures it rests on, and the tables behind them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from taylorder.claims.claim import Cell, Claim, Effect, Table
from taylorder.reports.document import finite
from taylorder.reports.fitting_tables import FittingTable
from taylorder.reports.parts import INDENT
from taylorder.reports.plain import plain_text
from taylorder.storage.provenance import software_versions

SCHEMA = "taylorder/claims@1"
WIDTH = 100
"""Of the plain text: effects have long names."""

_STYLES = {"supported": "green", "contradicted": "red", "undecided": "yellow", "not applicable": "dim"}
_MOST_ROWS = 12


@dataclass(frozen=True, slots=True)
class ClaimsReport:
    """The claims, judged, and the models they were judged on."""

    models: tuple[str, ...]
    claims: tuple[Claim, ...]


def as_document(report: ClaimsReport) -> dict[str, Any]:
    """All claims as one JSON document, schema ``taylorder/claims@1``."""
    made: dict[str, Any] = finite(
        {
            "schema": SCHEMA,
            **asdict(report),
            "software": software_versions(),
        }
    )
    return made


def render(report: ClaimsReport, console: Console, *, tables: bool = False) -> None:
    """Print the verdicts, and with ``tables`` all figures."""
    for part in _parts(report, tables):
        console.print(part)


def as_text(report: ClaimsReport, *, tables: bool = False, width: int = WIDTH) -> str:
    """The report as plain text: no colour, no trailing blanks."""
    return plain_text(lambda console: render(report, console, tables=tables), width)


def _parts(report: ClaimsReport, tables: bool) -> Iterable[RenderableType]:
    yield Text(f"taylorder claims: {', '.join(report.models)}", style="bold")
    for number, claim in enumerate(report.claims, start=1):
        yield Text()
        yield Text.assemble(
            f"{number}. ", (claim.statement, "bold"), "  ", (claim.verdict.upper(), f"bold {_STYLES[claim.verdict]}")
        )
        yield Padding(Text(claim.reason), INDENT)
        if claim.effects:
            yield Padding(_effects(claim.effects), INDENT, expand=False)
        if tables:
            yield Padding(Text(f"Rule: {claim.rule}", style="dim"), INDENT)
            for table in claim.tables:
                yield Text()
                yield Padding(Text(table.title, style="italic"), INDENT)
                yield Padding(_table(table), INDENT, expand=False)
                if table.note:
                    yield Padding(Text(table.note, style="dim"), INDENT)
        for note in claim.notes:
            yield Padding(Text(note, style="dim"), INDENT)


def _effects(effects: Sequence[Effect]) -> RichTable:
    table = RichTable.grid(padding=(0, 2, 0, 0))
    for effect in effects[:_MOST_ROWS]:
        table.add_row(
            Text(effect.name),
            Text(cell(effect.estimate), justify="right"),
            Text(interval(effect)),
            Text(effect.meaning, "dim"),
        )
    if len(effects) > _MOST_ROWS:
        table.add_row(Text(f"and {len(effects) - _MOST_ROWS} more", "dim"))
    return table


def _table(found: Table) -> FittingTable:
    table = FittingTable(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for place, title in enumerate(found.columns):
        words = any(isinstance(row[place], str) for row in found.rows)
        table.add_column(title, justify="left" if words else "right")
    for row in found.rows:
        table.add_row(*map(cell, row))
    return table


def interval(effect: Effect) -> str:
    """``[low, high]``, nothing where the figure is exact."""
    return "" if effect.low is None or effect.high is None else f"[{cell(effect.low)}, {cell(effect.high)}]"


def cell(value: Cell) -> str:
    """A figure with three significant digits; a dash where there is none."""
    match value:
        case None:
            return "-"
        case float():
            text = f"{value:.3g}"
            return f"{value:,.0f}" if "e+" in text and abs(value) < 1e9 else text
        case int():
            return f"{value:,}"
    return value
