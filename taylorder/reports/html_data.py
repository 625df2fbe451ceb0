"""The figures that the script of ``report.html`` draws: every layer and head of an analysis, ready for JSON.

Numbers are those of ``heads.csv`` and ``spectral.csv``, not rounded, and beside each stands its finished text: the
script rounds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import Any

from taylorder.adapt.config import HeadOrder
from taylorder.analysis.results import Analysis, CandidateRow, SpectralRow
from taylorder.kernels.spec import EXPANSIONS, Exact, Taylor
from taylorder.reports import alphas, charts, grids, heat_map, near_words, summary
from taylorder.reports.claims import cell
from taylorder.reports.numbers import counted, layer_labels, percent, size, staying
from taylorder.reports.scales import palette
from taylorder.selection.by_tolerance import HeadVerdict, Selection
from taylorder.selection.reasons import explained

_HeadKey = tuple[str, int]


def as_data(analysis: Analysis, selection: Selection) -> dict[str, Any]:
    """Everything the script needs, JSON-ready."""
    preview = analysis.preview
    return {
        "noun": "head",
        "column": "",
        "start_view": "error",
        "tolerance": {"value": selection.tolerance, "text": percent(selection.tolerance, 3)},
        "orders": list(range(1, analysis.max_order + 1)),
        "start_order": grids.grid_order(analysis),
        "expansions": list(EXPANSIONS),
        "projections": heat_map.PROJECTIONS,
        "near": None if preview is None else f"mean, window {preview.window}, sinks {preview.sinks}",
        "views": heat_map.views(analysis, selection),
        "palette": [astuple(fill) for fill in palette()],
        "start": _start(analysis, selection),
        "layers": _layers(analysis, selection),
        "count": counted(len(selection.heads), "head"),
        "axes": [charts.TOP, charts.BOTTOM, f"{charts.RIGHT}%"],
        "across": charts.across(analysis.max_order),
        "ticks": list(_ticks(analysis, selection)),
    }


def _start(analysis: Analysis, selection: Selection) -> list[int]:
    """Layer and head that the page opens with: the least error at an order that pays off, or at any where none does."""
    layers = {module.name: layer for layer, module in enumerate(analysis.model.modules)}
    anyway = summary.best_measured(analysis)

    def error(head: HeadVerdict) -> float:
        best = head.best or anyway.get((head.module, head.head))
        return math.inf if best is None or math.isnan(best.relative_l2) else best.relative_l2

    first = min(summary.described_heads(analysis, selection), key=error)
    return [layers[first.module], first.head]


def _layers(analysis: Analysis, selection: Selection) -> list[dict[str, Any]]:
    candidates: dict[_HeadKey, list[CandidateRow]] = {}
    for row in analysis.candidates:
        candidates.setdefault((row.module, row.head), []).append(row)
    fits: dict[_HeadKey, list[SpectralRow]] = {}
    for fit in analysis.spectral:
        if fit.head is not None:
            fits.setdefault((fit.module, fit.head), []).append(fit)
    verdicts = {(head.module, head.head): head for head in selection.heads}
    deviation, of_layers = heat_map.of_deviation(analysis), heat_map.of_alphas(analysis)
    layers = []
    for module, label in layer_labels(analysis.model.modules):
        heads = []
        for head in range(module.heads):
            key = module.name, head
            first = candidates[key][0]
            facts = _facts(analysis, verdicts[key], first)
            facts["alpha, layer"] = ", ".join(
                f"{name} {of_layers[module.name][projection][1]}" for projection, name in heat_map.PROJECTIONS.items()
            )
            if key in fits:
                cells = {fit.role: alphas.alpha(fit) for fit in fits[key]}
                facts["alpha, head"] = ", ".join(f"{name} {alpha.text}{alpha.mark}" for name, alpha in cells.items())
            heads.append(
                {"kv_head": first.kv_head, "std": deviation(first), "facts": list(facts.items())}
                | _errors(analysis, selection, candidates[key])
                | _decided(analysis, selection, verdicts[key])
            )
        layers.append(
            {
                "label": label.text,
                "marked": " ".join(filter(None, (label.text, label.mark))),
                "module": module.name,
                "group": module.group,
                "staying": staying(module),
                "alphas": of_layers[module.name],
                "heads": heads,
            }
        )
    return layers


def _errors(analysis: Analysis, selection: Selection, rows: Sequence[CandidateRow]) -> dict[str, Any]:
    """Errors of one head by expansion and order, those with the preview's near field, and the table of all of it."""
    by_place = {(row.expansion, row.order): row for row in rows}
    orders = range(1, analysis.max_order + 1)
    lines = [[by_place[expansion, order] for order in orders] for expansion in EXPANSIONS]
    made: dict[str, Any] = {
        "error": [[heat_map.of_error(row.relative_l2, selection) for row in line] for line in lines],
        "table": [
            [
                str(order),
                *(_with_raw(row) for row in by_order),
                *(percent(row.nonpositive_share) for row in by_order),
                percent(by_order[0].gaussian_prediction),
            ]
            for order, *by_order in zip(orders, *lines, strict=True)
        ],
    }
    if analysis.preview is not None:
        near = analysis.preview.relative_l2[rows[0].module][rows[0].head]
        made["near"] = [heat_map.of_error(error, selection) for error in near]
    return made


def _with_raw(row: CandidateRow) -> str:
    """An error, and in parentheses without the guard where that differs."""
    guarded, raw = percent(row.relative_l2), percent(row.raw_relative_l2)
    return guarded if guarded == raw else f"{guarded} ({raw})"


def _facts(analysis: Analysis, head: HeadVerdict, row: CandidateRow) -> dict[str, str]:
    best, needed, predicted = head.best, head.needed_order, head.predicted_order
    return {
        "least error": "no order pays off"
        if best is None
        else f"{percent(best.relative_l2, 3)} with order {best.order}, {best.expansion} (of what may be chosen)",
        "needs order": f"{f'more than {analysis.max_order}' if needed is None else needed}, as measured",
        "predicted": f"{'an order beyond 400' if predicted is None else f'order {predicted}'}, were scores normal",
        "scores": f"standard deviation {cell(row.score_std)}, largest {cell(row.score_max)}, "
        f"logit rank {cell(row.logit_rank)}",
    }


def _decided(analysis: Analysis, selection: Selection, head: HeadVerdict) -> dict[str, Any]:
    """What was chosen, why, and what the head would need."""
    choice = head.choice
    far = choice.spec.far
    if isinstance(far, Exact):
        mark, words = explained(choice.reason)
        sentence = f"Stays {words}."
    else:
        mark = str(far.order) if isinstance(far, Taylor) else near_words.mark(choice.spec.near)
        words = near_words.spec_words(choice.spec)
        sentence = f"Chosen: {words}. {_why(analysis, selection, choice)}"
    return {"choice": sentence} | heat_map.of_choice(analysis, head, mark, words)


def _why(analysis: Analysis, selection: Selection, choice: HeadOrder) -> str:
    """By what rule a head has an order, its error, and what it costs."""
    limit, where = percent(selection.tolerance, 3), f"at {counted(selection.context, 'token')}"
    error = "not measured" if choice.error is None else percent(choice.error, 3)
    rule = selection.why.rule.format(where=where, limit=limit)
    if selection.why.bounded and (choice.error is None or choice.error > selection.tolerance):
        rule = "As the config has it"
    rule += f"; error {error}"
    if analysis.model.causal and choice.nominal_bytes is not None:
        rule += f"; {size(choice.nominal_bytes)} per KV head {where}"
    if choice.break_even is not None:
        rule += f"; breaks even at {counted(choice.break_even, 'token')}"
    return f"{rule}."


def _ticks(analysis: Analysis, selection: Selection) -> Iterator[tuple[float, str, int]]:
    """Round errors for an axis, each with its text and how round it is: powers of ten are rounder than the rest."""
    errors = [row.relative_l2 for row in analysis.candidates]
    for heads in analysis.preview.relative_l2.values() if analysis.preview else ():
        errors += [error for head in heads for error in head]
    known = [selection.tolerance, *(error for error in errors if 0 < error < 1e300)]
    for power in range(math.floor(math.log10(min(known))) - 1, math.ceil(math.log10(max(known))) + 1):
        yield (
            10.0**power,
            percent(10.0**power),
            2 + next(zeros for zeros in range(10) if power % 2 ** (zeros + 1) or zeros == 9),
        )
        for factor in (1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8):
            error = float(f"{factor}e{power}")
            yield error, percent(error), int(factor in (2, 5))
