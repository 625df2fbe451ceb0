"""How the report of a run begins and ends: six lines at the top, and what a terminal still shows at the end."""

from __future__ import annotations

from pathlib import Path

from taylorder.analysis.results import Analysis
from taylorder.evaluation.evaluate import Evaluation
from taylorder.reports import verdict
from taylorder.reports.headline import headline
from taylorder.reports.sections import Block, Cell, Command, Section, facts, paragraph
from taylorder.selection.by_tolerance import Selection

_WINDOW = "one window"
"""What is held against it; a short name leaves room in a narrow terminal."""


def opening(analysis: Analysis, selection: Selection, directory: Path | None, evaluation: Evaluation | None) -> Section:
    """What runs and why, the cache, the loss, that beside one window of the same bytes, and the next command.

    What makes the figures say less than they seem to stands first.
    """
    made = headline(analysis, selection, evaluation)
    runs, *costs, window = made.facts
    command, reason = verdict.next_command(analysis, selection, directory)
    lines: dict[str, Cell | str] = {
        runs.name: runs.line,
        "why": verdict.why(analysis, selection),
        **{fact.name: fact.line for fact in costs},
        _WINDOW: ". ".join(filter(None, (window.line, made.caution))),
        "next": f"{reason}:",
    }
    cautions = verdict.cautions(analysis)
    blocks: list[Block] = [facts(lines), Command(command, tight=True)]
    if cautions:
        blocks.insert(0, paragraph(*cautions, style="strong"))
    return Section(f"taylorder: {analysis.model.name}", tuple(blocks), "verdict", level=1, name="summary")


def closing(analysis: Analysis, selection: Selection, directory: Path | None, evaluation: Evaluation | None) -> Section:
    """The same in a sentence or two, the files, and the next command."""
    made = headline(analysis, selection, evaluation)
    command, reason = verdict.next_command(analysis, selection, directory)
    told = [verdict.why(analysis, selection)]
    if made.replaced:
        _, *costs = made.facts
        short = "; ".join(f"{fact.name} {fact.short}" for fact in costs)
        told = [f"{short[0].upper()}{short[1:]}.", *([made.caution] if made.caution else []), *told]
    else:
        told.append("Exact attention runs everywhere: this config changes nothing and saves nothing.")
    told = [*verdict.cautions(analysis), *told]
    words = [f"Next, {reason}:"]
    if directory is not None:
        words.insert(0, f"In {directory}: {_files(selection)}.")
    blocks = (paragraph(" ".join(told), style="strong"), paragraph(*words), Command(command))
    return Section("Verdict", blocks, "verdict", name="verdict")


def _files(selection: Selection) -> str:
    names = ["report.html (for a browser)", "orders.json", "heads.csv", "spectral.csv"]
    if selection.levers is not None:
        names += ["levers.csv"] if selection.levers.probes is None else ["levers.csv", "probes.csv"]
    return ", ".join([*names, "report.json"])
