"""Rules without measurement: they spend the budget, and in the direction they are documented to."""

from __future__ import annotations

import itertools

import pytest
from descriptions import made_up_model
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_rules.policies import (
    ALPHA,
    ALPHA_MINUS_2,
    DEPTH,
    alpha_windows,
    depth_progression,
    random_windows,
    shared_windows,
)

from taylorder.adapt import cost
from taylorder.evaluation.rivals import bytes_per_kv_head
from taylorder.kernels.spec import SINKS, Dropped, Exact

TOKEN = cost.kv_bytes(16, 16, 1)
CONTEXT = 4096
ALPHAS = {"layers.0": 5.0, "layers.1": 2.25, "layers.2": 1.25, "layers.3": 3.0}


def windows(contender):
    """Window of the first head of every layer; None where it is exact."""
    return [each.heads[0].spec.near.window or None for each in layers(contender)]


def layers(contender):
    return contender.config.layers


def everything(described, budget, context=CONTEXT):
    found = [depth_progression(described, budget, context), *alpha_windows(described, ALPHAS, budget, context)]
    return [*found, *(random_windows(described, budget, context, seed) for seed in (0, 1))]


@pytest.mark.parametrize("tokens", [20, 101, 777])
@pytest.mark.parametrize("sliding", [(), (1,)])
def test_every_rule_spends_the_budget_and_no_more(tokens, sliding):
    described = made_up_model(sliding=sliding)
    for contender in everything(described, tokens * TOKEN):
        taken = bytes_per_kv_head(contender.config, described, CONTEXT)
        assert (tokens - 1) * TOKEN < taken <= tokens * TOKEN, contender.name
        heads = [head for layer in layers(contender) for head in layer.heads if not isinstance(head.spec.far, Exact)]
        assert len(heads) == 4 * (4 - len(sliding))
        assert all(isinstance(head.spec.far, Dropped) and head.spec.near.sinks == SINKS for head in heads)
        assert all(head.spec.near.window >= 1 for head in heads)
        assert len({head.spec.near.window for head in heads}) > 1
        for layer in layers(contender):
            assert layer.heads[0].spec.near.window == layer.heads[1].spec.near.window, (
                "heads of a group share their cache"
            )


@pytest.mark.parametrize("spare", [1, TOKEN - 1])
def test_bytes_that_make_no_token_for_every_head_are_left(spare):
    described = made_up_model()
    for contender in everything(described, 100 * TOKEN + spare):
        assert bytes_per_kv_head(contender.config, described, CONTEXT) <= 100 * TOKEN + spare


def test_bytes_that_hold_no_key_beside_the_sinks_buy_nothing():
    for contender in everything(made_up_model(), (SINKS + 1) * TOKEN - 1):
        assert contender.config is None
        assert contender.absent == "319 bytes per KV head do not hold 4 sinks and one key"
    for contender in everything(made_up_model(), (SINKS + 1) * TOKEN):
        assert windows(contender) == [1] * 4


def test_windows_shrink_evenly_with_depth():
    contender = depth_progression(made_up_model(layers=5), (200 + SINKS) * TOKEN, CONTEXT)
    assert contender.name == DEPTH
    assert windows(contender) == pytest.approx([300, 250, 200, 150, 100], abs=1)
    assert windows(depth_progression(made_up_model(layers=1), (200 + SINKS) * TOKEN, CONTEXT)) == [200]


def test_small_alphas_and_alphas_far_from_two_get_large_windows():
    by_alpha, by_distance = alpha_windows(made_up_model(), ALPHAS, (200 + SINKS) * TOKEN, CONTEXT)
    assert (by_alpha.name, by_distance.name) == (ALPHA, ALPHA_MINUS_2)
    first = windows(by_alpha)
    assert first[2] > first[1] > first[3] > first[0]
    assert first[2] == pytest.approx(3 * first[0], abs=3)
    second = windows(by_distance)  # distances 3, 1/4, 3/4, 1
    assert second[0] > second[3] > second[2] > second[1]
    assert second[0] == pytest.approx(3 * second[1], abs=3)


def test_layers_without_an_alpha_get_the_middle():
    alphas = {"layers.0": 5.0, "layers.1": None, "layers.2": 2.0}
    for contender in alpha_windows(made_up_model(), alphas, (200 + SINKS) * TOKEN, CONTEXT):
        found = windows(contender)
        assert found[1] == found[3] == pytest.approx(200, abs=1)
        assert sorted([found[0], found[2]]) == pytest.approx([100, 300], abs=1)


def test_equal_alphas_make_equal_windows():
    for contender in alpha_windows(made_up_model(), dict.fromkeys(ALPHAS, 3.0), 100 * TOKEN, CONTEXT):
        assert windows(contender) == [100 - SINKS] * 4


def test_without_any_alpha_there_is_no_rule():
    for contender in alpha_windows(made_up_model(), dict.fromkeys(ALPHAS), 100 * TOKEN, CONTEXT):
        assert contender.config is None
        assert contender.absent == "no alpha could be fitted"


def test_random_windows_differ_between_seeds_and_not_between_runs():
    described, budget = made_up_model(), 300 * TOKEN
    first = random_windows(described, budget, CONTEXT, 0)
    assert first == random_windows(described, budget, CONTEXT, 0)
    assert windows(first) != windows(random_windows(described, budget, CONTEXT, 1))
    heads = [layer.heads[head].spec.near.window for layer in layers(first) for head in (0, 2)]
    assert len(set(heads)) == 8
    assert max(heads) <= 16.5 * min(heads)


def test_modules_with_a_sliding_window_stay_exact():
    for contender in everything(made_up_model(sliding=(1,)), 100 * TOKEN):
        assert [window is None for window in windows(contender)] == [False, True, False, False]


WEIGHTS = st.lists(st.floats(0.05, 20), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(weights=WEIGHTS, mean=st.integers(1, 5000), most=st.integers(1, 5000))
def test_shared_windows_keep_to_the_mean_and_give_what_is_clipped_to_others(weights, mean, most):
    found = shared_windows(weights, mean, most)
    heads = len(weights)
    assert all(1 <= window <= most for window in found)
    assert sum(found) <= mean * heads
    assert sum(found) > (min(mean, most) - 1) * heads - 1
    pairs = sorted(zip(weights, found, strict=True))
    assert all(one <= other for (_, one), (_, other) in itertools.pairwise(pairs))


def test_a_clipped_window_leaves_its_bytes_to_the_others():
    assert shared_windows([8, 1, 1], 100, 1000) == [240, 30, 30]
    assert shared_windows([8, 1, 1], 100, 120) == [120, 90, 90]
    assert shared_windows([1, 1000], 100, 150) == [50, 150]
    described, context = made_up_model(), 120
    for contender in everything(described, 100 * TOKEN, context):
        taken = bytes_per_kv_head(contender.config, described, context)
        assert 99 * TOKEN < taken <= 100 * TOKEN, contender.name
        assert max(window for window in windows(contender) if window) <= context - SINKS
