"""Rank correlations within models, pooled: against scipy, against what is known, and where they must say nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from taylorder.claims.association import Pairs, adjusted, associate, detectable, kendall


def pairs(n, correlation, seed=0, controls=None):
    draw = np.random.default_rng(seed)
    x, noise = draw.normal(size=(2, n))
    return Pairs(x, correlation * x + np.sqrt(1 - correlation**2) * noise, controls)


def test_one_model_is_scipys_correlation():
    own = pairs(30, 0.6)
    found = associate([own])
    assert found.spearman.estimate == pytest.approx(stats.spearmanr(own.x, own.y).statistic)
    assert found.p_value == pytest.approx(stats.spearmanr(own.x, own.y).pvalue, abs=0.01)
    assert found.layers == 30
    assert found.spearman.low < found.spearman.estimate < found.spearman.high


def test_the_interval_covers_the_correlation_it_should():
    """Of 60 draws with a known correlation some three miss a 95 % interval; ten would be a fault."""
    spearman = 6 / np.pi * np.arcsin(0.6 / 2)  # of a bivariate normal with Pearson correlation 0.6
    found = [associate([pairs(40, 0.6, seed)]).spearman for seed in range(60)]
    assert sum(not each.low <= spearman <= each.high for each in found) <= 9
    assert np.mean([each.high - each.low for each in found]) < 0.6


def test_no_association_has_an_interval_around_nothing_and_a_large_p():
    found = associate([pairs(30, 0.0, 3)])
    assert found.spearman.low < 0 < found.spearman.high
    assert found.p_value > 0.05


def test_a_strong_one_is_told_from_nothing():
    found = associate([pairs(30, 0.9)])
    assert found.spearman.low > 0.5
    assert found.p_value < 0.001


def test_a_negative_one_is_two_sided():
    own = pairs(30, 0.9)
    found = associate([Pairs(own.x, -own.y)])
    assert found.spearman.high < -0.5
    assert found.p_value < 0.001


def test_layers_of_two_models_are_never_ranked_against_each_other():
    """Each model has no association of its own; their levels differ, so that all layers together would have one."""
    one, other = pairs(30, 0.0, 3), pairs(30, 0.0, 3)
    apart = Pairs(other.x + 100, other.y + 100)
    together = stats.spearmanr(np.r_[one.x, apart.x], np.r_[one.y, apart.y]).statistic
    assert together > 0.5
    assert associate([one, apart]).spearman.estimate == pytest.approx(associate([one]).spearman.estimate)


def test_a_few_layers_that_go_the_other_way_do_not_outvote_many():
    many, few = pairs(30, 0.9), Pairs(np.arange(6.0), -np.arange(6.0))
    found = associate([many, few])
    assert found.spearman.low > 0.3
    assert found.p_value < 0.001


def test_kendall_counts_ties_as_scipy_does():
    draw = np.random.default_rng(0)
    own = Pairs(*draw.integers(0, 4, (2, 20)).astype(float))
    found = kendall([own])
    assert found.estimate == pytest.approx(stats.kendalltau(own.x, own.y).statistic)
    assert found.low < found.estimate < found.high
    assert kendall([pairs(4, 0.9)]) is None


def test_pooling_weighs_models_by_their_layers():
    many, few = pairs(30, 0.0, 3), pairs(6, 0.0, 5)
    found = associate([many, few])
    each = [stats.spearmanr(own.x, own.y).statistic for own in (many, few)]
    assert found.spearman.estimate == pytest.approx((27 * each[0] + 3 * each[1]) / 30)
    assert found.layers == 36


def test_models_of_few_layers_take_no_part():
    own = pairs(30, 0.5)
    assert associate([own, pairs(4, 0.9)]) == associate([own])
    assert associate([pairs(4, 0.9)]) is None
    assert detectable([pairs(4, 0.9)]) is None


def test_a_figure_that_does_not_vary_tells_nothing():
    assert associate([Pairs(np.ones(10), np.arange(10.0))]) is None


def test_what_a_third_figure_explains_is_held_fixed():
    draw = np.random.default_rng(0)
    cause, noise, more = draw.normal(size=(3, 60))
    x, y = cause + 0.5 * noise, cause + 0.5 * more
    plain, held = associate([Pairs(x, y)]), associate([Pairs(x, y, cause[:, None])])
    assert plain.spearman.low > 0.4
    assert abs(held.spearman.estimate) < 0.25
    assert held.spearman.low < 0 < held.spearman.high
    assert held.p_value > 0.05 > plain.p_value


def test_the_partial_correlation_is_that_of_residuals_of_ranks():
    draw = np.random.default_rng(1)
    x, y, z = draw.normal(size=(3, 25))
    ranks = [stats.rankdata(each) for each in (x, y, z)]
    residuals = [own - np.polyval(np.polyfit(ranks[2], own, 1), ranks[2]) for own in ranks[:2]]
    expected = np.corrcoef(*residuals)[0, 1]
    assert associate([Pairs(x, y, z[:, None])]).spearman.estimate == pytest.approx(expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(5, 12), st.integers(0, 1000))
def test_correlations_stay_in_range_with_ties(n, seed):
    draw = np.random.default_rng(seed)
    found = associate([Pairs(draw.integers(0, 3, n).astype(float), draw.integers(0, 3, n).astype(float))])
    if found is not None:
        assert -1 <= found.spearman.low <= found.spearman.high <= 1
        assert 0 < found.p_value <= 1


def test_more_layers_show_smaller_correlations():
    assert detectable([pairs(30, 0.0)]) == pytest.approx(0.50, abs=0.01)
    assert detectable([pairs(30, 0.0), pairs(30, 0.0)]) < detectable([pairs(30, 0.0)])


def test_p_values_are_corrected_for_their_number():
    assert adjusted([]) == []
    assert adjusted([0.01]) == [0.01]
    found = adjusted([0.01, 0.5, 0.02])
    assert found[0] > 0.01
    assert found[0] <= found[2] <= found[1]


def test_lists_of_different_layers_are_refused():
    with pytest.raises(ValueError, match=r"figures of the same layers were expected, found \[5, 6\]"):
        Pairs(np.zeros(5), np.zeros(6))
