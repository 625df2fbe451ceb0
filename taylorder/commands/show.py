"""``taylorder show``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from taylorder.commands import options
from taylorder.commands._paths import path_of
from taylorder.commands._shared import print_report
from taylorder.errors import TaylorderError, UsageError
from taylorder.runs import run_files

if TYPE_CHECKING:
    from taylorder.reports.sections import Section

    _Shown: TypeAlias = tuple[str, Iterable[Section], Callable[[], dict[str, Any]]]


def show(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help=f"A run: {options.A_RUN}.", parser=path_of("DIR")),
    ] = run_files.DEFAULT,
    section: Annotated[
        list[str] | None,
        options.value(
            "Show this section only; repeat for several: summary, run, keeps, orders, errors, by-order, distance, "
            "near-field, alphas, savings, loss, verdict, as far as the run has them.",
            "NAME",
            False,
        ),
    ] = None,
    svg: Annotated[Path | None, options.path("Draw the report into this SVG file instead.", "--svg")] = None,
    output: options.Format = "human",
) -> None:
    """Show the report of an earlier run again, without measuring.

    Example: taylorder show taylorder-out

    Example: taylorder show taylorder-out --section summary
    """
    if section and output == "json":
        raise UsageError("--section is about the report that people read; leave it out, or --format json")
    directory = run_files.run_folder(directory)
    several = (directory / run_files.OF_BUDGETS[0]).is_file()
    # A picture is to be passed on, so it does not say where the run lies.
    name, report, document = (_budgets if several else _run)(directory, None if svg else directory)

    from taylorder.reports.sections import named

    shown = named(report, section) if section else report
    if svg is not None:
        _draw(shown, name, svg)
    else:
        print_report(output, document, shown)


def _run(directory: Path, at: Path | None) -> _Shown:
    """A run: its model, its report, which says that it lies ``at`` some place, and its document."""
    from taylorder.reports.analysis import sections
    from taylorder.reports.document import as_document
    from taylorder.runs import run_directory

    analysis, selection = run_directory.read(directory)
    evaluation = run_directory.read_evaluation(directory)
    report = sections(analysis, selection, at, evaluation)
    return analysis.model.name, report, lambda: as_document(analysis, selection, directory, evaluation)


def _budgets(directory: Path, at: Path | None) -> _Shown:
    """The runs of several budgets, side by side."""
    from taylorder.reports import budgets
    from taylorder.runs import run_directory

    runs = []
    for given, folder in run_directory.read_budgets(directory):
        analysis, selection = run_directory.read(directory / folder)
        evaluation = run_directory.read_evaluation(directory / folder)
        runs.append(budgets.BudgetRun(given, folder, selection, evaluation))
    report = budgets.BudgetsReport(analysis, tuple(runs))
    return analysis.model.name, budgets.sections(report, at), lambda: budgets.as_document(report)


def _draw(report: Iterable[Section], name: str, svg: Path) -> None:
    from taylorder.reports.render import export_svg

    try:
        export_svg(report, f"taylorder: {name}", svg)
    except OSError as error:
        raise TaylorderError(f"{svg} cannot be written ({error.strerror}); name another with --svg") from error
    print(f"wrote {svg}", file=sys.stderr)
