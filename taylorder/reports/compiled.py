"""What ``compile-report`` prints: registers, spills, shared memory and inner loops of compiled kernels, per target."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from taylorder.compile_report.ahead_of_time import Compiled, Failed, shared_limit
from taylorder.reports.fitting_tables import FittingTable
from taylorder.reports.numbers import counted, number, size
from taylorder.reports.parts import INDENT
from taylorder.reports.plain import plain_text
from taylorder.storage.finite_json import finite
from taylorder.storage.provenance import software_versions

SCHEMA = "taylorder/compile-report@1"

_LEGEND = (
    "Static counts of compiled code: nothing ran, and no time was taken. tensor:issue is, for each innermost loop with "
    "matrix products in the order of the code, cycles of the tensor cores at their peak over cycles of instruction "
    "issue: from 1 on the tensor cores are the limit, below it the ratio is the largest share of the time that they "
    "can be busy, before any wait for memory. A dash stands where no products are counted (AMD, sm_100); on "
    "sm_90 those of decode run below the peak assumed, so that their true ratio is higher."
)


@dataclass(frozen=True, slots=True)
class Overhead:
    """Rows of a state over those of the minimal basis."""

    head_dim: int
    order: int
    overhead: float


@dataclass(frozen=True, slots=True)
class CompileReport:
    """Everything ``compile-report`` says; rows are by target, in the order of ``targets``."""

    dtype: str
    every_setting: bool
    targets: tuple[str, ...]
    rows: tuple[Compiled | Failed, ...]
    overheads: tuple[Overhead, ...]

    @property
    def compiled(self) -> list[Compiled]:
        """Rows with figures."""
        return [row for row in self.rows if isinstance(row, Compiled)]

    @property
    def failed(self) -> list[Failed]:
        """Rows without."""
        return [row for row in self.rows if isinstance(row, Failed)]


def as_document(report: CompileReport) -> dict[str, Any]:
    """The result as one JSON document, schema ``taylorder/compile-report@1``; figures of failed rows are null."""
    document = {
        "schema": SCHEMA,
        "software": software_versions(),
        "dtype": report.dtype,
        "all_settings": report.every_setting,
        "rows": [_record(row) for row in report.rows],
        "state_overhead": [
            {"head_dim": each.head_dim, "order": each.order, "overhead": each.overhead} for each in report.overheads
        ],
    }
    made: dict[str, Any] = finite(document)
    return made


def _record(row: Compiled | Failed) -> dict[str, Any]:
    figures = row if isinstance(row, Compiled) else None
    record = {
        "kernel": row.job.kernel,
        "target": row.target,
        "config": row.job.config,
        "registers": figures and figures.registers,
        "spills": figures and figures.spills,
        "shared_bytes": figures and figures.shared_bytes,
        "shared_limit_bytes": shared_limit(row.target),
        "warps": row.job.setting.warps,
        "stages": row.job.setting.stages,
        "step": row.job.setting.step,
        "max_registers": row.job.setting.registers,
        "default": row.job.default,
        "loops": [
            {
                "instructions": loop.instructions,
                "tensor_cycles": loop.tensor_cycles,
                "issue_cycles": loop.issue_cycles,
                "ratio": loop.ratio,
            }
            for loop in (figures.loops if figures else ())
        ],
    }
    return record if isinstance(row, Compiled) else record | {"error": row.error}


def render(report: CompileReport, console: Console) -> None:
    """Print the report."""
    for part in _parts(report):
        console.print(part)


def as_text(report: CompileReport, width: int = 80) -> str:
    """The report as plain text: no colour, no trailing blanks."""
    return plain_text(lambda console: render(report, console), width)


def sentences(report: CompileReport) -> Iterator[tuple[str, Sequence[str]]]:
    """What follows from the rows, in words: a sentence, and the rows it is about."""
    compiled, failed = report.compiled, report.failed
    yield (
        f"{number(len(failed))} of {number(len(report.rows))} did not compile:"
        if failed
        else f"All {number(len(report.rows))} compiled.",
        [f"{_name(row)}: {row.error}" for row in failed],
    )
    if not compiled:
        return
    spilling = [row for row in compiled if row.spills]
    yield (
        f"{number(len(spilling))} of {number(len(compiled))} spill registers:"
        if spilling
        else "None spills registers.",
        [f"{_name(row)}: {_spilled(row)}" for row in spilling],
    )
    if large := [row for row in compiled if row.too_large]:
        yield (
            f"{number(len(large))} of {number(len(compiled))} could not be launched, for want of shared memory:",
            [f"{_name(row)}: {size(row.shared_bytes)} of {size(shared_limit(row.target) or 0)}" for row in large],
        )


def _name(row: Compiled | Failed) -> str:
    setting = "" if row.job.default else f" {_setting(row)}"
    return f"{row.job.kernel} {row.job.config}{setting} on {row.target}"


def _spilled(row: Compiled) -> str:
    if row.target.startswith("gfx"):
        return counted(row.spills, "vector register")
    return f"{counted(row.spills, 'byte')} of stack"


def _setting(row: Compiled | Failed) -> str:
    """Tokens per step, warps, stages, and the most registers where that is set."""
    setting = row.job.setting
    figures = (setting.step or "-", setting.warps, setting.stages)
    return "/".join(map(str, figures if setting.registers is None else (*figures, setting.registers)))


def _parts(report: CompileReport) -> Iterable[RenderableType]:
    yield Text("taylorder compile-report", style="bold")
    facts = Table.grid(padding=(0, 2, 0, 0))
    for name, fact in _facts(report).items():
        facts.add_row(Text(name), Text(fact))
    yield Padding(facts, INDENT, expand=False)
    for target in report.targets:
        yield Text()
        yield Text(target, style="bold")
        yield _figures([row for row in report.rows if row.target == target])
    yield Text()
    yield Text("rows of a state over those of the minimal basis", style="bold")
    yield _overheads(report.overheads)
    yield Text()
    for sentence, rows in sentences(report):
        yield Padding(Text(sentence), INDENT)
        for row in rows:
            yield Padding(Text(row), (0, 0, 0, 4))
    yield Text()
    yield Padding(Text(_LEGEND), INDENT)


def _facts(report: CompileReport) -> dict[str, str]:
    settings = "every setting that ships" if report.every_setting else "the setting a launch takes before autotuning"
    return {
        "inputs": report.dtype,
        "compiled": f"{settings}; triton {software_versions().get('triton', 'of unknown version')}",
        "launch": "tokens per step / warps / stages",
    }


def _figures(rows: Sequence[Compiled | Failed]) -> Table:
    """One target's rows, kernel by kernel."""
    table = FittingTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("kernel, config")
    table.add_column("launch", no_wrap=True)
    for title in ("regs", "spills", "shared\nKiB"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("tensor:\nissue")
    for kernel in dict.fromkeys(row.job.kernel for row in rows):
        table.add_section()
        table.add_row(Text(kernel, style="bold"))
        for row in rows:
            if row.job.kernel == kernel:
                table.add_row(row.job.config, _setting(row), *_cells(row))
    return table


def _cells(row: Compiled | Failed) -> tuple[str | Text, ...]:
    if isinstance(row, Failed):
        return "-", "-", "-", Text("failed", style="red")
    return (
        str(row.registers),
        Text(str(row.spills), style="red" if row.spills else ""),
        Text(f"{row.shared_bytes / 1024:.4g}", style="red" if row.too_large else ""),
        " ".join(f"{loop.ratio:.2f}" for loop in row.loops) or "-",
    )


def _overheads(overheads: Sequence[Overhead]) -> Table:
    """A row per head dim, a column per order."""
    orders = sorted({each.order for each in overheads})
    found = {(each.head_dim, each.order): each.overhead for each in overheads}
    table = FittingTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("head dim", justify="right")
    for order in orders:
        table.add_column(f"P={order}", justify="right")
    for head_dim in dict.fromkeys(each.head_dim for each in overheads):
        cells = (found.get((head_dim, order)) for order in orders)
        table.add_row(str(head_dim), *("-" if cell is None else f"{cell:.3f}" for cell in cells))
    return table
