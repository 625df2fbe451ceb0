"""Tables of an evaluation: figures of every contender, differences, losses by position, tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from taylorder.analysis.losses import EXACT
from taylorder.evaluation import rivals
from taylorder.evaluation.comparison import Comparison, Standing
from taylorder.evaluation.evaluate import TaskResults
from taylorder.evaluation.intervals import Interval
from taylorder.evaluation.tasks import TaskRow
from taylorder.reports.evaluation_words import figure, with_bracket
from taylorder.reports.numbers import compact, number, percent, size
from taylorder.reports.sections import Column, Table, table


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


_GUARDED = "needs\nguard"
"""Share of query rows."""

_BY_POSITION = (EXACT, rivals.CONFIG, rivals.WINDOW)


def figures(comparison: Comparison) -> Table:
    """Losses of every contender that ran, with intervals."""
    titles = ["bytes per\nKV head", "NLL, nats per token\n[95% interval]"]
    spare = ["mean KL\nto exact", "same\ntop\ntoken", "perplexity"]
    guarded = needs_guard(comparison)
    rows = [
        (
            standing.name,
            "-" if standing.nominal_bytes is None else size(standing.nominal_bytes),
            _interval(standing.nll),
            "-" if standing.kl is None else figure(standing.kl.estimate),
            _share(standing.agreement),
            "-" if standing.perplexity is None else perplexity(standing.perplexity),
            *([_share(standing.guarded_share)] if guarded else []),
        )
        for standing in _ran(comparison)
    ]
    return _table("", titles, rows, spare=[*spare, *([_GUARDED] if guarded else [])])


def needs_guard(comparison: Comparison) -> bool:
    """Whether any row of any contender needed the guard."""
    return any(standing.guarded_share for standing in _ran(comparison))


def differences(comparison: Comparison) -> Table | None:
    """NLL of every contender above exact, and above the window of the config's bytes; None if only exact ran."""
    standings = [standing for standing in _ran(comparison) if standing.delta_exact is not None]
    if not standings:
        return None
    titles = ["to exact [95%]"]
    rows = [[standing.name, _interval(standing.delta_exact, signed=True)] for standing in standings]
    if any(standing.delta_window is not None for standing in standings):
        titles.append("to window [95%]")
        for row, standing in zip(rows, standings, strict=True):
            row.append(_interval(standing.delta_window, signed=True))
    return _table("difference of NLL", titles, rows)


def positions(comparison: Comparison) -> Table | None:
    """NLL by position in the sequence, for exact, the config and the window; None where there is one bucket only."""
    shown = [standing for standing in _ran(comparison) if standing.name in _BY_POSITION and standing.buckets]
    if not shown or len(shown[0].buckets) < 2:
        return None
    titles = [f"{number(first)}-{number(last)}" for first, last, _ in shown[0].buckets]
    rows = [(standing.name, *(figure(nll) for _, _, nll in standing.buckets)) for standing in shown]
    return _table("NLL at position", titles, rows)


def hidden(comparison: Comparison) -> Table:
    """Distances of final hidden states, for models without next-token losses."""
    causal = any(standing.nominal_bytes is not None for standing in comparison.standings)
    titles = ["relative L2\nto exact", "mean cosine\nto exact"]
    guarded = needs_guard(comparison)
    rows = []
    for standing in _ran(comparison):
        distances = (percent(standing.hidden_relative_l2 or 0.0), f"{standing.hidden_cosine:.4f}")
        rows.append([*(("-", "-") if standing.name == EXACT else distances)])
        rows[-1] += [_share(standing.guarded_share)] if guarded else []
        if causal:
            rows[-1].insert(0, "-" if standing.nominal_bytes is None else size(standing.nominal_bytes))
        rows[-1].insert(0, standing.name)
    titles = ["bytes per\nKV head", *titles] if causal else titles
    return _table("final hidden states", titles, rows, spare=[_GUARDED] if guarded else [])


def tasks(results: Sequence[TaskResults]) -> Table:
    """Share of right answers by kind and length, under exact attention and the others."""
    others = [result for result in results if result.rows and result.name != EXACT]
    titles = ["tokens", "asked", "chance", "exact [95%]", *(other.name for other in others)]
    known = next((result.rows for result in results if result.rows), ())
    rows = []
    for index, row in enumerate(known):
        if row.depth is not None:
            continue
        last = ""
        if row.exact_cannot:
            last = "exact cannot"
        elif others and others[0].name == rivals.CONFIG:
            last = _points(others[0].rows[index].accuracy_difference)
        rows.append(
            (
                row.kind,
                number(row.length),
                number(row.questions),
                percent(row.chance),
                f"{percent(row.exact_accuracy.estimate)} {_ends(row.exact_accuracy)}",
                *(percent(other.rows[index].other_accuracy.estimate) for other in others),
                last,
            )
        )
    made = _table("task", [*titles, "config - exact"], rows)
    return made if others else replace(made, columns=(*made.columns[:-1], Column("")))


def depths(results: Sequence[TaskResults]) -> Table | None:
    """Share of right answers by the depth of what is asked for, where the exact model can do it at all."""
    known = next((result.rows for result in results if result.rows), ())
    asked = [(index, row) for index, row in enumerate(known) if row.depth is not None and not row.exact_cannot]
    if not asked:
        return None
    shown = sorted({row.depth for _, row in asked if row.depth is not None})
    rows: list[tuple[str, ...]] = []
    for kind, length in dict.fromkeys((row.kind, row.length) for _, row in asked):
        places = {row.depth: index for index, row in asked if (row.kind, row.length) == (kind, length)}
        rows.append((kind, number(length), EXACT, *_at(places, shown, known, exact=True)))
        rows += [
            ("", "", result.name, *_at(places, shown, result.rows, exact=False))
            for result in results
            if result.rows and result.name != EXACT
        ]
    columns = [Column("by depth"), Column("tokens", figures=True), Column("")]
    return table([*columns, *(Column(percent(depth), figures=True) for depth in shown)], rows)


def lookup_bytes(lookups: Sequence[Lookup]) -> Table | None:
    """What lookup takes in memory, exactly and with the config; None if there is nothing to show."""
    if not lookups:
        return None
    titles = ("tokens", "exact\nright", "exact\nbytes", "config\nright", "config\nbytes")
    rows = [
        (
            lookup.kind + (" (exact cannot)" if lookup.exact_cannot else ""),
            number(lookup.length),
            percent(lookup.exact_accuracy),
            size(lookup.exact_bytes),
            percent(lookup.config_accuracy),
            size(lookup.config_bytes),
        )
        for lookup in lookups
    ]
    return _table("task against\nnominal bytes", titles, rows)


def perplexity(value: float) -> str:
    """One decimal, none from a thousand on, powers of ten from a million on."""
    if value < 999.95:
        return f"{value:.1f}"
    return compact(round(value)) if value < 1e300 else "over 1e300"


def _table(first: str, titles: Iterable[str], rows: Iterable[Sequence[str]], spare: Iterable[str] = ()) -> Table:
    """Names, and figures beside them, those that can be ``spare``d behind the others."""
    columns = [Column(title, figures=True) for title in titles]
    return table([Column(first), *columns, *(Column(title, figures=True, spare=True) for title in spare)], rows)


def _at(
    places: dict[float | None, int], columns: Sequence[float], rows: Sequence[TaskRow], *, exact: bool
) -> list[str]:
    shown = [rows[places[depth]] if depth in places else None for depth in columns]
    return [
        "" if row is None else percent((row.exact_accuracy if exact else row.other_accuracy).estimate) for row in shown
    ]


def _ran(comparison: Comparison) -> list[Standing]:
    return [standing for standing in comparison.standings if standing.failure is None]


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
