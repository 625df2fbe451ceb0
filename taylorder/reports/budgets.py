"""What several budgets led to, side by side: a table and a plot of loss against bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taylorder.adapt.config import ModelIdentity
from taylorder.analysis.losses import EXACT
from taylorder.analysis.results import Analysis
from taylorder.claims.claim import Plot, Series
from taylorder.evaluation import rivals
from taylorder.evaluation.comparison import Comparison, Standing
from taylorder.evaluation.evaluate import Evaluation
from taylorder.evaluation.intervals import Interval
from taylorder.reports.evaluation_words import figure, with_bracket
from taylorder.reports.numbers import counted, percent, size
from taylorder.reports.reproduce import show_command
from taylorder.reports.sections import Block, Cell, Column, Command, Drawing, Section, Table, facts, paragraph, table
from taylorder.runs.run_files import OF_BUDGETS
from taylorder.selection.by_tolerance import Selection
from taylorder.selection.cache_size import CacheSize
from taylorder.selection.lever_summary import LeverSummary
from taylorder.storage.finite_json import stamped

SCHEMA = "taylorder/budgets@1"


@dataclass(frozen=True, slots=True)
class BudgetRun:
    """One budget as it was asked for, the folder of its run, and what it led to."""

    given: str
    folder: str
    selection: Selection
    evaluation: Evaluation | None

    @property
    def levers(self) -> LeverSummary:
        """What was chosen, in figures."""
        if self.selection.levers is None:
            raise ValueError(f"{self.folder} was not chosen by a budget")
        return self.selection.levers

    @property
    def kl(self) -> float:
        """KL to exact on the calibration text, in nats per token, of the config that was taken."""
        return min(measured.kl for measured in self.levers.rounds)

    @property
    def comparison(self) -> Comparison | None:
        """Losses on other text; None where none were measured."""
        return None if self.evaluation is None or not self.evaluation.comparisons else self.evaluation.comparisons[0]

    def standing(self, name: str) -> Standing | None:
        """How one contender did on other text."""
        return None if self.comparison is None else self.comparison.standing(name)


@dataclass(frozen=True, slots=True)
class BudgetsReport:
    """Runs of one model under several budgets, in the order that was asked for."""

    analysis: Analysis
    runs: tuple[BudgetRun, ...]

    @property
    def cache(self) -> CacheSize:
        """What exact attention holds at the context of all runs."""
        return CacheSize.of(self.analysis.model, self.runs[0].selection.context)

    @property
    def by_size(self) -> Sequence[BudgetRun]:
        """The runs, smallest budget first."""
        return sorted(self.runs, key=lambda run: run.levers.budget or 0)

    @property
    def judged(self) -> bool:
        """Whether there are losses on other text."""
        return any(run.standing(rivals.CONFIG) is not None for run in self.runs)


def as_document(report: BudgetsReport) -> dict[str, Any]:
    """Budgets, bytes and losses as one JSON document, schema ``taylorder/budgets@1``."""
    cache = report.cache
    content = {
        "model": ModelIdentity.of(report.analysis.model).model_dump(),
        "context": cache.context,
        "exact_bytes": cache.exact_bytes // cache.kv_heads,
        "runs": [
            {
                "budget": run.given,
                "folder": run.folder,
                "budget_bytes": run.levers.budget,
                "nominal_bytes": run.levers.nominal_bytes,
                "total_bytes": cache.total(run.levers.nominal_bytes),
                "share_of_exact": cache.share(run.levers.nominal_bytes),
                "calibration_kl": run.kl,
                "standings": [] if run.comparison is None else [one.record() for one in run.comparison.standings],
            }
            for run in report.runs
        ],
    }
    return stamped(SCHEMA, content)


def sections(report: BudgetsReport, directory: Path | None = None) -> Iterator[Section]:
    """The report of several budgets; ``directory`` is where they lie, for the last lines."""
    words = facts(_facts(report)), paragraph(verdict(report), style="strong")
    yield Section(f"taylorder: {report.analysis.model.name}", words, "run", level=1, name="summary")
    blocks: tuple[Block, ...] = (losses(report), paragraph(*_legend(report)), Drawing(plot(report)))
    yield Section("What every budget costs", blocks, "config", name="loss")
    where = directory or Path("taylorder-out")
    files = [f"In {where}: {OF_BUDGETS[1]} (the plot, for a browser), {OF_BUDGETS[0]}, and a folder for every run."]
    blocks = (
        paragraph(verdict(report), style="strong"),
        paragraph(*([] if directory is None else files), "Next, the report of one of them:"),
        Command(show_command(where / report.by_size[-1].folder)),
    )
    yield Section("Verdict", blocks, "verdict", name="verdict")


def losses(report: BudgetsReport) -> Table:
    """One row per budget, smallest first: bytes, and the loss beside exact and beside one window of the same bytes."""
    columns = [Column("budget"), Column("bytes per\nKV head", figures=True)]
    if report.judged:
        columns += [
            Column("NLL", figures=True),
            Column("to exact [95%]", figures=True),
            Column("to window [95%]", figures=True),
        ]
    else:
        columns.append(Column("KL to exact,\nnats per token", figures=True))
    return table(columns, [_row(report.judged, run) for run in report.by_size])


def _row(judged: bool, run: BudgetRun) -> list[Cell | str]:
    taken = run.levers.nominal_bytes
    cells: list[Cell | str] = [run.given, Cell(size(taken), taken)]
    if not judged:
        return [*cells, figure(run.kl)]
    config = run.standing(rivals.CONFIG)
    if config is None or config.nll is None:
        return [*cells, "-", "-", "-"]
    beside = (config.delta_exact, config.delta_window)
    return [*cells, figure(config.nll.estimate), *("-" if one is None else with_bracket(one, True) for one in beside)]


def plot(report: BudgetsReport) -> Plot:
    """Loss above exact against bytes, of the configs and of one window for all; KL where no loss was measured."""
    x_label, exact = (
        "KiB per KV head",
        Series("exact", (_kib(report.cache.exact_bytes // report.cache.kv_heads),), (0.0,)),
    )
    chosen, windows = "chosen per KV head", "one window for all"
    if not report.judged:
        at = tuple(_kib(run.levers.nominal_bytes) for run in report.by_size)
        series = Series(chosen, at, tuple(run.kl for run in report.by_size))
        return Plot("KL to exact against bytes", x_label, "KL, nats per token", (series, exact), log_x=True)
    drawn = (_series(report, chosen, rivals.CONFIG), _series(report, windows, rivals.WINDOW), exact)
    return Plot("Loss against bytes", x_label, "NLL above exact, nats per token", drawn, log_x=True)


def _series(report: BudgetsReport, name: str, contender: str) -> Series:
    """A contender of every run, with intervals where more than one sequence gives them."""
    nothing = Interval(math.nan, math.nan, math.nan)
    points = [
        (_kib(standing.nominal_bytes or 0), standing.delta_exact or nothing)
        for run in report.by_size
        if (standing := run.standing(contender)) is not None
    ]
    return Series(
        name,
        tuple(at for at, _ in points),
        tuple(delta.estimate for _, delta in points),
        tuple(delta.low for _, delta in points),
        tuple(delta.high for _, delta in points),
    )


def _kib(count: int) -> float:
    return count / 1024


def verdict(report: BudgetsReport) -> str:
    """From which bytes on the loss cannot be told from exact, and where the choice beats one window."""
    if not report.judged:
        largest = report.by_size[-1]
        return (
            f"Losses on other text were not measured. On the calibration text the KL to exact falls to "
            f"{figure(largest.kl)} nats per token at {largest.given}."
        )
    deltas = [
        (run, config.delta_exact, config.delta_window)
        for run in report.by_size
        if (config := run.standing(rivals.CONFIG)) is not None
    ]
    alike = [run for run, exact, _ in deltas if exact is not None and exact.bounded and exact.low <= 0 <= exact.high]
    better = [run for run, _, window in deltas if window is not None and window.bounded and window.high < 0]
    least = (
        f"The smallest budget whose loss cannot be told from exact attention's here is {alike[0].given} "
        f"(its config takes {percent(report.cache.share(alike[0].levers.nominal_bytes))} of the bytes)."
        if alike
        else "At none of these budgets does the interval of the loss hold exact attention's."
    )
    names = ", ".join(run.given for run in better)
    return f"{least} Better than one window of the same bytes for all: {names or 'none that could be told here'}."


def _legend(report: BudgetsReport) -> list[str]:
    if not report.judged:
        return [
            "KL to exact is measured on the text that was chosen by. `taylorder eval` measures losses on other text."
        ]
    first = next(run.comparison for run in report.runs if run.comparison is not None)
    counts = [run.comparison.sequences for run in report.runs if run.comparison is not None]
    sequences = counted(counts[0], "sequence") if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)} sequences"
    exact = first.standing(EXACT)
    loss = "" if exact is None or exact.nll is None else f" Exact attention's NLL is {figure(exact.nll.estimate)}."
    return [
        f"On {sequences} of {counted(first.length, 'token')} of {first.text_source}.{loss} Losses are in nats per "
        "token, differences paired; window is sinks and one window of the same bytes for all KV heads."
    ]


def _facts(report: BudgetsReport) -> dict[str, Cell | str]:
    model, cache = report.analysis.model, report.cache
    exact = cache.exact_bytes // cache.kv_heads
    see = "sees" if cache.kv_heads == 1 else "see"
    return {
        "model": f"{model.architecture}, {counted(cache.kv_heads, 'KV head')} that {see} the whole context",
        "context": counted(cache.context, "token"),
        "exact": f"{size(exact)} per KV head, {size(cache.total(exact))} in total",
    }
