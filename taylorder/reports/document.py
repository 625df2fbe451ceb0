"""The result of an analysis as one JSON document: what ``--format json`` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from taylorder.analysis.results import Analysis
from taylorder.evaluation.evaluate import Evaluation
from taylorder.reports import summary
from taylorder.reports import verdict as words
from taylorder.runs import document
from taylorder.selection.by_tolerance import Selection


def as_document(
    analysis: Analysis,
    selection: Selection,
    directory: str | Path | None = None,
    evaluation: Evaluation | None = None,
) -> dict[str, Any]:
    """The whole result but the tables; the arguments are those of :func:`taylorder.runs.document.as_document`."""
    record = verdict_record(analysis, selection, directory, evaluation)
    return document.as_document(analysis, selection, record, directory, evaluation)


def verdict_record(
    analysis: Analysis,
    selection: Selection,
    directory: str | Path | None = None,
    evaluation: Evaluation | None = None,
) -> dict[str, Any]:
    """The verdict in words, the next command, and heads counted by what became of them."""
    counts = summary.head_counts(analysis, selection)
    return {
        "text": " ".join(words.sentences(analysis, selection, evaluation)),
        "next": words.next_command(analysis, selection, None if directory is None else Path(directory))[0],
        "heads": counts.heads,
        "sliding": counts.sliding,
        "adapted": counts.adapted,
        "within_tolerance": counts.within,
        "within_tolerance_at_a_higher_order": counts.beyond,
        "orders": {str(order): count for order, count in counts.orders.items()},
        "windows": counts.windows,
        "exact": counts.exact,
    }
