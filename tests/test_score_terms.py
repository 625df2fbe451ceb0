"""Learned sinks and soft caps in the kernels: in loops, in float64 and in every backend.

The tests over whole tables (``kernel_cases.cases``) draw them too.
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
from taylorder.kernels.near_fields import NearField, attend_near_fields
from taylorder.kernels.score_terms import ScoreTerms, shift_of
from taylorder.kernels.softmax_attention import softmax_attention
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


CAP = 1.2
"""Well below the largest scores, so that it shows."""


def case_with(*names):
    """A problem in which keys are centred, with learned sinks, a cap, or both."""
    case = ranked(TABLE, T=70, cuts=(0, 40, 69, 70))
    terms = {"sink_logits": sinks(len(TABLE)), "softcap": CAP}
    return replace(case, shift=case.q[..., 0] / 3, **{name: terms[name] for name in names})


KINDS = [("sink_logits",), ("softcap",), ("sink_logits", "softcap")]
kinds = pytest.mark.parametrize("kind", KINDS, ids=" and ".join)


@pytest.mark.parametrize("expansion", ["zero", "mean"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("window, near_sinks", [(0, 0), (3, 2), (50, 0)])
@pytest.mark.parametrize("learned, cap", [(-3.0, None), (2.0, None), (40.0, None), (None, 0.8), (1.0, 0.8)])
def test_the_reference_is_the_plain_loop(order, expansion, window, near_sinks, learned, cap):
    case = problem([HeadSpec(Taylor(order, expansion), Near(window, near_sinks))] * 2, B=1, G=1, T=17)
    sink_logits = None if learned is None else torch.tensor([0.0, learned])
    shift = case.q[..., 0] if expansion == "mean" else None
    case = replace(case, sink_logits=sink_logits, softcap=cap, shift=shift)
    output = reference(case)[0, 1]
    for i in range(17):
        scores = SCALING * (case.k[0, 0].double() @ case.q[0, 1, i].double())
        near = [j for j in range(i + 1) if (window and j > i - window) or j < near_sinks]
        far = [j for j in range(i + 1) if j not in near]
        values = case.v[0, 0].double().numpy()
        offset = 0.0 if shift is None else float(shift[0, 1, i].double())
        expected, _ = plain.attention_row(
            scores.numpy(), values, far, near, order, expansion, offset, learned=learned, softcap=cap
        )
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
@kinds
def test_every_backend_and_every_spec_carries_them(backend, kind):
    case = case_with(*kind)
    small = triton_cases if backend == "triton" else kernel_cases
    with small.sized(small.EAGER):
        found, _ = attend(case, backend)
        other, _ = attend(replace(case, **{name: getattr(case, name) + 0.01 for name in kind}), backend)
        still, _ = attend(replace(case, shift=None), backend)
    expected = reference(case)
    for head in range(len(TABLE)):
        assert relative_error(found[:, head], expected[:, head]) < TOLERANCE[torch.float32]
    with_near_keys = [head for head, spec in enumerate(TABLE) if spec.near.tokens or isinstance(spec.far, Exact)]
    for head in with_near_keys if "sink_logits" not in kind else range(len(TABLE)):
        assert relative_error(other[:, head], expected[:, head]) > TOLERANCE[torch.float32]  # negative controls
        assert relative_error(still[:, head], expected[:, head]) > TOLERANCE[torch.float32]


@pytest.mark.parametrize("backend", BACKENDS)
def test_sinks_far_below_all_scores_are_none_and_far_above_leave_nothing(backend):
    case = replace(case_with("sink_logits"), shift=None)
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


@kinds
def test_keys_may_be_centred_if_the_rows_say_what_their_scores_lost(kind):
    """Where polynomials expand around the mean; and without a word of it something else comes out."""
    heads = [HeadSpec(Taylor(3, "mean"), Near(4, 2))] * 4
    case = replace(problem(heads, T=60), **{name: getattr(case_with(*kind), name) for name in kind})
    case = case if case.sink_logits is None else replace(case, sink_logits=case.sink_logits[:4])
    centres = torch.randn(2, 8, generator=torch.Generator().manual_seed(2))
    moved = replace(case, k=case.k - centres[:, None], shift=shift_of(case.q, centres, SCALING))
    with kernel_cases.sized(kernel_cases.EAGER):
        found, _ = attend(moved)
        wrong, _ = attend(replace(moved, shift=None))
    assert relative_error(found, reference(case)) < TOLERANCE[torch.float32]
    assert relative_error(wrong, reference(case)) > 0.01


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cap", [None, CAP])
def test_exact_attention_in_any_dtype(monkeypatch, dtype, masked, cap):
    """Whatever the scaling: one number of 8 bits would not hold a score of 9.37."""
    monkeypatch.setattr("taylorder.kernels.softmax_attention._SCORES", 500)
    q, k, v = (torch.randn(1, 2, 30, d, generator=torch.Generator().manual_seed(d)).to(dtype) for d in (12, 12, 5))
    logits = torch.tensor([9.37, 0.731])[None, :, None].expand(1, 2, 30)
    mask = torch.rand(30, 30, generator=torch.Generator().manual_seed(1)) < 0.5 if masked else None
    terms = ScoreTerms(logits, cap)
    found = softmax_attention(q, k, v, scaling=0.3, mask=mask, causal=not masked, terms=terms)
    scores = 0.3 * q.double() @ k.double().mT
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    hidden = ~mask if masked else torch.ones(30, 30).triu(1).bool()
    weights = torch.cat([scores.masked_fill(hidden, -torch.inf), logits[..., None].double()], -1).softmax(-1)
    expected = weights[..., :-1] @ v.double()
    assert found.shape == v.shape
    assert found.dtype == dtype
    assert relative_error(found, expected) < TOLERANCE[dtype]


def test_rows_that_see_nothing_put_nothing_out_under_a_cap():
    q, k, v = (torch.randn(1, 1, 4, 3) for _ in range(3))
    mask = torch.tensor([True, False, True, True])[:, None].expand(4, 4)
    found = softmax_attention(q, k, v, scaling=1.0, mask=mask, terms=ScoreTerms(softcap=2.0))
    assert (found[:, :, 1] == 0).all()
    assert (found[:, :, 0] != 0).all()


@pytest.mark.interpreter
@pytest.mark.parametrize("argument", ["sink_logits", "shifts", "softcap"])
def test_what_the_kernel_reads_shows(argument):
    case = case_with("sink_logits", "softcap")
    with triton_cases.altering("add_near_and_divide", argument, lambda value: value + 0.1):
        wrong, _ = attend(case, "triton")
    right, _ = attend(case, "triton")
    assert triton_cases.backward_error(right, case) < TOLERANCE[torch.float32]
    assert triton_cases.backward_error(wrong, case) > 100 * TOLERANCE[torch.float32]


@pytest.mark.parametrize("kept", [0, 7])
@kinds
def test_near_fields_in_one_pass(kept, kind):
    generator = torch.Generator().manual_seed(0)
    q, k, v, shift = (torch.randn(*size, generator=generator) for size in ((3, 200, 6), (200, 6), (200, 5), (3, 200)))
    priority = torch.randn(200, generator=generator)
    given = {name: value for name, value in {"sink_logits": sinks(3), "softcap": CAP}.items() if name in kind}
    runs = [
        [
            HeadSpec(Taylor(1, coefficients=(c,)) if constant else Dropped(), Near(window, 4, kept))
            for c in (0.3, 1, 2.5)
        ]
        for window in (5, 60, 200)
        for constant in (False, True)
    ]
    fields, terms = [NearField.of(specs) for specs in runs], ScoreTerms(**given).by_row(shift)
    if kept:
        found = attend_kept_fields(q, k, v, priority, fields, scaling=SCALING, terms=terms)
    else:
        found = attend_near_fields(q, k, v, fields, scaling=SCALING, terms=terms)
    for specs, output in zip(runs, found, strict=True):
        options = {"scaling": SCALING, "priority": priority[None, None]}
        inputs = q[None], k[None, None], v[None, None], specs
        expected, _ = reference_attention(*inputs, **options, **given, shift=shift[None])
        torch.testing.assert_close(output.double(), expected[0], rtol=1e-4, atol=1e-5)
        other, _ = reference_attention(*inputs, **options)
        assert relative_error(output, other[0]) > 0.01  # negative control


@pytest.mark.parametrize("cap", [None, CAP])
def test_gradients_are_those_of_the_reference(cap):
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
        options = {"softcap": cap, "shift": case.q[..., 0] / 3}
        output, _ = attend(*qkv, heads, scaling=SCALING, priority=priority, sink_logits=learned, **options)
        return output, torch.autograd.grad((output * weights).sum(), leaves)

    expected, truth = gradients(reference_attention)
    for path in (differentiable_attention, score_space_attention):
        found, ours = gradients(path)
        torch.testing.assert_close(found, expected)
        for gradient, other in zip(ours, truth, strict=True):
            torch.testing.assert_close(gradient, other)
            assert other.abs().max() > 1e-3


@pytest.mark.parametrize(
    "options, error, words",
    [
        (
            {"sink_logits": torch.zeros(3)},
            ValueError,
            "sink_logits has shape (3,), expected (4,) to match q (2, 4, 9, 8)",
        ),
        (
            {"sink_logits": torch.zeros(4).long()},
            TypeError,
            "sink_logits is torch.int64, expected a tensor of floating",
        ),
        ({"sink_logits": 1.0}, TypeError, "sink_logits is float, expected a tensor of floating point numbers or None"),
        ({"shift": torch.zeros(2, 4, 8)}, ValueError, "shift has shape (2, 4, 8), expected (2, 4, 9) to match q"),
        ({"softcap": 0.0}, ValueError, "softcap is 0.0, expected a finite number above 0, or None"),
        ({"softcap": float("inf")}, ValueError, "softcap is inf, expected a finite number above 0, or None"),
    ],
)
def test_what_is_no_such_term_is_refused(options, error, words):
    case = problem(MIXED, T=9)
    for path in (taylor_attention, score_space_attention, differentiable_attention):
        with pytest.raises(error, match=re.escape(words)):
            path(case.q, case.k, case.v, MIXED, scaling=SCALING, **options)
