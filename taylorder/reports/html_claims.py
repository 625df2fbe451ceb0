"""Claims on a page: their figures in words, their plots, and ``claims.html``, a page of claims and nothing else."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from taylorder.claims.claim import Claim, Effect, Table, Verdict
from taylorder.reports.charts import Chart, chart
from taylorder.reports.claims import ClaimsReport, cell, interval
from taylorder.reports.html_page import Block, Column, fill
from taylorder.storage.provenance import software_versions

_MARKS: dict[Verdict, str] = {
    "supported": "\u2713",
    "contradicted": "\u2715",
    "undecided": "?",
    "not applicable": "\u2013",
}


@dataclass(frozen=True, slots=True)
class ClaimOnPage:
    """A claim as a page shows it: a mark for its verdict, figures written out, plots laid out."""

    claim: Claim
    mark: str
    effects: Block
    charts: list[Chart]
    tables: list[tuple[str, Block, str]]


def render(report: ClaimsReport, directories: Sequence[Path], out: Path) -> str:
    """The page of claims as one string.

    ``directories`` are the runs they came from, and ``out`` where it goes, for the command that makes it again.
    """
    counts = Counter(claim.verdict for claim in report.claims)
    verdicts = [f"{counts[verdict]} {verdict}" for verdict in get_args(Verdict) if counts[verdict]]
    return fill(
        "claims.html.j2",
        ("theme.js",),
        title=", ".join(report.models),
        verdict=f"{len(report.claims)} claims about truncated attention: {', '.join(verdicts)}.",
        claims=on_page(report.claims),
        command=shlex.join(["taylorder", "claims", *map(str, directories), "--out", str(out)]),
        software=software_versions(),
    )


def on_page(claims: Sequence[Claim]) -> list[ClaimOnPage]:
    """The claims, as a page shows them."""
    return [
        ClaimOnPage(
            claim,
            _MARKS[claim.verdict],
            _effects(claim.effects),
            [chart(plot) for plot in claim.plots],
            [(table.title, _figures(table), table.note) for table in claim.tables],
        )
        for claim in claims
    ]


def _effects(effects: Sequence[Effect]) -> Block:
    titles = (("effect", False), ("estimate", True), ("interval", False), ("the claim expects", False))
    rows = [
        (effect.name, cell(effect.estimate), interval(effect) or "exact, by formula", effect.meaning)
        for effect in effects
    ]
    return Block(columns=tuple(Column(*title) for title in titles), rows=tuple(rows))


def _figures(table: Table) -> Block:
    columns = tuple(
        Column(title, not any(isinstance(row[place], str) for row in table.rows))
        for place, title in enumerate(table.columns)
    )
    return Block(columns=columns, rows=tuple(tuple(map(cell, row)) for row in table.rows))
