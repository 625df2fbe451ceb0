"""Several similar targets wash out: how much weight is left on the keys that a query wants about equally."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch

from taylorder.claims.claim import Cell, Claim, Effect, Plot, Series, Table
from taylorder.claims.evidence import Evidence, below, over_layers, overall
from taylorder.claims.measurements import heads
from taylorder.claims.weights import series
from taylorder.evaluation.intervals import Interval

ORDER = 4
WASHED_OUT = 0.8
"""Weight kept below this share counts as washed out."""

KEYS, TARGETS, STDS, ORDERS, WINDOWS = 1024, (1, 2, 4, 8, 16), (0.5, 1.0, 2.0, 3.0), (2, 3, 4, 5, 8), (16, 64, 256)
_RULE = (
    f"Share of the exact weight that order {ORDER} (expansion mean) leaves on the keys whose weight is at least half "
    f"of the best one's, in rows with two or more of them. Supported if it is below {WASHED_OUT:g} by the whole 95 % "
    "interval over layers in every model, contradicted if it is above in every model, undecided otherwise."
)


def similar_claim(models: Sequence[Evidence]) -> Claim:
    """Ask how much weight truncation leaves on several keys that are about as good."""
    place = heads.ORDERS.index(ORDER)
    alone, kept, against = {}, {}, {}
    for model in models:
        shares = list(_shares(model, place))
        alone[model.name] = over_layers(one for one, _ in shares)
        kept[model.name] = over_layers(several for _, several in shares)
        against[model.name] = over_layers(
            math.log(several / one) if min(one, several) > 0 else math.nan for one, several in shares
        )
    reason = "No row has tied keys."
    if told := _told(kept):
        reason = f"Of their weight two or more keys that tie for the best keep, at order {ORDER}, {told}."
        if single := _told(alone):
            reason += f" A best key that stands alone keeps {single}"
            harmless = all(each.low > 0 for each in against.values() if each is not None)
            reason += ": their number does no harm." if harmless else "."
    return Claim(
        key="similar",
        statement="Several similar targets wash out: truncation takes their weight away.",
        source="discussion of the paper, news.ycombinator.com/item?id=46886265",
        verdict=overall([below(each, WASHED_OUT) for each in kept.values()]),
        reason=reason,
        rule=_RULE,
        effects=tuple(
            Effect.of(f"{name}: {what} at order {ORDER}", each, meaning)
            for own, what, meaning in (
                (kept, "weight kept on two or more tied keys", f"below {WASHED_OUT:g}"),
                (against, "log of that over what a single best key keeps", "below 0 if their number harms"),
            )
            for name, each in own.items() if each is not None
        ),
        tables=(_made_up(), *(_model_table(model) for model in models)),
        plots=tuple(_plot(model) for model in models),
    )  # fmt: skip


def _shares(model: Evidence, place: int) -> Iterator[tuple[float, float]]:
    """Of every layer, the share of its weight that a best key alone keeps, and that several tied ones keep."""
    for own, mass in zip(model.head_sums("tied_truncated"), model.head_sums("tied_mass"), strict=True):
        alone, several = (
            float(own[at, place].sum() / mass[at].sum()) if mass[at].sum() > 0 else math.nan
            for at in (slice(0, 1), slice(1, None))
        )
        yield alone, several


def _told(shares: Mapping[str, Interval | None]) -> str:
    return ", ".join(f"{each.estimate:.0%} in {name}" for name, each in shares.items() if each is not None)


def _made_up() -> Table:
    """Normal scores with some keys tied at the score the largest of so many would have, in the limit of many draws."""
    generator = torch.Generator().manual_seed(0)
    crowd = torch.randn(256, KEYS, generator=generator, dtype=torch.float64)
    rows: list[tuple[Cell, ...]] = []
    for std in STDS:
        for targets in TARGETS:
            scores = std * crowd
            scores[:, :targets] = std * math.sqrt(2 * math.log(KEYS))
            exact = float(scores.softmax(-1)[:, :targets].sum(-1).mean())
            x = scores - scores.mean(-1, keepdim=True)
            sums = list(accumulate(series(x, torch.ones_like(x), max(ORDERS))))
            weights = {order: sums[order - 1] for order in ORDERS}
            kept = [float((own[:, :targets].sum(-1) / own.sum(-1)).mean()) / exact for own in weights.values()]
            for window in WINDOWS:  # the tied ones are the nearest
                near = torch.cat([x[:, :window].exp(), weights[ORDER][:, window:]], -1)
                kept.append(float((near[:, :targets].sum(-1) / near.sum(-1)).mean()) / exact)
            rows.append((std, targets, exact, *kept))
    return Table(
        f"made-up scores: {KEYS:,} keys, some tied where the best of so many would be",
        (
            "score std", "tied keys", "their exact weight", *(f"order {order}" for order in ORDERS),
            *(f"order {ORDER}, tied within a window of {window}" for window in WINDOWS),
        ),
        tuple(rows),
        note="Orders: share of the exact weight that is left on the tied keys, expansion mean, 256 draws.",
    )  # fmt: skip


def _by_ties(model: Evidence) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, weight and truncated weight by the number of tied keys, over all heads."""
    rows = sum(each.sum(-1) for each in model.head_sums("tied_rows"))
    mass = sum(each.sum(-1) for each in model.head_sums("tied_mass"))
    truncated = sum(each.sum(-1) for each in model.head_sums("tied_truncated"))
    return np.asarray(rows), np.asarray(mass), np.asarray(truncated)


def _model_table(model: Evidence) -> Table:
    rows, mass, truncated = _by_ties(model)
    labels = ["1", *(f"{low + 1} to {high}" if high > low + 1 else str(high) for low, high in _ranges()), "more"]
    return Table(
        f"{model.name}: weight kept on the keys about as good as the best",
        ("such keys", "rows", "their exact weight", *(f"order {order}" for order in heads.ORDERS)),
        tuple(
            (label, int(count), own / count, *(each / own for each in kept))
            for label, count, own, kept in zip(labels, rows.tolist(), mass.tolist(), truncated.tolist(), strict=True)
            if count
        ),
        note="Weights: mean over rows. Orders: share of it that is left, expansion mean, no near field.",
    )


def _ranges() -> list[tuple[int, int]]:
    return list(zip(heads.TIES, heads.TIES[1:], strict=False))


def _plot(model: Evidence) -> Plot:
    rows, mass, truncated = _by_ties(model)
    known = rows > 0
    series = tuple(
        Series(
            f"order {order}", tuple(np.array([*heads.TIES, 2 * heads.TIES[-1]])[known].tolist()), tuple(kept.tolist())
        )
        for order, kept in zip(heads.ORDERS, (truncated[known] / mass[known, None]).T, strict=True)
    )
    return Plot(
        f"{model.name}: weight kept on tied keys", "keys about as good as the best, at most", "share of exact weight",
        series, log_x=True,
    )  # fmt: skip
