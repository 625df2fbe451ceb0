"""What tables are made of: rows of the committed results, and Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"

KIB = 1 << 10

Row = dict[str, Any]


def results(name: str, section: str = "rows", **wanted: Any) -> list[Row]:
    """Rows of a section of ``benchmarks/results/NAME.json`` that have these values."""
    rows = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")).get(section, [])
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is words, the others are figures unless their head ends with a colon."""
    marks = ["---" if not number or title.endswith(":") else "---:" for number, title in enumerate(head)]
    lines = [[title.rstrip(":") for title in head], marks, *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def interval(values: Sequence[float]) -> str:
    """An estimate and its bounds."""
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*values)


def percent(share: float) -> str:
    """A share in whole percent."""
    return f"{100 * share:.0f} %"
