"""The gradient of keeping keys: what a key is worth to the rows that keep it, or would."""

from __future__ import annotations

import pytest
import torch

from taylorder.kernels import choosing
from taylorder.kernels.choosing import TEMPERATURE
from taylorder.kernels.differentiable import differentiable_attention
from taylorder.kernels.kept_keys import far_from
from taylorder.kernels.spec import Dropped, HeadSpec, Near, Taylor

B, G, H, T, D = 2, 2, 4, 14, 3
SCALING = 0.7
NEAR = Near(2, 1, 3)


def drawn(seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(B, heads, T, D, generator=generator, dtype=torch.float64) for heads in (H, G, G))
    return q, k, v, torch.randn(B, G, T, generator=generator), torch.randn(B, H, T, D, generator=generator).double()


def row_with(scores, values, multipliers, sink):
    """One row's output, each key's weight multiplied."""
    weights = scores.exp() * multipliers
    return weights @ values / (weights.sum() + (0.0 if sink is None else sink.exp()))


def expected(q, k, v, priority, gradient, near, sinks=None):
    """Row by row and key by key: the slope of the step, times the derivative by a kept key's weight or the difference
    that a far key would make."""
    result = torch.zeros(B, G, T, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            g = h // (H // G)
            p = priority[b, g].double()
            width = TEMPERATURE * p.std()
            far = far_from(priority[b, g][None, None], None, near)[0, 0]
            for t in range(T):
                scores, values = q[b, h, t] @ k[b, g, : t + 1].T * SCALING, v[b, g, : t + 1]
                sink = None if sinks is None else sinks[h]
                kept = (t < far[: t + 1]).double().requires_grad_()
                output = row_with(scores, values, kept, sink)
                (by_weight,) = torch.autograd.grad(output @ gradient[b, h, t], kept)
                competing = range(near.sinks, t - near.window + 1)
                staying = [j for j in competing if t < far[j]]
                if len(staying) == len(competing):
                    continue
                lowest = min(p[j] for j in staying)
                for j in competing:
                    worth = by_weight[j]
                    if j not in staying:
                        one_more = kept.detach().clone()
                        one_more[j] = 1.0
                        worth = (row_with(scores, values, one_more, sink) - output.detach()) @ gradient[b, h, t]
                    step = torch.sigmoid((p[j] - lowest) / width)
                    result[b, g, j] += worth.detach() * step * (1 - step) / width
    return result


@pytest.fixture(autouse=True)
def every_row(monkeypatch):
    monkeypatch.setattr(choosing, "STRIDE", 1)


@pytest.mark.parametrize("sinks", [None, torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)])
@pytest.mark.parametrize("rows", [1, 5, None])
def test_a_key_gets_what_it_is_worth(monkeypatch, sinks, rows):
    if rows:
        monkeypatch.setattr(choosing, "_BLOCK_SCORES", rows * B * H * T)
    q, k, v, priority, gradient = drawn()
    priority.requires_grad_()
    output, _ = differentiable_attention(
        q, k, v, [HeadSpec(Dropped(), NEAR)] * H, scaling=SCALING, priority=priority, sink_logits=sinks
    )
    output.backward(gradient)
    wanted = expected(q, k, v, priority.detach(), gradient, NEAR, sinks)
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(priority.grad.double(), wanted, rtol=1e-5, atol=1e-6)


def test_some_of_the_rows_speak_for_all(monkeypatch):
    generator = torch.Generator().manual_seed(4)
    walk = torch.randn(1, 1, 400, D, generator=generator).cumsum(2) / 10  # neighbours are alike, as in a text
    k, v = (torch.randn(1, 1, 400, D, generator=generator) for _ in range(2))
    priority, gradient = torch.randn(1, 1, 400, generator=generator), walk.flip(2)
    found = []
    for stride in (1, 4):
        monkeypatch.setattr(choosing, "STRIDE", stride)
        ranking = priority.clone().requires_grad_()
        heads = [HeadSpec(Dropped(), Near(8, 2, 16))]
        differentiable_attention(walk, k, v, heads, scaling=SCALING, priority=ranking)[0].backward(gradient)
        found.append(ranking.grad.flatten())
    assert torch.cosine_similarity(*found, dim=0) > 0.95
    assert found[1].norm() / found[0].norm() == pytest.approx(1, abs=0.1)


def test_output_and_other_gradients_do_not_change():
    q, k, v, priority, gradient = drawn(1)
    heads = [HeadSpec(Dropped(), NEAR)] * H
    found = []
    for trained in (False, True):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        ranking = priority.clone().requires_grad_(trained)
        output, _ = differentiable_attention(*leaves, heads, scaling=SCALING, priority=ranking)
        output.backward(gradient)
        found.append([output.detach(), *(leaf.grad for leaf in leaves)])
    for plain, with_choice in zip(*found, strict=True):
        torch.testing.assert_close(with_choice, plain, rtol=0, atol=0)


def test_heads_of_other_kinds_get_none_and_leave_the_others_theirs():
    q, k, v, priority, gradient = drawn(2)
    heads = [HeadSpec(Dropped(), NEAR)] * 2 + [HeadSpec(Taylor(3, "mean"), NEAR)] * 2
    priority.requires_grad_()
    output, _ = differentiable_attention(q, k, v, heads, scaling=SCALING, priority=priority)
    output.backward(gradient)
    wanted = expected(q, k, v, priority.detach(), gradient, NEAR)
    torch.testing.assert_close(priority.grad[:, 0].double(), wanted[:, 0], rtol=1e-5, atol=1e-6)
    assert not priority.grad[:, 1].any()


def test_where_everything_is_kept_nothing_competes():
    q, k, v, priority, gradient = drawn(3)
    priority.requires_grad_()
    output, _ = differentiable_attention(
        q, k, v, [HeadSpec(Dropped(), Near(2, 1, T))] * H, scaling=SCALING, priority=priority
    )
    output.backward(gradient)
    assert not priority.grad.any()
