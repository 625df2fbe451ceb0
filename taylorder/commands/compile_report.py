"""``taylorder compile-report``."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from typing import Annotated, Literal

import typer

from taylorder.commands import options
from taylorder.commands._shared import print_report
from taylorder.compile_report import TARGETS
from taylorder.errors import TaylorderError, UsageError

HEAD_DIMS = (16, 32, 64, 80, 96, 128, 256)
"""Those of the kernels, which cannot be asked before torch is imported."""

KNOWN = (
    *("sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "sm_121"),
    *("gfx908", "gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1101", "gfx1102", "gfx1150", "gfx1151", "gfx1200"),
    *("gfx1201", "gfx1250"),
)
"""What the compilers in Triton's wheel make code for; another one fails only after minutes, once for each kernel."""

_YES = ("1", "true", "on", "y", "yes")


def compile_report(
    targets: Annotated[
        list[str] | None,
        typer.Option(
            "--target", metavar="T", show_default=", ".join(TARGETS), help="Compile for this GPU; repeatable."
        ),
    ] = None,
    head_dims: Annotated[
        list[int] | None,
        typer.Option(
            "--head-dim",
            metavar="N",
            show_default=", ".join(map(str, HEAD_DIMS)),
            help="Compile for heads of this size; repeatable.",
        ),
    ] = None,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"], typer.Option(help="Compile for inputs of this dtype.")
    ] = "bfloat16",
    all_settings: Annotated[
        bool, options.flag("--all-settings", "Compile also the settings that only autotuning would choose.")
    ] = False,
    output: options.Format = "human",
) -> None:
    """Compile the Triton kernels without a GPU, and report registers, spills, shared memory and inner loops.

    Example: taylorder compile-report --target sm_90 --head-dim 64
    """
    chosen = _targets(targets)
    sizes = _head_dims(head_dims)
    _check_triton()

    from taylorder.reports.progress import StderrProgress

    progress = StderrProgress()
    progress.say("loading Triton")

    import torch
    import triton.compiler  # here, so that every compiler process has it from the start  # noqa: F401

    from taylorder.compile_report import ahead_of_time
    from taylorder.compile_report.compilers import compile_all
    from taylorder.reports import compiled

    jobs = [job for size in sizes for job in ahead_of_time.jobs(size, getattr(torch, dtype), all_settings)]
    with progress:
        rows = compile_all([(job, target) for target in chosen for job in jobs], progress)
    report = compiled.CompileReport(
        dtype=dtype,
        every_setting=all_settings,
        targets=chosen,
        rows=tuple(rows),
        overheads=tuple(
            compiled.Overhead(size, order, ahead_of_time.state_overhead(size, order))
            for size in sizes
            for order in ahead_of_time.orders(size)
        ),
    )
    print_report(output, lambda: compiled.as_document(report), compiled.sections(report))
    if report.failed:
        raise TaylorderError(f"{len(report.failed)} of {len(rows)} did not compile; the report says why")


def _targets(names: Iterable[str] | None) -> tuple[str, ...]:
    for name in names or ():
        if name not in KNOWN:
            raise UsageError(f"--target is {name!r}, expected one of {', '.join(KNOWN)}")
    return tuple(dict.fromkeys(names or TARGETS))


def _head_dims(sizes: Iterable[int] | None) -> tuple[int, ...]:
    for size in sizes or ():
        if size not in HEAD_DIMS:
            known = ", ".join(map(str, HEAD_DIMS))
            raise UsageError(f"--head-dim is {size}, expected one of {known}; heads in between run as the next larger")
    return tuple(sorted(set(sizes or HEAD_DIMS)))


def _check_triton() -> None:
    """Refuse where Triton cannot compile; set what it would otherwise warn about once per process."""
    interpret = os.environ.get("TRITON_INTERPRET", "")
    if interpret.lower() in _YES:
        raise UsageError(
            f"TRITON_INTERPRET is {interpret!r}, with which Triton interprets and compiles nothing; unset it"
        )
    if importlib.util.find_spec("triton") is None:
        raise TaylorderError(
            "Triton, which compiles, is not installed; there is one for Linux only: pip install triton"
        )
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
