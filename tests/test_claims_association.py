"""Rank correlations within models, pooled: against scipy, against what is known, and where they must say nothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from taylorder.claims.association import Pairs, associate, detectable


def pairs(n, correlation, seed=0):
    draw = np.random.default_rng(seed)
    x, noise = draw.normal(size=(2, n))
    return Pairs(x, correlation * x + np.sqrt(1 - correlation**2) * noise)


def test_one_model_is_scipys_correlation():
    own = pairs(30, 0.6)
    found = associate([own])
    assert found.spearman.estimate == pytest.approx(stats.spearmanr(own.x, own.y).statistic)
    assert found.layers == 30
    assert found.spearman.low < found.spearman.estimate < found.spearman.high


def test_the_interval_covers_the_correlation_it_should():
    """Of 60 draws with a known correlation some three miss a 95 % interval; ten would be a fault."""
    spearman = 6 / np.pi * np.arcsin(0.6 / 2)  # of a bivariate normal with Pearson correlation 0.6
    found = [associate([pairs(40, 0.6, seed)]).spearman for seed in range(60)]
    assert sum(not each.low <= spearman <= each.high for each in found) <= 9
    assert np.mean([each.high - each.low for each in found]) < 0.6


def test_no_association_has_an_interval_around_nothing():
    found = associate([pairs(30, 0.0, 3)])
    assert found.spearman.low < 0 < found.spearman.high


def test_a_strong_one_is_told_from_nothing():
    found = associate([pairs(30, 0.9)])
    assert found.spearman.low > 0.5


def test_a_negative_one_is_two_sided():
    own = pairs(30, 0.9)
    found = associate([Pairs(own.x, -own.y)])
    assert found.spearman.high < -0.5


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


def test_more_layers_show_smaller_correlations():
    assert detectable([pairs(30, 0.0)]) == pytest.approx(0.50, abs=0.01)
    assert detectable([pairs(30, 0.0), pairs(30, 0.0)]) < detectable([pairs(30, 0.0)])


def test_lists_of_different_layers_are_refused():
    with pytest.raises(ValueError, match=r"figures of the same layers were expected, found \[5, 6\]"):
        Pairs(np.zeros(5), np.zeros(6))
