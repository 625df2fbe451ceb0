"""What a command would take, before it is run: its stages with minutes each, memory and disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from taylorder.models.description import ModelDescription
from taylorder.reports.numbers import size
from taylorder.reports.sections import Cell, Column, Paragraph, Section, facts, paragraph, table
from taylorder.storage.durations import duration
from taylorder.storage.finite_json import stamped
from taylorder.storage.machine import Machine
from taylorder.storage.stages import Speed, StagePlan

SCHEMA = "taylorder/plan@1"

CAUTION = (
    "Minutes are for this machine as busy as it is now, from a timing of a few seconds, and mostly right within a "
    "factor of two."
)

PROCESS_BYTES = 900 * 2**20
"""Python, torch, transformers and WeightWatcher, loaded."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A plan, how fast the machine is, the bytes of weights that stay in memory, and what the machine has."""

    plan: StagePlan
    speed: Speed
    weights: int
    machine: Machine

    @property
    def seconds(self) -> float:
        """How long it will take, the loading of the model aside."""
        return self.plan.seconds(self.speed)

    @property
    def memory(self) -> int:
        """Bytes at the height of the run."""
        return PROCESS_BYTES + self.weights + self.plan.memory

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the machine does not have enough of, each with a way out."""
        said = []
        # The weights are in memory by now.
        needed = self.plan.memory
        if self.machine.available is not None and needed > self.machine.available:
            said.append(
                f"{size(needed)} of memory are needed beside the model, and {size(self.machine.available)} are "
                "available: lower --max-tokens, or end other programs."
            )
        if self.machine.disk is not None and self.plan.disk > self.machine.disk:
            said.append(
                f"{size(self.plan.disk)} of disk are needed, and {size(self.machine.disk)} are free: name another disk "
                "with --out."
            )
        return tuple(said)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "seconds": self.seconds,
            "memory_bytes": self.memory,
            "disk_bytes": self.plan.disk,
            "stages": [
                {"stage": stage.name, "about": stage.about, "budget": stage.budget, "seconds": seconds}
                for stage in self.plan.stages
                for seconds in (stage.seconds(self.speed),)
            ],
            "warnings": list(self.warnings),
        }


def as_document(estimate: Estimate, description: ModelDescription) -> dict[str, Any]:
    """What a dry run says as one JSON document, schema ``taylorder/plan@1``."""
    return stamped(SCHEMA, {"model": description.name, **estimate.record()})


def sections(estimate: Estimate, description: ModelDescription) -> Iterator[Section]:
    """The stages of a run in order, and what all of it takes."""
    stages = estimate.plan.stages
    several = any(stage.budget for stage in stages)
    columns = [Column("", figures=True), Column("stage", wraps=True), Column("what", wraps=True)]
    if several:
        columns.append(Column("budget"))
    columns.append(Column("time", figures=True))
    rows = []
    for number, stage in enumerate(stages, start=1):
        cells = [Cell(str(number)), Cell(stage.name), Cell(stage.about, style="faint")]
        if several:
            cells.append(Cell(stage.budget))
        rows.append([*cells, duration_cell(stage.seconds(estimate.speed))])
    yield Section(f"{description.name}: what this run would do", (table(columns, rows),))
    total = facts(taken(estimate))
    yield Section("", (total, *warned(estimate), paragraph(CAUTION, "Nothing was written.", style="faint")))


def taken(estimate: Estimate) -> dict[str, Cell | str]:
    """Time, memory and disk of a whole plan."""
    disk = size(estimate.plan.disk)
    return {"time": duration_cell(estimate.seconds), "memory": size(estimate.memory), "disk": disk}


def warned(estimate: Estimate) -> tuple[Paragraph, ...]:
    """A paragraph of warnings, if there are any."""
    return (paragraph(*estimate.warnings, style="bad"),) if estimate.warnings else ()


def duration_cell(seconds: float) -> Cell:
    """A time as a cell."""
    return Cell(duration(seconds), seconds)
