"""What ``compile-report`` prints: registers, spills, shared memory and inner loops of compiled kernels, per target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from taylorder.compile_report.ahead_of_time import SHARED_LIMITS, Compiled, Failed
from taylorder.reports.numbers import counted, number, size
from taylorder.reports.sections import Cell, Column, Section, Table, facts, paragraph, table
from taylorder.storage.finite_json import stamped
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
    content = {
        "software": software_versions(),
        "dtype": report.dtype,
        "all_settings": report.every_setting,
        "rows": [_record(row) for row in report.rows],
        "state_overhead": [asdict(overhead) for overhead in report.overheads],
    }
    return stamped(SCHEMA, content)


def _record(row: Compiled | Failed) -> dict[str, Any]:
    figures = row if isinstance(row, Compiled) else None
    record = {
        "kernel": row.job.kernel,
        "target": row.target,
        "config": row.job.config,
        "registers": figures and figures.registers,
        "spills": figures and figures.spills,
        "shared_bytes": figures and figures.shared_bytes,
        "shared_limit_bytes": SHARED_LIMITS.get(row.target),
        "warps": row.job.setting.warps,
        "stages": row.job.setting.stages,
        "step": row.job.setting.step,
        "max_registers": row.job.setting.registers,
        "default": row.job.default,
        "loops": [asdict(loop) | {"ratio": loop.ratio} for loop in (figures.loops if figures else ())],
    }
    return record if isinstance(row, Compiled) else record | {"error": row.error}


def sections(report: CompileReport) -> Iterator[Section]:
    """The report: a table per target, what follows from them, and what the words mean."""
    yield Section("taylorder compile-report", (facts(_facts(report)),), level=1)
    for target in report.targets:
        yield Section(target, (_figures([row for row in report.rows if row.target == target]),), level=3)
    lines = [line for sentence, rows in sentences(report) for line in (sentence, *(f"  {row}" for row in rows))]
    blocks = (_overheads(report.overheads), paragraph(*lines), paragraph(_LEGEND))
    yield Section("rows of a state over those of the minimal basis", blocks, level=3)


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
            [f"{_name(row)}: {size(row.shared_bytes)} of {size(SHARED_LIMITS[row.target])}" for row in large],
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


def _facts(report: CompileReport) -> dict[str, str]:
    settings = "every setting that ships" if report.every_setting else "the setting a launch takes before autotuning"
    return {
        "inputs": report.dtype,
        "compiled": f"{settings}; triton {software_versions().get('triton', 'of unknown version')}",
        "launch": "tokens per step / warps / stages",
    }


def _figures(rows: Sequence[Compiled | Failed]) -> Table:
    """One target's rows, kernel by kernel."""
    columns = [Column("kernel, config", wraps=True), Column("launch")]
    columns += [Column(title, figures=True) for title in ("regs", "spills", "shared\nKiB")]
    columns.append(Column("tensor:\nissue", wraps=True))
    shown: list[Sequence[Cell | str]] = []
    for kernel in dict.fromkeys(row.job.kernel for row in rows):
        shown += [[""] * 6] if shown else []
        shown.append((Cell(kernel, style="strong"), *[""] * 5))
        shown += [(row.job.config, _setting(row), *_cells(row)) for row in rows if row.job.kernel == kernel]
    return table(columns, shown)


def _cells(row: Compiled | Failed) -> tuple[Cell | str, ...]:
    if isinstance(row, Failed):
        return "-", "-", "-", Cell("failed", style="bad")
    return (
        str(row.registers),
        Cell(str(row.spills), style="bad" if row.spills else ""),
        Cell(f"{row.shared_bytes / 1024:.4g}", style="bad" if row.too_large else ""),
        " ".join(f"{loop.ratio:.2f}" for loop in row.loops) or "-",
    )


def _overheads(overheads: Sequence[Overhead]) -> Table:
    """A row per head dim, a column per order."""
    orders = sorted({overhead.order for overhead in overheads})
    columns = [Column("head dim", figures=True), *(Column(f"P={order}", figures=True) for order in orders)]
    rows: dict[int, dict[int, str]] = {}
    for entry in overheads:
        rows.setdefault(entry.head_dim, dict.fromkeys(orders, "-"))[entry.order] = f"{entry.overhead:.3f}"
    return table(columns, [(str(head_dim), *figures.values()) for head_dim, figures in rows.items()])
