"""The torch backend against the float64 reference, over whole tables, paddings and ways to cut a sequence."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from kernel_cases import EAGER, MIXED, SCALING, Case, attend, cases, problem, recorded_sums, reference, sized, sizes
from tolerances import TOLERANCE, relative_error

from taylorder.kernels import HeadSpec, reference_sums
from taylorder.kernels.spec import Exact, Near, Taylor


@settings(max_examples=100, deadline=None)
@given(case=cases(), chosen=sizes)
def test_every_table_cut_and_padding_in_float64(case, chosen):
    case = case.to(torch.float64)
    with sized(chosen):
        found, _ = attend(case)
    torch.testing.assert_close(found, reference(case), rtol=1e-8, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(case=cases(orders=(1, 2, 3, 4), drops=False), chosen=sizes)
def test_numerators_and_denominators_in_float32(case, chosen):
    # Exact heads, and prefills of a window alone, are torch's own attention: there are no sums to look at.
    case = replace(
        case, heads=tuple(HeadSpec(Taylor(2)) if isinstance(spec.far, Exact) else spec for spec in case.heads)
    )
    truth, _ = reference_sums(
        case.q, case.k, case.v, case.heads, scaling=SCALING, causal=case.causal, valid=case.valid,
        sink_logits=case.sink_logits, softcap=case.softcap, shift=case.shift,
    )  # fmt: skip
    with sized(chosen):
        numerator, denominator = recorded_sums(case)
    known = torch.ones(case.q.shape[0], case.q.shape[2], dtype=torch.bool) if case.valid is None else case.valid
    # A row on the guard's threshold may fall on either side.
    rows = known[:, None] & (truth.guard_margin > 1e-5)
    bound = TOLERANCE[torch.float32]
    assert ((denominator.double() - truth.denominator).abs() <= bound * truth.denominator_scale + 1e-30)[rows].all()
    assert ((numerator.double() - truth.numerator).abs() <= bound * truth.numerator_scale + 1e-30)[rows].all()


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    "heads",
    [
        MIXED,
        [*MIXED, *MIXED[:2]],  # KV heads that compute alike without being adjacent
        [HeadSpec(Taylor(3))] * 4,
        [HeadSpec(Taylor(4, "mean", (0, 8, 4, 4)), Near(8, 1))] * 4,
    ],
)
@pytest.mark.parametrize("cuts", [(0, 130), (0, 70, 129, 130)])
def test_each_dtype_meets_its_tolerance_and_a_perturbed_input_does_not(dtype, heads, cuts):
    case = problem(heads, G=len(heads) // 2, cuts=cuts, scale=0.5).to(dtype)
    expected = reference(case)
    with sized(EAGER):
        found, _ = attend(case)
        spoiled = case.k + 0.2 * torch.randn(case.k.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        wrong, _ = attend(Case(case.heads, case.q, spoiled, case.v, None, True, cuts))
    assert found.dtype == dtype
    assert relative_error(found, expected) < TOLERANCE[dtype]
    assert relative_error(wrong, expected) > TOLERANCE[dtype]


@pytest.mark.parametrize("d, order", [(8, 8), (16, 6), (32, 4), (64, 3), (80, 3), (60, 4)])
@pytest.mark.parametrize("T", [1, 63, 129])
def test_head_dims_and_orders(d, order, T):
    case = problem([HeadSpec(Taylor(order))] * 2, B=1, G=2, T=T, d=d, d_v=24, scale=d**-0.5)
    with sized(EAGER):
        found, _ = attend(case)
    assert relative_error(found, reference(case)) < TOLERANCE[torch.float32]


def test_the_longest_tables_are_never_built_for_short_sequences():
    case = problem([HeadSpec(Taylor(8))] * 2, B=1, T=40, d=128, scale=0.05)
    found, state = attend(case)
    assert relative_error(found, reference(case)) < TOLERANCE[torch.float32]
    assert state.nbytes < 10 * case.k.nbytes


def test_order_grows_to_softmax():
    case = problem([HeadSpec(Exact())] * 2, scale=0.3)
    softmax = reference(case)
    errors = []
    for order in range(1, 9):
        with sized(EAGER):
            found, _ = attend(Case((HeadSpec(Taylor(order)),) * 2, case.q, case.k, case.v, None, True, case.cuts))
        errors.append(relative_error(found, softmax))
    assert all(after < before for before, after in pairwise(errors))
    assert errors[-1] < 1e-4 < errors[2]


@pytest.mark.parametrize("mean", [0.0, 5.0, 20.0])
@pytest.mark.parametrize("order", [3, 5, 8])
@pytest.mark.parametrize("expansion", ["zero", "mean"])
def test_scores_far_from_zero_stay_accurate(mean, order, expansion):
    """Keys that share an offset: powers around the mean are read from powers around zero, which could cancel."""
    case = problem([HeadSpec(Taylor(order, expansion), Near(2, 1))] * 2, T=200)
    along = torch.eye(8)[0]
    moved = Case(
        case.heads, case.q + 3 * along, case.k / 2 + mean / (3 * SCALING) * along, case.v, None, True, case.cuts
    )
    truth, _ = reference_sums(moved.q, moved.k, moved.v, moved.heads, scaling=SCALING)
    with sized(EAGER):
        _, denominator = recorded_sums(moved)
    # Numerators and denominators share a factor e^-M, whose own rounding follows the size of M.
    error = (denominator.double() - truth.denominator).abs() / truth.denominator_scale
    assert error.max() < TOLERANCE[torch.float32]
    with sized(EAGER):
        found, _ = attend(moved)
    assert relative_error(found, reference(moved)) < TOLERANCE[torch.float32]
