"""The figures that the script of ``report.html`` draws: every layer and head of an analysis, ready for JSON.

Figures are those of ``heads.csv`` and ``spectral.csv``, not rounded; infinite ones are strings, as in ``report.json``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from taylorder.adapt.config import HeadOrder
from taylorder.analysis.alpha_ranks import layer_alpha
from taylorder.analysis.results import Analysis, CandidateRow, SpectralRow
from taylorder.kernels.spec import EXPANSIONS, Dropped, Exact, Taylor
from taylorder.models.description import AttentionModule
from taylorder.reports import alphas, charts, grids, savings, summary
from taylorder.reports.document import finite
from taylorder.reports.numbers import counted, layer_names, number, percent, size
from taylorder.selection.by_tolerance import HeadVerdict, Selection
from taylorder.selection.reasons import explained

_HeadKey = tuple[str, int]


def as_data(analysis: Analysis, selection: Selection) -> dict[str, Any]:
    """Everything the script needs, JSON-ready."""
    names = layer_names([module.name for module in analysis.model.modules])
    preview = analysis.preview
    made: dict[str, Any] = finite(
        {
            "tolerance": {"value": selection.tolerance, "text": percent(selection.tolerance, 3)},
            "max_order": analysis.max_order,
            "start_order": grids.grid_order(analysis),
            "expansions": list(EXPANSIONS),
            "near": None if preview is None else f"mean, window {preview.window}, sinks {preview.sinks}",
            "legend": _legend(selection),
            "start": _start(analysis, selection),
            "layers": _layers(analysis, selection, names.labels),
            "across": charts.across(analysis.max_order),
        }
    )
    return made


def saved_bytes(analysis: Analysis, selection: Selection) -> tuple[int, int]:
    """What every head exact takes and what the config takes: nominal bytes, or multiplications of an encoder."""
    take = savings.cache_bytes if analysis.model.causal else savings.attention_multiplications
    return take(analysis, selection)


def _legend(selection: Selection) -> list[str]:
    """The terminal's legend of exact heads and windows; what an order is, the page shows by colour."""
    legend = [f"{key.marks[0].text}: {key.meaning}" for key in grids.exact_keys(selection)]
    if any(isinstance(head.choice.spec.far, Dropped) for head in selection.heads):
        legend.append(f"{grids.WINDOW_MARK}: {grids.WINDOW_MEANING}")
    return legend


def _start(analysis: Analysis, selection: Selection) -> list[int]:
    """Layer and head that the page opens with: the least error at an order that pays off, or at any where none does."""
    layers = {module.name: place for place, module in enumerate(analysis.model.modules)}
    anyway = summary.best_measured(analysis)

    def error(head: HeadVerdict) -> float:
        best = head.best or anyway.get((head.module, head.head))
        return math.inf if best is None or math.isnan(best.relative_l2) else best.relative_l2

    first = min(summary.described_heads(analysis, selection), key=error)
    return [layers[first.module], first.head]


def _layers(
    analysis: Analysis,
    selection: Selection,
    labels: Mapping[str, str],
) -> list[dict[str, Any]]:
    candidates: dict[_HeadKey, list[CandidateRow]] = {}
    for row in analysis.candidates:
        candidates.setdefault((row.module, row.head), []).append(row)
    spectra: dict[tuple[str, int | None], dict[str, SpectralRow]] = {}
    for fit in analysis.spectral:
        spectra.setdefault((fit.module, fit.head), {})[fit.projection] = fit
    verdicts = {(head.module, head.head): head for head in selection.heads}
    layers = []
    for module in analysis.model.modules:
        heads = []
        for head in range(module.heads):
            key = module.name, head
            verdict = verdicts[key]
            heads.append(
                _measured(candidates[key], analysis.max_order)
                | _near(analysis, module, head)
                | _decided(analysis, selection, verdict)
                | {"alphas": _alphas(spectra.get(key, {}))}
            )
        layers.append(
            {
                "label": labels[module.name],
                "module": module.name,
                "group": module.group,
                "sliding": module.sliding_window,
                "alphas": _alphas(spectra.get((module.name, None), {}))
                | {"qk": {"alpha": layer_alpha(analysis.spectral, module.name), "text": None}},
                "heads": heads,
            }
        )
    return layers


def _measured(rows: Sequence[CandidateRow], max_order: int) -> dict[str, Any]:
    """Figures of one head; errors by expansion and order, ``raw`` (without the guard) where that differs."""
    by_place = {(row.expansion, row.order): row for row in rows}
    table = [[by_place[expansion, order] for order in range(1, max_order + 1)] for expansion in EXPANSIONS]
    first = table[0][0]
    return {
        "error": [[row.relative_l2 for row in line] for line in table],
        "raw": [
            [None if row.raw_relative_l2 == row.relative_l2 else row.raw_relative_l2 for row in line] for line in table
        ],
        "guarded": [[row.nonpositive_share for row in line] for line in table],
        "gaussian": [row.gaussian_prediction for row in table[0]],
        "score_std": first.score_std,
        "score_max": first.score_max,
        "logit_rank": first.logit_rank,
        "kv_head": first.kv_head,
    }


def _near(analysis: Analysis, module: AttentionModule, head: int) -> dict[str, Any]:
    """Errors with the preview's near field, expansion ``mean``, from order 1 on."""
    if analysis.preview is None:
        return {}
    return {"near": analysis.preview.relative_l2[module.name][head]}


def _decided(
    analysis: Analysis,
    selection: Selection,
    head: HeadVerdict,
) -> dict[str, Any]:
    """What was chosen, why, and what the head would need."""
    choice = head.choice
    exact = isinstance(choice.spec.far, Exact)
    order = choice.spec.far.order if isinstance(choice.spec.far, Taylor) else None
    mark, meaning = explained(choice.reason) if exact else (str(order or grids.WINDOW_MARK), "")
    return {
        "order": order,
        "mark": mark,
        "choice": meaning if exact else _kept(choice),
        "why": "" if exact else _why(analysis, selection, choice),
        "best": None if head.best is None else [head.best.order, head.best.expansion, head.best.relative_l2],
        "needed": head.needed_order,
        "predicted": head.predicted_order,
    }


def _kept(choice: HeadOrder) -> str:
    far = choice.spec.far
    near = f"the last {counted(choice.spec.near.window, 'key')} and the first {number(choice.spec.near.sinks)} exact"
    if not isinstance(far, Taylor):
        return f"{near}, all others dropped"
    told = f"order {far.order}, expansion {far.expansion}"
    if choice.spec.near.tokens:
        told += f", {near}"
    if far.ranks is not None:
        told += f", ranks {', '.join(map(str, far.ranks))}"
    if far.coefficients is not None:
        told += f", coefficients {', '.join(f'{value:.3g}' for value in far.coefficients)}"
    return told


def _why(analysis: Analysis, selection: Selection, choice: HeadOrder) -> str:
    """By what rule a head has an order, its error, and what it costs."""
    limit, where = percent(selection.tolerance, 3), f"at {counted(selection.context, 'token')}"
    error = "not measured" if choice.error is None else percent(choice.error, 3)
    told = selection.why.rule.format(where=where, limit=limit)
    if selection.why.bounded and (choice.error is None or choice.error > selection.tolerance):
        told = "As the config has it"
    told += f"; error {error}"
    if analysis.model.causal and choice.nominal_bytes is not None:
        told += f"; {size(choice.nominal_bytes)} per KV head {where}"
    if choice.break_even is not None:
        told += f"; breaks even at {counted(choice.break_even, 'token')}"
    return f"{told}."


def _alphas(fits: Mapping[str, SpectralRow]) -> dict[str, dict[str, Any]]:
    """Alpha of every projection with what the terminal prints of it; ``?`` marks one of several fits as good."""
    cells = {projection: alphas.alpha(fit) for projection, fit in fits.items()}
    return {projection: {"alpha": cell.value, "text": cell.text + cell.mark} for projection, cell in cells.items()}
