"""The views of the heat map: what it can show of every head, each figure with its text, its words and its colour."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from taylorder.analysis.alpha_ranks import layer_alpha
from taylorder.analysis.results import Analysis, CandidateRow, SpectralRow
from taylorder.kernels.spec import EXPANSIONS, Taylor
from taylorder.reports import alphas, grids, near_words
from taylorder.reports.claims import cell
from taylorder.reports.numbers import percent, percent_cell
from taylorder.reports.scales import Figure, Scale, even_bounds, finite, known, rounded
from taylorder.reports.sections import Cell
from taylorder.selection.by_tolerance import HeadVerdict, Selection

PROJECTIONS = {"qk": "mean of q and k", "q": "q", "k": "k", "v": "v", "o": "o"}
_EXPANSIONS = {
    "zero": "zero: the plain Taylor series of the score",
    "centre": "centre: of the score against keys less their calibrated mean",
    "mean": "mean: around each row's mean score",
}

_CLIP = 2.0
"""Relative errors from here on share a colour."""

_MOST = 10.0
"""And above this one there are no thresholds."""


def views(analysis: Analysis, selection: Selection) -> dict[str, dict[str, Any]]:
    """Name, explanation, scale, thresholds and legend of every view; what differs by a choice stands in ``by``."""
    limit, most = percent(selection.tolerance, 3), analysis.max_order
    orders = {
        "ticks": ["order 1"] if most == 1 else ["order 1", f"order {most}"],
        "bounds": [[order, f"order {order}"] for order in range(1, most + 1)],
    }
    scale = _errors(selection)
    middle = percent(math.sqrt(scale.low * scale.high))
    deviations = [row.score_std for row in analysis.candidates]
    made: dict[str, dict[str, Any]] = {
        "order": {
            "name": "chosen order",
            "explanation": "The order that the config gives each head. Hatched: no order, for the reason in the "
            "legend.",
            "legend": _reasons(selection),
            **orders,
        },
        "needed": {
            "name": f"smallest order within {limit}",
            "explanation": f"The smallest measured order that meets {limit} at any expansion point, whatever it costs; "
            "even orders count only where no row needed the guard.",
            "legend": [f"\u2013: no order up to {most} meets {limit}"],
            **orders,
        },
        "error": {
            "name": "error at an order",
            "by": {
                expansion: {
                    "explanation": "Relative L2 error of each head's output, in percent, one head replaced at a time. "
                    f"Expansion {_EXPANSIONS[expansion]}."
                }
                for expansion in EXPANSIONS
            },
            "ticks": [f"{limit} or less", middle, f"{percent(_CLIP)} or more"],
            "bounds": _error_bounds(analysis, selection),
            "legend": [
                f"*: within {limit}",
                f"The scale is logarithmic; errors above {percent(_CLIP)} are clipped to its end.",
            ],
        },
        "alpha": {
            "name": "alpha of the layer",
            "by": {projection: _alpha_view(analysis, projection) for projection in PROJECTIONS},
            "legend": ["failed: no usable fit; -: no such matrix; ?: one of several fits as good"],
        },
        "std": {
            "name": "standard deviation of scores",
            "explanation": "Standard deviation of each head's scores around each row's mean: the larger, the more "
            "terms.",
            "where": " in score std",
            "ticks": Scale.over(deviations).ticks(lambda value: f"{value:.1f}"),
            "bounds": even_bounds(deviations),
            "legend": [],
        },
    }
    if not analysis.spectral:
        del made["alpha"]
    if closed := {module.stays_exact for module in analysis.model.closed_modules}:
        marked = "a sliding-window layer" if closed == {"sliding"} else "a layer that stays exact"
        for view in made.values():
            view["legend"].append(f"~: {marked}")
    return made


def of_choice(analysis: Analysis, head: HeadVerdict, mark: str, words: str) -> dict[str, Figure]:
    """The order that the config gives a head, and the one it would need."""
    scale = Scale(1, analysis.max_order)
    far, needed = head.choice.spec.far, head.needed_order
    order = far.order if isinstance(far, Taylor) else None
    needs = f"more than {analysis.max_order}" if needed is None else f"order {needed}"
    return {
        "order": Figure(order, mark, words, scale.step(order)),
        "needed": Figure(needed, "\u2013" if needed is None else str(needed), needs, scale.step(needed)),
    }


def of_error(error: float, selection: Selection) -> Figure:
    """A relative error."""
    text = percent_cell(error) + ("*" if error <= selection.tolerance else "")
    return Figure(finite(error), text, percent(error, 3), _errors(selection).step(error))


def of_deviation(analysis: Analysis) -> Callable[[CandidateRow], Figure]:
    """Standard deviations of scores."""
    scale = Scale.over(row.score_std for row in analysis.candidates)
    return lambda row: Figure(
        finite(row.score_std), f"{row.score_std:.1f}", cell(row.score_std), scale.step(row.score_std)
    )


def of_alphas(analysis: Analysis) -> dict[str, dict[str, Figure]]:
    """The alphas of every layer, by projection."""
    figures: dict[str, dict[str, Figure]] = {module.name: {} for module in analysis.model.modules}
    for projection in PROJECTIONS:
        cells = _alphas(analysis, projection)
        scale = Scale.over(alpha.value for alpha in cells.values())
        for module, alpha in cells.items():
            value, text = alpha.value if isinstance(alpha.value, float) else None, alpha.text + alpha.mark
            figures[module][projection] = Figure(value, text, f"alpha {text}", scale.step(value))
    return figures


def _alphas(analysis: Analysis, projection: str) -> dict[str, Cell]:
    names = [module.name for module in analysis.model.modules]
    if projection == "qk":
        means = {name: layer_alpha(analysis.spectral, name) for name in names}
        return {name: Cell("-") if mean is None else Cell(f"{mean:.2f}", mean) for name, mean in means.items()}
    fits: dict[str, SpectralRow] = {
        row.module: row for row in analysis.spectral if row.head is None and row.role == projection
    }
    return {name: alphas.alpha(fits.get(name)) for name in names}


def _alpha_view(analysis: Analysis, projection: str) -> dict[str, Any]:
    name, values = PROJECTIONS[projection], [alpha.value for alpha in _alphas(analysis, projection).values()]
    return {
        "explanation": f"Alpha ({name}). It belongs to the layer: all heads of a row show the same figure.",
        "where": f" in alpha of {name}",
        "ticks": Scale.over(values).ticks(lambda value: f"{value:.2f}"),
        "bounds": even_bounds(values),
    }


def _reasons(selection: Selection) -> list[str]:
    """The terminal's legend of exact heads and windows; what an order is, the page shows by colour."""
    legend = [f"{key.marks[0].text}: {key.meaning}" for key in grids.exact_keys(selection)]
    alone = {near_words.mark(head.choice.spec.near) for head in selection.heads if head.choice.spec.runs == "window"}
    return legend + [f"{mark}: {meaning}" for mark, meaning in near_words.MEANINGS.items() if mark in alone]


def _errors(selection: Selection) -> Scale:
    return Scale(selection.tolerance, _CLIP, log=True)


def _error_bounds(analysis: Analysis, selection: Selection) -> list[tuple[float, str]]:
    """Thresholds of errors: 200 steps of two significant digits, and the tolerance."""
    bounds = set[float]()
    if errors := [error for error in known(row.relative_l2 for row in analysis.candidates) if error > 0]:
        first = rounded(min(*errors, _MOST), 2, math.floor)
        last = rounded(min(max(errors), _MOST), 2, math.ceil)
        bounds = {rounded(first * (last / first) ** (step / 200), 2, round) for step in range(201)} | {last}
    texts = {bound: percent(bound) for bound in bounds} | {selection.tolerance: percent(selection.tolerance, 3)}
    return sorted(texts.items())
