"""Losses of every criterion from a table made by hand."""

from __future__ import annotations

import math

import pytest
from measured_levers import hand_table

from taylorder.selection.candidates import Candidate
from taylorder.selection.criteria import CRITERIA, DEFAULT_CRITERION, eligible, losses, options
from taylorder.selection.knapsack import Option
from taylorder.selection.lever_errors import LeverRow

ERRORS = [[0.0, 0.5, 0.25, 0.125], [0.0, 0.25, 1.0, 2.0]]
WEIGHTED = [[0.0, 3.0, 5.0, 7.0], [0.0, 11.0, 13.0, 17.0]]
SCREENED = {("layers.0", 0): 0.04, ("layers.1", 0): 0.25}


def test_relative_l2_is_squared_and_gradient_is_as_measured():
    table = hand_table(ERRORS, WEIGHTED)
    assert losses(table, "relative-l2") == [[0.0, 0.25, 0.0625, 0.015625], [0.0, 0.0625, 1.0, 4.0]]
    assert losses(table, "gradient") == WEIGHTED


def test_kl_goes_to_the_reference_and_in_proportion_to_the_others():
    table = hand_table(ERRORS, WEIGHTED)
    found = losses(table, "kl", SCREENED, reference=1)
    assert found[0] == pytest.approx([0.0, 0.04, 0.01, 0.0025])
    assert found[1] == pytest.approx([0.0, 0.25, 4.0, 16.0])
    roots = losses(table, "sqrt-kl", SCREENED, reference=1)
    assert roots[0] == pytest.approx([0.0, 0.2, 0.05, 0.0125])
    assert roots[1] == pytest.approx([0.0, 0.5, 8.0, 32.0])


def test_a_reference_without_error_makes_no_loss():
    table = hand_table([[0.0, 0.0, 0.25, 0.5]] * 2, WEIGHTED)
    assert losses(table, "kl", SCREENED, reference=1) == [[0.0] * 4] * 2


@pytest.mark.parametrize("criterion", ["kl", "sqrt-kl"])
def test_kl_has_to_be_measured_first(criterion):
    with pytest.raises(ValueError, match=f"criterion {criterion} needs the KL of each KV head"):
        losses(hand_table(ERRORS, WEIGHTED), criterion)


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        (Candidate(None), True),
        (Candidate(1, window=8, sinks=4, coefficients="dropped"), True),
        (Candidate(1, "centre", 8, 4), True),
        (Candidate(3, "mean", 8, 4), True),
        (Candidate(2, "mean", 8, 4), False),
        (Candidate(4, "centre", 8, 4), False),
        (Candidate(3, "mean", 8, 4, (8, 8, 2)), False),
        (Candidate(3, "mean", 8, 4, coefficients="fitted"), False),
        (Candidate(1, "centre", 8, 4, coefficients="fitted"), False),
    ],
)
def test_a_guarded_row_rules_out_all_that_could_turn_negative(candidate, expected):
    assert eligible(candidate, LeverRow("m", 0, 0, 0.1, 0.1, guarded_share=1e-6)) is expected
    assert eligible(candidate, LeverRow("m", 0, 0, 0.1, 0.1, guarded_share=0.0))


@pytest.mark.parametrize("criterion", ["relative-l2", "gradient", "kl", "sqrt-kl"])
def test_what_may_not_be_chosen_has_an_infinite_loss(criterion):
    guarded = [[0.0, 0.5, 0.5, 0.01], [0.0, 0.0, 0.0, 0.0]]
    found = losses(hand_table(ERRORS, WEIGHTED, guarded), criterion, SCREENED, 1)
    assert [[math.isinf(value) for value in own] for own in found] == [[False] * 3 + [True], [False] * 4]


def test_options_are_the_finite_ones_with_their_places():
    found, places = options([[0.0, math.inf, 2.0], [1.0, 0.5, math.inf]], [[30, 20, 10], [33, 22, 11]])
    assert found == [[Option(30, 0.0), Option(10, 2.0)], [Option(33, 1.0), Option(22, 0.5)]]
    assert places == [[0, 2], [0, 1]]


def test_the_default_is_one_of_the_criteria():
    assert DEFAULT_CRITERION in CRITERIA
