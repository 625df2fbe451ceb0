"""Claims on a page: their figures in words, their plots, and ``claims.html``, a page of claims and nothing else."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from taylorder.claims.claim import Claim, Verdict
from taylorder.reports.charts import Chart, chart
from taylorder.reports.claims import ClaimsReport, effects, figures
from taylorder.reports.html_page import fill
from taylorder.reports.sections import Table
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
    effects: Table
    charts: list[Chart]
    tables: list[tuple[str, Table, str]]


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
            effects(claim.effects, exact="exact, by formula"),
            [chart(plot) for plot in claim.plots],
            [(table.title, figures(table), table.note) for table in claim.tables],
        )
        for claim in claims
    ]
