"""``taylorder show``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taylorder.commands import options
from taylorder.commands._paths import path_of, run_folder
from taylorder.commands._shared import print_analysis, print_budgets
from taylorder.errors import TaylorderError
from taylorder.runs import run_files

if TYPE_CHECKING:
    from taylorder.reports.sections import Section


def show(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help=f"A run: {options.A_RUN}.", parser=path_of("DIR")),
    ] = run_files.DEFAULT,
    svg: Annotated[Path | None, options.path("Draw the report into this SVG file instead.", "--svg")] = None,
    output: options.Format = "human",
) -> None:
    """Show the report of an earlier run again, without measuring.

    Example: taylorder show taylorder-out
    """
    from taylorder.reports.analysis import sections
    from taylorder.runs import run_directory

    directory = run_folder(directory)
    if (directory / run_files.OF_BUDGETS[0]).is_file():
        _show_budgets(directory, svg, output)
        return
    analysis, selection = run_directory.read(directory)
    evaluation = run_directory.read_evaluation(directory)
    if svg is not None:
        _draw(sections(analysis, selection, None, evaluation), analysis.model.name, svg)
        return
    print_analysis(analysis, selection, evaluation, directory, output)


def _show_budgets(directory: Path, svg: Path | None, output: str) -> None:
    """The runs of several budgets, side by side."""
    from taylorder.reports import budgets
    from taylorder.runs import run_directory

    runs = []
    for given, folder in run_directory.read_budgets(directory):
        analysis, selection = run_directory.read(directory / folder)
        evaluation = run_directory.read_evaluation(directory / folder)
        runs.append(budgets.BudgetRun(given, folder, selection, evaluation))
    report = budgets.BudgetsReport(analysis, tuple(runs))
    if svg is not None:
        _draw(budgets.sections(report), analysis.model.name, svg)
        return
    print_budgets(report, directory, output)


def _draw(report: Iterable[Section], name: str, svg: Path) -> None:
    from taylorder.reports.render import export_svg

    try:
        export_svg(report, f"taylorder: {name}", svg)
    except OSError as error:
        raise TaylorderError(f"{svg} cannot be written ({error.strerror}); name another with --svg") from error
    print(f"wrote {svg}", file=sys.stderr)
