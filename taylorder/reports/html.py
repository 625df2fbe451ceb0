"""An analysis and its config as one HTML page that needs nothing else: the content of ``report.html``.

Words and tables are those of the terminal report, section by section as their headings say what they are about; the
script of the page draws the figures of :mod:`taylorder.reports.html_data`. Nothing is loaded from anywhere.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from taylorder.analysis.results import Analysis
from taylorder.claims.claim import Claim
from taylorder.evaluation.evaluate import Evaluation
from taylorder.reports import alphas, html_claims, html_data, summary, terminal, verdict
from taylorder.reports.html_page import fill
from taylorder.reports.parts import About, Heading
from taylorder.reports.reproduce import analyze_command
from taylorder.reports.sections import Block, Column, paragraph, table
from taylorder.selection.by_tolerance import Selection
from taylorder.storage.files import replacing

_WIDTH = 80
"""Of the terminal that tables are made for."""

_SCRIPTS = (*("theme.js", "format.js", "palette.js", "chart.js", "views.js", "heatmap.js", "detail.js", "report.js"),)


@dataclass(slots=True)
class Section:
    """What stands under one heading of the terminal report; the header, without one, is about None."""

    title: str
    about: About | None
    blocks: list[Block] = field(default_factory=list)


def render(
    analysis: Analysis,
    selection: Selection,
    evaluation: Evaluation | None = None,
    claims: Sequence[Claim] | None = None,
    directory: Path | None = None,
) -> str:
    """The whole page as one string.

    Args:
        analysis: the measurements.
        selection: the choice.
        evaluation: the short evaluation, None if it was skipped.
        claims: claims judged on this model alone, None if none were.
        directory: where the files of this run lie, for the commands.

    """
    header, *sections = _sections(analysis, selection, evaluation)
    exact, adapted = html_data.saved_bytes(analysis, selection)
    command, reason = verdict.next_command(analysis, selection, directory)
    return fill(
        "report.html.j2",
        _SCRIPTS,
        title=analysis.model.name,
        verdict=" ".join(verdict.sentences(analysis, selection, evaluation)),
        data=html_data.as_data(analysis, selection),
        model=analysis.model,
        facts=[row for block in header.blocks for row in getattr(block, "rows", ())],
        counts=summary.outcome(analysis, selection),
        alphas_note=alphas.legend(analysis),
        overall=[each for each in sections if each.about == "all heads"],
        saved=[each for each in sections if each.about == "config"],
        shares=[exact / max(exact, adapted, 1), adapted / max(exact, adapted, 1)],
        claims=None if claims is None else html_claims.on_page(claims),
        commands=_commands(analysis, selection, evaluation, directory),
        next=command,
        reason=reason,
        software=selection.config.software,
        text_sha256=analysis.calibration.text_sha256,
    )


def write(
    path: str | Path,
    analysis: Analysis,
    selection: Selection,
    evaluation: Evaluation | None = None,
    claims: Sequence[Claim] | None = None,
    directory: Path | None = None,
) -> None:
    """Write the page; the arguments are those of :func:`render`."""
    with replacing(path) as temporary:
        temporary.write_text(render(analysis, selection, evaluation, claims, directory), encoding="utf-8")


def _sections(analysis: Analysis, selection: Selection, evaluation: Evaluation | None) -> list[Section]:
    """The terminal report by its headings; the first section, without one, is the header."""
    sections = [Section("", None)]
    for part in terminal.parts(analysis, selection, _WIDTH, None, evaluation):
        inner = part.renderable if isinstance(part, Padding) else part
        match inner:
            case Heading():
                sections.append(Section(str(inner.title), inner.about))
            case Table():
                sections[-1].blocks.append(_block(inner))
            case Text() if inner is not part:  # others are blank lines, or laid out by hand
                sections[-1].blocks.append(paragraph(inner.plain))
    return sections


def _block(found: Table) -> Block:
    columns = [Column(str(each.header), each.justify == "right") for each in found.columns]
    rows = list(zip(*([str(cell) for cell in each.cells] for each in found.columns), strict=True))
    return replace(table(columns, rows), headed=found.show_header)


def _commands(
    analysis: Analysis, selection: Selection, evaluation: Evaluation | None, directory: Path | None
) -> list[tuple[str, str]]:
    """Commands that make this run and its figures again, each with what it does."""
    out = str(directory or "taylorder-out")
    config = str(Path(out) / "orders.json")
    commands = [
        (
            analyze_command(analysis, selection, out=out, evaluated=evaluation is not None),
            "measures the same, chooses, and writes the run directory",
        ),
        (shlex.join(["taylorder", "show", out]), "prints the report again, without measuring"),
    ]
    if summary.outcome(analysis, selection).adapted:
        evaluate = shlex.join(["taylorder", "eval", analysis.model.name, "--config", config])
        commands.append((evaluate, "measures what the config costs in loss, beside simpler uses of the same bytes"))
    return commands
