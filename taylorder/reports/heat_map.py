"""The views of the heat map: what it can show of every head, each figure with its text, its words and its colour."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from taylorder.analysis.alpha_ranks import layer_alpha
from taylorder.analysis.results import Analysis, CandidateRow, SpectralRow
from taylorder.kernels.spec import EXPANSIONS, Exact, Taylor
from taylorder.reports import alphas, grids, near_words
from taylorder.reports.claims import cell
from taylorder.reports.numbers import number, percent, percent_cell
from taylorder.reports.sections import Cell, Fill
from taylorder.selection.by_tolerance import HeadVerdict, Selection
from taylorder.selection.reasons import explained

PROJECTIONS = {"qk": "mean of q and k", "q": "q", "k": "k", "v": "v", "o": "o"}
_EXPANSIONS = {
    "zero": "zero: the plain Taylor series of the score",
    "centre": "centre: of the score against keys less their calibrated mean",
    "mean": "mean: around each row's mean score",
}

_VIRIDIS = "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725"
"""Perceptually even, and told apart by the colour blind."""

_STEPS = 64
_CLIP = 2.0
"""Relative errors from here on share a colour."""

_MOST = 10.0
"""And above this one there are no thresholds."""


class Figure(NamedTuple):
    """A figure of a head or a layer, for JSON.

    ``value`` is the number to sort and count by, None where there is none; ``text`` stands in a cell, ``words`` are
    what a screen reader says, and ``step`` is that on the palette, None for no colour.
    """

    value: float | None
    text: str
    words: str
    step: int | None


@dataclass(frozen=True, slots=True)
class Scale:
    """Which figures are bright, from ``low`` down, and which are dark, from ``high`` up."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[object]) -> Scale:
        """From the least to the largest of the figures there are."""
        known = _known(values)
        return cls(min(known), max(known)) if known else cls(0.0, 1.0)

    def step(self, value: float | None) -> int | None:
        """Step on the palette; None for what is no figure."""
        if value is None or math.isnan(value):
            return None
        if self.high <= self.low or value <= self.low:
            return 0
        if value >= self.high:
            return _STEPS - 1
        share = (value - self.low) / (self.high - self.low)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(share * (_STEPS - 1))

    def ticks(self, text: Callable[[float], str]) -> list[str]:
        """What stands below the ends of the palette and its middle."""
        places = (self.low,) if self.low == self.high else (self.low, (self.low + self.high) / 2, self.high)
        return [text(place) for place in places]


def palette() -> list[Fill]:
    """Colours from the bright end to the dark one, each with black or white, whichever is the more readable on it."""
    stops = [bytes.fromhex(stop) for stop in _VIRIDIS.split()]
    fills = []
    for step in range(_STEPS):
        at = (1 - step / (_STEPS - 1)) * (len(stops) - 1)
        below = min(len(stops) - 2, int(at))
        pairs = zip(stops[below], stops[below + 1], strict=True)
        colour = [round(low + (at - below) * (high - low)) for low, high in pairs]
        light = _luminance(colour) + 0.05
        fills.append(Fill("#" + bytes(colour).hex(), "#000000" if light / 0.05 > 1.05 / light else "#ffffff"))
    return fills


def _luminance(colour: Iterable[int]) -> float:
    shares = [channel / 255 for channel in colour]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


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
            "bounds": _even_bounds(deviations),
            "legend": [],
        },
    }
    if not analysis.spectral:
        del made["alpha"]
    if nears := _nears(selection):
        scale = Scale.over(nears)
        made["kept"] = {
            "name": "keys with the true exponential",
            "explanation": "Most keys of a KV head that keep the true exponential at once: its sinks, its window, and "
            "those it keeps by priority. Hatched: all of them, for the reason in the legend.",
            "where": " keys",
            "ticks": scale.ticks(lambda value: number(round(value))),
            "bounds": [[tokens, number(tokens)] for tokens in nears],
            "legend": [f"{key.marks[0].text}: {key.meaning}" for key in grids.exact_keys(selection)],
        }
    if any(module.sliding_window is not None for module in analysis.model.modules):
        for view in made.values():
            view["legend"].append("~: a sliding-window layer")
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


def of_near(selection: Selection, head: HeadVerdict) -> dict[str, Figure]:
    """Keys that keep the true exponential, where KV heads differ in their number."""
    nears, spec = _nears(selection), head.choice.spec
    if not nears:
        return {}
    if isinstance(spec.far, Exact):
        mark, words = explained(head.choice.reason)
        return {"kept": Figure(None, mark, f"all keys: {words}", None)}
    tokens = spec.near.tokens
    return {"kept": Figure(tokens, str(tokens), near_words.words(spec.near), Scale.over(nears).step(tokens))}


def _nears(selection: Selection) -> list[int]:
    """How many keys near fields hold, ascending; empty where all of them hold as many."""
    choices = [head.choice for head in selection.heads if not isinstance(head.choice.spec.far, Exact)]
    nears = sorted({choice.spec.near.tokens for choice in choices})
    return nears if len(nears) > 1 else []


def of_error(error: float, selection: Selection) -> Figure:
    """A relative error."""
    text = percent_cell(error) + ("*" if error <= selection.tolerance else "")
    return Figure(_finite(error), text, percent(error, 3), _errors(selection).step(error))


def of_deviation(analysis: Analysis) -> Callable[[CandidateRow], Figure]:
    """Standard deviations of scores."""
    scale = Scale.over(row.score_std for row in analysis.candidates)
    return lambda row: Figure(
        _finite(row.score_std), f"{row.score_std:.1f}", cell(row.score_std), scale.step(row.score_std)
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
        row.module: row for row in analysis.spectral if row.head is None and row.projection == projection
    }
    return {name: alphas.alpha(fits.get(name)) for name in names}


def _alpha_view(analysis: Analysis, projection: str) -> dict[str, Any]:
    name, values = PROJECTIONS[projection], [alpha.value for alpha in _alphas(analysis, projection).values()]
    return {
        "explanation": f"Alpha ({name}). It belongs to the layer: all heads of a row show the same figure.",
        "where": f" in alpha of {name}",
        "ticks": Scale.over(values).ticks(lambda value: f"{value:.2f}"),
        "bounds": _even_bounds(values),
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
    if known := [error for error in _known(row.relative_l2 for row in analysis.candidates) if error > 0]:
        first = _rounded(min(*known, _MOST), 2, math.floor)
        last = _rounded(min(max(known), _MOST), 2, math.ceil)
        bounds = {_rounded(first * (last / first) ** (step / 200), 2, round) for step in range(201)} | {last}
    texts = {bound: percent(bound) for bound in bounds} | {selection.tolerance: percent(selection.tolerance, 3)}
    return sorted(texts.items())


def _even_bounds(values: Iterable[object]) -> list[tuple[float, str]]:
    """Thresholds of even steps that take in all figures."""
    known = _known(values)
    if not known:
        return []
    low, high = min(known), max(known)
    step = max(0.01, _rounded((high - low) / 100, 1, math.ceil))
    places = range(math.floor(low / step), math.ceil((high + step) / step))
    texts = dict.fromkeys(f"{place * step:.2f}" for place in places)
    return [(float(text), text) for text in texts]


def _rounded(value: float, digits: int, way: Callable[[float], float]) -> float:
    """``digits`` significant digits, rounded by ``way``."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return float(f"{way(value / unit) * unit:.{digits - 1}e}")


def _known(values: Iterable[object]) -> list[float]:
    return [value for value in values if isinstance(value, int | float) and math.isfinite(value)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
