"""Costs against the figures of the paper's formula and against enumeration."""

from __future__ import annotations

from itertools import combinations_with_replacement

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taylorder.adapt import cost


@given(d=st.integers(1, 7), order=st.integers(1, 5))
def test_features_count_the_monomials(d, order):
    monomials = [m for p in range(order) for m in combinations_with_replacement(range(d), p)]
    assert cost.features(d, order) == len(monomials)


def test_ranks_limit_the_coordinates_of_their_degree():
    assert cost.features(64, 4, (64, 64, 8, 8)) == 1 + 64 + 36 + 120 == 221
    assert cost.features(64, 4, (0, 64, 8, 8)) == 221  # whatever stands in place of a rank of degree 0
    assert cost.features(64, 4, (0, 64, 8, 0)) == 101
    assert cost.features(64, 4) == 47_905


@pytest.mark.parametrize("d, order, tokens", [(64, 3, 2_179), (64, 4, 48_654), (128, 3, 8_451), (128, 4, 369_006)])
def test_break_even_contexts(d, order, tokens):
    assert cost.break_even_tokens(d, d, order) == tokens
    assert cost.largest_order(d, d, tokens, causal=True) == order
    assert cost.largest_order(d, d, tokens - 1, causal=True) == order - 1


def test_a_near_field_postpones_the_break_even():
    assert cost.break_even_tokens(64, 64, 3, near=68) == 2_179 + 68
    assert cost.largest_order(64, 64, 2_200, causal=True, near=68) == 2


def test_encoders_compare_flops():
    # d = d_v = 32: D_3 = 561 features, 561 * 33 * 2 products against 64 n.
    assert cost.break_even_flops(32, 32, 3) == 579
    assert cost.largest_order(32, 32, 579, causal=False) == 3
    assert cost.break_even_flops(32, 32, 3, group=4) < 579
