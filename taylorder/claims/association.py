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
from scipy import stats

from taylorder.claims.layers import Floats
from taylorder.evaluation.intervals import Interval

LEAST = 5
"""Models with fewer layers take no part: a rank correlation of four points says nothing."""

_RESAMPLES = 4000
_POWER = 0.8
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Pairs:
    """Two figures of the layers of one model, ``x`` and ``y`` ``[n]``."""

    x: Floats
    y: Floats

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            lengths = sorted({len(self.x), len(self.y)})
            raise ValueError(f"figures of the same layers were expected, found {lengths} of them")

    @property
    def weight(self) -> int:
        """Layers, less 3; 0 where they are too few."""
        return len(self.x) - 3 if len(self.x) >= LEAST else 0


@dataclass(frozen=True, slots=True)
class Association:
    """A pooled rank correlation with its bootstrap interval, and how many layers took part."""

    spearman: Interval
    layers: int


def associate(models: Sequence[Pairs], *, level: float = 0.95) -> Association | None:
    """Correlate ``x`` with ``y`` within each model; None where no model has enough layers that differ.

    Args:
        models: the figures of each.
        level: of the interval; raise it where several are read together.

    """
    usable = [pairs for pairs in models if pairs.weight and np.ptp(pairs.x) > 0 and np.ptp(pairs.y) > 0]
    if not usable:
        return None
    weights = np.array([pairs.weight for pairs in usable], dtype=np.float64)
    estimate = np.average([_spearman(pairs.x, pairs.y) for pairs in usable], weights=weights)

    def resampled(*indices: Floats, axis: int = -1) -> Floats:
        drawn = [np.moveaxis(index, axis, -1).astype(np.int64) for index in indices]
        correlations = [_spearman(pairs.x[index], pairs.y[index]) for pairs, index in zip(usable, drawn, strict=True)]
        pooled: Floats = np.average(np.stack(correlations, -1), axis=-1, weights=weights)
        return pooled

    ends = stats.bootstrap(
        tuple(np.arange(len(pairs.x)) for pairs in usable), resampled, vectorized=True, n_resamples=_RESAMPLES,
        confidence_level=level, method="percentile", random_state=np.random.default_rng(0), batch=500,
    ).confidence_interval  # fmt: skip
    return Association(
        Interval(float(estimate), float(ends.low), float(ends.high)), sum(len(pairs.x) for pairs in usable)
    )


def detectable(models: Sequence[Pairs], *, level: float = 0.95) -> float | None:
    """The smallest Spearman correlation that so many layers would tell from none four times in five.

    By Fisher's z with the variance ``1.06 / (n - 3)`` of Spearman's (Fieller, Hartley and Pearson 1957); None without
    enough layers.
    """
    weight = sum(pairs.weight for pairs in models)
    if not weight:
        return None
    needed = stats.norm.isf((1 - level) / 2) + stats.norm.ppf(_POWER)
    return math.tanh(float(needed) * math.sqrt(1.06 / weight))


def _spearman(x: Floats, y: Floats) -> Floats:
    """Correlation of ranks along the last axis, 0 where a figure does not vary; scipy's takes one sample at a time."""
    a, b = _centred_ranks(x), _centred_ranks(y)
    sizes = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    correlation: Floats = np.where(sizes > _ROUNDING, (a * b).sum(-1) / np.maximum(sizes, _ROUNDING), 0.0)
    return correlation


def _centred_ranks(x: Floats) -> Floats:
    ranks = stats.rankdata(x, axis=-1)
    centred: Floats = ranks - ranks.mean(-1, keepdims=True)
    return centred
