"""Degree helps: what each further term does to the error of a head and to the loss of the model."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise

import numpy as np

from taylorder.claims.claim import Claim, Effect, Figure, FigureTable, Plot, Series
from taylorder.claims.evidence import Evidence, ModelEvidence, below, overall
from taylorder.claims.measurements.order_losses import NEAR, LossMeasurement, OrderLosses
from taylorder.evaluation.intervals import Interval, paired_difference
from taylorder.kernels.spec import EXPANSIONS, Expansion

_MEAN: Expansion = "mean"
_ZERO: Expansion = "zero"

_RULE = (
    f"Loss with every head at order P + 2 less that at order P, for odd P, beside a window of {NEAR[0]} and {NEAR[1]} "
    "sinks, paired by sequence. Supported if all steps lie below 0 by simultaneous 95 % intervals in every model, "
    "contradicted if all lie above, undecided otherwise. Odd orders, because even ones need the guard; layers with a "
    "sliding window stay exact."
)


def degree_claim(evidence: Evidence) -> Claim:
    """Follow error and loss from order to order."""
    models = evidence.models
    steps = {
        (model.name_and_layers, *orders): difference
        for model in models
        for orders, difference in _steps(model.result(LossMeasurement)).items()
    }
    return Claim(
        key="degree",
        statement="Degree helps: every two terms more, around the mean and beside a near field, lower the loss.",
        source="arXiv 2602.00294: arbitrary precision with more terms",
        verdict=overall([below(difference, 0.0) for difference in steps.values()]),
        reason=" ".join(_sentence(model) for model in models),
        rule=_RULE,
        effects=tuple(
            Effect.of(f"{name}: loss at order {after} less at order {order}", difference, "below 0")
            for (name, order, after), difference in steps.items()
        ),
        tables=tuple(
            table for model in models for table in (_error_table(model), *_loss_tables(model), _energy_table(model))
        ),
        plots=tuple(_plot(model) for model in models),
    )


def _steps(losses: OrderLosses | None) -> dict[tuple[int, int], Interval]:
    """What the loss changes by from each odd order to the next."""
    if losses is None:
        return {}
    odd = [order for order in losses.near if order % 2]
    level = 1 - 0.05 / max(1, len(odd) - 1)
    return {
        (order, after): paired_difference(losses.near[after], losses.near[order], level=level)
        for order, after in pairwise(odd)
    }


def _sentence(model: ModelEvidence) -> str:
    orders = [row.order for row in model.layers.analysis.candidates]
    largest = max(order for order in orders if order % 2)
    mean, zero = (
        " to ".join(f"{_median_error(model, order, expansion):.0%}" for order in (1, largest))
        for expansion in (_MEAN, _ZERO)
    )
    sentence = (
        f"{model.name}: from order 1 to {largest} the median head's error goes from {mean} (around zero from {zero})"
    )
    losses = model.result(LossMeasurement)
    if losses is not None:
        shown = [order for order in (1, largest) if order in losses.near]
        near = " to ".join(f"{statistics.fmean(losses.near[order]):.3f}" for order in shown)
        sentence += f", the loss beside a near field from {near} (exact {statistics.fmean(losses.exact):.3f})"
        plain = ", ".join(f"{order}: {statistics.fmean(nll):.1f}" for order, nll in sorted(losses.plain.items()))
        sentence += f". Without a near field the loss by order is {plain}"
    return sentence + "."


def _median_error(model: ModelEvidence, order: int, expansion: Expansion = "mean") -> float:
    return statistics.median(row.relative_l2 for row in model.layers.rows(order, expansion))


def _error_table(model: ModelEvidence) -> FigureTable:
    rows: list[tuple[Figure, ...]] = []
    for order in range(1, model.layers.analysis.max_order + 1):
        cells: list[Figure] = [order]
        for expansion in EXPANSIONS:
            heads = model.layers.rows(order, expansion)
            cells += [
                statistics.median(row.relative_l2 for row in heads),
                statistics.median(row.raw_relative_l2 for row in heads),
                statistics.fmean(row.nonpositive_share for row in heads),
            ]
        rows.append(tuple(cells))
    titles = [f"{expansion}: {what}" for expansion in EXPANSIONS for what in ("error", "unguarded", "guarded rows")]
    return FigureTable(
        f"{model.name}: relative L2 error by order, median head",
        ("order", *titles),
        tuple(rows),
        note="Even orders end in an odd degree, whose denominators can vanish; guarded rows fall back to order 1.",
    )


def _loss_tables(model: ModelEvidence) -> list[FigureTable]:
    """One, where the model has losses."""
    losses = model.result(LossMeasurement)
    if losses is None:
        return []
    rows: list[tuple[Figure, ...]] = []
    for order in sorted(losses.near.keys() | losses.plain.keys()):
        cells: list[Figure] = [order]
        for by_order in (losses.near, losses.plain):
            if order in by_order:
                delta = paired_difference(by_order[order], losses.exact)
                nll = statistics.fmean(by_order[order])
                cells += [nll, math.exp(nll), delta.estimate, delta.low, delta.high]
            else:
                cells += [None] * 5
        rows.append(tuple(cells))
    exact = statistics.fmean(losses.exact)
    columns = ("nll", "perplexity", "nll over exact", "low", "high")
    return [
        FigureTable(
            f"{model.name_and_layers}: loss with every head at one order, {len(losses.exact)} sequences of "
            f"{losses.length:,} tokens",
            ("order", f"window {NEAR[0]}: {columns[0]}", *columns[1:], f"no near field: {columns[0]}", *columns[1:]),
            tuple(rows),
            note=f"Nats per token; exact: {exact:.4f}, perplexity {math.exp(exact):.2f}. Expansion mean, guarded.",
        )
    ]


def _energy_table(model: ModelEvidence) -> FigureTable:
    numerator = np.concatenate(model.head_sums("numerator"))
    by_degree = np.concatenate(model.head_sums("degrees"), -1)
    size = np.sqrt(by_degree / numerator)
    rows = [
        (degree, *(float(np.quantile(heads, share)) for share in (0.1, 0.5, 0.9))) for degree, heads in enumerate(size)
    ]
    return FigureTable(
        f"{model.name}: size of what each degree adds",
        ("degree", "least tenth of the heads", "median", "largest tenth"),
        tuple(rows),
        note=(
            "Root mean square of the degree's part of the numerator over that of the numerator with all degrees, "
            "expanded at the mean score. Where these do not fall, no degree so far is irrelevant."
        ),
    )


def _plot(model: ModelEvidence) -> Plot:
    orders = tuple(range(1, model.layers.analysis.max_order + 1))
    series = tuple(
        Series(
            f"expansion {expansion}",
            tuple(map(float, orders)),
            tuple(_median_error(model, order, expansion) for order in orders),
        )
        for expansion in EXPANSIONS
    )
    return Plot(f"{model.name}: error of the median head by order", "order", "relative L2 error", series, log_y=True)
