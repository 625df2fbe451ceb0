"""Several similar targets wash out: how much weight is left on the keys that a query wants about equally."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import accumulate

import numpy as np
import torch

from taylorder.claims.claim import Claim, Effect, Figure, FigureTable, Plot, Series
from taylorder.claims.evidence import Evidence, ModelEvidence, below, over_layers, overall
from taylorder.claims.measurements import heads
from taylorder.claims.weights import series
from taylorder.evaluation.intervals import Interval

ORDER = 4
WASHED_OUT = 0.8
"""Weight kept below this share counts as washed out."""

KEYS, TARGETS, STDS, ORDERS, WINDOWS = 1024, (1, 2, 4, 8, 16), (0.5, 1.0, 2.0, 3.0), (2, 3, 4, 5, 8), (16, 64, 256)
_BY_TIES = ("tied_rows", "tied_mass", "tied_truncated")
_RULE = (
    "Keys of a row are tied if each has at least half the weight of the best one. In rows with two or more tied keys: "
    f"their weight at order {ORDER} (expansion mean) over their exact weight. Supported if that is below "
    f"{WASHED_OUT:g} by the whole 95 % interval over layers in every model, contradicted if it is above in every "
    "model, undecided otherwise."
)


def similar_claim(evidence: Evidence) -> Claim:
    """Ask how much weight truncation leaves on several keys that are about as good."""
    models = evidence.models
    of_one: dict[str, Interval | None] = {}
    of_several: dict[str, Interval | None] = {}
    log_ratio: dict[str, Interval | None] = {}
    for model in models:
        shares = list(_shares(model))
        of_one[model.name] = over_layers(one for one, _ in shares)
        of_several[model.name] = over_layers(several for _, several in shares)
        log_ratio[model.name] = over_layers(
            math.log(several / one) if min(one, several) > 0 else math.nan for one, several in shares
        )
    reason = "No row has tied keys."
    if tied := _in_words(of_several):
        reason = f"Of their weight two or more keys that tie for the best keep, at order {ORDER}, {tied}."
        if single := _in_words(of_one):
            reason += f" A best key that stands alone keeps {single}"
            harmless = all(ratio.low > 0 for ratio in log_ratio.values() if ratio is not None)
            reason += ": their number does no harm." if harmless else "."
    return Claim(
        key="similar",
        statement="Several similar targets wash out: truncation takes their weight away.",
        source="discussion of the paper, news.ycombinator.com/item?id=46886265",
        verdict=overall([below(share, WASHED_OUT) for share in of_several.values()]),
        reason=reason,
        rule=_RULE,
        effects=tuple(
            Effect.of(f"{name}: {what} at order {ORDER}", interval, meaning)
            for by_model, what, meaning in (
                (of_several, "weight kept on two or more tied keys", f"below {WASHED_OUT:g}"),
                (log_ratio, "log of that over what a single best key keeps", "below 0 if their number harms"),
            )
            for name, interval in by_model.items() if interval is not None
        ),
        tables=(_made_up(), *(_model_table(model) for model in models)),
        plots=tuple(_plot(model) for model in models),
    )  # fmt: skip


def _shares(model: ModelEvidence) -> Iterator[tuple[float, float]]:
    """Of every layer, the share of its weight that a best key alone keeps, and that several tied ones keep."""
    order = heads.ORDERS.index(ORDER)
    for truncated, mass in zip(model.head_sums("tied_truncated"), model.head_sums("tied_mass"), strict=True):
        one, several = (
            float(truncated[ties, order].sum() / mass[ties].sum()) if mass[ties].sum() > 0 else math.nan
            for ties in (slice(0, 1), slice(1, None))
        )
        yield one, several


def _in_words(shares: Mapping[str, Interval | None]) -> str:
    return ", ".join(f"{share.estimate:.0%} in {name}" for name, share in shares.items() if share is not None)


def _made_up() -> FigureTable:
    """Normal scores with some keys tied at the score the largest of so many would have, in the limit of many draws."""
    generator = torch.Generator().manual_seed(0)
    crowd = torch.randn(256, KEYS, generator=generator, dtype=torch.float64)
    rows: list[tuple[Figure, ...]] = []
    for std in STDS:
        for targets in TARGETS:
            scores = std * crowd
            scores[:, :targets] = std * math.sqrt(2 * math.log(KEYS))
            exact = float(scores.softmax(-1)[:, :targets].sum(-1).mean())
            x = scores - scores.mean(-1, keepdim=True)
            sums = list(accumulate(series(x, torch.ones_like(x), max(ORDERS))))
            weights = {order: sums[order - 1] for order in ORDERS}
            left = [float((by_key[:, :targets].sum(-1) / by_key.sum(-1)).mean()) / exact for by_key in weights.values()]
            for window in WINDOWS:  # the tied ones are the nearest
                near = torch.cat([x[:, :window].exp(), weights[ORDER][:, window:]], -1)
                left.append(float((near[:, :targets].sum(-1) / near.sum(-1)).mean()) / exact)
            rows.append((std, targets, exact, *left))
    return FigureTable(
        f"made-up scores: {KEYS:,} keys, some tied where the best of so many would be",
        (
            "score std", "tied keys", "their exact weight", *(f"order {order}" for order in ORDERS),
            *(f"order {ORDER}, tied within a window of {window}" for window in WINDOWS),
        ),
        tuple(rows),
        note="Orders: share of the exact weight that is left on the tied keys, expansion mean, 256 draws.",
    )  # fmt: skip


def _model_table(model: ModelEvidence) -> FigureTable:
    rows, mass, truncated = map(model.total_sums, _BY_TIES)
    labels = ["1", *(f"{low + 1} to {high}" if high > low + 1 else str(high) for low, high in _ranges()), "more"]
    return FigureTable(
        f"{model.name}: weight kept on the keys about as good as the best",
        ("such keys", "rows", "their exact weight", *(f"order {order}" for order in heads.ORDERS)),
        tuple(
            (label, int(count), float(exact / count), *(by_order / exact).tolist())
            for label, count, exact, by_order in zip(labels, rows, mass, truncated, strict=True)
            if count
        ),
        note="Weights: mean over rows. Orders: share of it that is left, expansion mean, no near field.",
    )


def _ranges() -> list[tuple[int, int]]:
    return list(zip(heads.TIES, heads.TIES[1:], strict=False))


def _plot(model: ModelEvidence) -> Plot:
    rows, mass, truncated = map(model.total_sums, _BY_TIES)
    known = rows > 0
    series = tuple(
        Series(
            f"order {order}", tuple(np.array([*heads.TIES, 2 * heads.TIES[-1]])[known].tolist()), tuple(share.tolist())
        )
        for order, share in zip(heads.ORDERS, (truncated[known] / mass[known, None]).T, strict=True)
    )
    return Plot(
        f"{model.name}: weight kept on tied keys", "keys about as good as the best, at most", "share of exact weight",
        series, log_x=True,
    )  # fmt: skip
