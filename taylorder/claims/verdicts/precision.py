"""Four terms reach the resolution of float16: in the paper's set-up and on real heads, absolute and relative."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from taylorder.claims.claim import Claim, Effect, Figure, FigureTable
from taylorder.claims.evidence import Evidence, ModelEvidence, below, overall
from taylorder.claims.measurements import heads, normal_inputs
from taylorder.claims.measurements.normal_inputs import NormalHead
from taylorder.claims.rounding import PRECISIONS
from taylorder.evaluation.intervals import Interval, geometric_mean_interval, mean_interval

ORDER = 4
RESOLUTION = 1e-3
"""``numpy.finfo(numpy.float16).resolution``."""

SAME = 3.0
"""Errors within this factor count as the same."""

_RULE = (
    f"Relative L2 error at order {ORDER} over that of rounding queries, keys and values to float16. Supported if it "
    f"is below {SAME:g} for normal inputs (head dim 64) and in every model, by the whole 95 % interval (of the "
    f"geometric mean over draws or layers); contradicted if it is above {SAME:g} in all; undecided otherwise. The "
    "absolute error is told beside it and decides nothing: it is small wherever the outputs are."
)


def precision_claim(evidence: Evidence) -> Claim:
    """Compare truncation with rounding, on normal inputs and on the heads of some models."""
    models = evidence.models
    largest = max(draw.head_dim for draw in evidence.normal)
    draws = [draw for draw in evidence.normal if draw.head_dim == largest]
    setup = geometric_mean_interval([draw.relative_l2[ORDER] / draw.rounding["fp16"] for draw in draws])
    absolute = mean_interval([draw.median_error[ORDER] for draw in draws])
    low = mean_interval([draw.rounding_median["fp16"] for draw in draws])
    relative = mean_interval([draw.relative_l2[ORDER] for draw in draws])
    measured = {model.name: _ratio(model) for model in models}
    ratios = {name: ratio for name, ratio in measured.items() if ratio is not None}
    inputs = f"normal inputs, d = {largest}"
    effects = [
        Effect.of(f"{inputs}: relative error over that of float16", setup, "about 1"),
        Effect.of(f"{inputs}: median absolute error of an element", absolute, f"about {RESOLUTION:g}"),
        Effect.of(f"{inputs}: the same of rounding to float16", low, "for comparison"),
        Effect.of(f"{inputs}: relative error", relative, "as small as float16's, 0.0005"),
    ]
    effects += [
        Effect.of(f"{name}: relative error over that of float16", ratio, "about 1") for name, ratio in ratios.items()
    ]
    rms = float(np.mean([draw.output_rms for draw in draws]))
    reason = (
        f"In the paper's set-up the median error of an element is {absolute.estimate:.1g}, of the order of float16's "
        f"resolution, {RESOLUTION:g}, but outputs there average {rms:.1g}, and rounding to float16 is off by "
        f"{low.estimate:.1g}: the relative error is {relative.estimate:.0%}, {setup.estimate:,.0f} times that of "
        "rounding."
    )
    if ratios:
        times = ", ".join(f"{ratio.estimate:,.0f} times in {name}" for name, ratio in ratios.items())
        reason += f" On real heads it is {times} (expansion mean)."
    return Claim(
        key="precision",
        statement="Four Taylor terms recover attention with errors of about the magnitude of float16 resolution.",
        source="arXiv 2602.00294, abstract",
        verdict=overall([below(ratio, SAME) for ratio in (setup, *ratios.values())]),
        reason=reason,
        rule=_RULE,
        effects=tuple(effects),
        tables=(_setup_table(evidence.normal), *(_model_table(model) for model in models)),
    )


def _ratio(model: ModelEvidence) -> Interval | None:
    """Truncation over float16, each layer by the sums over its heads."""
    order, fp16 = heads.ORDERS.index(ORDER), PRECISIONS.index("fp16")
    ratios = [
        math.sqrt(truncation[order].sum() / rounding[fp16].sum())
        for truncation, rounding in zip(model.head_sums("truncation"), model.head_sums("rounding"), strict=True)
        if rounding[fp16].sum() > 0
    ]
    return geometric_mean_interval(ratios) if ratios else None


def _setup_table(normal: Sequence[NormalHead]) -> FigureTable:
    rows: list[tuple[Figure, ...]] = []
    for head_dim in dict.fromkeys(draw.head_dim for draw in normal):
        draws = [draw for draw in normal if draw.head_dim == head_dim]
        rms = float(np.mean([draw.output_rms for draw in draws]))
        for order in normal_inputs.ORDERS:
            absolute = float(np.median([draw.median_error[order] for draw in draws]))
            relative = float(np.median([draw.relative_l2[order] for draw in draws]))
            rows.append((head_dim, f"order {order}", absolute, rms, relative))
        for precision in PRECISIONS:
            absolute = float(np.median([draw.rounding_median[precision] for draw in draws]))
            relative = float(np.median([draw.rounding[precision] for draw in draws]))
            rows.append((head_dim, precision, absolute, rms, relative))
    first = normal[0]
    return FigureTable(
        f"normal inputs, {first.tokens:,} tokens, the last {first.queries} queries of {len(draws)} draws",
        ("head dim", "attention", "median absolute error", "rms of the output", "relative L2 error"),
        tuple(rows),
        note="Median over draws. Orders: around zero, unguarded, as in the paper.",
    )


def _model_table(model: ModelEvidence) -> FigureTable:
    output, elements = (np.concatenate(model.head_sums(name)) for name in ("output", "elements"))
    rms = float(np.median(np.sqrt(output / elements)))
    truncation = np.concatenate(model.head_sums("truncation"), -1)
    rounding = np.concatenate(model.head_sums("rounding"), -1)
    rows: list[tuple[Figure, ...]] = []
    for name, errors in [
        *zip((f"order {order}" for order in heads.ORDERS), truncation, strict=True),
        *zip(PRECISIONS, rounding, strict=True),
    ]:
        relative = np.sqrt(errors / output)
        absolute = float(np.median(np.sqrt(errors / elements)))
        rows.append((name, *(float(np.quantile(relative, share)) for share in (0.1, 0.5, 0.9)), absolute, rms))
    return FigureTable(
        f"{model.name}: relative L2 error of a head's output, and absolute (root mean square of an element)",
        ("attention", "best tenth of the heads", "median", "worst tenth", "absolute, median", "rms of the output"),
        tuple(rows),
        note="Orders: expansion mean, guarded, no near field. Rounding: queries, keys and values; the rest in float64.",
    )
