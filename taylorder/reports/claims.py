"""What ``claims`` prints: a verdict for every claim with the figures it rests on, and the tables behind them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from taylorder.claims.claim import Claim, Effect, Figure, FigureTable, Verdict
from taylorder.reports.sections import Block, Cell, Column, Section, Style, Table, paragraph, table
from taylorder.storage.finite_json import stamped

SCHEMA = "taylorder/claims@1"
WIDTH = 100
"""Of the plain text: effects have long names."""

_STYLES: dict[Verdict, Style] = {
    "supported": "good",
    "contradicted": "bad",
    "undecided": "doubtful",
    "not applicable": "faint",
}
_MOST_ROWS = 12


@dataclass(frozen=True, slots=True)
class ClaimsReport:
    """The claims, judged, and the models they were judged on."""

    models: tuple[str, ...]
    claims: tuple[Claim, ...]


def as_document(report: ClaimsReport) -> dict[str, Any]:
    """All claims as one JSON document, schema ``taylorder/claims@1``."""
    return stamped(SCHEMA, asdict(report))


def sections(report: ClaimsReport, *, tables: bool = False) -> Iterator[Section]:
    """The verdicts, and with ``tables`` all figures."""
    yield Section(f"taylorder claims: {', '.join(report.models)}", (), level=1)
    for number, claim in enumerate(report.claims, start=1):
        verdict = Cell(claim.verdict.upper(), style=_STYLES[claim.verdict])
        yield Section(f"{number}. {claim.statement}", tuple(_blocks(claim, tables)), level=3, badge=verdict)


def _blocks(claim: Claim, tables: bool) -> Iterator[Block]:
    yield paragraph(claim.reason)
    if claim.effects:
        shown = effects(claim.effects[:_MOST_ROWS], exact="")
        if (more := len(claim.effects) - _MOST_ROWS) > 0:
            rest = (Cell(f"and {more} more", style="faint"), *[Cell("")] * 3)
            shown = replace(shown, rows=(*shown.rows, rest))
        yield replace(shown, headed=False, tight=True)
    if tables:
        yield paragraph(f"Rule: {claim.rule}", style="faint", tight=True)
        for behind in claim.tables:
            yield paragraph(behind.title, style="caption")
            yield replace(figures(behind), tight=True)
            if behind.note:
                yield paragraph(behind.note, style="faint", tight=True)
    for note in claim.notes:
        yield paragraph(note, style="faint", tight=True)


def effects(shown: Sequence[Effect], exact: str) -> Table:
    """What a verdict rests on; ``exact`` stands where a figure has no interval, since it follows from a formula."""
    columns = [Column("effect", wraps=True), Column("estimate", figures=True, wraps=True)]
    columns += [Column(title, wraps=True) for title in ("interval", "the claim expects")]
    rows = [
        (
            effect.name,
            cell(effect.estimate),
            exact if effect.low is None or effect.high is None else f"[{cell(effect.low)}, {cell(effect.high)}]",
            Cell(effect.meaning, style="faint"),
        )
        for effect in shown
    ]
    return table(columns, rows, indented=True)


def figures(behind: FigureTable) -> Table:
    """A table behind the effects; columns with words are set to the left."""
    columns = [
        Column(title, figures=not any(isinstance(row[index], str) for row in behind.rows), wraps=True)
        for index, title in enumerate(behind.columns)
    ]
    return table(columns, [[cell(value) for value in row] for row in behind.rows], indented=True)


def cell(value: Figure) -> str:
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
