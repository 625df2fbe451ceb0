"""Confidence intervals of means over sequences, paired where two models saw the same sequences.

The unit is the sequence (or the prompt, or the layer), never the token: tokens of one sequence are not independent.
Few values get Student's interval, more a bootstrap, which does not ask that they be normal but cannot leave their
range: of four normal values its 95 % interval holds the mean in 79 % of all cases, Student's in 94 %; of four skewed
ones (log-normal, sigma 0.75) 74 and 88 %, of sixteen skewed ones 89 % with either.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from taylorder.errors import NonFiniteError

FEW = 16
"""Fewer values than this get Student's interval."""

_BATCH = 1000  # resamples held at a time, so that memory does not grow with their number


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its two-sided confidence interval, in the unit of the values."""

    estimate: float
    low: float
    high: float

    @property
    def bounded(self) -> bool:
        """Whether both ends are finite; those of a single value are not."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of the mean of ``a - b``; ``a[i]`` and ``b[i]`` ``[n]`` belong to the same sequence.

    Pairing removes what makes a sequence hard for both, usually most of the variance. See :func:`mean_interval`.

    Raises:
        ValueError: different lengths, no values, or an argument out of range.
        NonFiniteError: a value is NaN or infinite.

    """
    first, second = _values(a), _values(b)
    if len(first) != len(second):
        raise ValueError(f"paired values must be of the same sequences: found {len(first)} and {len(second)} of them")
    return mean_interval(first - second, samples=samples, seed=seed, level=level)


def share_difference(a: ArrayLike, b: ArrayLike, *, seed: int = 0) -> Interval:
    """As :func:`paired_difference` for shares of right answers, whose difference stays within [-1, 1]."""
    return _clipped(paired_difference(a, b, seed=seed), -1.0, 1.0)


def mean_interval(x: ArrayLike, *, samples: int = 10_000, seed: int = 0, level: float = 0.95) -> Interval:
    """Interval of the mean of ``x`` ``[n]``: Student's for fewer than :data:`FEW` values, otherwise a seeded bootstrap.

    The bootstrap is bias-corrected and accelerated (BCa). Where neither says anything: one value gives
    ``(-inf, inf)``, and equal values give their mean for both ends.

    Raises:
        ValueError: no values, or an argument out of range.
        NonFiniteError: a value is NaN or infinite.

    """
    values = _values(x)
    _check(samples, level)
    mean = float(values.mean())
    if len(values) == 1:
        return Interval(mean, -math.inf, math.inf)
    if np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    return _interval(values, samples, seed, level)


def geometric_mean_interval(x: ArrayLike) -> Interval:
    """Interval of the geometric mean of positive ``x`` ``[n]``; see :func:`mean_interval`."""
    logs = mean_interval(np.log(_values(x)))
    return Interval(math.exp(logs.estimate), math.exp(logs.low), math.exp(logs.high))


def share_interval(
    x: ArrayLike, *, trials: int | None = None, samples: int = 10_000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Interval of the mean of outcomes ``x`` ``[n]``, each 0 or 1, or the share of right answers in one prompt.

    As :func:`mean_interval`, except that equal values (all right, all wrong, a single one) give the Clopper-Pearson
    interval of a share seen in ``trials`` answers, default ``n``: four right out of four is not certainty. It stays
    within [0, 1].

    Raises:
        ValueError: no values, a value outside [0, 1], or an argument out of range.
        NonFiniteError: a value is NaN or infinite.

    """
    values = _values(x)
    _check(samples, level)
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"shares lie in [0, 1], found {values.min()} to {values.max()}")
    trials = len(values) if trials is None else trials
    if trials < len(values):
        raise ValueError(f"trials is {trials}, expected at least one for each of the {len(values)} values")
    if np.ptp(values) > 0:
        return _clipped(_interval(values, samples, seed, level), 0.0, 1.0)
    share, tail = float(values[0]), (1 - level) / 2
    right, wrong = trials * share, trials * (1 - share)
    low = 0.0 if share == 0 else float(stats.beta.ppf(tail, right, wrong + 1))
    high = 1.0 if share == 1 else float(stats.beta.isf(tail, right + 1, wrong))
    return Interval(share, low, high)


def _clipped(interval: Interval, least: float, most: float) -> Interval:
    return Interval(interval.estimate, max(least, interval.low), min(most, interval.high))


def _interval(values: NDArray[np.float64], samples: int, seed: int, level: float) -> Interval:
    if len(values) < FEW:
        student = stats.ttest_1samp(values, 0.0).confidence_interval(level)
        return Interval(float(values.mean()), float(student.low), float(student.high))
    return _bootstrap(values, samples, seed, level)


def _bootstrap(values: NDArray[np.float64], samples: int, seed: int, level: float) -> Interval:
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            # `random_state` and not `rng`, which scipy knows only since 1.15.
            ends = stats.bootstrap(
                (values,), np.mean, n_resamples=samples, batch=_BATCH, confidence_level=level, method=method,
                random_state=np.random.default_rng(seed),
            ).confidence_interval  # fmt: skip
        # BCa is undefined when all resamples lie on one side of the mean; percentiles always exist.
        if math.isfinite(ends.low) and math.isfinite(ends.high):
            break
    return Interval(float(values.mean()), float(ends.low), float(ends.high))


def _values(x: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(x, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"expected a list of at least one value, found shape {values.shape}")
    if not np.isfinite(values).all():
        index = int(np.flatnonzero(~np.isfinite(values))[0])
        raise NonFiniteError(
            f"value {index} of {len(values)} is {values[index]}, expected a finite number: the model that was measured "
            "broke down on that sequence"
        )
    return values


def _check(samples: int, level: float) -> None:
    if samples < 1:
        raise ValueError(f"samples is {samples}, expected at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, expected between 0 and 1")
