"""It softens into the past: where truncation puts the weight, and what distance and context do to its error."""

from __future__ import annotations

import math

import numpy as np

from taylorder.claims.claim import Claim, Effect, Figure, FigureTable, Plot, Series
from taylorder.claims.evidence import Evidence, ModelEvidence, above, over_layers, overall
from taylorder.claims.layers import Floats
from taylorder.claims.measurements import heads
from taylorder.kernels.spec import SINKS

ORDER = 5
"""Odd, so that no weight is negative."""

NEAR, FAR = 16, 64
"""Keys fewer tokens back than the first are the present, as many as the second or more the past."""

_RULE = (
    f"Weight that order {ORDER} (expansion mean, no near field) gives to keys {FAR} or more tokens back, over the "
    f"exact weight there, as a logarithm, less the same for keys fewer than {NEAR} tokens back; the first "
    f"{SINKS} keys are left out. Supported if it is above 0 by the whole 95 % interval over layers in every "
    "model, contradicted if below in every model, undecided otherwise."
)


def distance_claim(evidence: Evidence) -> Claim:
    """Compare the weight by distance, truncated and exact."""
    causal = [model for model in evidence.models if model.model.causal]
    of_model = {model.name: over_layers(_shifts(model)) for model in causal}
    shifts = {name: shift for name, shift in of_model.items() if shift is not None}
    growth = [f"{math.exp(shift.estimate):.2f} times in {name}" for name, shift in shifts.items()]
    sinks = [f"by {_sinks(model):.2f} in {model.name}" for model in causal]
    reason = "No causal model was measured."
    if growth:
        reason = (
            f"Against the nearest {NEAR} keys, the weight of keys {FAR} or more tokens back grows {', '.join(growth)}; "
            f"that of the first {SINKS} keys of the text is multiplied {', '.join(sinks)}."
        )
    return Claim(
        key="distance",
        statement="Truncated attention softens into the past: it spreads weight to distant keys.",
        source="discussion of the paper, news.ycombinator.com/item?id=46886265",
        verdict=overall([above(shift, 0.0) for shift in shifts.values()]),
        reason=reason,
        rule=_RULE,
        effects=tuple(
            Effect.of(f"{name}: log ratio, past over present", shift, "above 0") for name, shift in shifts.items()
        ),
        tables=tuple(
            table for model in causal for table in (_mass_table(model), _error_table(model), _context_table(model))
        ),
        plots=tuple(_plot(model) for model in causal),
    )  # fmt: skip


def _shifts(model: ModelEvidence) -> list[float]:
    """Log ratio of every layer, NaN where there is no weight to compare."""
    order, ends = heads.ORDERS.index(ORDER), np.array(_ends())
    shifts = []
    for exact_mass, mass in zip(model.head_sums("mass"), model.head_sums("truncated_mass"), strict=True):
        exact, truncated = exact_mass.sum(-1)[: len(ends)], mass[order].sum(-1)[: len(ends)]
        sums = [weight[bucket].sum() for bucket in (ends > FAR, ends <= NEAR) for weight in (truncated, exact)]
        far, far_exact, near, near_exact = sums
        shifts.append(math.log(far / far_exact * near_exact / near) if min(sums) > 0 else math.nan)
    return shifts


def _ends() -> list[int]:
    """Upper ends of the buckets of distance, the open one included, that of the first keys not."""
    return [*heads.DISTANCES, 2 * heads.DISTANCES[-1]]


def _by_distance(model: ModelEvidence) -> tuple[Floats, Floats]:
    """Weight per query by distance, exact ``[bucket]`` and truncated ``[order, bucket]``, mean over heads and rows."""
    mass, truncated = model.total_sums("mass"), model.total_sums("truncated_mass")
    return mass / mass.sum(), truncated / mass.sum()


def _sinks(model: ModelEvidence) -> float:
    mass, truncated = _by_distance(model)
    return float(truncated[heads.ORDERS.index(ORDER), -1] / mass[-1])


def _labels() -> list[str]:
    """Of the buckets of distance."""
    labels = [str(end - 1) if end <= 2 else f"to {end - 1:,}" for end in _ends()]
    return [*labels[:-1], "beyond", f"the first {SINKS} keys"]


def _mass_table(model: ModelEvidence) -> FigureTable:
    mass, truncated = _by_distance(model)
    rows: list[tuple[Figure, ...]] = [
        (label, float(exact), *map(float, by_order))
        for label, exact, by_order in zip(_labels(), mass, truncated.T, strict=True)
        if exact > 0
    ]
    return FigureTable(
        f"{model.name}: weight by distance",
        ("tokens back", "exact", *(f"order {order}" for order in heads.ORDERS)),
        tuple(rows),
        note="Mean over heads and queries, expansion mean, no near field. Even orders give negative weights.",
    )


def _error_table(model: ModelEvidence) -> FigureTable:
    mass, _ = _by_distance(model)
    size = model.total_sums("output")
    rows: list[tuple[Figure, ...]] = [
        (label, *(math.sqrt(moved / size) for moved in by_order))
        for label, by_order, exact in zip(_labels(), model.total_sums("moved").T, mass, strict=True)
        if exact > 0
    ]
    return FigureTable(
        f"{model.name}: error by distance",
        ("tokens back", *(f"order {order}" for order in heads.ORDERS)),
        tuple(rows),
        note=(
            "What the weight that truncation gives or takes at a distance does to the output, relative L2 over all "
            "heads. Parts can cancel, so that they may add up to less."
        ),
    )


def _context_table(model: ModelEvidence) -> FigureTable:
    by_keys = [model.total_sums(f"by_keys_{name}") for name in ("output", "rounding", "truncation")]
    rows: list[tuple[Figure, ...]] = [
        (f"to {end:,}", math.sqrt(rounding / size), math.sqrt(truncation / size))
        for end, size, rounding, truncation in zip(_ends(), *by_keys, strict=True)
        if size > 0
    ]
    return FigureTable(
        f"{model.name}: error by the number of keys a query sees",
        ("keys", "rounding to int4", "order 4, expansion mean"),
        tuple(rows),
        note="Relative L2 error over all heads. Rounding: queries, keys and values.",
    )


def _plot(model: ModelEvidence) -> Plot:
    mass, truncated = _by_distance(model)
    count = len(_ends())
    known = mass[:count] > 0
    x = tuple(float(end) for end in np.array(_ends())[known])
    series = tuple(
        Series(f"order {order}", x, tuple((weight[:count][known] / mass[:count][known]).tolist()))
        for order, weight in zip(heads.ORDERS, truncated, strict=True)
        if order % 2
    )
    return Plot(
        f"{model.name}: weight by distance, truncated over exact", "tokens back, at most", "ratio", series, log_x=True
    )
