"""Losses of every criterion from a table made by hand."""

from __future__ import annotations

import math

import pytest
from measured_levers import hand_table
from policy_rules.criteria import gradient_errors, shared_out

from taylorder.kernels.spec import Dropped, Exact, HeadSpec, Near, Taylor
from taylorder.selection.candidates import Candidate
from taylorder.selection.criteria import eligible, options, squared_errors
from taylorder.selection.knapsack import Option
from taylorder.selection.lever_errors import LeverRow

ERRORS = [[0.0, 0.5, 0.25, 0.125], [0.0, 0.25, 1.0, 2.0]]
WEIGHTED = [[0.0, 3.0, 5.0, 7.0], [0.0, 11.0, 13.0, 17.0]]
SCREENED = {("layers.0", 0): 0.04, ("layers.1", 0): 0.25}
ROOTS = {("layers.0", 0): 0.2, ("layers.1", 0): 0.5}


def test_relative_l2_is_squared_and_gradient_is_as_measured():
    table = hand_table(ERRORS, WEIGHTED)
    assert squared_errors(table) == [[0.0, 0.25, 0.0625, 0.015625], [0.0, 0.0625, 1.0, 4.0]]
    assert gradient_errors(table) == WEIGHTED


def test_kl_goes_to_the_reference_and_in_proportion_to_the_others():
    table = hand_table(ERRORS, WEIGHTED)
    found = shared_out(table, SCREENED, reference=1)
    assert found[0] == pytest.approx([0.0, 0.04, 0.01, 0.0025])
    assert found[1] == pytest.approx([0.0, 0.25, 4.0, 16.0])
    roots = shared_out(table, ROOTS, reference=1)
    assert roots[0] == pytest.approx([0.0, 0.2, 0.05, 0.0125])
    assert roots[1] == pytest.approx([0.0, 0.5, 8.0, 32.0])


def test_a_reference_without_error_makes_no_loss():
    table = hand_table([[0.0, 0.0, 0.25, 0.5]] * 2, WEIGHTED)
    assert shared_out(table, SCREENED, reference=1) == [[0.0] * 4] * 2


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        (Candidate(HeadSpec(Exact())), True),
        (Candidate(HeadSpec(Dropped(), Near(8, 4))), True),
        (Candidate(HeadSpec(Taylor(1, "centre"), Near(8, 4))), True),
        (Candidate(HeadSpec(Taylor(3, "mean"), Near(8, 4))), True),
        (Candidate(HeadSpec(Taylor(2, "mean"), Near(8, 4))), False),
        (Candidate(HeadSpec(Taylor(4, "centre"), Near(8, 4))), False),
        (Candidate(HeadSpec(Taylor(3, "mean", (8, 8, 2)), Near(8, 4))), False),
        (Candidate(HeadSpec(Taylor(3, "mean"), Near(8, 4)), fitted=True), False),
        (Candidate(HeadSpec(Taylor(1, "centre"), Near(8, 4)), fitted=True), False),
    ],
)
def test_a_guarded_row_rules_out_all_that_could_turn_negative(candidate, expected):
    assert eligible(candidate, LeverRow("m", 0, 0, 0.1, 0.1, guarded_share=1e-6)) is expected
    assert eligible(candidate, LeverRow("m", 0, 0, 0.1, 0.1, guarded_share=0.0))


@pytest.mark.parametrize(
    "losses", [squared_errors, gradient_errors, lambda table: shared_out(table, SCREENED, reference=1)]
)
def test_what_may_not_be_chosen_has_an_infinite_loss(losses):
    guarded = [[0.0, 0.5, 0.5, 0.01], [0.0, 0.0, 0.0, 0.0]]
    found = losses(hand_table(ERRORS, WEIGHTED, guarded))
    assert [[math.isinf(value) for value in own] for own in found] == [[False] * 3 + [True], [False] * 4]


def test_options_are_the_finite_ones_with_their_places():
    found, places = options([[0.0, math.inf, 2.0], [1.0, 0.5, math.inf]], [[30, 20, 10], [33, 22, 11]])
    assert found == [[Option(30, 0.0), Option(10, 2.0)], [Option(33, 1.0), Option(22, 0.5)]]
    assert places == [[0, 2], [0, 1]]
