"""What several commands need: options, checks that come before anything is loaded, and printing."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from taylorder.errors import UsageError

if TYPE_CHECKING:
    from taylorder.adapt.evaluate import Evaluation
    from taylorder.adapt.select import Selection
    from taylorder.analysis.results import Analysis

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL", show_default="the built-in smollm2-135m", help="Hub id, model folder or .gguf file."
    ),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="Run on this torch device, such as cpu or cuda.")]
Format = Annotated[
    Literal["human", "json"],
    typer.Option("--format", help="Print a report, or one JSON document and nothing else."),
]


def check_texts(files: Sequence[Path]) -> None:
    """Refuse text files that do not exist."""
    for file in files:
        if not file.is_file():
            raise UsageError(f"--text {file} is not a file; name an existing text file")


def check_writable(directory: Path) -> None:
    """Refuse an output directory that could not be written after minutes of measuring."""
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UsageError(f"--out {directory}: {existing} is a file; name a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"--out {directory}: {existing} is not writable; name another directory")


def print_analysis(
    analysis: Analysis, selection: Selection, evaluation: Evaluation | None, directory: Path, output: str
) -> None:
    """Write the result to standard output: a report as wide as the terminal, plain text into a pipe, or JSON."""
    from rich.console import Console

    from taylorder.reports import terminal
    from taylorder.reports.document import as_document, as_json

    if output == "json":
        sys.stdout.write(as_json(as_document(analysis, selection, directory, evaluation)))
        return
    console = Console(highlight=False)
    if console.is_terminal:
        terminal.render(analysis, selection, console, directory, evaluation)
    else:
        sys.stdout.write(terminal.as_text(analysis, selection, directory, evaluation=evaluation))
