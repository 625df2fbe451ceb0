"""Attention to sinks and a window, its gradients, and the prefill that uses it, against the float64 reference."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from tolerances import TOLERANCE, relative_error

from taylorder.kernels import (
    HeadSpec,
    near_run,
    reference_attention,
    score_space_attention,
    taylor_attention,
    windowed_attention,
)
from taylorder.kernels.differentiable import differentiable_attention
from taylorder.kernels.spec import Dropped, Exact, Near, Taylor

SCALING = 0.4


def tensors(B=1, H=4, G=2, T=20, d=6, d_v=5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(B, H, T, d, generator=generator, dtype=torch.float64)
    k = torch.randn(B, G, T, d, generator=generator, dtype=torch.float64)
    v = torch.randn(B, G, T, d_v, generator=generator, dtype=torch.float64)
    return tuple(each.to(dtype) for each in (q, k, v))


def dropped(window, sinks):
    return HeadSpec(Dropped(), Near(window, sinks))


NEAR = [(1, 0), (1, 3), (5, 0), (5, 2), (5, 19), (12, 8), (19, 0), (19, 1), (20, 0), (20, 4), (40, 40)]
"""Window and sinks of 20 tokens: sinks inside the window and outside, a near field just short of all and beyond."""


@pytest.mark.parametrize("window, sinks", NEAR)
@pytest.mark.parametrize("T", [1, 2, 20])
def test_a_window_equals_the_reference(window, sinks, T):
    q, k, v = tensors(B=2, T=T)
    expected, _ = reference_attention(q, k, v, [dropped(window, sinks)] * 4, scaling=SCALING)
    torch.testing.assert_close(windowed_attention(q, k, v, Near(window, sinks), scaling=SCALING), expected)


@pytest.mark.parametrize("window, sinks", [(1, 0), (30, 4), (250, 20), (256, 0), (257, 3), (400, 120), (519, 0)])
@pytest.mark.parametrize("T", [255, 256, 257, 520])
def test_blocks_of_rows_meet_without_a_seam(window, sinks, T):
    q, k, v = tensors(H=2, G=1, T=T, d=4, d_v=3)
    expected, _ = reference_attention(q, k, v, [dropped(window, sinks)] * 2, scaling=SCALING)
    torch.testing.assert_close(windowed_attention(q, k, v, Near(window, sinks), scaling=SCALING), expected)


def test_one_key_more_or_less_would_show():
    q, k, v = tensors(T=300)
    expected, _ = reference_attention(q, k, v, [dropped(30, 4)] * 4, scaling=SCALING)
    for window, sinks in ((29, 4), (31, 4), (30, 3), (30, 5)):
        found = windowed_attention(q, k, v, Near(window, sinks), scaling=SCALING)
        assert relative_error(found, expected) > 1e-3


KINDS = {
    "exact": [HeadSpec(Exact())] * 4,
    "dropped": [dropped(5, 2)] * 4,
    "dropped, the far field of one": [
        dropped(5, 2),
        HeadSpec(Taylor(3, "mean"), Near(5, 2)),
        dropped(2, 0),
        dropped(2, 0),
    ],
    "dropped, sinks alone": [dropped(0, 2)] * 4,
    "polynomial": [
        HeadSpec(Taylor(3, "mean"), Near(4, 1)),
        HeadSpec(Taylor(2, "mean"), Near(4, 1)),
        HeadSpec(Taylor(3)),
        HeadSpec(Taylor(1)),
    ],
    "mixed": [HeadSpec(Exact())] * 2
    + [HeadSpec(Taylor(4, "mean", (6, 6, 3, 2)), Near(3, 1)), HeadSpec(Taylor(3, "mean", (6, 6, 3)), Near(3, 1))],
    "dropped and polynomial": [dropped(7, 1), dropped(7, 1), HeadSpec(Taylor(3, "mean"), Near(4, 1)), dropped(4, 1)],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("B", [1, 2])
def test_outputs_are_those_of_the_reference(kind, B):
    q, k, v = tensors(B=B)
    output, guarded = differentiable_attention(q, k, v, KINDS[kind], scaling=SCALING)
    expected, _ = reference_attention(q, k, v, KINDS[kind], scaling=SCALING)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-11)
    assert guarded.dtype == torch.int64
    assert guarded.shape == (4,)


def gradients(attend, inputs, weights):
    leaves = [each.clone().requires_grad_() for each in inputs]
    output, guarded = attend(*leaves)
    return torch.autograd.grad((output * weights).sum(), leaves), guarded


def assert_gradients_of_score_space(inputs, heads, weights, scaling=SCALING):
    """The rows below the guard, after a comparison of them and of the gradients."""
    found, guarded = gradients(
        lambda q, k, v: differentiable_attention(q, k, v, heads, scaling=scaling), inputs, weights
    )
    expected, hits = gradients(lambda q, k, v: score_space_attention(q, k, v, heads, scaling=scaling), inputs, weights)
    assert torch.equal(guarded, hits)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-10)
        assert other.abs().max() > 1e-3
    return guarded


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_score_space(kind):
    weights = torch.randn(2, 4, 20, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_gradients_of_score_space(tensors(B=2), KINDS[kind], weights)


def test_gradients_reach_across_blocks_of_rows():
    weights = torch.randn(1, 2, 300, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_gradients_of_score_space(tensors(H=2, G=1, T=300, d=4, d_v=3), [dropped(40, 3)] * 2, weights)


@pytest.mark.parametrize("window, sinks", [(1, 0), (40, 3), (256, 0), (290, 4), (400, 2)])
def test_a_constant_far_field_needs_no_scores(monkeypatch, window, sinks):
    inputs = tensors(H=4, G=2, T=300, d=4, d_v=3)
    weights = torch.randn(1, 4, 300, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # The last two are guarded: a constant that is too small, and one that is negative.
    heads = [HeadSpec(Taylor(1, coefficients=(c,)), Near(window, sinks)) for c in (1.0, 2.5, 1e-4, -1.0)]
    expected, hits = gradients(lambda q, k, v: score_space_attention(q, k, v, heads, scaling=SCALING), inputs, weights)
    monkeypatch.setattr("taylorder.kernels.row_attention._weights", None)
    found, guarded = gradients(
        lambda q, k, v: differentiable_attention(q, k, v, heads, scaling=SCALING), inputs, weights
    )
    assert torch.equal(guarded, hits)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-10)


def test_guarded_rows_are_counted_and_pass_the_gradients_of_the_guard():
    q, k, v = tensors(T=30)
    inputs = 5 * q, k, v
    heads = [dropped(4, 1)] * 2 + [HeadSpec(Taylor(2, "mean"), Near(4, 1))] * 2
    weights = torch.ones(1, 4, 30, 5, dtype=torch.float64)
    weights[..., 0] = -2.0
    mixed = [HeadSpec(Exact())] * 2 + [HeadSpec(Taylor(4), Near(4, 1))] * 2
    for chosen in (heads, mixed):
        guarded = assert_gradients_of_score_space(inputs, chosen, weights, scaling=1.0)
    assert guarded[:2].tolist() == [0, 0]
    assert guarded[2:].min() > 0


PREFILL = {
    "window": [dropped(6, 0)] * 4,
    "window and sinks": [dropped(6, 3)] * 4,
    "one key": [dropped(1, 0)] * 4,
    "one key and sinks": [dropped(1, 2)] * 4,
    "two parts and an exact head": [dropped(6, 3), dropped(6, 3), HeadSpec(Exact()), HeadSpec(Exact())],
    "beside a polynomial": [
        HeadSpec(Taylor(3, "mean"), Near(6, 3)),
        HeadSpec(Taylor(2, "mean"), Near(6, 3)),
        dropped(30, 1),
        dropped(30, 1),
    ],
}


def told_of_near(monkeypatch):
    """The list of windows that the torch backend handed to ordinary attention."""
    calls = []

    def attend(q, k, v, near, **options):
        calls.append((q.shape[2], near.window, near.sinks))
        return windowed_attention(q, k, v, near, **options)

    monkeypatch.setattr(near_run, "windowed_attention", attend)
    return calls


@pytest.mark.parametrize("kind", PREFILL)
@pytest.mark.parametrize("T", [1, 5, 63, 64, 65, 300])
def test_a_prefill_is_the_reference(monkeypatch, kind, T):
    calls = told_of_near(monkeypatch)
    q, k, v = tensors(B=2, T=T)
    expected, _ = reference_attention(q, k, v, PREFILL[kind], scaling=SCALING)
    found, state = taylor_attention(q, k, v, PREFILL[kind], scaling=SCALING, backend="torch")
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert {call[0] for call in calls} == ({T} if T > 1 else set())
    assert state.guarded.sum() == 0


def test_float32_meets_its_tolerance_and_half_precisions_take_the_other_way(monkeypatch):
    calls = told_of_near(monkeypatch)
    heads = PREFILL["window and sinks"]
    for dtype, near in ((torch.float32, True), (torch.float16, False), (torch.bfloat16, False)):
        calls.clear()
        q, k, v = tensors(T=130, dtype=dtype)
        expected, _ = reference_attention(q, k, v, heads, scaling=SCALING)
        found, _ = taylor_attention(q, k, v, heads, scaling=SCALING, backend="torch")
        assert relative_error(found, expected) < TOLERANCE[dtype]
        wrong, _ = taylor_attention(q, k + 0.2 * k.flip(2), v, heads, scaling=SCALING, backend="torch")
        assert relative_error(wrong, expected) > TOLERANCE[dtype]
        assert bool(calls) == near


@pytest.mark.parametrize("kind", PREFILL)
@pytest.mark.parametrize(
    "cuts", [(0, 1, 2, 3, 80), (0, 2, 4, 70, 75, 80), (0, 64, 65, 66, 80), (0, 70, 71, 72, 80), (0, 0, 70, 80)]
)
def test_its_state_goes_on_as_if_all_were_prefilled(kind, cuts):
    q, k, v = tensors(B=2, T=80)
    expected, _ = reference_attention(q, k, v, PREFILL[kind], scaling=SCALING)
    state, parts = None, []
    for start, stop in pairwise(cuts):
        cut = slice(start, stop)
        part, state = taylor_attention(
            q[:, :, cut], k[:, :, cut], v[:, :, cut], PREFILL[kind], scaling=SCALING, state=state, backend="torch"
        )
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 2), expected, rtol=1e-9, atol=1e-11)


def test_its_state_keeps_the_near_field_alone():
    heads = PREFILL["window and sinks"]
    sizes = []
    for T in (200, 1000):
        _, state = taylor_attention(*tensors(T=T), heads, scaling=SCALING, backend="torch")
        sizes.append(state.nbytes)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("first", [0, 3])
def test_padding_takes_the_other_way_and_is_the_reference_too(monkeypatch, first):
    calls = told_of_near(monkeypatch)
    heads = PREFILL["window and sinks"]
    q, k, v = tensors(B=2, T=40)
    valid = torch.arange(40) >= torch.tensor([[first], [9]])
    expected, _ = reference_attention(q, k, v, heads, scaling=SCALING, valid=valid)
    found, _ = taylor_attention(q, k, v, heads, scaling=SCALING, valid=valid, backend="torch")
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert calls == []
