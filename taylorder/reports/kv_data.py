"""The figures that the script of a budget run's page draws: every layer and KV head, ready for JSON.

As in :mod:`taylorder.reports.html_data`, each figure has its finished text, and places in the plot are computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

from taylorder.adapt.attention_shares import HeadShares
from taylorder.analysis.results import Analysis
from taylorder.kernels.spec import Dropped, Taylor
from taylorder.reports import charts, heat_map, kv_map, near_words
from taylorder.reports.charts import Axis
from taylorder.reports.claims import cell
from taylorder.reports.headline import KEEPING, POLYNOMIAL, WINDOW
from taylorder.reports.kv_map import KvHead
from taylorder.reports.numbers import counted, layer_labels, percent, size, staying
from taylorder.reports.scales import palette
from taylorder.selection.by_tolerance import Selection
from taylorder.selection.criteria import eligible
from taylorder.selection.lever_costs import LeverCost
from taylorder.selection.reasons import explained

KINDS = (WINDOW, KEEPING, POLYNOMIAL)
"""What the candidates of a KV head are, in the order of their marks."""

SHARES = {"sink": "sinks", "window": "window", "kept": "kept by priority", "far": "the rest, left out"}
"""The parts that the attention of a head goes to."""

_Key = tuple[str, int]


@dataclass(frozen=True)
class CostPlot:
    """Errors of all candidates against their bytes, on axes that all KV heads share: a reader compares them."""

    costs: Mapping[_Key, Sequence[LeverCost]]
    across: Axis
    down: Axis

    @classmethod
    def of(cls, costs: Sequence[LeverCost]) -> CostPlot | None:
        """The plot of a table; None where there is none. Exact attention has no error and no place."""
        drawn = [cost for cost in costs if cost.relative_l2 > 0]
        across = Axis.around((cost.nominal_bytes / 1024 for cost in drawn), True, 0, charts.RIGHT)
        down = Axis.around((100 * cost.relative_l2 for cost in drawn), True, charts.BOTTOM, charts.TOP)
        if across is None or down is None:
            return None
        by_head: dict[_Key, list[LeverCost]] = {}
        for cost in drawn:
            by_head.setdefault((cost.module, cost.kv_head), []).append(cost)
        return cls(by_head, across, down)

    def points(self, key: _Key) -> list[tuple[float | None, float | None, int, str, bool]]:
        """Places of a KV head's candidates, their kinds, what they are in words, and which was chosen; by bytes."""
        ordered = sorted(self.costs.get(key, ()), key=lambda cost: cost.nominal_bytes)
        return [
            (
                self.across.place(cost.nominal_bytes / 1024),
                self.down.place(100 * cost.relative_l2),
                _kind(cost),
                _words(cost),
                cost.chosen,
            )
            for cost in ordered
        ]


def as_data(analysis: Analysis, selection: Selection, costs: Sequence[LeverCost] = ()) -> dict[str, Any]:
    """Everything the script needs, JSON-ready; without ``costs`` there is nothing to plot errors against."""
    views = kv_map.views(analysis, selection)
    heads = kv_map.kv_heads(analysis, selection)
    plot = CostPlot.of(costs)
    return {
        "noun": "KV head",
        "column": "KV ",
        "start_view": next(iter(views)),
        "views": {key: view.as_data() for key, view in views.items()},
        "palette": [astuple(fill) for fill in palette()],
        "start": _start(analysis, heads),
        "layers": _layers(analysis, selection, views, heads, plot),
        "count": counted(len(heads), "KV head"),
    }


def axes(costs: Sequence[LeverCost]) -> tuple[list[tuple[float | None, str]], list[tuple[float | None, str]]] | None:
    """Figures on the axes of the plot, across and down, for the template."""
    plot = CostPlot.of(costs)
    return None if plot is None else (plot.across.ticks(5), plot.down.ticks(6))


def _start(analysis: Analysis, heads: Sequence[KvHead]) -> list[int]:
    """Layer and number of the KV head that the page opens with: the one that keeps most, short of everything."""
    layers = {module.name: layer for layer, module in enumerate(analysis.model.modules)}
    most = max(heads, key=lambda head: -1 if head.near is None else head.near.tokens)
    return [layers[most.module.name], most.number]


def _layers(
    analysis: Analysis,
    selection: Selection,
    views: Mapping[str, kv_map.View],
    heads: Sequence[KvHead],
    plot: CostPlot | None,
) -> list[dict[str, Any]]:
    facts = _Facts(analysis, selection)
    made = []
    places = iter(range(len(heads)))
    for module, label in layer_labels(analysis.model.modules):
        of_layer = []
        for _ in range(module.kv_heads):
            place = next(places)
            head = heads[place]
            of_layer.append(
                {
                    "kv_head": head.number,
                    "choice": _choice(head),
                    "facts": facts.of(head),
                    "shares": facts.shares_of(head),
                    "points": [] if plot is None else plot.points((module.name, head.number)),
                }
                | {key: view.figures[place] for key, view in views.items()}
            )
        made.append(
            {
                "label": label.text,
                "marked": label.text + label.mark,
                "module": module.name,
                "group": 1,
                "staying": staying(module),
                "heads": of_layer,
            }
        )
    return made


class _Facts:
    """What there is to say of a KV head beside its choice."""

    def __init__(self, analysis: Analysis, selection: Selection) -> None:
        levers = selection.levers
        example = None if levers is None else levers.example
        self.context = selection.context
        self.deviations = {(row.module, row.head): row.score_std for row in analysis.candidates}
        self.alphas = heat_map.of_alphas(analysis)
        self.probes = _probes(selection)
        self.shares: dict[_Key, HeadShares] = {
            (one.module, one.head): one for one in (() if example is None else example.shares)
        }

    def of(self, head: KvHead) -> list[tuple[str, str]]:
        """Names, and beside each what there is to say."""
        module, choice = head.module, head.choice
        taken = choice.nominal_bytes or 0
        facts = {"takes": f"{size(taken)} at {counted(self.context, 'token')}"}
        if head.near is not None:
            error = "not measured" if choice.error is None else percent(choice.error, 3)
            facts["error"] = f"{error} relative L2 of its output, on the calibration text"
            if choice.break_even is not None:
                facts["pays off"] = f"from {counted(choice.break_even, 'token')} on; exact attention takes less before"
        if (probe := self.probes.get((module.name, head.number))) is not None:
            facts["probe"] = probe
        facts["query heads"] = ", ".join(str(number) for number in head.heads)
        spread = ", ".join(cell(self.deviations[module.name, number]) for number in head.heads)
        facts["score spread"] = f"standard deviation {spread}"
        facts["alpha, layer"] = ", ".join(
            f"{name} {self.alphas[module.name][projection][1]}" for projection, name in heat_map.PROJECTIONS.items()
        )
        return list(facts.items())

    def shares_of(self, head: KvHead) -> list[tuple[str, list[float], list[str]]]:
        """Where the attention of its query heads goes: a name each, shares for a bar, and their texts."""
        made = []
        for number in head.heads:
            one = self.shares.get((head.module.name, number))
            if one is not None:
                parts = [one.sinks, one.window, one.kept, one.rest]
                made.append((f"head {number}", [round(part, 4) for part in parts], [f"{100 * p:.0f}%" for p in parts]))
        return made


def _choice(head: KvHead) -> str:
    if head.near is None:
        return f"Stays {explained(head.choice.reason).meaning}."
    spec = head.choice.spec
    if isinstance(spec.far, Taylor) and spec.far.coefficients is not None:
        spec = replace(spec, far=replace(spec.far, coefficients=None))
        return f"Runs: {near_words.spec_words(spec)}, with coefficients fitted to each query head."
    return f"Runs: {near_words.spec_words(spec)}."


def _kind(cost: LeverCost) -> int:
    spec = cost.candidate.spec
    return 2 if not isinstance(spec.far, Dropped) else 1 if spec.near.kept else 0


def _words(cost: LeverCost) -> str:
    words = f"{cost.candidate.label()}: {size(cost.nominal_bytes)}, {percent(cost.relative_l2)}"
    return words if eligible(cost.candidate, cost) else f"{words}; may not be chosen, rows needed the guard"


def _probes(selection: Selection) -> dict[_Key, str]:
    """How well the probe of a KV head does, by module and KV head."""
    judged = None if selection.levers is None else selection.levers.probes
    return {
        (row.module, row.kv_head): f"rank correlation {cell(row.rank_correlation)}; its best eighth receives "
        f"{percent(row.kept_share)} of later attention (H2O {percent(row.h2o_share)}, at most "
        f"{percent(row.oracle_share)})"
        for row in (() if judged is None else judged.rows)
    }
