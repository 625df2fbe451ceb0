"""An analysis and its config as one HTML page that needs nothing else, ``report.html``; claims and
several budgets as others.

Words and tables are those of the terminal report: the same sections, each where what it is about stands. The script of
the page draws the figures of :mod:`taylorder.reports.html_data`. Nothing is loaded from anywhere.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from taylorder.analysis.results import Analysis
from taylorder.claims.claim import Claim, Verdict
from taylorder.evaluation.evaluate import Evaluation
from taylorder.reports import alphas, budgets, example_text, html_data, levers, savings, summary, verdict
from taylorder.reports.analysis import sections as report_sections
from taylorder.reports.budgets import BudgetsReport
from taylorder.reports.claims import ClaimsReport
from taylorder.reports.html_page import fill
from taylorder.reports.reproduce import analyze_command, eval_command, show_command
from taylorder.runs.run_files import FILES
from taylorder.selection.by_tolerance import Selection
from taylorder.selection.lever_costs import LeverCost
from taylorder.storage.provenance import software_versions

_SCRIPTS = ("theme.js", "element.js", "chart.js", "views.js", "heatmap.js", "detail.js", "report.js")


def render(
    analysis: Analysis,
    selection: Selection,
    evaluation: Evaluation | None = None,
    claims: Sequence[Claim] | None = None,
    directory: Path | None = None,
    costs: Sequence[LeverCost] = (),
) -> str:
    """The whole page as one string.

    Args:
        analysis: the measurements.
        selection: the choice.
        evaluation: the short evaluation, None if it was skipped.
        claims: claims judged on this model alone, None if none were.
        directory: where the files of this run lie, for the commands.
        costs: what every candidate of every KV head takes and loses, where levers were measured.

    """
    header, *sections = report_sections(analysis, selection, directory, evaluation)
    exact, adapted = savings.saved(analysis, selection)
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
        drawn=example_text.drawn_texts(analysis, selection),
        drawn_source=example_text.source(selection),
        kinds=example_text.KINDS,
        bars=levers.kinds_of_bars(selection),
        shares=[exact / max(exact, adapted, 1), adapted / max(exact, adapted, 1)],
        claims=claims,
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
    again = analyze_command(
        analysis, selection, out=str(directory or "taylorder-out"), evaluated=evaluation is not None
    )
    commands = [
        (again, "measures the same, chooses, and writes the run directory"),
        (show_command(directory), "prints the report again, without measuring"),
    ]
    if summary.head_counts(analysis, selection).adapted:
        does = "measures what the config costs in loss, beside simpler uses of the same bytes"
        commands.append((eval_command(analysis, directory), does))
    return commands


def render_claims(report: ClaimsReport, directories: Sequence[Path], out: Path) -> str:
    """The page of claims and nothing else as one string.

    ``directories`` are the runs they came from, and ``out`` where it goes, for the command that makes it again.
    """
    counts = Counter(claim.verdict for claim in report.claims)
    verdicts = [f"{counts[verdict]} {verdict}" for verdict in get_args(Verdict) if counts[verdict]]
    return fill(
        "claims.html.j2",
        ("theme.js",),
        title=", ".join(report.models),
        verdict=f"{len(report.claims)} claims about truncated attention: {', '.join(verdicts)}.",
        claims=report.claims,
        command=shlex.join(["taylorder", "claims", *map(str, directories), "--out", str(out)]),
        software=software_versions(),
    )


def render_budgets(report: BudgetsReport, out: Path) -> str:
    """The page of several budgets as one string; ``out`` is where it goes, for the command that makes it again."""
    header, losses, _ = budgets.sections(report, out)
    first = report.runs[0]
    command = analyze_command(
        report.analysis,
        first.selection,
        out=str(out),
        evaluated=first.evaluation is not None,
        budget=",".join(run.given for run in report.runs),
    )
    return fill(
        "budgets.html.j2",
        ("theme.js",),
        title=report.analysis.model.name,
        verdict=budgets.verdict(report),
        facts=header.blocks[0],
        losses=losses,
        runs=report.by_size,
        page=FILES["page"],
        command=command,
        fingerprint=report.analysis.model.fingerprint,
        software=software_versions(),
    )
