"""Learned sinks in the kernels: one more term in every denominator, in loops, in float64 and in every backend.

The tests over whole tables (``kernel_cases.cases``) draw learned sinks too.
"""

from __future__ import annotations

import re
from dataclasses import replace

import kernel_cases
import plain
import pytest
import torch
import triton_cases
from kernel_cases import MIXED, MIXED_KEPT, SCALING, attend, problem, ranked, reference
from tolerances import TOLERANCE, relative_error

from taylorder.kernels import HeadSpec, reference_attention, score_space_attention, taylor_attention
from taylorder.kernels.differentiable import differentiable_attention
from taylorder.kernels.kept_fields import attend_kept_fields
from taylorder.kernels.learned_sinks import scaled_attention
from taylorder.kernels.near_fields import NearField, attend_near_fields
from taylorder.kernels.spec import Dropped, Exact, Near, Taylor

TABLE = [
    *MIXED_KEPT,
    HeadSpec(Taylor(2)),
    HeadSpec(Taylor(1)),
    HeadSpec(Dropped(), Near(6, 2)),
    HeadSpec(Dropped(), Near(6, 2)),
]
"""Heads of five groups: kept keys beside a state and alone, exact, a polynomial without a near field, a window."""

BACKENDS = ["torch", "score-space", pytest.param("triton", marks=pytest.mark.interpreter)]


def sinks(count, seed=3):
    return 2 * torch.randn(count, generator=torch.Generator().manual_seed(seed)) + 1


def with_sinks(**options):
    case = ranked(TABLE, T=70, cuts=(0, 40, 69, 70), scale=0.5, **options)
    return replace(case, sink_logits=sinks(len(TABLE)))


@pytest.mark.parametrize("expansion", ["zero", "mean"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("window, near_sinks", [(0, 0), (3, 2), (50, 0)])
@pytest.mark.parametrize("learned", [-3.0, 2.0, 40.0])
def test_the_reference_is_the_plain_loop(order, expansion, window, near_sinks, learned):
    case = problem([HeadSpec(Taylor(order, expansion), Near(window, near_sinks))] * 2, B=1, G=1, T=17)
    case = replace(case, sink_logits=torch.tensor([0.0, learned]))
    output = reference(case)[0, 1]
    for i in range(17):
        scores = SCALING * (case.k[0, 0].double() @ case.q[0, 1, i].double())
        near = [j for j in range(i + 1) if (window and j > i - window) or j < near_sinks]
        far = [j for j in range(i + 1) if j not in near]
        values = case.v[0, 0].double().numpy()
        expected, _ = plain.attention_row(scores.numpy(), values, far, near, order, expansion, 0.0, learned=learned)
        assert output[i].numpy() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_an_exact_head_is_softmax_with_one_more_score():
    case = replace(problem([HeadSpec(Exact())] * 4, T=20), sink_logits=sinks(4))
    i = torch.arange(20)
    scores = SCALING * case.q.double() @ case.k.double().repeat_interleave(2, 1).mT
    scores = scores.masked_fill(i > i[:, None], -torch.inf)
    logits = torch.cat([scores, case.sink_logits.double()[None, :, None, None].expand(2, 4, 20, 1)], -1)
    expected = logits.softmax(-1)[..., :-1] @ case.v.double().repeat_interleave(2, 1)
    torch.testing.assert_close(reference(case), expected)
    without = reference(replace(case, sink_logits=None))
    assert relative_error(without, expected) > 0.1  # negative control


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("of_rows", [False, True])
def test_every_backend_and_every_spec_carries_them(backend, of_rows):
    case = with_sinks()
    if of_rows:
        rows = case.q[..., 0] / 3
        case = replace(case, sink_logits=case.sink_logits[None, :, None] + rows)
    small = triton_cases if backend == "triton" else kernel_cases
    with small.sized(small.EAGER):
        found, _ = attend(case, backend)
        other, _ = attend(replace(case, sink_logits=case.sink_logits + 0.01), backend)
    expected = reference(case)
    for head in range(len(TABLE)):
        assert relative_error(found[:, head], expected[:, head]) < TOLERANCE[torch.float32]
        assert relative_error(other[:, head], expected[:, head]) > TOLERANCE[torch.float32]  # negative control


@pytest.mark.parametrize("backend", BACKENDS)
def test_sinks_far_below_all_scores_are_none_and_far_above_leave_nothing(backend):
    case = with_sinks()
    none, _ = attend(replace(case, sink_logits=None), backend)
    below, _ = attend(replace(case, sink_logits=torch.full((len(TABLE),), -80.0)), backend)
    above, _ = attend(replace(case, sink_logits=torch.full((len(TABLE),), 300.0)), backend)
    torch.testing.assert_close(below, none, rtol=1e-5, atol=1e-6)
    assert (above == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_guarded_rows_are_those_without_sinks(backend):
    case = problem([HeadSpec(Taylor(4)), HeadSpec(Taylor(2))] * 2, T=40, scale=4.0)
    _, without = attend(case, backend)
    found, state = attend(replace(case, sink_logits=sinks(4)), backend)
    assert state.guarded.sum() > 0
    assert torch.equal(state.guarded, without.guarded)
    assert torch.isfinite(found).all()


def test_keys_may_be_centred_if_each_row_says_what_its_scores_lost():
    """Where polynomials expand around the mean; and a logit that stays where it was is something else."""
    heads = [HeadSpec(Taylor(3, "mean"), Near(4, 2))] * 4
    case = replace(problem(heads, T=60), sink_logits=sinks(4))
    centre = torch.tensor([3.0] + [0.5] * 7)
    lost = SCALING * case.q @ centre
    moved = replace(case, k=case.k - centre, sink_logits=case.sink_logits[None, :, None] - lost)
    with kernel_cases.sized(kernel_cases.EAGER):
        found, _ = attend(moved)
        wrong, _ = attend(replace(moved, sink_logits=case.sink_logits))
    assert relative_error(found, reference(case)) < TOLERANCE[torch.float32]
    assert relative_error(wrong, reference(case)) > 0.01


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("causal", [True, False])
def test_torchs_own_attention_is_given_the_score_in_any_dtype(dtype, causal):
    """In half precision too, and whatever the scaling: one number of 8 bits would not hold a score of 9.37."""
    q, k, v = (torch.randn(1, 2, 30, d, generator=torch.Generator().manual_seed(d)).to(dtype) for d in (12, 12, 5))
    logits = torch.tensor([9.37, 0.731])[None, :, None].expand(1, 2, 30)
    mask = None if causal else torch.rand(30, 30, generator=torch.Generator().manual_seed(1)) < 0.5
    found = scaled_attention(q, k, v, scaling=0.3, mask=mask, causal=causal, sink_logits=logits)
    scores = 0.3 * q.double() @ k.double().mT
    hidden = torch.ones(30, 30).triu(1).bool() if mask is None else ~mask
    weights = torch.cat([scores.masked_fill(hidden, -torch.inf), logits[..., None].double()], -1).softmax(-1)
    expected = weights[..., :-1] @ v.double()
    assert found.shape == v.shape
    assert found.dtype == dtype
    assert relative_error(found, expected) < TOLERANCE[dtype]


@pytest.mark.interpreter
def test_what_the_kernel_reads_shows():
    case = with_sinks()
    with triton_cases.altering("add_near_and_divide", "sink_logits", lambda logits: logits + 0.1):
        wrong, _ = attend(case, "triton")
    right, _ = attend(case, "triton")
    assert triton_cases.backward_error(right, case) < TOLERANCE[torch.float32]
    assert triton_cases.backward_error(wrong, case) > 100 * TOLERANCE[torch.float32]


@pytest.mark.parametrize("kept", [0, 7])
def test_near_fields_in_one_pass(kept):
    generator = torch.Generator().manual_seed(0)
    q, k, v, logits = (
        torch.randn(*shape, generator=generator) for shape in ((3, 200, 6), (200, 6), (200, 5), (3, 200))
    )
    priority = torch.randn(200, generator=generator)
    logits = 2 * logits + 1
    runs = [
        [
            HeadSpec(Taylor(1, coefficients=(c,)) if constant else Dropped(), Near(window, 4, kept))
            for c in (0.3, 1, 2.5)
        ]
        for window in (5, 60, 200)
        for constant in (False, True)
    ]
    fields = [NearField.of(specs) for specs in runs]
    if kept:
        found = attend_kept_fields(q, k, v, priority, fields, scaling=SCALING, sink_logits=logits)
    else:
        found = attend_near_fields(q, k, v, fields, scaling=SCALING, sink_logits=logits)
    for specs, output in zip(runs, found, strict=True):
        options = {"scaling": SCALING, "priority": priority[None, None]}
        inputs = q[None], k[None, None], v[None, None], specs
        expected, _ = reference_attention(*inputs, **options, sink_logits=logits[None])
        torch.testing.assert_close(output.double(), expected[0], rtol=1e-4, atol=1e-5)
        other, _ = reference_attention(*inputs, **options)
        assert relative_error(output, other[0]) > 0.01  # negative control


def test_gradients_are_those_of_the_reference():
    heads = [
        HeadSpec(Exact()),
        HeadSpec(Dropped(), Near(5, 2)),
        HeadSpec(Taylor(1, coefficients=(1.7,)), Near(4, 1)),
        HeadSpec(Taylor(3, "mean"), Near(3, 1)),
        HeadSpec(Dropped(), Near(4, 1, 6)),
    ]
    case = problem(heads, B=2, G=5, T=30).to(torch.float64)
    priority = torch.randn(2, 5, 30, generator=torch.Generator().manual_seed(1))
    logits = sinks(5).double()
    weights = torch.randn(2, 5, 30, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def gradients(attend):
        leaves = [tensor.clone().requires_grad_() for tensor in (case.q, case.k, case.v, logits)]
        *qkv, learned = leaves
        output, _ = attend(*qkv, heads, scaling=SCALING, priority=priority, sink_logits=learned)
        return output, torch.autograd.grad((output * weights).sum(), leaves)

    expected, truth = gradients(reference_attention)
    for path in (differentiable_attention, score_space_attention):
        found, ours = gradients(path)
        torch.testing.assert_close(found, expected)
        for gradient, other in zip(ours, truth, strict=True):
            torch.testing.assert_close(gradient, other)
            assert other.abs().max() > 1e-3


@pytest.mark.parametrize(
    "logits, error, words",
    [
        (
            torch.zeros(3),
            ValueError,
            "sink_logits has shape (3,), expected (4,), one for each query head, or (2, 4, 9)",
        ),
        (torch.zeros(2, 4, 8), ValueError, "sink_logits has shape (2, 4, 8), expected (4,)"),
        (torch.zeros(4, dtype=torch.int64), TypeError, "sink_logits is torch.int64, expected a tensor of floating"),
        (1.0, TypeError, "sink_logits is float, expected a tensor of floating point numbers or None"),
    ],
)
def test_what_is_no_learned_sink_is_refused(logits, error, words):
    case = problem(MIXED, T=9)
    for path in (taylor_attention, score_space_attention, differentiable_attention):
        with pytest.raises(error, match=re.escape(words)):
            path(case.q, case.k, case.v, MIXED, scaling=SCALING, sink_logits=logits)
