"""Predictors against direct numerical integration, exact enumeration and the inequality they claim."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from taylorder.analysis import statistics


def taylor(s, order):
    return sum(s**p / math.factorial(p) for p in range(order))


@pytest.mark.parametrize("order", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("std", [0.05, 0.5, 1.0, 2.4])
def test_gaussian_prediction_equals_the_integral(std, order):
    def density(s):
        return math.exp(-0.5 * (s / std) ** 2) / (std * math.sqrt(2 * math.pi))

    def squared_error(s):
        # Direct subtraction cancels for small s, where the exact remainder is its series.
        remainder = (
            sum(s**p / math.factorial(p) for p in range(order, order + 40))
            if abs(s) < 2
            else math.exp(s) - taylor(s, order)
        )
        return remainder**2 * density(s)

    low, high = -12 * std, 2 * std * std + 12 * std
    points = np.linspace(low, high, 41)
    above = sum(integrate.quad(squared_error, a, b, epsabs=0, epsrel=1e-9)[0] for a, b in itertools.pairwise(points))
    expected = math.sqrt(above / math.exp(2 * std * std))
    assert statistics.gaussian_prediction(std, order) == pytest.approx(expected, rel=1e-4)


def test_gaussian_prediction_of_a_unit_head_needs_nine_terms_for_one_percent():
    assert statistics.order_for(1.0, 0.01) == 9
    assert statistics.order_for(0.25, 0.01) == 3
    assert statistics.order_for(0.0, 0.01) == 1


@given(std=st.floats(0.01, 6.0), order=st.integers(1, 12))
def test_no_polynomial_beats_the_fitted_floor(std, order):
    assert statistics.fitted_floor(std, order) <= statistics.gaussian_prediction(std, order) * (1 + 1e-6) + 1e-12


@given(std=st.floats(0.02, 4.0), tolerance=st.floats(1e-3, 0.5))
def test_order_for_is_the_smallest_that_meets(std, tolerance):
    order = statistics.order_for(std, tolerance)
    assert statistics.gaussian_prediction(std, order) <= tolerance
    assert all(statistics.gaussian_prediction(std, lower) > tolerance for lower in range(1, order))


@pytest.mark.parametrize("std", [6.5, 12.0])
def test_wide_heads_do_not_overflow_and_are_hopeless(std):
    assert 0.9 < statistics.gaussian_prediction(std, 8) <= 1.0 + 1e-9


bounded = st.tuples(st.floats(0.01, 1.5), st.integers(1, 8)).filter(lambda it: statistics.certified_bound(*it, 1.0))


@settings(max_examples=60, deadline=None)
@given(bounded=bounded, seed=st.integers(0, 999), keys=st.integers(1, 40))
def test_certified_bound_holds(bounded, seed, keys):
    b, order = bounded
    generator = np.random.default_rng(seed)
    scores = generator.uniform(-b, b, keys)
    values = generator.normal(size=(keys, 3))
    bound = statistics.certified_bound(b, order, float(np.abs(values).max()))
    exact = np.exp(scores) @ values / np.exp(scores).sum()
    weights = taylor(scores, order)
    assert np.abs(weights @ values / weights.sum() - exact).max() <= bound * (1 + 1e-9) + 1e-15


def test_certified_bound_is_vacuous_for_wide_scores_and_zero_for_none():
    assert statistics.certified_bound(20.0, 8, 1.0) is None
    assert statistics.certified_bound(0.0, 1, 1.0) == 0.0


def test_logit_rank_counts_the_directions_queries_and_keys_share():
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(16, 16, generator=generator))
    keys = torch.randn(1, 1, 500, 16, generator=generator) + 30.0  # an offset is no variance
    queries = torch.randn(1, 2, 500, 16, generator=generator)
    queries[:, 0] = queries[:, 0, :, :3] @ basis[:, :3].T
    ranks = statistics.logit_ranks(queries, keys, torch.ones(1, 500, dtype=torch.bool))
    assert ranks[0] == 3
    assert ranks[1] > 10
