"""Gradients of whole sequences, block of rows after block: finite differences, score space, memory, and who asks."""

from __future__ import annotations

import re
from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_cases import SCALING, cases
from tolerances import TOLERANCE, relative_error
from torch.autograd.gradcheck import GradcheckError
from torch.utils._python_dispatch import TorchDispatchMode

from taylorder.kernels import (
    HeadSpec,
    differentiable,
    differentiable_attention,
    recomputed,
    reference_attention,
    reference_sums,
    score_space_attention,
    taylor_attention,
)
from taylorder.kernels.spec import Dropped, Exact, Near, Taylor

SIZES = st.fixed_dictionaries(
    {
        "folds_from": st.sampled_from([lambda *_: None, lambda *_: 1, lambda *_: 5]),
        "BLOCK_ROWS": st.sampled_from([4, 16, 128]),
        "_NUMBERS": st.sampled_from([1, 1 << 20]),
    }
)
"""What makes small inputs take the paths of large ones; it may change no result."""

RANKS = (0, 4, 3, 2, 1, 1, 1, 1)

KINDS = {
    **{f"order {order}": [HeadSpec(Taylor(order))] * 2 for order in (1, 2, 3, 4, 5, 6, 7, 8)},
    **{f"order {order} around the mean": [HeadSpec(Taylor(order, "mean"), Near(3, 1))] * 2 for order in (1, 2, 3, 5)},
    "ranks": [HeadSpec(Taylor(4, "mean", RANKS[:4]), Near(2))] * 2,
    "ranks around zero": [HeadSpec(Taylor(4, "centre", (0, 3, 2, 2)), Near(0, 2))] * 2,
    "coefficients": [HeadSpec(Taylor(3, "mean", coefficients=(0.8, 1.1, 0.3)), Near(2, 1))] * 2,
    "several orders": [HeadSpec(Taylor(2, "centre"), Near(3)), HeadSpec(Taylor(4, "mean"), Near(3))],
    "one dropped": [HeadSpec(Dropped(), Near(3, 1)), HeadSpec(Taylor(3, "mean"), Near(3, 1))],
    "kept": [HeadSpec(Taylor(3, "mean"), Near(3, 1, 4))] * 2,
    "kept alone": [HeadSpec(Dropped(), Near(3, 1, 4))] * 2,
    "window": [HeadSpec(Dropped(), Near(4, 2))] * 2,
    "exact": [HeadSpec(Exact())] * 2,
}
"""Two query heads on one KV head."""


def tensors(T=13, d=4, d_v=2, B=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, 2, T, d), (B, 1, T, d), (B, 1, T, d_v))
    return [0.7 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def ranking(T=13, B=2):
    return torch.randn(B, 1, T, generator=torch.Generator().manual_seed(5))


@pytest.fixture(params=[None, 3], ids=["one by one", "folded"])
def folds(request, monkeypatch):
    monkeypatch.setattr(differentiable, "folds_from", lambda *_: request.param)
    monkeypatch.setattr(differentiable, "BLOCK_ROWS", 5)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_differences(kind, padded, folds):
    heads = KINDS[kind]
    valid = torch.arange(13) >= torch.tensor([[2], [0]]) if padded else None
    inputs = [each.requires_grad_() for each in tensors()]

    def attend(q, k, v):
        return differentiable_attention(q, k, v, heads, scaling=0.8, valid=valid, priority=ranking())[0]

    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)


def test_a_gradient_left_out_would_show(folds, monkeypatch):
    monkeypatch.setattr(recomputed, "_unfold", lambda *_: None)
    monkeypatch.setattr(recomputed.Tokens, "add", lambda *_: None)
    inputs = [each.requires_grad_() for each in tensors()]
    with pytest.raises(GradcheckError):
        torch.autograd.gradcheck(
            lambda *qkv: differentiable_attention(*qkv, KINDS["order 3"], scaling=0.8)[0], inputs, fast_mode=True
        )


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("kind", ["several orders", "one dropped", "ranks", "kept", "exact", "order 4 around the mean"])
def test_gradients_of_terms_and_coefficients_are_finite_differences(kind, softcap, folds):
    heads = KINDS.get(kind, [HeadSpec(Taylor(4, "mean"), Near(2))] * 2)
    order = max(spec.order for spec in heads)
    q, k, v = (each.requires_grad_() for each in tensors())
    sinks = torch.tensor([-0.3, 0.6], dtype=torch.float64, requires_grad=True)
    shift = (q[..., 0] / 3).detach().requires_grad_()
    coefficients = torch.tensor([[0.9, 1.1, 0.6, 0.2][:order]] * 2, dtype=torch.float64, requires_grad=True)

    def attend(q, k, v, sinks, shift, coefficients):
        return differentiable_attention(
            q, k, v, heads, scaling=0.8, priority=ranking(), sink_logits=sinks, shift=shift, softcap=softcap,
            coefficients=coefficients,
        )[0]  # fmt: skip

    assert torch.autograd.gradcheck(attend, [q, k, v, sinks, shift, coefficients], fast_mode=True)


def test_a_tensor_of_coefficients_stands_for_those_of_the_specs(folds):
    q, k, v = tensors()
    chosen = torch.tensor([[0.9, 1.2, 7.0, 7.0], [0.8, 1.1, 0.4, 0.3]], dtype=torch.float64, requires_grad=True)
    heads = KINDS["several orders"]

    def with_specs(rows):
        specs = [
            replace(spec, far=replace(spec.far, coefficients=tuple(row[: spec.order])))
            for spec, row in zip(heads, rows.tolist(), strict=True)
        ]
        return reference_attention(q, k, v, specs, scaling=SCALING)[0]

    found, _ = differentiable_attention(q, k, v, heads, scaling=SCALING, coefficients=chosen)
    torch.testing.assert_close(found, with_specs(chosen), rtol=1e-9, atol=1e-11)
    (gradient,) = torch.autograd.grad(found.square().sum(), chosen)
    assert gradient[0, 2:].abs().max() == 0  # of degrees that the head has not
    for h, p in ((0, 1), (1, 3)):
        step = torch.zeros_like(gradient)
        step[h, p] = 1e-6
        slope = (with_specs(chosen + step).square().sum() - with_specs(chosen - step).square().sum()) / 2e-6
        assert float(gradient[h, p]) == pytest.approx(float(slope), rel=1e-5)
        assert abs(slope) > 1e-3


def test_coefficients_of_another_shape_are_refused():
    words = "coefficients has shape (2, 3), expected one row per query head and one column per degree of the largest"
    with pytest.raises(ValueError, match=re.escape(words)):
        differentiable_attention(*tensors(), KINDS["several orders"], scaling=SCALING, coefficients=torch.ones(2, 3))


@settings(max_examples=60, deadline=None)
@given(cases(orders=(1, 2, 3, 4, 5), kept=(0, 1, 5, 40)), SIZES, st.sampled_from([None, 3.0]))
def test_outputs_are_those_of_the_reference_and_gradients_those_of_score_space(case, sizes, cap):
    case = case.to(torch.float64)
    if case.priority is not None and case.valid is not None:
        case = replace(case, priority=case.priority.masked_fill(~case.valid[:, None], 0.0))
    B, H, T, _ = case.q.shape
    leaves = [case.q, case.k, case.v, torch.linspace(-1, 1, H, dtype=torch.float64), case.q[..., 0] / 3]
    leaves = [each.clone().requires_grad_() for each in leaves]
    weights = torch.randn(B, H, T, case.v.shape[-1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def run(attend):
        q, k, v, sinks, shift = leaves
        return attend(
            q, k, v, case.heads, scaling=SCALING, causal=case.causal, valid=case.valid, priority=case.priority,
            sink_logits=sinks if cap else None, softcap=cap, shift=shift,
        )  # fmt: skip

    def gradients(output):
        return torch.autograd.grad((output * weights).sum() + 0 * sum(each.sum() for each in leaves), leaves)

    truth = run(reference_sums)[0]
    # Rows near the guard's threshold may fall on either side of it, and near zero quotients are anything.
    small = truth.denominator.abs() / truth.denominator_scale.clamp(min=1e-30) < 1e-3
    assume(not bool((truth.guard_margin < 1e-4).any()) and not bool((small & (truth.denominator != 0)).any()))
    with mock.patch.multiple(differentiable, **sizes):
        found, guarded = run(differentiable_attention)
        ours = gradients(found)
    expected, hits = run(score_space_attention)
    torch.testing.assert_close(found, run(reference_attention)[0], rtol=1e-6, atol=1e-8)
    assert torch.equal(guarded, hits)
    for own, other in zip(ours, gradients(expected), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-7)


def test_padding_may_hold_anything(folds):
    q, k, v = tensors()
    valid = torch.arange(13) >= torch.tensor([[4], [0]])
    poisoned = [torch.where(valid[:, None, :, None], each, float("inf")).requires_grad_() for each in (q, k, v)]
    clean = [each.clone().requires_grad_() for each in (q, k, v)]
    for heads in (KINDS["ranks"], KINDS["kept alone"], KINDS["exact"]):
        results = []
        for leaves in (poisoned, clean):
            output, _ = differentiable_attention(*leaves, heads, scaling=1.0, valid=valid, priority=ranking())
            results.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
        for found, expected in zip(*results, strict=True):
            assert torch.equal(found, expected)
            assert found[0, :, :4].abs().max() == 0


class Largest(TorchDispatchMode):
    """Most numbers of a tensor that an operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // tensor.element_size())
        return made


LONG = {
    "order 1": HeadSpec(Taylor(1), Near(16, 4)),
    "order 3, rank 4": HeadSpec(Taylor(3, "mean", (0, 16, 4)), Near(16, 4)),
    "order 3, kept": HeadSpec(Taylor(3, "mean", (0, 16, 4)), Near(16, 4, 16)),
    "order 5": HeadSpec(Taylor(5)),
    "kept": HeadSpec(Dropped(), Near(16, 4, 16)),
    "exact": HeadSpec(Exact()),
}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", LONG)
def test_memory_is_linear_in_tokens(kind, padded):
    """What is saved for the way back, and the largest tensor on both ways: 4,096 tokens against 2,048."""
    saved, largest = [], []
    for T in (2048, 4096):
        q, k, v = (each.float().requires_grad_() for each in tensors(T=T, d=16, d_v=16, B=1))
        valid = torch.arange(T)[None] >= 100 if padded else None
        sizes = {}

        def pack(tensor, sizes=sizes):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes() // 4
            return tensor

        with Largest() as mode:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                output, _ = differentiable_attention(
                    q, k, v, [LONG[kind]] * 2, scaling=0.25, valid=valid, priority=ranking(T, 1)
                )
            output.sum().backward()
        saved.append(sum(sizes.values()))
        largest.append(mode.numbers)
    assert saved[1] < 2.1 * saved[0]
    assert largest[1] < 2.1 * largest[0]
    assert largest[1] < 4096 * 4096 / 8
    assert saved[1] < 4096 * 1000


def test_taylor_attention_passes_gradients_where_they_are_asked_for():
    q, k, v = tensors()
    heads = KINDS["order 3 around the mean"]
    with torch.inference_mode():
        plain, state = taylor_attention(q, k, v, heads, scaling=SCALING)  # fills tables that are kept
    leaves = [each.clone().requires_grad_() for each in (q, k, v)]
    expected = torch.autograd.grad(score_space_attention(*leaves, heads, scaling=SCALING)[0].sum(), leaves)
    for backend in (None, "torch", "triton", "score-space"):
        output, nothing = taylor_attention(*leaves, heads, scaling=SCALING, backend=backend)
        torch.testing.assert_close(output, plain)
        assert nothing is None
        for found, other in zip(torch.autograd.grad(output.sum(), leaves), expected, strict=True):
            torch.testing.assert_close(found, other)
    with torch.no_grad():
        assert taylor_attention(*leaves, heads, scaling=SCALING)[1] is not None
    with pytest.raises(ValueError, match="gradients are recorded, which do not pass through a state"):
        taylor_attention(*leaves, heads, scaling=SCALING, state=state)


def test_explicit_score_space_is_score_space(monkeypatch):
    monkeypatch.setattr("taylorder.kernels.dispatch.differentiable_attention", None)
    leaves = [each.requires_grad_() for each in tensors()]
    output, _ = taylor_attention(*leaves, KINDS["kept"], scaling=SCALING, priority=ranking(), backend="score-space")
    assert output.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_meet_their_tolerance(dtype, folds):
    q, k, v = tensors(T=40)
    heads, weights = KINDS["order 3 around the mean"], tensors(T=40, seed=3)[0][..., :2]

    def run(attend, *inputs):
        leaves = [each.clone().requires_grad_() for each in inputs]
        output, _ = attend(*leaves, heads, scaling=SCALING)
        return [output, *torch.autograd.grad((output * weights.to(output.dtype)).sum(), leaves)]

    rounded = [each.to(dtype) for each in (q, k, v)]
    found = run(differentiable_attention, *rounded)
    expected = run(score_space_attention, *[each.double() for each in rounded])
    for own, other in zip(found, expected, strict=True):
        assert own.dtype == dtype
        assert relative_error(own.detach(), other.detach()) < TOLERANCE[dtype]
    wrong = run(differentiable_attention, rounded[0], rounded[1] * 1.05, rounded[2])
    assert relative_error(wrong[1], expected[1]) > TOLERANCE[dtype]


@pytest.mark.parametrize("kind", ["ranks", "kept alone", "order 4"])
def test_autocast_rounds_nothing_on_either_way(kind, folds):
    leaves = [each.float().requires_grad_() for each in tensors()]

    def run():
        output, _ = differentiable_attention(*leaves, KINDS[kind], scaling=SCALING, priority=ranking(), softcap=5.0)
        return [output, *torch.autograd.grad(output.square().sum(), leaves)]

    expected = run()
    with torch.autocast("cpu", torch.bfloat16):
        found = run()
    for own, other in zip(found, expected, strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("B, T", [(0, 3), (2, 0), (1, 1)])
@pytest.mark.parametrize("kind", ["ranks", "kept alone", "exact"])
def test_few_tokens_and_none(kind, B, T):
    leaves = [each.requires_grad_() for each in tensors(B=B, T=T)]
    for valid in (None, torch.zeros(B, T, dtype=torch.bool)):
        output, _ = taylor_attention(*leaves, KINDS[kind], scaling=SCALING, valid=valid, priority=ranking(T, B))
        assert output.shape == (B, 2, T, 2)
        assert output.isfinite().all()
        output.sum().backward()
    assert all(each.grad.isfinite().all() for each in leaves if each.grad is not None)
