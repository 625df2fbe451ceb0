"""The result of an analysis as one JSON document: the content of ``report.json``, and what ``--format json`` prints."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from taylorder.analysis.results import Analysis, SpectralRow
from taylorder.evaluation.evaluate import Evaluation
from taylorder.reports import summary, verdict
from taylorder.runs.document import SCHEMA, Best, HeadRecord, ReportDocument, Settings, choice_record
from taylorder.runs.run_files import FILES, LEVERS_FILE, PROBES_FILE
from taylorder.selection.by_tolerance import HeadVerdict, Selection
from taylorder.storage.finite_json import finite


def as_document(
    analysis: Analysis,
    selection: Selection,
    directory: Path | None = None,
    evaluation: Evaluation | None = None,
) -> dict[str, Any]:
    """The whole result but the tables, JSON-ready.

    Args:
        analysis: the measurements.
        selection: the choice.
        directory: where the files lie, whose names are paths then; None for names within the run directory.
        evaluation: the short one that ends an analysis, None if it was skipped.

    """
    files = dict(FILES)
    if selection.levers is not None:
        files["levers"] = LEVERS_FILE
        if selection.levers.probes is not None:
            files["probes"] = PROBES_FILE
    document = ReportDocument(
        schema=SCHEMA,
        model=analysis.model,
        calibration=analysis.calibration,
        settings=Settings(
            max_order=analysis.max_order,
            window=analysis.window,
            sinks=analysis.sinks,
            policy=selection.policy,
            tolerance=selection.tolerance,
            context=selection.context,
            largest_order=selection.largest_order,
        ),
        verdict=_verdict(analysis, selection, directory, evaluation),
        preview=analysis.preview,
        evaluation=evaluation,
        levers=selection.levers,
        heads=tuple(map(_head_record, selection.heads)),
        alphas=_alphas(analysis.spectral),
        software=dict(selection.config.software),
        files={kind: name if directory is None else str(directory / name) for kind, name in files.items()},
    )
    made: dict[str, Any] = finite(asdict(document))
    return made


def _verdict(
    analysis: Analysis, selection: Selection, directory: Path | None, evaluation: Evaluation | None
) -> dict[str, Any]:
    """The verdict in words, the next command, and heads counted by what became of them."""
    counts = summary.head_counts(analysis, selection)
    return {
        "text": " ".join(verdict.sentences(analysis, selection, evaluation)),
        "next": verdict.next_command(analysis, selection, directory)[0],
        "heads": counts.heads,
        "sliding": counts.closed,
        "adapted": counts.adapted,
        "within_tolerance": counts.within,
        "within_tolerance_at_a_higher_order": counts.beyond,
        "orders": {str(order): count for order, count in counts.orders.items()},
        "windows": counts.windows,
        "exact": counts.exact,
    }


def _head_record(head: HeadVerdict) -> HeadRecord:
    best = None if head.best is None else Best(head.best.order, head.best.expansion, head.best.relative_l2)
    choice = choice_record(head.choice)
    return HeadRecord(head.module, head.head, head.kv_head, choice, best, head.needed_order, head.predicted_order)


def _alphas(spectral: Iterable[SpectralRow]) -> tuple[dict[str, Any], ...]:
    layers: dict[str, dict[str, Any]] = {}
    for row in spectral:
        if row.head is None:
            layers.setdefault(row.module, {"module": row.module})[row.projection] = row.alpha
    return tuple(layers.values())
