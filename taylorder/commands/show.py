"""``taylorder show``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from taylorder.commands._shared import Format, print_analysis


def show(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What `taylorder analyze --out` wrote.")],
    svg: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the report into this SVG file instead.")
    ] = None,
    output: Format = "human",
) -> None:
    """Show the report of an earlier run again, without measuring.

    Example: [bold]taylorder show taylorder-out[/bold]
    """
    from taylorder.reports import run_directory, terminal

    analysis, selection = run_directory.read(directory)
    evaluation = run_directory.read_evaluation(directory)
    if svg is not None:
        terminal.export_svg(analysis, selection, svg, evaluation=evaluation)
        print(f"wrote {svg}", file=sys.stderr)
        return
    print_analysis(analysis, selection, evaluation, directory, output)
