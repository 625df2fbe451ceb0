"""Tables of an evaluation: figures of every contender, differences, losses by position, tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from taylorder.analysis.losses import EXACT
from taylorder.evaluation import rivals
from taylorder.evaluation.comparison import Comparison, Standing
from taylorder.evaluation.evaluate import TaskResults
from taylorder.evaluation.intervals import Interval
from taylorder.evaluation.tasks import TaskRow
from taylorder.reports.evaluation_words import figure, with_bracket
from taylorder.reports.fitting_tables import dense_table
from taylorder.reports.numbers import compact, number, percent, size


@dataclass(frozen=True, slots=True)
class Lookup:
    """How well a kind of lookup works at a length, and the nominal bytes of all caches and states there."""

    kind: str
    length: int
    exact_accuracy: float
    config_accuracy: float
    exact_bytes: int
    config_bytes: int
    exact_cannot: bool


_BY_POSITION = (EXACT, rivals.CONFIG, rivals.WINDOW)


def figures(comparison: Comparison) -> Table:
    """Losses of every contender that ran, with intervals."""
    table = dense_table()
    table.add_column("", no_wrap=True)
    for title in (
        "bytes per\nKV head",
        "NLL, nats per token\n[95% interval]",
        "perplexity",
        "mean KL\nto exact",
        "top-1\nagrees",
        "needs\nguard",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for each in _ran(comparison):
        table.add_row(
            each.name,
            "-" if each.nominal_bytes is None else size(each.nominal_bytes),
            _interval(each.nll),
            "-" if each.perplexity is None else perplexity(each.perplexity),
            "-" if each.kl is None else figure(each.kl.estimate),
            _share(each.agreement),
            _share(each.guarded_share),
        )
    return table


def differences(comparison: Comparison) -> Table | None:
    """NLL of every contender above exact, and above the window of the config's bytes; None if only exact ran."""
    standings = [each for each in _ran(comparison) if each.delta_exact is not None]
    if not standings:
        return None
    with_window = any(each.delta_window is not None for each in standings)
    table = dense_table()
    table.add_column("difference of NLL", no_wrap=True)
    table.add_column("to exact [95%]", justify="right", no_wrap=True)
    if with_window:
        table.add_column("to window [95%]", justify="right", no_wrap=True)
    for each in standings:
        cells = [_interval(each.delta_exact, signed=True)]
        if with_window:
            cells.append(_interval(each.delta_window, signed=True))
        table.add_row(each.name, *cells)
    return table


def positions(comparison: Comparison) -> Table | None:
    """NLL by position in the sequence, for exact, the config and the window; None where there is one bucket only."""
    shown = [each for each in _ran(comparison) if each.name in _BY_POSITION and each.buckets]
    if not shown or len(shown[0].buckets) < 2:
        return None
    table = dense_table()
    table.add_column("NLL at position", no_wrap=True)
    for first, last, _ in shown[0].buckets:
        table.add_column(f"{number(first)}-{number(last)}", justify="right", no_wrap=True)
    for each in shown:
        table.add_row(each.name, *(figure(nll) for _, _, nll in each.buckets))
    return table


def hidden(comparison: Comparison) -> Table:
    """Distances of final hidden states, for models without next-token losses."""
    causal = any(each.nominal_bytes is not None for each in comparison.standings)
    table = dense_table()
    table.add_column("final hidden states", no_wrap=True)
    for title in (*(("bytes per\nKV head",) if causal else ()), "relative L2\nto exact", "mean cosine\nto exact"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("needs\nguard", justify="right", no_wrap=True)
    for each in _ran(comparison):
        cells = [] if not causal else ["-" if each.nominal_bytes is None else size(each.nominal_bytes)]
        if each.name == EXACT:
            cells += ["-", "-"]
        else:
            cells += [percent(each.hidden_relative_l2 or 0.0), f"{each.hidden_cosine:.4f}"]
        table.add_row(each.name, *cells, _share(each.guarded_share))
    return table


def tasks(results: Sequence[TaskResults]) -> Table:
    """Share of right answers by kind and length, under exact attention and the others."""
    table = dense_table()
    for title in ("task", "tokens", "asked", "chance", "exact [95%]"):
        table.add_column(title, justify="left" if title == "task" else "right", no_wrap=True)
    others = [each for each in results if each.rows and each.name != EXACT]
    for each in others:
        table.add_column(each.name, justify="right", no_wrap=True)
    table.add_column("config - exact" if others else "", justify="right" if others else "left", no_wrap=True)
    known = next((each.rows for each in results if each.rows), ())
    for place, row in enumerate(known):
        if row.depth is not None:
            continue
        last = ""
        if row.exact_cannot:
            last = "exact cannot"
        elif others and others[0].name == rivals.CONFIG:
            difference = others[0].rows[place].accuracy_difference
            last = _points(difference)
        table.add_row(
            row.kind,
            number(row.length),
            number(row.questions),
            percent(row.chance),
            f"{percent(row.exact_accuracy.estimate)} {_ends(row.exact_accuracy)}",
            *(percent(each.rows[place].other_accuracy.estimate) for each in others),
            last,
        )
    return table


def depths(results: Sequence[TaskResults]) -> Table | None:
    """Share of right answers by the depth of what is asked for, where the exact model can do it at all."""
    known = next((each.rows for each in results if each.rows), ())
    asked = [(place, row) for place, row in enumerate(known) if row.depth is not None and not row.exact_cannot]
    if not asked:
        return None
    table = dense_table()
    table.add_column("by depth", no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    columns = sorted({row.depth for _, row in asked if row.depth is not None})
    for depth in columns:
        table.add_column(percent(depth), justify="right", no_wrap=True)
    for kind, length in dict.fromkeys((row.kind, row.length) for _, row in asked):
        places = {row.depth: place for place, row in asked if (row.kind, row.length) == (kind, length)}
        table.add_row(kind, number(length), EXACT, *_at(places, columns, known, exact=True))
        for each in results:
            if each.rows and each.name != EXACT:
                table.add_row("", "", each.name, *_at(places, columns, each.rows, exact=False))
    return table


def lookup_bytes(lookups: Sequence[Lookup]) -> Table | None:
    """What lookup takes in memory, exactly and with the config; None if there is nothing to show."""
    if not lookups:
        return None
    table = dense_table()
    table.add_column("task against\nnominal bytes", no_wrap=True)
    for title in ("tokens", "exact\nright", "exact\nbytes", "config\nright", "config\nbytes"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in lookups:
        table.add_row(
            each.kind + (" (exact cannot)" if each.exact_cannot else ""),
            number(each.length),
            percent(each.exact_accuracy),
            size(each.exact_bytes),
            percent(each.config_accuracy),
            size(each.config_bytes),
        )
    return table


def perplexity(value: float) -> str:
    """One decimal, none from a thousand on, powers of ten from a million on."""
    if value < 999.95:
        return f"{value:.1f}"
    return compact(round(value)) if value < 1e300 else "over 1e300"


def _at(
    places: dict[float | None, int], columns: Sequence[float], rows: Sequence[TaskRow], *, exact: bool
) -> list[str]:
    shown = [rows[places[depth]] if depth in places else None for depth in columns]
    return [
        "" if row is None else percent((row.exact_accuracy if exact else row.other_accuracy).estimate) for row in shown
    ]


def _ran(comparison: Comparison) -> list[Standing]:
    return [each for each in comparison.standings if each.failure is None]


def _interval(interval: Interval | None, signed: bool = False) -> str:
    return "-" if interval is None else with_bracket(interval, signed)


def _share(share: float | None) -> str:
    return "-" if share is None else percent(share, 3) if share > 0.1 else percent(share)


def _ends(interval: Interval) -> str:
    return f"[{100 * interval.low:.0f}, {100 * interval.high:.0f}]"


def _points(interval: Interval) -> str:
    ends = (100 * interval.estimate, 100 * interval.low, 100 * interval.high)
    estimate, low, high = (f"{value:+.0f}" if round(value) else "0" for value in ends)
    return f"{estimate} [{low}, {high}]"
