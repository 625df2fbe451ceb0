"""An analysis and its config as one HTML page that needs nothing else: the content of ``report.html``.

Words and tables are those of the terminal report: the same sections, each where what it is about stands. The script of
the page draws the figures of :mod:`taylorder.reports.html_data`. Nothing is loaded from anywhere.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from taylorder.analysis.results import Analysis
from taylorder.claims.claim import Claim
from taylorder.evaluation.evaluate import Evaluation
from taylorder.reports import alphas, html_claims, html_data, summary, terminal, verdict
from taylorder.reports.html_page import fill
from taylorder.reports.reproduce import analyze_command
from taylorder.selection.by_tolerance import Selection

_SCRIPTS = ("theme.js", "element.js", "chart.js", "views.js", "heatmap.js", "detail.js", "report.js")


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
    header, *sections = terminal.sections(analysis, selection, directory, evaluation)
    exact, adapted = html_data.saved_bytes(analysis, selection)
    command, reason = verdict.next_command(analysis, selection, directory)
    return fill(
        "report.html.j2",
        _SCRIPTS,
        title=analysis.model.name,
        verdict=" ".join(verdict.sentences(analysis, selection, evaluation)),
        data=html_data.as_data(analysis, selection),
        model=analysis.model,
        facts=header.blocks[0],
        counts=summary.head_counts(analysis, selection),
        alphas_note=alphas.legend(analysis),
        overall=[section for section in sections if section.about == "all heads"],
        saved=[section for section in sections if section.about == "config"],
        shares=[exact / max(exact, adapted, 1), adapted / max(exact, adapted, 1)],
        claims=None if claims is None else html_claims.on_page(claims),
        commands=_commands(analysis, selection, evaluation, directory),
        next=command,
        reason=reason,
        software=selection.config.software,
        text_sha256=analysis.calibration.text_sha256,
    )


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
    if summary.head_counts(analysis, selection).adapted:
        evaluate = shlex.join(["taylorder", "eval", analysis.model.name, "--config", config])
        commands.append((evaluate, "measures what the config costs in loss, beside simpler uses of the same bytes"))
    return commands
