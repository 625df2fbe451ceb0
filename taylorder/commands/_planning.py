"""What a run would take, timed with the model at hand and printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from taylorder.commands._shared import print_report

if TYPE_CHECKING:
    from taylorder.models.description import ModelDescription
    from taylorder.reports.plan import Estimate
    from taylorder.storage.stages import StagePlan


def timed(plan: StagePlan, model: Any, description: ModelDescription, out: Path) -> Estimate:
    """Time the model for a few seconds, and say what a plan will take on this machine."""
    from taylorder.models.offloading import weights_bytes
    from taylorder.reports.plan import Estimate
    from taylorder.selection.speed import speed
    from taylorder.storage.machine import Machine

    return Estimate(plan, speed(model, description), weights_bytes(model, resident=True), Machine.here(out))


def print_plan(estimate: Estimate, description: ModelDescription, output: str) -> None:
    """Write the stages of a run, and what they take, to standard output."""
    from taylorder.reports import plan as report

    print_report(output, lambda: report.as_document(estimate, description), report.sections(estimate, description))
