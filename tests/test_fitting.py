"""Fitted coefficients: their sums against plain loops and the reference, and what least squares promises."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from taylorder.kernels import HeadSpec, reference_attention
from taylorder.kernels.spec import Exact, Near, Taylor
from taylorder.selection.candidates import Candidate
from taylorder.selection.fitted_coefficients import HeadRows, Moments, fit, moments

T, D, DV = 30, 6, 5
ROWS = torch.tensor([0, 3, 9, 17, 18, 29])
RANKS = (6, 6, 3, 2)
CANDIDATES = [
    Candidate(HeadSpec(Taylor(1, "centre"), Near(4, 2))),
    Candidate(HeadSpec(Taylor(3, "centre"), Near(4, 2))),
    Candidate(HeadSpec(Taylor(4, "mean"), Near(4, 2))),
    Candidate(HeadSpec(Taylor(3, "mean"))),
    Candidate(HeadSpec(Taylor(4, "mean", RANKS), Near(5, 1))),
    Candidate(HeadSpec(Taylor(4, "centre", RANKS), Near(5))),
]


def tensors(seed=0, spread=0.6, length=T):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(length, size, generator=generator, dtype=torch.float64) for size in (D, D, DV))
    return spread * q, k + 0.3, v


def head(seed=0, spread=0.6, rows=ROWS, length=T):
    q, k, v = tensors(seed, spread, length)
    return HeadRows(q[rows], k, v, rows)


def plain_moments(q, k, v, row, candidate):
    """The sums of one row in loops, each value with a 1 behind it; the scale is the row's largest weight."""
    far_field, near_field = candidate.spec.far, candidate.spec.near
    near = [j for j in range(row + 1) if j > row - near_field.window or j < near_field.sinks]
    far = [j for j in range(row + 1) if j not in near]
    values = [[*v[j].tolist(), 1.0] for j in range(row + 1)]
    score = [sum(float(q[row, c] * k[j, c]) for c in range(D)) for j in range(row + 1)]
    top = max(score)
    point = sum(score[j] for j in far) / len(far) if far_field.expansion == "mean" and far else 0.0

    def total(weight, keys):
        return [sum(weight(j) * values[j][c] for j in keys) for c in range(DV + 1)]

    powers = []
    for degree in range(far_field.order):
        rank = D if far_field.ranks is None or degree == 0 else far_field.ranks[degree]
        part = [sum(float(q[row, c] * k[j, c]) for c in range(rank)) for j in range(row + 1)]
        mean = sum(part[j] for j in far) / len(far) if far_field.expansion == "mean" and far else 0.0
        powers.append(total(lambda j, at=degree, x=part, mu=mean: math.exp(point - top) * (x[j] - mu) ** at, far))
    return (
        total(lambda j: math.exp(score[j] - top), near),
        powers,
        total(lambda j: math.exp(score[j] - top), range(row + 1)),
        len(far) * math.exp(point - top),
    )


@pytest.mark.parametrize("candidate", CANDIDATES, ids=Candidate.label)
def test_moments_equal_the_plain_loop(candidate):
    q, k, v = tensors()
    found = moments(head(), candidate.spec)
    for place, row in enumerate(ROWS.tolist()):
        near, powers, exact, far = plain_moments(q, k, v, row, candidate)
        assert found.near[place].tolist() == pytest.approx(near, rel=1e-10, abs=1e-13)
        assert found.exact[place].tolist() == pytest.approx(exact, rel=1e-10, abs=1e-13)
        assert float(found.far[place]) == pytest.approx(far, rel=1e-10)
        assert found.powers.shape == (len(ROWS), candidate.spec.far.order, DV + 1)
        for degree in range(candidate.spec.far.order):
            # Deviations from a mean sum to zero, and cancel to rounding.
            assert found.powers[place, degree].tolist() == pytest.approx(powers[degree], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("candidate", CANDIDATES, ids=Candidate.label)
def test_moments_weighed_by_coefficients_are_the_reference_output(candidate):
    q, k, v = tensors(spread=0.3)
    coefficients = (1.1, 0.8, 0.4, 0.1)[: candidate.spec.far.order]
    found = moments(HeadRows(q[ROWS], k, v, ROWS), candidate.spec)
    total = found.near + torch.einsum("p,rpd->rd", torch.tensor(coefficients, dtype=torch.float64), found.powers)
    spec = replace(candidate.spec, far=replace(candidate.spec.far, coefficients=coefficients))
    expected, _ = reference_attention(q[None, None], k[None, None], v[None, None], [spec], scaling=1.0)
    exact, _ = reference_attention(q[None, None], k[None, None], v[None, None], [HeadSpec(Exact())], scaling=1.0)
    torch.testing.assert_close(total[:, :-1] / total[:, -1:], expected[0, 0, ROWS], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found.exact[:, :-1] / found.exact[:, -1:], exact[0, 0, ROWS], rtol=1e-9, atol=1e-11)


def test_an_exact_head_has_no_moments():
    with pytest.raises(ValueError, match="has no polynomial, and so no moments"):
        moments(head(), HeadSpec(Exact()))


def made_up(coefficients, rows=40, seed=0):
    """Moments whose exact output is that of this polynomial, far keys and near ones of like weight."""
    generator = torch.Generator().manual_seed(seed)
    order = len(coefficients)
    x = 0.5 * torch.randn(rows, 12, generator=generator, dtype=torch.float64)
    values = torch.randn(rows, 12, DV + 1, generator=generator, dtype=torch.float64)
    values[..., -1] = 1.0
    powers = torch.stack([torch.einsum("rk,rkd->rd", x**p, values) for p in range(order)], 1)
    near = 4 * torch.randn(rows, DV + 1, generator=generator, dtype=torch.float64)
    near[:, -1] = 5 + near[:, -1].abs()
    exact = near + torch.einsum("p,rpd->rd", torch.tensor(coefficients, dtype=torch.float64), powers)
    return Moments(near, powers, exact, torch.full((rows,), 12.0, dtype=torch.float64))


@pytest.mark.parametrize("coefficients", [(1.7,), (0.9, 0.6), (1.2, 0.7, 0.3), (0.8, 1.0, 0.7, 0.2)])
def test_a_polynomial_is_found_again(coefficients):
    assert fit([made_up(coefficients)]) == pytest.approx(coefficients, rel=1e-8)


def test_rows_of_all_sequences_count():
    parts = [made_up((0.9, 0.6), rows=1, seed=0), made_up((0.9, 0.6), rows=30, seed=1)]
    assert fit(parts) == pytest.approx((0.9, 0.6), rel=1e-8)
    other = [made_up((0.9, 0.6), rows=30, seed=0), made_up((1.5, 0.2), rows=30, seed=1)]
    assert fit(other) != pytest.approx((0.9, 0.6), rel=0.05)


def output_error(q, k, v, rows, candidate, coefficients=None):
    """Squared error of the reference, guard and all, over some rows."""
    spec = replace(candidate.spec, far=replace(candidate.spec.far, coefficients=coefficients))
    q, k, v = (each[None, None] for each in (q, k, v))
    found, _ = reference_attention(q, k, v, [spec], scaling=1.0)
    exact, _ = reference_attention(q, k, v, [HeadSpec(Exact())], scaling=1.0)
    return float((found - exact)[0, 0, rows].square().sum())


@pytest.mark.parametrize("candidate", CANDIDATES, ids=Candidate.label)
@pytest.mark.parametrize("spread", [0.2, 0.8, 3.0])
def test_never_worse_than_taylor_on_the_rows_given(candidate, spread):
    for seed in range(3):
        q, k, v = tensors(seed, spread)
        found = fit([moments(HeadRows(q[ROWS], k, v, ROWS), candidate.spec)])
        own, taylor = (output_error(q, k, v, ROWS, candidate, each) for each in (found, None))
        assert own <= taylor * (1 + 1e-9)


@pytest.mark.parametrize(
    "candidate, spread",
    [
        (Candidate(HeadSpec(Taylor(2, "centre"), Near(4, 2))), 0.6),
        (Candidate(HeadSpec(Taylor(4, "mean"), Near(4, 2))), 0.4),
    ],
    ids=["2", "4"],
)
def test_better_than_taylor_on_normal_scores(candidate, spread):
    """Scores of standard deviation 1 to 1.5, as many rows as there are: the gain is no accident of a few."""
    rows = torch.arange(160)
    q, k, v = tensors(spread=spread, length=160)
    found = fit([moments(HeadRows(q, k, v, rows), candidate.spec)])
    own, taylor = (output_error(q, k, v, rows, candidate, each) for each in (found, None))
    assert own < 0.9 * taylor


def test_rows_without_far_keys_say_nothing():
    candidate = Candidate(HeadSpec(Taylor(3, "mean"), Near(4, 2)))
    near = moments(head(rows=torch.tensor([0, 2, 5])), candidate.spec)
    assert near.far.tolist() == [0, 0, 0]
    assert fit([near]) == (1.0, 1.0, 0.5)
    some = moments(head(), candidate.spec)
    assert fit([near, some]) == pytest.approx(fit([some]), rel=1e-12)


def test_a_guarded_row_is_judged_as_the_kernels_run_it():
    """Where 1 / p! vanishes and order 1 is right, nothing beats it: fitted raw, the coefficients would be others."""
    part = made_up((1.0, 0.0))
    # Scores of minus one: 1 + x is nothing at all, so every row falls back to its plain sums, which are the truth.
    powers = part.powers.clone()
    powers[:, 1] = -powers[:, 0]
    part = replace(part, powers=powers)
    assert fit([part]) == (1.0, 1.0)


def test_the_guard_counts_far_keys_to_the_scale_of_the_row():
    """At a hundredth of the weight the rows are those of before, and so are coefficients and guard."""
    part = made_up((0.8, 1.0, 0.7, 0.2))
    scaled = Moments(*(each / 100 for each in (part.near, part.powers, part.exact, part.far)))
    assert fit([scaled]) == pytest.approx(fit([part]), rel=1e-8)
    guarded = replace(part, far=part.far * 1e6, exact=part.near + part.powers[:, 0])
    assert fit([guarded]) == (1.0, 1.0, 0.5, 1 / 6)
