"""A gradient of the choice of kept keys: how much better off rows would be if a KV head kept another key.

What is kept is a step function of priorities, whose gradient is zero or does not exist. On the way back the step is
taken for a sigmoid of how far a priority is above the lowest one that is kept, in the row where both compete
(straight-through, arXiv 1308.3432). What the step multiplies has an exact derivative: of a row with output ``o`` and
denominator ``Z``, a kept key of weight ``e`` and value ``v`` is worth ``(v - o) e / Z``, and one that is far would
change the output by ``(v - o) e / (Z + e)`` if it came in. The way forward, and all other gradients, stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor

from .kept_keys import far_from
from .spec import Near

TEMPERATURE = 0.3
"""Width of the sigmoid, in standard deviations of the priorities of a KV head."""

STRIDE = 4
"""Of so many rows one is looked at, for all of them: neighbours want the same keys."""

_BLOCK_SCORES = 1 << 20
"""Most scores looked at together, unless one row of one KV head has more."""


def with_choice_gradient(
    output: Tensor,
    priority: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    near: Near,
    *,
    scaling: float,
    sinks: Optional[Tensor] = None,
) -> Tensor:
    """The output as it is, from which gradients flow to priorities, too.

    Args:
        output: of causal attention to the near field alone, ``[B, H, T, d_v]``.
        priority: ``[B, G, T]``.
        query: ``[B, H, T, d]``.
        key: ``[B, G, T, d]``.
        value: ``[B, G, T, d_v]``.
        near: the near field; it keeps keys.
        scaling: factor of q.k.
        sinks: learned sinks as they stand beside scores, ``[B, H, T]``; None if there are none.

    """
    apply: Callable[..., Tensor] = _Choosing.apply
    return apply(output, priority, query, key, value, near, scaling, sinks)


class _Choosing(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, output: Tensor, priority: Tensor, query: Tensor, key: Tensor, value: Tensor, near: Near,
        scaling: float, sinks: Optional[Tensor],
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(output, priority, query, key, value, sinks)
        ctx.near, ctx.scaling = near, scaling
        return output.view_as(output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Optional[Tensor], ...]:  # type: ignore[override]
        output, priority, query, key, value, sinks = ctx.saved_tensors
        of_priority = choice_gradient(
            gradient, output, priority, query, key, value, ctx.near, scaling=ctx.scaling, sinks=sinks
        )
        return gradient, of_priority, None, None, None, None, None, None


@torch.no_grad()
def choice_gradient(
    gradient: Tensor,
    output: Tensor,
    priority: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    near: Near,
    *,
    scaling: float,
    sinks: Optional[Tensor] = None,
) -> Tensor:
    """Gradient by priorities ``[B, G, T]`` for one by the output ``[B, H, T, d_v]``; see the module for what it is."""
    B, G, T = priority.shape
    g = query.shape[1] // G
    dtype = torch.promote_types(query.dtype, torch.float32)
    gradient, output, query = (x.to(dtype).reshape(B * G, g, T, -1) for x in (gradient, output, query))
    key, value = (x.to(dtype).reshape(B * G, 1, T, -1) for x in (key, value))
    sinks = None if sinks is None else sinks.to(dtype).reshape(B * G, g, T, 1)
    far = far_from(priority, None, near).view(B * G, 1, T)
    ranking = priority.to(dtype).view(B * G, 1, T)
    width = TEMPERATURE * ranking.std(-1, keepdim=True).clamp(min=torch.finfo(dtype).tiny)
    result = torch.zeros(B * G, T, dtype=dtype, device=priority.device)
    number = torch.arange(T, device=priority.device)
    own = (gradient * output).sum(-1, keepdim=True)
    competed = number[near.sinks + near.kept + near.window :: STRIDE]  # before, all keys are near
    size = max(1, _BLOCK_SCORES // (B * G * g * T))
    for start in range(0, len(competed), size):
        rows = competed[start : start + size]
        keys = slice(0, int(rows[-1]) + 1)
        row, column = rows[:, None], number[keys]
        made, is_near = column <= row, row < far[..., keys]
        is_near = is_near & made
        weights = query[:, :, rows] @ key[:, :, keys].mT * scaling
        weights = weights.masked_fill_(~made, -torch.inf)
        largest = weights.amax(-1, keepdim=True)
        weights = weights.sub_(largest).exp_()
        total = (weights * is_near[:, None]).sum(-1, keepdim=True)
        if sinks is not None:
            total = total + (sinks[:, :, rows] - largest).exp()
        worth = gradient[:, :, rows] @ value[:, :, keys].mT - own[:, :, rows]
        worth = (worth * weights / torch.where(is_near[:, None], total, total + weights)).sum(1)
        competes = (column >= near.sinks) & (column <= row - near.window)
        lowest = ranking[..., keys].masked_fill(~(competes & is_near), torch.inf).amin(-1, keepdim=True)
        step = torch.sigmoid((ranking[..., keys] - lowest) / width)
        result[:, keys] += (worth * (step * (1 - step) / width).masked_fill(~competes, 0.0)).sum(1)
    return (STRIDE * result).view(B, G, T).to(priority.dtype)
