"""The result of a run as one JSON document: the content of ``report.json``, and what ``--format json`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from taylorder.adapt.decisions import FlatOrder, HeadOrder
from taylorder.analysis.results import Analysis, Calibration, NearFieldPreview, SpectralRow
from taylorder.evaluation.evaluate import Evaluation
from taylorder.kernels.spec import Expansion
from taylorder.models.description import ModelDescription
from taylorder.runs.run_files import FILES, LEVERS_FILE
from taylorder.selection.by_tolerance import HeadVerdict, Selection
from taylorder.selection.lever_summary import LeverSummary
from taylorder.selection.settings import ChosenBy
from taylorder.storage.finite_json import finite

SCHEMA = "taylorder/report@2"


@dataclass(frozen=True, slots=True)
class Settings:
    """What was measured and by which rule orders were chosen."""

    max_order: int
    window: int
    sinks: int
    policy: ChosenBy
    tolerance: float
    context: int
    largest_order: int


@dataclass(frozen=True, slots=True)
class Best:
    """Which candidate of a head comes nearest to exact attention, among those that may be chosen."""

    order: int
    expansion: Expansion


@dataclass(frozen=True, slots=True)
class HeadRecord:
    """The verdict on one head; what was chosen for it is in ``orders.json``."""

    module: str
    head: int
    kv_head: int
    choice: dict[str, Any]
    best: Best | None
    needed_order: int | None
    predicted_order: int | None


@dataclass(frozen=True, slots=True)
class ReportDocument:
    """What ``read`` needs of ``report.json``; the rest of the document is for other readers."""

    schema: Literal["taylorder/report@2"]
    model: ModelDescription
    calibration: Calibration
    settings: Settings
    preview: NearFieldPreview | None
    heads: tuple[HeadRecord, ...]
    evaluation: Evaluation | None = None
    levers: LeverSummary | None = None


def as_document(
    analysis: Analysis,
    selection: Selection,
    verdict: Mapping[str, Any],
    directory: str | Path | None = None,
    evaluation: Evaluation | None = None,
) -> dict[str, Any]:
    """The whole result but the tables as one JSON-ready dict: the content of ``report.json``, and of ``--format json``.

    Args:
        analysis: the measurements.
        selection: the choice.
        verdict: what a report says of it, in words and counts.
        directory: where the files lie, whose names are paths then; None for names within the run directory.
        evaluation: the short one that ends an analysis, None if it was skipped.

    """
    document = {
        "schema": SCHEMA,
        "model": asdict(analysis.model),
        "calibration": asdict(analysis.calibration),
        "settings": asdict(
            Settings(
                max_order=analysis.max_order,
                window=analysis.window,
                sinks=analysis.sinks,
                policy=selection.policy,
                tolerance=selection.tolerance,
                context=selection.context,
                largest_order=selection.largest_order,
            )
        ),
        "verdict": dict(verdict),
        "preview": None if analysis.preview is None else asdict(analysis.preview),
        "evaluation": None if evaluation is None else asdict(evaluation),
        "levers": None if selection.levers is None else asdict(selection.levers),
        "heads": [_head_record(head) for head in selection.heads],
        "alphas": _alphas(analysis.spectral),
        "software": dict(selection.config.software),
        "files": {
            kind: name if directory is None else str(Path(directory) / name)
            for kind, name in (FILES if selection.levers is None else FILES | {"levers": LEVERS_FILE}).items()
        },
    }
    made: dict[str, Any] = finite(document)
    return made


def choice_record(choice: HeadOrder) -> dict[str, Any]:
    """What was chosen for a head, as ``report.json`` repeats it."""
    made: dict[str, Any] = finite(FlatOrder.of(choice).model_dump(mode="json", exclude_defaults=True))
    return made


def _head_record(head: HeadVerdict) -> dict[str, Any]:
    best = head.best
    return {
        "module": head.module,
        "head": head.head,
        "kv_head": head.kv_head,
        "choice": choice_record(head.choice),
        "best": None
        if best is None
        else {"order": best.order, "expansion": best.expansion, "relative_l2": best.relative_l2},
        "needed_order": head.needed_order,
        "predicted_order": head.predicted_order,
    }


def _alphas(spectral: Iterable[SpectralRow]) -> list[dict[str, Any]]:
    """Alphas of whole projections, one record per module; None where there is no usable fit."""
    layers: dict[str, dict[str, Any]] = {}
    for row in spectral:
        if row.head is None:
            layers.setdefault(row.module, {"module": row.module})[row.projection] = row.alpha
    return list(layers.values())
