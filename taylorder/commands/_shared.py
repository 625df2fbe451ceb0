"""What several commands need: checks that come before anything is loaded, loading, and printing."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taylorder.errors import UsageError
from taylorder.models.placement import Placement
from taylorder.runs import run_files
from taylorder.runs.subject import ToLoad, named_by

if TYPE_CHECKING:
    from taylorder.analysis.results import Analysis
    from taylorder.evaluation.evaluate import Evaluation
    from taylorder.models.description import ModelDescription
    from taylorder.models.inputs import Inputs
    from taylorder.models.loading import LoadedModel
    from taylorder.reports.budgets import BudgetsReport
    from taylorder.reports.progress import StderrProgress
    from taylorder.reports.sections import Section
    from taylorder.selection.by_tolerance import Selection
    from taylorder.selection.run_levers import LeverRun


def load_described(
    to_load: ToLoad,
    place: Placement,
    progress: StderrProgress,
    way_out: str = "name the model itself, and the run with --config",
    inputs: Inputs | None = None,
) -> tuple[LoadedModel, ModelDescription]:
    """Load a model, the built-in one for None, and describe it; the way out is from a run that names no model here.

    With ``inputs`` of its own it needs no tokenizer.
    """
    progress.say(f"loading {to_load.model or 'the built-in model'}")

    from taylorder.models.describe import describe
    from taylorder.models.loading import load

    with named_by(to_load.named_by, to_load.model, way_out):
        loaded = load(
            to_load.model,
            device=place.device,
            device_map=place.device_map,
            dtype=to_load.dtype,
            revision=to_load.revision,
            text=inputs is None,
            adapter=to_load.adapter,
        )
    return loaded, describe(loaded.model, loaded.name, weights_note=loaded.weights_note, inputs=inputs)


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


def check_kind(out: Path, *, several: bool) -> None:
    """Refuse to mix a run of its own and the runs of several budgets in one directory."""
    if several and (out / run_files.FILES["report"]).is_file():
        raise UsageError(f"--out {out} holds a run, and several budgets get a folder each; name another directory")
    if not several and (sentence := run_files.several_runs(out)) is not None:
        raise UsageError(f"--out {sentence}, or another directory")


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


def print_next(done: str, *commands: str) -> None:
    """Say on standard error what was done, and on standard output what may be done with it."""
    from taylorder.reports.sections import Command, Section, paragraph

    print(done, file=sys.stderr)
    blocks = [Command(command, tight=True) for command in commands]
    print_report("human", dict, [Section("", (paragraph("Next:"), *blocks))])


def print_analysis(
    analysis: Analysis, selection: Selection, evaluation: Evaluation | None, directory: Path, output: str
) -> None:
    """Write the result of an analysis to standard output."""
    from taylorder.reports.analysis import sections
    from taylorder.reports.document import as_document

    print_report(
        output,
        lambda: as_document(analysis, selection, directory, evaluation),
        sections(analysis, selection, directory, evaluation),
    )


def write_run(
    directory: Path,
    analysis: Analysis,
    selection: Selection,
    evaluation: Evaluation | None = None,
    levers: LeverRun | None = None,
) -> None:
    """Render the page and the document of a run, and write everything."""
    from taylorder.reports import html
    from taylorder.reports.document import as_document
    from taylorder.runs import run_directory

    run_directory.write(
        directory,
        analysis,
        selection,
        levers,
        page=html.render(analysis, selection, evaluation, None, directory, () if levers is None else levers.costs()),
        document=as_document(analysis, selection, None, evaluation),
    )


def print_budgets(report: BudgetsReport, directory: Path, output: str) -> None:
    """Write what several budgets led to to standard output."""
    from taylorder.reports import budgets

    print_report(output, lambda: budgets.as_document(report), budgets.sections(report, directory))


def write_budgets(directory: Path, report: BudgetsReport) -> None:
    """Render the page and the document of several budgets, and write both beside their runs."""
    from taylorder.reports import budgets, html
    from taylorder.runs import run_directory

    document, page = run_files.OF_BUDGETS
    run_directory.write_document(
        directory, document, budgets.as_document(report), page, html.render_budgets(report, directory)
    )
