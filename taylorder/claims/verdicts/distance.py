"""It softens into the past: where truncation puts the weight, and what distance and context do to its error."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from taylorder.claims.association import Floats
from taylorder.claims.claim import Cell, Claim, Effect, Plot, Series, Table
from taylorder.claims.evidence import Evidence, above, over_layers, overall
from taylorder.claims.measurements import heads

ORDER = 5
"""Odd, so that no weight is negative."""

NEAR, FAR = 16, 64
"""Keys fewer tokens back than the first are the present, as many as the second or more the past."""

_RULE = (
    f"Weight that order {ORDER} (expansion mean, no near field) gives to keys {FAR} or more tokens back, over the "
    f"exact weight there, as a logarithm, less the same for keys fewer than {NEAR} tokens back; the first "
    f"{heads.SINKS} keys are left out. Supported if it is above 0 by the whole 95 % interval over layers in every "
    "model, contradicted if below in every model, undecided otherwise."
)


def distance_claim(models: Sequence[Evidence]) -> Claim:
    """Compare the weight by distance, truncated and exact."""
    causal = [model for model in models if model.model.causal]
    shifts = {model.name: over_layers(_shifts(model)) for model in causal}
    told = [f"{math.exp(each.estimate):.2f} times in {name}" for name, each in shifts.items() if each is not None]
    sinks = [f"by {_sinks(model):.2f} in {model.name}" for model in causal]
    reason = "No causal model was measured."
    if told:
        reason = (
            f"Against the nearest {NEAR} keys, the weight of keys {FAR} or more tokens back grows {', '.join(told)}; "
            f"that of the first {heads.SINKS} keys of the text is multiplied {', '.join(sinks)}."
        )
    return Claim(
        key="distance",
        statement="Truncated attention softens into the past: it spreads weight to distant keys.",
        source="discussion of the paper, news.ycombinator.com/item?id=46886265",
        verdict=overall([above(each, 0.0) for each in shifts.values()]),
        reason=reason,
        rule=_RULE,
        effects=tuple(
            Effect.of(f"{name}: log ratio, past over present", each, "above 0")
            for name, each in shifts.items() if each is not None
        ),
        tables=tuple(
            table for model in causal for table in (_mass_table(model), _error_table(model), _context_table(model))
        ),
        plots=tuple(_plot(model) for model in causal),
    )  # fmt: skip


def _shifts(model: Evidence) -> list[float]:
    """Of every layer, NaN where there is no weight to compare."""
    place, ends = heads.ORDERS.index(ORDER), np.array(_ends())
    found = []
    for mass, truncated in zip(model.head_sums("mass"), model.head_sums("truncated_mass"), strict=True):
        exact, own = mass.sum(-1)[: len(ends)], truncated[place].sum(-1)[: len(ends)]
        sums = [each[chosen].sum() for chosen in (ends > FAR, ends <= NEAR) for each in (own, exact)]
        far, far_exact, near, near_exact = sums
        found.append(math.log(far / far_exact * near_exact / near) if min(sums) > 0 else math.nan)
    return found


def _ends() -> list[int]:
    """Upper ends of the buckets of distance, the open one included, that of the first keys not."""
    return [*heads.DISTANCES, 2 * heads.DISTANCES[-1]]


def _by_distance(model: Evidence) -> tuple[Floats, Floats]:
    """Weight per query by distance, exact ``[bucket]`` and truncated ``[order, bucket]``, mean over heads and rows."""
    mass = sum(each.sum(-1) for each in model.head_sums("mass"))
    truncated = sum(each.sum(-1) for each in model.head_sums("truncated_mass"))
    total = np.asarray(mass).sum()
    return np.asarray(mass) / total, np.asarray(truncated) / total


def _sinks(model: Evidence) -> float:
    mass, truncated = _by_distance(model)
    return float(truncated[heads.ORDERS.index(ORDER), -1] / mass[-1])


def _labels() -> list[str]:
    """Of the buckets of distance."""
    labels = [str(end - 1) if place < 2 else f"to {end - 1:,}" for place, end in enumerate(_ends())]
    return [*labels[:-1], "beyond", f"the first {heads.SINKS} keys"]


def _mass_table(model: Evidence) -> Table:
    mass, truncated = _by_distance(model)
    rows: list[tuple[Cell, ...]] = [
        (label, float(own), *(float(each) for each in others))
        for label, own, others in zip(_labels(), mass, truncated.T, strict=True)
        if own > 0
    ]
    return Table(
        f"{model.name}: weight by distance",
        ("tokens back", "exact", *(f"order {order}" for order in heads.ORDERS)),
        tuple(rows),
        note="Mean over heads and queries, expansion mean, no near field. Even orders give negative weights.",
    )


def _error_table(model: Evidence) -> Table:
    moved = np.asarray(sum(each.sum(-1) for each in model.head_sums("moved")))
    mass, _ = _by_distance(model)
    size = sum(each.sum() for each in model.head_sums("output"))
    rows: list[tuple[Cell, ...]] = [
        (label, *(math.sqrt(each / size) for each in own))
        for label, own, there in zip(_labels(), moved.T, mass, strict=True)
        if there > 0
    ]
    return Table(
        f"{model.name}: error by distance",
        ("tokens back", *(f"order {order}" for order in heads.ORDERS)),
        tuple(rows),
        note=(
            "What the weight that truncation gives or takes at a distance does to the output, relative L2 over all "
            "heads. Parts can cancel, so that they may add up to less."
        ),
    )


def _context_table(model: Evidence) -> Table:
    output, rounding, truncation = (
        np.asarray(sum(each.sum(-1) for each in model.head_sums(f"by_keys_{name}")))
        for name in ("output", "rounding", "truncation")
    )
    ends = _ends()
    rows: list[tuple[Cell, ...]] = [
        (f"to {end:,}", math.sqrt(low / size), math.sqrt(own / size))
        for end, size, low, own in zip(ends, output, rounding, truncation, strict=True)
        if size > 0
    ]
    return Table(
        f"{model.name}: error by the number of keys a query sees",
        ("keys", "rounding to int4", "order 4, expansion mean"),
        tuple(rows),
        note="Relative L2 error over all heads. Rounding: queries, keys and values.",
    )


def _plot(model: Evidence) -> Plot:
    mass, truncated = _by_distance(model)
    count = len(_ends())
    known = mass[:count] > 0
    x = tuple(float(end) for end, there in zip(_ends(), known, strict=True) if there)
    series = tuple(
        Series(f"order {order}", x, tuple((own[:count][known] / mass[:count][known]).tolist()))
        for order, own in zip(heads.ORDERS, truncated, strict=True)
        if order % 2
    )
    return Plot(
        f"{model.name}: weight by distance, truncated over exact", "tokens back, at most", "ratio", series, log_x=True
    )
