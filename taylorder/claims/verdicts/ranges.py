"""Inputs are mild enough for the series: ranges of scores, what each order tolerates, and how ranges grow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize

from taylorder.analysis.statistics import gaussian_prediction
from taylorder.claims.claim import Cell, Claim, Effect, Plot, Series, Table
from taylorder.claims.evidence import Evidence, above, overall
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


def ranges_claim(models: Sequence[Evidence]) -> Claim:
    """Compare what orders tolerate with the spread of real scores."""
    limit = tolerated_std(ORDER, TOLERANCES[0])
    shares = {
        model.name: share_interval(model.layers.over_heads(1, "mean", lambda row: float(row.score_std <= limit)))
        for model in models
    }
    told = []
    for model in models:
        stds = [row.score_std for row in model.layers.rows(1, "mean")]
        told.append(
            f"{float(np.mean(np.array(stds) <= limit)):.0%} in {model.name} (median head {np.median(stds):.1f})"
        )
    return Claim(
        key="ranges",
        statement="Queries and keys of trained models are mild enough for a short series.",
        source="arXiv 2602.00294 tests normal inputs, of score std 1; theory: arXiv 2302.13214",
        verdict=overall([above(each, MAJORITY) for each in shares.values()]),
        reason=(
            f"Order {ORDER} tolerates a score std of {limit:.2f} at {TOLERANCES[0]:.0%}. Heads within that: "
            f"{', '.join(told)}." + _growth(models)
        ),
        rule=_RULE,
        effects=tuple(
            Effect.of(f"{name}: share of heads mild enough", each, f"above {MAJORITY:g}")
            for name, each in shares.items()
        ),
        tables=(*(_orders(model) for model in models), *(_lengths(model) for model in models if model.measured.ranges)),
        plots=tuple(_plot(model) for model in models if model.measured.ranges),
    )  # fmt: skip


def _orders(model: Evidence) -> Table:
    """For every order: what it tolerates, and how many heads keep to that, predicted and measured."""
    rows: list[tuple[Cell, ...]] = []
    for order in range(1, model.layers.analysis.max_order + 1):
        heads = model.layers.rows(order, "mean")
        cells: list[Cell] = [order]
        for tolerance in TOLERANCES:
            limit = tolerated_std(order, tolerance)
            cells += [
                limit,
                sum(row.score_std <= limit for row in heads) / len(heads),
                sum(row.relative_l2 <= tolerance for row in heads) / len(heads),
            ]
        rows.append(tuple(cells))
    titles = [f"{tolerance:.0%}: {what}" for tolerance in TOLERANCES for what in ("std tolerated", "heads", "measured")]
    return Table(
        f"{model.name}: heads mild enough for an order",
        ("order", *titles),
        tuple(rows),
        note=(
            "Std tolerated: for normal scores expanded at their mean. Heads: share whose score std is no larger. "
            "Measured: share whose relative L2 error (expansion mean) is within the tolerance."
        ),
    )


def _by_length(model: Evidence) -> np.ndarray:
    """Largest scores ``[length, head]`` of layers that see all tokens, or of all layers where none does."""
    if model.measured.ranges is None:
        raise ValueError(f"ranges of {model.name} were not measured")
    modules = model.model.open_modules or model.model.modules
    return np.concatenate([np.array(model.measured.ranges.largest[module.name]) for module in modules], -1)


def _lengths(model: Evidence) -> Table:
    ranges = model.measured.ranges
    rows = [
        (length, math.log(length), *(float(np.quantile(own, share)) for share in (0.1, 0.5, 0.9)))
        for length, own in zip(ranges.lengths if ranges else (), _by_length(model), strict=True)
    ]
    return Table(
        f"{model.name}: largest |score| by context",
        ("tokens", "ln n", "mildest tenth of the heads", "median", "wildest tenth"),
        tuple(rows),
        note="Keys centred; layers with a sliding window are left out. Attention can be computed in almost linear time "
        "if it grows more slowly than ln n (arXiv 2302.13214), and not in general beyond.",
    )


def _growth(models: Sequence[Evidence]) -> str:
    told = []
    for model in models:
        if model.measured.ranges is not None and len(model.measured.ranges.lengths) > 1:
            medians = np.median(_by_length(model), -1)
            logs = np.log(model.measured.ranges.lengths)
            told.append(f"{medians[0] / logs[0]:.1f} to {medians[-1] / logs[-1]:.1f} times ln n in {model.name}")
    return f" The largest score of the median head is {', '.join(told)} (shortest to longest context)." if told else ""


def _plot(model: Evidence) -> Plot:
    ranges = model.measured.ranges
    lengths = tuple(map(float, ranges.lengths)) if ranges else ()
    found = _by_length(model)
    series = [
        Series(label, lengths, tuple(np.quantile(found, share, -1).tolist()))
        for label, share in (("mildest tenth", 0.1), ("median head", 0.5), ("wildest tenth", 0.9))
    ]
    series.append(Series("ln n", lengths, tuple(math.log(length) for length in lengths)))
    return Plot(f"{model.name}: largest |score| by context", "tokens", "|score|", tuple(series), log_x=True)
