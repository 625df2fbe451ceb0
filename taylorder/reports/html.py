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
from typing import Any, get_args

from taylorder.analysis.results import Analysis
from taylorder.claims.claim import Claim, Verdict
from taylorder.evaluation.evaluate import Evaluation
from taylorder.reports import (
    alphas,
    budgets,
    example_text,
    html_data,
    kv_data,
    levers,
    run_pair,
    run_pair_grid,
    run_pair_words,
    summary,
    verdict,
)
from taylorder.reports.analysis import sections as report_sections
from taylorder.reports.budgets import BudgetsReport
from taylorder.reports.claims import ClaimsReport
from taylorder.reports.headline import Headline, headline
from taylorder.reports.html_page import fill
from taylorder.reports.loss_strips import loss_strips
from taylorder.reports.numbers import compact, counted, size
from taylorder.reports.reproduce import analyze_command, eval_command, show_command
from taylorder.runs.run_files import FILES, LEVERS_FILE, PROBES_FILE
from taylorder.runs.run_pair import RunPair
from taylorder.selection.by_tolerance import Selection
from taylorder.selection.lever_costs import LeverCost
from taylorder.storage.provenance import software_versions

_MAP = ("data.js", "views.js", "heatmap.js", "detail.js", "address.js", "controls.js", "save_map.js")
_OF_HEADS = (*_MAP, "chart.js", "head_detail.js", "report.js")
_OF_KV_HEADS = (*_MAP, "kv_detail.js")
"""Scripts of the page of heads judged one by one, and of the page of a choice made for all KV heads together."""


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
    sections = report_sections(analysis, selection, directory, evaluation)
    run = next(section for section in sections if section.about == "run")
    command, reason = verdict.next_command(analysis, selection, directory)
    facts = headline(analysis, selection, evaluation)
    sentences = verdict.sentences(analysis, selection, evaluation)
    common: dict[str, Any] = {
        "title": analysis.model.name,
        "model": analysis.model,
        "tiles": facts.facts,
        "facts": run.blocks[0],
        "overall": [section for section in sections if section.about == "all heads"],
        "saved": [section for section in sections if section.about == "config"],
        "costs": _cost_bars(facts),
        "losses": loss_strips(facts.comparison),
        "drawn": example_text.drawn_texts(analysis, selection),
        "drawn_source": example_text.source(selection),
        "kinds": example_text.KINDS,
        "bars": levers.kinds_of_bars(selection),
        "claims": claims,
        "commands": _commands(analysis, selection, evaluation, directory),
        "next": command,
        "reason": reason,
        "files": _files(selection),
        "software": selection.config.software,
        "text_sha256": analysis.calibration.text_sha256,
    }
    if selection.levers is None:
        return fill(
            "report.html.j2",
            _OF_HEADS,
            verdict=" ".join(sentences),
            heads_title="Heads",
            has_numbers=True,
            data=html_data.as_data(analysis, selection),
            alphas_note=alphas.legend(analysis),
            **common,
        )
    return fill(
        "budget.html.j2",
        _OF_KV_HEADS,
        verdict="",
        heads_title="What every KV head runs",
        has_numbers=False,
        sentences=sentences,
        data=kv_data.as_data(analysis, selection, costs),
        cost_axes=kv_data.axes(costs),
        cost_kinds=kv_data.KINDS,
        share_kinds=kv_data.SHARES,
        **common,
    )


def _cost_bars(facts: Headline) -> list[tuple[str, float, str]]:
    """What exact attention and the config take: a name, the length of a bar, and the figure."""
    written, most = size if facts.causal else compact, max(facts.exact_cost, facts.cost, 1)
    return [(name, cost / most, written(cost)) for name, cost in (("exact", facts.exact_cost), ("config", facts.cost))]


def _files(selection: Selection) -> list[str]:
    """What lies beside the page."""
    chosen = selection.levers
    more = [] if chosen is None else [LEVERS_FILE]
    more += [] if chosen is None or chosen.probes is None else [PROBES_FILE]
    return [name for kind, name in FILES.items() if kind != "page"] + more


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
        commands.append(
            (eval_command(directory, analysis.calibration), f"measures what {verdict.eval_measures(analysis)}")
        )
    return commands


def render_claims(report: ClaimsReport, directories: Sequence[Path], out: Path) -> str:
    """The page of claims and nothing else as one string.

    ``directories`` are the runs they came from, and ``out`` where it goes, for the command that makes it again.
    """
    counts = Counter(claim.verdict for claim in report.claims)
    verdicts = [f"{counts[verdict]} {verdict}" for verdict in get_args(Verdict) if counts[verdict]]
    return fill(
        "claims.html.j2",
        (),
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
        (),
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


def render_pair(report: RunPair, command: str) -> str:
    """The page of two configs side by side as one string; ``command`` measures both on the same sequences."""
    header, *_ = run_pair.sections(report, command)
    named, summary_lines = header.blocks
    return fill(
        "pair.html.j2",
        (),
        title=f"{report.configs.model.name}: A and B",
        verdict=run_pair_words.verdict(report),
        named=named,
        summary=summary_lines,
        map=run_pair_grid.differences(report.configs),
        across=run_pair_grid.across(report.configs),
        means=run_pair_grid.MEANS,
        legend=run_pair_grid.legend(report.configs),
        context=counted(report.configs.context, "token"),
        moves=run_pair.moves(report) if report.configs.differing else None,
        losses=list(run_pair.losses(report)),
        command=command,
        fingerprint=report.configs.model.fingerprint,
        software=software_versions(),
    )
