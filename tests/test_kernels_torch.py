"""The torch backend against the float64 reference, over whole tables, paddings and ways to cut a sequence."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from kernel_cases import EAGER, SCALING, SMALL, Case, attend, cases, recorded_sums, sized, sizes
from tolerances import TOLERANCE, relative_error

from taylorder.kernels import HeadSpec, reference_attention, reference_sums, taylor_attention
from taylorder.kernels.spec import Exact, Near, Taylor


def reference(case):
    output, _ = reference_attention(
        case.q, case.k, case.v, case.heads, scaling=SCALING, causal=case.causal, valid=case.valid
    )
    return output


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
    case = Case(
        tuple(HeadSpec(Taylor(2)) if isinstance(spec.far, Exact) else spec for spec in case.heads),
        *(case.q, case.k, case.v, case.valid, case.causal),
        case.cuts,
    )
    truth, _ = reference_sums(case.q, case.k, case.v, case.heads, scaling=SCALING, causal=case.causal, valid=case.valid)
    with sized(chosen):
        numerator, denominator = recorded_sums(case)
    known = torch.ones(case.q.shape[0], case.q.shape[2], dtype=torch.bool) if case.valid is None else case.valid
    # A row on the guard's threshold may fall on either side.
    rows = known[:, None] & (truth.guard_margin > 1e-5)
    bound = TOLERANCE[torch.float32]
    assert ((denominator.double() - truth.denominator).abs() <= bound * truth.denominator_scale + 1e-30)[rows].all()
    assert ((numerator.double() - truth.numerator).abs() <= bound * truth.numerator_scale + 1e-30)[rows].all()


def problem(heads, B=2, G=2, T=130, d=8, d_v=5, seed=0, valid=None, cuts=None, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(B, len(heads), T, d, generator=generator) * scale
    k, v = torch.randn(B, G, T, d, generator=generator), torch.randn(B, G, T, d_v, generator=generator)
    return Case(tuple(heads), q, k, v, valid, True, cuts or (0, T))


MIXED = [
    HeadSpec(Taylor(3, "mean"), Near(4, 2)),
    HeadSpec(Taylor(2, "centre"), Near(4, 2)),
    HeadSpec(Exact()),
    HeadSpec(Exact()),
]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    "heads", [MIXED, [HeadSpec(Taylor(3))] * 4, [HeadSpec(Taylor(4, "mean", (0, 8, 4, 4)), Near(8, 1))] * 4]
)
@pytest.mark.parametrize("cuts", [(0, 130), (0, 70, 129, 130)])
def test_each_dtype_meets_its_tolerance_and_a_perturbed_input_does_not(dtype, heads, cuts):
    case = problem(heads, cuts=cuts, scale=0.5).to(dtype)
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


def test_left_padding_changes_nothing():
    alone = problem(MIXED, B=1, T=90)
    pad = 37
    generator = torch.Generator().manual_seed(5)
    junk = [torch.randn(*t.shape[:2], pad, t.shape[3], generator=generator) * 1e4 for t in (alone.q, alone.k, alone.v)]
    junk[1][..., 0], junk[2][..., 0] = float("inf"), float("nan")
    padded = [torch.cat([a, b], 2) for a, b in zip(junk, (alone.q, alone.k, alone.v), strict=True)]
    valid = torch.arange(pad + 90)[None] >= pad
    for chosen in (EAGER, {}):
        with sized(chosen):
            expected, _ = attend(Case(alone.heads, alone.q, alone.k, alone.v, None, True, (0, 50, 89, 90)))
            found, _ = attend(Case(alone.heads, *padded, valid, True, (0, 20, 50 + pad, 89 + pad, 90 + pad)))
        torch.testing.assert_close(found[:, :, pad:], expected, rtol=2e-5, atol=2e-6)
        assert found[:, :, :pad].abs().max() == 0


def test_rows_of_a_padded_batch_are_what_each_row_gives_alone():
    case = problem(MIXED, B=3, T=80)
    valid = torch.arange(80)[None] >= torch.tensor([0, 13, 61])[:, None]
    batch, _ = attend(Case(case.heads, case.q, case.k, case.v, valid, True, (0, 66, 67, 80)))
    for b, pad in enumerate((0, 13, 61)):
        alone = [t[b : b + 1, :, pad:] for t in (case.q, case.k, case.v)]
        expected, _ = attend(Case(case.heads, *alone, None, True, (0, 80 - pad)))
        torch.testing.assert_close(batch[b : b + 1, :, pad:], expected, rtol=2e-5, atol=2e-6)


def test_decoding_token_by_token_is_prefill():
    case = problem(MIXED, T=150)
    whole, _ = attend(case)
    with sized({**EAGER, **{key: 8 for key in SMALL if key[1] == "FOLD_BLOCK"}}):
        steps, _ = attend(Case(case.heads, case.q, case.k, case.v, None, True, (0, 20, *range(21, 151))))
    torch.testing.assert_close(steps, whole, rtol=2e-5, atol=2e-6)


def test_two_sided_attention_is_linear_and_equal_to_score_space():
    case = problem(
        [HeadSpec(Taylor(3, "mean")), HeadSpec(Taylor(4, "centre")), HeadSpec(Exact()), HeadSpec(Exact())], T=300
    )
    two_sided = Case(case.heads, case.q, case.k, case.v, torch.rand(2, 300) < 0.9, False, case.cuts)
    found, state = attend(two_sided)
    assert state is None
    assert relative_error(found, reference(two_sided)) < TOLERANCE[torch.float32]


def test_outputs_do_not_depend_on_what_memory_held(monkeypatch):
    empty = torch.empty

    def poisoned(*arguments, **options):
        made = empty(*arguments, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda t, *s, **o: poisoned(*s, dtype=t.dtype, device=t.device, **o))
    monkeypatch.setattr(torch, "empty_like", lambda t, **o: poisoned(t.shape, dtype=t.dtype, device=t.device))
    for chosen in (EAGER, {}):
        case = problem(MIXED, T=200, cuts=(0, 100, 199, 200))
        with sized(chosen):
            found, _ = attend(case)
        assert relative_error(found, reference(case)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 4, 0), (0, 4, 0)])
def test_nothing_in_nothing_out(shape):
    B, H, T = shape
    q, k, v = torch.zeros(B, H, T, 8), torch.zeros(B, 2, T, 8), torch.zeros(B, 2, T, 3)
    output, state = taylor_attention(q, k, v, MIXED, scaling=1.0)
    assert output.shape == (B, H, T, 3)
    assert state.tokens == T
    case = problem(MIXED, B=B, T=1, d=8, d_v=3)
    output, _ = taylor_attention(case.q, case.k, case.v, MIXED, scaling=SCALING, state=state if T == 0 else None)
    torch.testing.assert_close(output.double(), reference(case), rtol=1e-5, atol=1e-6)


def test_strides_do_not_matter():
    case = problem(MIXED, T=120, cuts=(0, 100, 120))
    moved = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (case.q, case.k, case.v)]
    moved[0] = torch.stack([moved[0], moved[0]], -1)[..., 0]
    found, _ = attend(Case(case.heads, *moved, None, True, case.cuts))
    expected, _ = attend(case)
    torch.testing.assert_close(found, expected)


def test_guarded_rows_are_counted():
    case = problem([HeadSpec(Taylor(4))] * 2, G=2, T=90, scale=4.0)
    _, by_scores = attend(case, backend="score-space")
    with sized(EAGER):
        found, state = attend(case)
    assert state.guarded.sum() > 0
    assert torch.equal(state.guarded, by_scores.guarded)
    assert torch.isfinite(found).all()


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
