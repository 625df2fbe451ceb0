"""Counts, quantiles and sums that a report quotes; nothing here measures or decides."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from taylorder.adapt import cost
from taylorder.analysis.results import Analysis, CandidateRow
from taylorder.kernels.spec import EXPANSIONS, Dropped, Exact, Expansion, Taylor
from taylorder.models.description import AttentionModule
from taylorder.selection.by_tolerance import HeadVerdict, Selection
from taylorder.selection.policies import eligible

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def quantile(values: Iterable[float], share: float) -> float:
    """Linearly interpolated quantile; NaN counts as infinitely large, an empty list gives NaN."""
    ordered = sorted(math.inf if math.isnan(value) else value for value in values)
    if not ordered:
        return math.nan
    rank = share * (len(ordered) - 1)
    below, above = ordered[math.floor(rank)], ordered[math.ceil(rank)]
    # Interpolating towards infinity would give NaN at both ends.
    return below if below == above else below + (rank - math.floor(rank)) * (above - below)


def median(values: Iterable[float]) -> float:
    """Middle value."""
    return quantile(values, 0.5)


def described_modules(analysis: Analysis) -> tuple[AttentionModule, ...]:
    """Modules that a report's statistics are about: the open ones, or all if none is."""
    return analysis.model.open_modules or analysis.model.modules


def described_rows(analysis: Analysis) -> list[CandidateRow]:
    """Candidates of the described modules."""
    names = {module.name for module in described_modules(analysis)}
    return [row for row in analysis.candidates if row.module in names]


def described_heads(analysis: Analysis, selection: Selection) -> list[HeadVerdict]:
    """Verdicts of the described modules' heads."""
    names = {module.name for module in described_modules(analysis)}
    return [head for head in selection.heads if head.module in names]


@dataclass(frozen=True, slots=True)
class OrderLine:
    """One order: median error per expansion point as ``(guarded, raw)``, heads within the tolerance, and the cost.

    ``latent_break_even`` is held against the latents that a server keeps, None where there are none.
    """

    order: int
    errors: dict[Expansion, tuple[float, float]]
    within: int
    features: int
    nominal_bytes: int
    break_even: int
    latent_break_even: int | None
    pays: bool


def by_order(analysis: Analysis, selection: Selection) -> tuple[OrderLine, ...]:
    """One line per measured order, over the described heads."""
    typical, near = analysis.model.typical, analysis.window + analysis.sinks
    d, d_v = typical.head_dim, typical.value_dim
    rows = described_rows(analysis)
    lines = []
    for order in range(1, analysis.max_order + 1):
        here = [row for row in rows if row.order == order]
        errors: dict[Expansion, tuple[float, float]] = {}
        for expansion in EXPANSIONS:
            rows_here = [row for row in here if row.expansion == expansion]
            errors[expansion] = (
                median(row.relative_l2 for row in rows_here),
                median(row.raw_relative_l2 for row in rows_here),
            )
        meeting = {(row.module, row.head) for row in here if eligible(row) and row.relative_l2 <= selection.tolerance}
        lines.append(
            OrderLine(
                order=order,
                errors=errors,
                within=len(meeting),
                features=cost.features(d, order),
                nominal_bytes=cost.state_bytes(d, d_v, order) + cost.kv_bytes(d, d_v, near),
                break_even=(
                    cost.break_even_tokens(d, d_v, order, near=near)
                    if analysis.model.causal
                    else cost.break_even_flops(d, d_v, order, typical.group)
                ),
                latent_break_even=(
                    None if typical.latent_dim is None else cost.latent_break_even_tokens(typical, order, near)
                ),
                pays=order <= selection.largest_order,
            )
        )
    return tuple(lines)


@dataclass(frozen=True, slots=True)
class HeadCounts:
    """Heads counted by what became of them.

    ``within`` counts open heads that meet the tolerance at an order that pays off; ``beyond`` those that meet it only
    at an order that does not; ``exact`` counts exact heads by reason; ``orders`` chosen heads by order, and
    ``windows`` those that keep sinks and a window and drop the rest.
    """

    heads: int
    open: int
    closed: int
    within: int
    beyond: int
    orders: dict[int, int]
    windows: int
    exact: dict[str, int]

    @property
    def adapted(self) -> int:
        """Heads that are not exact."""
        return sum(self.orders.values()) + self.windows


def meets(head: HeadVerdict, tolerance: float) -> bool:
    """Whether a head meets the tolerance at an order that pays off."""
    return head.best is not None and head.best.relative_l2 <= tolerance


def head_counts(analysis: Analysis, selection: Selection) -> HeadCounts:
    """Count the heads of a selection."""
    names = {module.name for module in analysis.model.open_modules}
    in_open = [head for head in selection.heads if head.module in names]
    within = [head for head in in_open if meets(head, selection.tolerance)]
    beyond = [head for head in in_open if head.needed_order is not None and not meets(head, selection.tolerance)]
    choices = [head.choice for head in selection.heads]
    orders = Counter(choice.spec.far.order for choice in choices if isinstance(choice.spec.far, Taylor))
    return HeadCounts(
        heads=len(selection.heads),
        open=len(in_open),
        closed=len(selection.heads) - len(in_open),
        within=len(within),
        beyond=len(beyond),
        orders=dict(sorted(orders.items())),
        windows=sum(isinstance(choice.spec.far, Dropped) for choice in choices),
        exact=dict(Counter(choice.reason or "asked" for choice in choices if isinstance(choice.spec.far, Exact))),
    )


def best_measured(analysis: Analysis) -> dict[tuple[str, int], CandidateRow]:
    """Per described head, the eligible candidate of least error, whatever it costs."""
    best: dict[tuple[str, int], CandidateRow] = {}
    for row in described_rows(analysis):
        key = (row.module, row.head)
        if eligible(row) and (key not in best or row.relative_l2 < best[key].relative_l2):
            best[key] = row
    return best


def nearest(analysis: Analysis, selection: Selection, count: int = 5) -> list[tuple[HeadVerdict, CandidateRow]]:
    """Heads that miss the tolerance by least, at an order that pays off (at any order, where none pays)."""
    anyway = best_measured(analysis)
    pairs = [(head, head.best or anyway[head.module, head.head]) for head in described_heads(analysis, selection)]
    missing = [pair for pair in pairs if pair[1].relative_l2 > selection.tolerance]
    return sorted(missing, key=lambda pair: pair[1].relative_l2)[:count]


@dataclass(frozen=True, slots=True)
class Needed:
    """What meeting the tolerance takes: heads by smallest sufficient measured order, and the median predicted order."""

    measured: dict[int, int]
    more: int
    predicted: int | None
    """None: more than the prediction looks at."""
    predicted_bytes: int | None
    score_std: float


def needed(analysis: Analysis, selection: Selection) -> Needed:
    """Orders the described heads would need."""
    heads = described_heads(analysis, selection)
    typical = analysis.model.typical
    orders = sorted(math.inf if head.predicted_order is None else head.predicted_order for head in heads)
    middle = orders[len(orders) // 2]
    predicted = None if math.isinf(middle) else int(middle)
    deviations = {(row.module, row.head): row.score_std for row in described_rows(analysis)}
    return Needed(
        measured=dict(sorted(Counter(head.needed_order for head in heads if head.needed_order is not None).items())),
        more=sum(head.needed_order is None for head in heads),
        predicted=predicted,
        predicted_bytes=None if predicted is None else cost.state_bytes(typical.head_dim, typical.value_dim, predicted),
        score_std=median(deviations.values()),
    )


@dataclass(frozen=True, slots=True)
class NearFieldLine:
    """Median error and heads within the tolerance at one order, expansion ``mean``, without and with a near field."""

    order: int
    without: float
    within_without: int
    near: float
    within_near: int


def near_field(analysis: Analysis, selection: Selection) -> tuple[NearFieldLine, ...]:
    """What the preview's near field changes; empty without a preview."""
    preview = analysis.preview
    if preview is None:
        return ()
    lines = []
    for index, order in enumerate(preview.orders):
        plain = [row.relative_l2 for row in described_rows(analysis) if row.order == order and row.expansion == "mean"]
        near = [head[index] for module in described_modules(analysis) for head in preview.relative_l2[module.name]]
        lines.append(
            NearFieldLine(
                order=order,
                without=median(plain),
                within_without=sum(error <= selection.tolerance for error in plain),
                near=median(near),
                within_near=sum(error <= selection.tolerance for error in near),
            )
        )
    return tuple(lines)
