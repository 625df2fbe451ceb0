"""What several commands need: options, checks that come before anything is loaded, and printing."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from taylorder.errors import UsageError

if TYPE_CHECKING:
    from taylorder.analysis.results import Analysis
    from taylorder.evaluation.evaluate import Evaluation
    from taylorder.reports.sections import Section
    from taylorder.selection.by_tolerance import Selection
    from taylorder.selection.run_levers import LeverRun

_DIGITS = 18
_SHOWN = 60
"""Characters of an argument that a message repeats."""

Seed = Annotated[
    int, typer.Option(metavar="N", min=0, max=2**32 - 1, help="Seed whatever is drawn: rows, sequences, tasks, tokens.")
]
Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL", show_default="the built-in smollm2-135m", help="Hub id, model folder or .gguf file."
    ),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="Run on this torch device, such as cpu or cuda.")]
DtypeName = Literal["float32", "bfloat16", "float16", "auto"]
Dtype = Annotated[DtypeName, typer.Option(help="Hold weights and compute in this dtype; auto is the checkpoint's.")]
Format = Annotated[
    Literal["human", "json"],
    typer.Option("--format", help="Print a report, or one JSON document and nothing else."),
]


def parse_numbers(option: str, text: str | None, least: int) -> tuple[int, ...] | None:
    """The whole numbers of a list with commas, each once, in order; None for None."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(is_whole_number(word, least) for word in words):
        raise UsageError(
            f"{option} is {shortly(text)}, expected whole numbers from {least} on with commas between them"
        )
    return tuple(sorted({int(word) for word in words}))


def is_whole_number(text: str, least: int) -> bool:
    """Whether a text is a whole number from ``least`` on, of no more digits than anything can be counted with."""
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS and int(text) >= least


def shortly(text: str) -> str:
    """A text in quotes, as much of it as fits into a sentence."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def check_texts(files: Sequence[Path]) -> None:
    """Refuse text files that do not exist."""
    for file in files:
        if not file.is_file():
            raise UsageError(f"--text {file} is not a file; name an existing text file")


def check_writable(directory: Path) -> None:
    """Refuse an output directory that could not be written after minutes of measuring."""
    wanted = Path(os.path.realpath(directory))  # a link that leads nowhere yet is followed, as it is later
    existing = next(path for path in (wanted, *wanted.parents) if path.exists())
    if not existing.is_dir():
        raise UsageError(f"--out {directory}: {existing} is a file; name a directory")
    try:
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(bytes(4096))
    except OSError as error:
        raise UsageError(
            f"--out {directory}: {existing} is not writable ({error.strerror}); name another directory"
        ) from error


def print_report(
    output: str, document: Callable[[], dict[str, Any]], sections: Iterable[Section], width: int = 80
) -> None:
    """Write a result to standard output: a report as wide as the terminal, plain text into a pipe, or JSON.

    ``width`` is that of the plain text.
    """
    from rich.console import Console

    from taylorder.reports.render import plain_text, print_sections
    from taylorder.storage.finite_json import as_json

    if output == "json":
        sys.stdout.write(as_json(document()))
        return
    console = Console(highlight=False)
    if console.is_terminal:
        print_sections(sections, console)
    else:
        sys.stdout.write(plain_text(sections, width))


def print_analysis(
    analysis: Analysis, selection: Selection, evaluation: Evaluation | None, directory: Path, output: str
) -> None:
    """Write the result of an analysis to standard output."""
    from taylorder.reports import terminal
    from taylorder.reports.document import as_document

    print_report(
        output,
        lambda: as_document(analysis, selection, directory, evaluation),
        terminal.sections(analysis, selection, directory, evaluation),
    )


def write_run(
    directory: Path,
    analysis: Analysis,
    selection: Selection,
    evaluation: Evaluation | None = None,
    levers: LeverRun | None = None,
) -> None:
    """Render the page of a run and what report.json says of it in words, and write everything."""
    from taylorder.reports import html
    from taylorder.reports.document import verdict_record
    from taylorder.runs import run_directory

    run_directory.write(
        directory,
        analysis,
        selection,
        evaluation,
        levers,
        page=html.render(analysis, selection, evaluation, None, directory),
        verdict=verdict_record(analysis, selection, None, evaluation),
    )
