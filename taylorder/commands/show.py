"""``taylorder show``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from taylorder.commands import options
from taylorder.commands._paths import path_of, run_folder
from taylorder.commands._shared import print_analysis
from taylorder.errors import TaylorderError


def show(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="[DIR]", help="What `taylorder analyze --out` wrote, or a file in it.", parser=path_of("DIR")
        ),
    ] = Path("taylorder-out"),
    svg: Annotated[Path | None, options.path("Draw the report into this SVG file instead.", "--svg")] = None,
    output: options.Format = "human",
) -> None:
    """Show the report of an earlier run again, without measuring.

    Example: [bold]taylorder show taylorder-out[/bold]
    """
    from taylorder.reports.analysis import sections
    from taylorder.reports.render import export_svg
    from taylorder.runs import run_directory

    directory = run_folder(directory)
    analysis, selection = run_directory.read(directory)
    evaluation = run_directory.read_evaluation(directory)
    if svg is not None:
        try:
            report = sections(analysis, selection, None, evaluation)
            export_svg(report, f"taylorder: {analysis.model.name}", svg)
        except OSError as error:
            raise TaylorderError(f"{svg} cannot be written ({error.strerror}); name another with --svg") from error
        print(f"wrote {svg}", file=sys.stderr)
        return
    print_analysis(analysis, selection, evaluation, directory, output)
