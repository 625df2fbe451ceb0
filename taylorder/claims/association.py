"""Whether two figures of a model's layers go together: rank correlations within models, pooled over models.

Layers of different models are never ranked against each other: a correlation is computed inside each model, and they
are averaged with weights ``n - 3``. (Fisher's z, which is infinite at 1, would let the model of fewest layers decide.)
The unit that is resampled is the layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from taylorder.evaluation.intervals import Interval

Floats = NDArray[np.float64]

LEAST = 5
"""Models with fewer layers take no part: a rank correlation of four points says nothing."""

_RESAMPLES, _FEWER_RESAMPLES, _PERMUTATIONS = 4000, 1000, 9999
_POWER = 0.8
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Pairs:
    """Two figures of the layers of one model, ``x`` and ``y`` ``[n]``, and ``controls`` ``[n, c]`` to hold fixed.

    Draws of them have more axes before these.
    """

    x: Floats
    y: Floats
    controls: Floats | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.x), len(self.y)} | ({len(self.controls)} if self.controls is not None else set())
        if len(lengths) != 1:
            raise ValueError(f"figures of the same layers were expected, found {sorted(lengths)} of them")

    def drawn(self, index: NDArray[np.int64]) -> Pairs:
        """The layers at ``index`` ``[..., n]``, figures and controls together."""
        return Pairs(self.x[index], self.y[index], None if self.controls is None else self.controls[index])

    @property
    def weight(self) -> int:
        """Layers, less 3 and the controls; 0 where too few are left."""
        held = 0 if self.controls is None else self.controls.shape[1]
        return max(0, len(self.x) - 3 - held) if len(self.x) >= LEAST else 0


@dataclass(frozen=True, slots=True)
class Association:
    """A pooled rank correlation.

    ``spearman`` with its bootstrap interval; ``p_value`` of a two-sided permutation test within models; ``layers`` that
    took part.
    """

    spearman: Interval
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
    groups = _usable(groups)
    if not groups:
        return None
    weights = _weights(groups)
    pairs = [(_ranked(each.x, each.controls), _ranked(each.y, each.controls)) for each in groups]
    return Association(
        spearman=_interval(groups, _spearman, level, seed, _RESAMPLES),
        p_value=_permutation(pairs, weights, seed),
        layers=sum(len(each.x) for each in groups),
    )


def kendall(groups: Sequence[Pairs], *, level: float = 0.95, seed: int = 0) -> Interval | None:
    """Kendall's tau-b with its bootstrap interval, pooled as in :func:`associate`; controls play no part in it."""
    groups = _usable(groups)
    return _interval(groups, _kendall, level, seed, _FEWER_RESAMPLES) if groups else None


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


def _usable(groups: Sequence[Pairs]) -> list[Pairs]:
    """Those of enough layers that differ."""
    return [each for each in groups if each.weight and np.ptp(each.x) > 0 and np.ptp(each.y) > 0]


def _weights(groups: Sequence[Pairs]) -> Floats:
    return np.array([each.weight for each in groups], dtype=np.float64)


def _interval(
    groups: Sequence[Pairs], correlation: Callable[[Pairs], Floats], level: float, seed: int, resamples: int
) -> Interval:
    """The correlation averaged over models, and where it lies when the layers of each are drawn anew."""
    weights = _weights(groups)
    estimate = np.average([correlation(each) for each in groups], weights=weights)

    def resampled(*indices: Floats, axis: int = -1) -> Floats:
        drawn = [np.moveaxis(index, axis, -1).astype(np.int64) for index in indices]
        found = [correlation(each.drawn(index)) for each, index in zip(groups, drawn, strict=True)]
        pooled: Floats = np.average(np.stack(found, -1), axis=-1, weights=weights)
        return pooled

    ends = stats.bootstrap(
        tuple(np.arange(len(each.x)) for each in groups), resampled, vectorized=True, n_resamples=resamples,
        confidence_level=level, method="percentile", random_state=np.random.default_rng(seed), batch=500,
    ).confidence_interval  # fmt: skip
    return Interval(float(estimate), float(ends.low), float(ends.high))


def _spearman(pairs: Pairs) -> Floats:
    """Spearman's correlation along the last axis; 0 where a figure does not vary."""
    return _product(*(_ranked(each, pairs.controls) for each in (pairs.x, pairs.y)))


def _kendall(pairs: Pairs) -> Floats:
    """Tau-b along the last axis: the correlation of the signs of all differences.

    (:func:`scipy.stats.kendalltau` takes one sample at a time, thousands of resamples would take minutes.)
    """
    return _product(*(_signs(each) for each in (pairs.x, pairs.y)))


def _signs(x: Floats) -> Floats:
    """Whether each of ``x`` ``[..., n]`` is above, equal to or below each later one: ``[..., n * (n - 1) / 2]``."""
    first, second = np.triu_indices(x.shape[-1], 1)
    signs: Floats = np.sign(x[..., first] - x[..., second])
    return signs


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


def _permutation(pairs: Sequence[tuple[Floats, Floats]], weights: Floats, seed: int) -> float:
    """Two-sided probability of a pooled correlation so large when the layers of each model are shuffled.

    ``pairs`` are ranks or their residuals. All models are shuffled together: p-values of single models, combined,
    would let one of few layers, whose p is 1 on the wrong side, outvote the others.
    """
    draw = np.random.default_rng(seed)

    def pooled(firsts: Sequence[Floats]) -> Floats:
        found = [_product(first, b) for first, (_, b) in zip(firsts, pairs, strict=True)]
        average: Floats = np.average(np.stack(found, -1), axis=-1, weights=weights)
        return average

    observed = pooled([a for a, _ in pairs])
    shuffled = pooled([draw.permuted(np.tile(a, (_PERMUTATIONS, 1)), axis=-1) for a, _ in pairs])
    as_far = min(int((side * shuffled >= side * observed - _ROUNDING).sum()) for side in (1, -1))
    return min(1.0, 2 * (as_far + 1) / (_PERMUTATIONS + 1))
