"""The shape of ``report.json``, which is also what ``--format json`` prints: the result of a run but its tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from taylorder.adapt.decisions import FlatOrder, HeadOrder
from taylorder.analysis.results import Calibration, NearFieldPreview
from taylorder.evaluation.evaluate import Evaluation
from taylorder.kernels.spec import Expansion
from taylorder.models.description import ModelDescription
from taylorder.selection.lever_summary import LeverSummary
from taylorder.selection.settings import ChosenBy
from taylorder.storage.finite_json import finite

SCHEMA: Final = "taylorder/report@2"


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
    relative_l2: float


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportDocument:
    """The whole document, in its order; what has a default is for other readers, and a run is read without it.

    ``verdict`` is what a report says in words and counts; ``alphas`` are those of whole projections, a record per
    module, None where there is no usable fit; ``files`` are names within the run directory, or paths.
    """

    schema: Literal["taylorder/report@2"]
    model: ModelDescription
    calibration: Calibration
    settings: Settings
    verdict: dict[str, Any] = field(default_factory=dict)
    preview: NearFieldPreview | None
    evaluation: Evaluation | None = None
    levers: LeverSummary | None = None
    heads: tuple[HeadRecord, ...]
    alphas: tuple[dict[str, Any], ...] = ()
    software: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


def choice_record(choice: HeadOrder) -> dict[str, Any]:
    """What was chosen for a head, as ``report.json`` repeats it."""
    made: dict[str, Any] = finite(FlatOrder.of(choice).model_dump(mode="json", exclude_defaults=True))
    return made
