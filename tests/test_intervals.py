"""Confidence intervals: coverage, pairing, degenerate data, determinism."""

from __future__ import annotations

import math

import numpy as np
import pytest

from taylorder.errors import NonFiniteError
from taylorder.evaluation.intervals import (
    FEW,
    Interval,
    mean_interval,
    paired_difference,
    share_difference,
    share_interval,
)

INTERVALS = (mean_interval, share_interval)


def _width(interval):
    return interval.high - interval.low


def test_the_interval_of_normal_values_agrees_with_the_known_standard_error():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    interval = mean_interval(values)
    error = 1.96 * values.std() / math.sqrt(len(values))
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - error, rel=0.01)
    assert interval.high == pytest.approx(values.mean() + error, rel=0.01)


@pytest.mark.parametrize(("level", "least", "most"), [(0.95, 0.88, 0.99), (0.5, 0.38, 0.62)])
def test_intervals_cover_the_true_mean_about_as_often_as_they_say(level, least, most):
    generator = np.random.default_rng(2)
    intervals = [mean_interval(generator.exponential(size=30), samples=500, level=level) for _ in range(200)]
    covered = np.mean([interval.low <= 1.0 <= interval.high for interval in intervals])
    assert least < covered < most


@pytest.mark.parametrize("count", [3, 4, 8])
def test_intervals_of_few_values_cover_the_true_mean_as_well(count):
    generator = np.random.default_rng(5)
    intervals = [mean_interval(generator.normal(1.0, 1.0, size=count)) for _ in range(400)]
    covered = np.mean([interval.low <= 1.0 <= interval.high for interval in intervals])
    assert 0.92 < covered < 0.98


def test_pairing_removes_the_spread_that_the_sequences_have_in_common():
    generator = np.random.default_rng(3)
    difficulty = generator.normal(0, 5, size=16)
    a, b = difficulty + generator.normal(0.2, 0.1, size=16), difficulty + generator.normal(0, 0.1, size=16)
    paired = paired_difference(a, b)
    assert 0 < paired.low < 0.2 < paired.high
    assert paired.estimate == pytest.approx(a.mean() - b.mean())
    shuffled = paired_difference(a, np.roll(b, 1))
    assert _width(shuffled) > 10 * _width(paired)
    assert shuffled.low < 0 < shuffled.high


def test_pairing_is_the_mean_of_the_differences():
    a, b = [1.0, 4.0, 2.5], [0.5, 1.0, 3.0]
    assert paired_difference(a, b, seed=5) == mean_interval(np.subtract(a, b), seed=5)
    swapped = paired_difference(b, a, seed=5)
    assert swapped.estimate == -paired_difference(a, b, seed=5).estimate


@pytest.mark.parametrize("interval", INTERVALS)
def test_the_seed_decides(interval):
    values = np.random.default_rng(4).random(FEW)
    assert interval(values, seed=1) == interval(values, seed=1)
    assert interval(values, seed=1, samples=200) != interval(values, seed=2, samples=200)


@pytest.mark.parametrize("count", [4, FEW])
@pytest.mark.parametrize("interval", INTERVALS)
def test_a_wider_level_gives_a_wider_interval(interval, count):
    values = np.random.default_rng(4).random(count)
    assert _width(interval(values, level=0.99)) > _width(interval(values, level=0.8))


def test_one_value_says_nothing_about_the_spread():
    assert mean_interval([2.5]) == Interval(2.5, -math.inf, math.inf)


def test_equal_values_have_no_spread():
    assert mean_interval([2.5] * 6) == Interval(2.5, 2.5, 2.5)


def test_a_share_of_one_is_not_certainty():
    perfect = share_interval([1] * 10)
    assert (perfect.estimate, perfect.high) == (1.0, 1.0)
    assert perfect.low == pytest.approx(0.025 ** (1 / 10))
    hopeless = share_interval([0] * 10)
    assert (hopeless.estimate, hopeless.low) == (0.0, 0.0)
    assert hopeless.high == pytest.approx(1 - perfect.low)


def test_equal_shares_between_0_and_1_get_the_interval_of_that_many_trials():
    interval = share_interval([0.5] * 10)
    assert (interval.low, interval.high) == pytest.approx((0.1871, 0.8129), abs=1e-4)


@pytest.mark.parametrize("times", [1, 10])
def test_shares_stay_within_bounds(times):
    interval = share_interval([1, 1, 1, 0] * times)
    assert 0 <= interval.low < 0.75 < interval.high <= 1


def test_differences_of_shares_stay_within_bounds():
    a, b = [0.0, 0.0, 0.1, 0.0], [1.0, 0.9, 0.4, 1.0]
    assert paired_difference(a, b).low < -1
    found = share_difference(a, b)
    assert found.low == -1
    assert (found.estimate, found.high) == (paired_difference(a, b).estimate, paired_difference(a, b).high)


def test_booleans_count_as_0_and_1():
    assert share_interval([True, False, True]) == share_interval([1, 0, 1])


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_value_is_named(interval, bad):
    with pytest.raises(NonFiniteError, match="value 1 of 3 is"):
        interval([0.0, bad, 1.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_difference([1.0, 2.0], [1.0]), "found 2 and 1 of them"),
        (lambda: mean_interval([]), r"at least one value, found shape \(0,\)"),
        (lambda: mean_interval([[1.0]]), r"found shape \(1, 1\)"),
        (lambda: mean_interval([1.0], samples=0), "samples is 0, expected at least 1"),
        (lambda: share_interval([1.0], level=1.0), "level is 1.0, expected between 0 and 1"),
        (lambda: share_interval([0.5, 1.5]), r"shares lie in \[0, 1\], found 0.5 to 1.5"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
