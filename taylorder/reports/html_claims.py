"""Claims on a page: their figures in words, and ``claims.html``, a page of claims and nothing else."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from taylorder.claims.claim import Verdict
from taylorder.reports.claims import cell
from taylorder.reports.document import finite
from taylorder.reports.html_page import fill
from taylorder.reports.sections import Column
from taylorder.reports.sections import Table as TableBlock
from taylorder.reports.sections import table as table_block

_SCRIPTS = ("format.js", "palette.js", "chart.js", "theme.js", "plots.js", "claims.js")
_MARKS = {"supported": "\u2713", "contradicted": "\u2715", "undecided": "?", "not applicable": "\u2013"}


def render(document: Mapping[str, Any], directories: Sequence[Path], out: Path) -> str:
    """The page of a document of :func:`taylorder.reports.claims.as_document` as one string.

    ``directories`` are the runs it came from, and ``out`` where it goes, for the command that makes it again.
    """
    counts = Counter(claim["verdict"] for claim in document["claims"])
    told = [f"{counts[verdict]} {verdict}" for verdict in get_args(Verdict) if counts[verdict]]
    return fill(
        "claims.html.j2",
        _SCRIPTS,
        title=", ".join(document["models"]),
        verdict=f"{len(document['claims'])} claims about truncated attention: {', '.join(told)}.",
        data=finite({"plots": plots(document)}),
        claims=in_words(document),
        command=shlex.join(["taylorder", "claims", *map(str, directories), "--out", str(out)]),
        software=document["software"],
    )


def plots(document: Mapping[str, Any] | None) -> list[Any]:
    """The plots of every claim, none without a document."""
    return [claim.get("plots", ()) for claim in (document or {}).get("claims", ())]


def in_words(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The claims, numbered, as a page shows them."""
    return [_claim(number, finite(dict(claim))) for number, claim in enumerate(document["claims"], start=1)]


def _claim(number: int, claim: dict[str, Any]) -> dict[str, Any]:
    return {
        **claim,
        "number": number,
        "mark": _MARKS.get(claim["verdict"], "?"),
        "effects": [
            (each["name"], cell(each["estimate"]), _interval(each["low"], each["high"]), each["meaning"])
            for each in claim.get("effects", ())
        ],
        "tables": [(each["title"], _figures(each), each.get("note", "")) for each in claim.get("tables", ())],
    }


def _interval(low: Any, high: Any) -> str:
    return "exact, by formula" if low is None or high is None else f"[{cell(low)}, {cell(high)}]"


def _figures(table: Mapping[str, Any]) -> TableBlock:
    rows: Sequence[Sequence[Any]] = table["rows"]
    columns = tuple(
        Column(title, not any(isinstance(row[place], str) and row[place] not in ("nan", "inf", "-inf") for row in rows))
        for place, title in enumerate(table["columns"])
    )
    return table_block(columns, [[cell(value) for value in row] for row in rows])
