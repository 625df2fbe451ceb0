"""Whether two figures of a model's layers go together: rank correlations within models, pooled over models.

Layers of different models are never ranked against each other: a correlation is computed inside each model, and they
are averaged with weights ``n - 3``. (Fisher's z, which is infinite at 1, would let the model of fewest layers decide.)
The unit that is resampled is the layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from taylorder.analysis.bootstrap import Interval

Floats = NDArray[np.float64]

LEAST = 5
"""Models with fewer layers take no part: a rank correlation of four points says nothing."""

_RESAMPLES, _PERMUTATIONS = 4000, 9999
_POWER = 0.8
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Pairs:
    """Two figures of the layers of one model, ``x`` and ``y`` ``[n]``, and ``controls`` ``[n, c]`` to hold fixed."""

    x: Floats
    y: Floats
    controls: Floats | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.x), len(self.y)} | ({len(self.controls)} if self.controls is not None else set())
        if len(lengths) != 1:
            raise ValueError(f"figures of the same layers were expected, found {sorted(lengths)} of them")

    @property
    def weight(self) -> int:
        """Layers, less 3 and the controls; 0 where too few are left."""
        held = 0 if self.controls is None else self.controls.shape[1]
        return max(0, len(self.x) - 3 - held) if len(self.x) >= LEAST else 0


@dataclass(frozen=True, slots=True)
class Association:
    """A pooled rank correlation.

    ``spearman`` with its bootstrap interval; ``kendall`` tau-b of the figures themselves, averaged as the other is;
    ``p_value`` of a two-sided permutation test within models; ``layers`` that took part.
    """

    spearman: Interval
    kendall: float
    p_value: float
    layers: int


def associate(groups: Sequence[Pairs], *, level: float = 0.95, seed: int = 0) -> Association | None:
    """Correlate ``x`` with ``y`` within each model; None where no model has enough layers that differ.

    Controls, if there are any, are regressed out of both (on ranks) first, in every resample anew.

    Args:
        groups: one for each model.
        level: of the interval; raise it where several are read together.
        seed: of resamples and permutations.

    """
    groups = [each for each in groups if each.weight and np.ptp(each.x) > 0 and np.ptp(each.y) > 0]
    if not groups:
        return None
    weights = np.array([each.weight for each in groups], dtype=np.float64)
    estimate = np.average([_correlation(each.x, each.y, each.controls) for each in groups], weights=weights)

    def resampled(*indices: Floats, axis: int = -1) -> Floats:
        found = []
        for each, index in zip(groups, indices, strict=True):
            drawn = np.moveaxis(index, axis, -1).astype(np.int64)
            controls = None if each.controls is None else each.controls[drawn]
            found.append(_correlation(each.x[drawn], each.y[drawn], controls))
        pooled: Floats = np.average(np.stack(found, -1), axis=-1, weights=weights)
        return pooled

    ends = stats.bootstrap(
        tuple(np.arange(len(each.x)) for each in groups), resampled, vectorized=True, n_resamples=_RESAMPLES,
        confidence_level=level, method="percentile", random_state=np.random.default_rng(seed), batch=500,
    ).confidence_interval  # fmt: skip
    one_sided = [
        stats.combine_pvalues(
            [_permutation(each, seed, side) for each in groups], method="stouffer", weights=np.sqrt(weights)
        ).pvalue
        for side in ("greater", "less")
    ]
    return Association(
        spearman=Interval(float(estimate), float(ends.low), float(ends.high)),
        kendall=float(np.average([_kendall(each) for each in groups], weights=weights)),
        p_value=float(min(1.0, 2 * min(one_sided))),
        layers=sum(len(each.x) for each in groups),
    )


def detectable(groups: Sequence[Pairs], *, level: float = 0.95) -> float | None:
    """The smallest Spearman correlation that so many layers would tell from none four times in five.

    By Fisher's z with the variance ``1.06 / (n - 3)`` of Spearman's (Fieller, Hartley and Pearson 1957); None without
    enough layers.
    """
    weight = sum(each.weight for each in groups)
    if not weight:
        return None
    needed = stats.norm.isf((1 - level) / 2) + stats.norm.ppf(_POWER)
    return math.tanh(float(needed) * math.sqrt(1.06 / weight))


def adjusted(p_values: Sequence[float]) -> list[float]:
    """P-values corrected as by Benjamini and Yekutieli, which holds for tests that depend on each other."""
    return [float(each) for each in stats.false_discovery_control(p_values, method="by")] if p_values else []


def _correlation(x: Floats, y: Floats, controls: Floats | None) -> Floats:
    """Spearman's correlation along the last axis; 0 where a figure does not vary. ``controls`` ``[..., n, c]``."""
    return _product(*(_ranked(each, controls) for each in (x, y)))


def _ranked(x: Floats, controls: Floats | None) -> Floats:
    """Ranks along the last axis less their mean, and less what the ranks of the controls say about them."""
    ranks: Floats = stats.rankdata(x, axis=-1)
    ranks = ranks - ranks.mean(-1, keepdims=True)
    if controls is not None:
        held = stats.rankdata(controls, axis=-2)
        held = held - held.mean(-2, keepdims=True)
        ranks = ranks - (held @ (np.linalg.pinv(held) @ ranks[..., None]))[..., 0]
    return ranks


def _product(a: Floats, b: Floats) -> Floats:
    """Correlation of figures of mean zero along the last axis."""
    sizes = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    found: Floats = np.where(sizes > _ROUNDING, (a * b).sum(-1) / np.maximum(sizes, _ROUNDING), 0.0)
    return found


def _kendall(pairs: Pairs) -> float:
    return float(stats.kendalltau(pairs.x, pairs.y).statistic)


def _permutation(pairs: Pairs, seed: int, side: str) -> float:
    """Probability of a correlation so far to a side when the layers of one figure (or its residuals) are shuffled."""
    a, b = (_ranked(each, pairs.controls) for each in (pairs.x, pairs.y))

    def shuffled(x: Floats, axis: int = -1) -> Floats:
        return _product(np.moveaxis(x, axis, -1), b)

    return float(
        stats.permutation_test(
            (a,), shuffled, permutation_type="pairings", vectorized=True, n_resamples=_PERMUTATIONS,
            alternative=side, random_state=np.random.default_rng(seed), batch=1000,
        ).pvalue
    )  # fmt: skip
