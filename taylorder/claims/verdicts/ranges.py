"""Inputs are mild enough for the series: ranges of scores, what each order tolerates, and how ranges grow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize

from taylorder.analysis.statistics import gaussian_prediction
from taylorder.claims.claim import Claim, Effect, Figure, FigureTable, Plot, Series
from taylorder.claims.evidence import Evidence, ModelEvidence, above, overall
from taylorder.claims.layers import Floats
from taylorder.claims.measurements.score_ranges import RangeMeasurement
from taylorder.evaluation.intervals import share_interval
from taylorder.selection.settings import TIERS

ORDER = 4
TOLERANCES = (TIERS["int4"], 0.2, 0.5)
MAJORITY = 0.5


def tolerated_std(order: int, tolerance: float) -> float:
    """Largest score standard deviation at which normal scores meet a tolerance, expanded at their mean."""
    return float(optimize.brentq(lambda std: gaussian_prediction(std, order) - tolerance, 1e-3, 30.0))


_RULE = (
    f"Share of the heads whose scores spread no more than order {ORDER} tolerates at {TOLERANCES[0]:.0%} (standard "
    f"deviation below {tolerated_std(ORDER, TOLERANCES[0]):.2f}, for normal scores). Supported if it is above "
    f"{MAJORITY:.0%} by the whole 95 % interval over layers in every model, contradicted if below in every model, "
    "undecided otherwise."
)


def ranges_claim(evidence: Evidence) -> Claim:
    """Compare what orders tolerate with the spread of real scores."""
    models = evidence.models
    long = [model for model in models if model.result(RangeMeasurement)]
    limit = tolerated_std(ORDER, TOLERANCES[0])
    shares = {
        model.name: share_interval(model.layers.over_heads(1, "mean", lambda row: float(row.score_std <= limit)))
        for model in models
    }
    within = []
    for model in models:
        stds = [row.score_std for row in model.layers.rows(1, "mean")]
        within.append(
            f"{float(np.mean(np.array(stds) <= limit)):.0%} in {model.name} (median head {np.median(stds):.1f})"
        )
    return Claim(
        key="ranges",
        statement="Queries and keys of trained models are mild enough for a short series.",
        source="arXiv 2602.00294 tests normal inputs, of score std 1; theory: arXiv 2302.13214",
        verdict=overall([above(share, MAJORITY) for share in shares.values()]),
        reason=(
            f"Order {ORDER} tolerates a score std of {limit:.2f} at {TOLERANCES[0]:.0%}. Heads within that: "
            f"{', '.join(within)}." + _growth(long)
        ),
        rule=_RULE,
        effects=tuple(
            Effect.of(f"{name}: share of heads mild enough", share, f"above {MAJORITY:g}")
            for name, share in shares.items()
        ),
        tables=(*(_orders(model) for model in models), *map(_lengths, long)),
        plots=tuple(map(_plot, long)),
    )  # fmt: skip


def _orders(model: ModelEvidence) -> FigureTable:
    """For every order: what it tolerates, and how many heads keep to that, predicted and measured."""
    rows: list[tuple[Figure, ...]] = []
    for order in range(1, model.layers.analysis.max_order + 1):
        heads = model.layers.rows(order, "mean")
        cells: list[Figure] = [order]
        for tolerance in TOLERANCES:
            limit = tolerated_std(order, tolerance)
            cells += [
                limit,
                sum(row.score_std <= limit for row in heads) / len(heads),
                sum(row.relative_l2 <= tolerance for row in heads) / len(heads),
            ]
        rows.append(tuple(cells))
    titles = [f"{tolerance:.0%}: {what}" for tolerance in TOLERANCES for what in ("std tolerated", "heads", "measured")]
    return FigureTable(
        f"{model.name}: heads mild enough for an order",
        ("order", *titles),
        tuple(rows),
        note=(
            "Std tolerated: for normal scores expanded at their mean. Heads: share whose score std is no larger. "
            "Measured: share whose relative L2 error (expansion mean) is within the tolerance."
        ),
    )


def _by_length(model: ModelEvidence) -> dict[int, Floats]:
    """By context, the largest scores ``[head]`` of layers that see all tokens, or of all layers where none does."""
    ranges = model.result(RangeMeasurement)
    if ranges is None:
        return {}
    modules = model.model.open_modules or model.model.modules
    largest = np.concatenate([np.array(ranges.largest[module.name]) for module in modules], -1)
    return dict(zip(ranges.lengths, largest, strict=True))


def _lengths(model: ModelEvidence) -> FigureTable:
    rows = [
        (length, math.log(length), *(float(np.quantile(largest, share)) for share in (0.1, 0.5, 0.9)))
        for length, largest in _by_length(model).items()
    ]
    return FigureTable(
        f"{model.name}: largest |score| by context",
        ("tokens", "ln n", "mildest tenth of the heads", "median", "wildest tenth"),
        tuple(rows),
        note="Keys centred; layers with a sliding window are left out. Attention can be computed in almost linear time "
        "if it grows more slowly than ln n (arXiv 2302.13214), and not in general beyond.",
    )


def _growth(models: Sequence[ModelEvidence]) -> str:
    growth = []
    for model in models:
        ratios = [float(np.median(largest)) / math.log(length) for length, largest in _by_length(model).items()]
        if len(ratios) > 1:
            growth.append(f"{ratios[0]:.1f} to {ratios[-1]:.1f} times ln n in {model.name}")
    if not growth:
        return ""
    return f" The largest score of the median head is {', '.join(growth)} (shortest to longest context)."


def _plot(model: ModelEvidence) -> Plot:
    by_length = _by_length(model)
    lengths = tuple(map(float, by_length))
    series = [
        Series(label, lengths, tuple(float(np.quantile(largest, share)) for largest in by_length.values()))
        for label, share in (("mildest tenth", 0.1), ("median head", 0.5), ("wildest tenth", 0.9))
    ]
    series.append(Series("ln n", lengths, tuple(math.log(length) for length in lengths)))
    return Plot(f"{model.name}: largest |score| by context", "tokens", "|score|", tuple(series), log_x=True)
