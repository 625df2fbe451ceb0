"""Attention of an adapted layer with gradients, at lengths where score space would not fit into memory.

The linear-time kernels pass no gradients. Exact KV heads and those whose far field is dropped are ordinary attention to
some of the keys, which torch differentiates well; at order 1 far keys need no scores; the others go through score
space. Weights are computed again on the way back instead of being kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from taylorder.kernels import GUARD, HeadSpec, far_sums, near_blocks, score_space_attention, windowed_attention


def differentiable_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: Sequence[HeadSpec], *, scaling: float
) -> tuple[Tensor, Tensor]:
    """Attend causally to T keys without padding, through which gradients flow; the guard is applied.

    Args:
        query: ``[B, H, T, d]``.
        key: ``[B, G, T, d]``, prepared as for ``taylor_attention``.
        value: ``[B, G, T, d_v]``.
        heads: one spec per query head.
        scaling: factor of q.k.

    Returns:
        Output ``[B, H, T, d_v]``, and guarded rows per query head, int64 ``[H]``.

    """
    T, group = query.shape[2], query.shape[1] // key.shape[1]
    outputs, guarded = [], []
    for kv_head in range(key.shape[1]):
        own = slice(kv_head * group, (kv_head + 1) * group)
        q, k, v = query[:, own], key[:, kv_head : kv_head + 1], value[:, kv_head : kv_head + 1]
        specs = heads[own]
        if all(spec.order is None or (spec.drops_far and spec.window) for spec in specs):
            near = (T, 0) if specs[0].order is None else (specs[0].window, specs[0].sinks)
            outputs.append(windowed_attention(q, k, v, *near, scaling=scaling))
            guarded.append(torch.zeros(group, dtype=torch.int64, device=query.device))
            continue
        constant = all(
            spec.order == 1 and spec.expansion == "zero" and spec.window and not spec.drops_far for spec in specs
        )
        attend = _window_and_constant if constant else _score_space
        output, hits = checkpoint(attend, q, k, v, specs, scaling, use_reentrant=False)
        outputs.append(output)
        guarded.append(hits)
    return torch.cat(outputs, 1), torch.cat(guarded)


def _score_space(q: Tensor, k: Tensor, v: Tensor, specs: Sequence[HeadSpec], scaling: float) -> tuple[Tensor, Tensor]:
    return score_space_attention(q, k, v, specs, scaling=scaling)


def _window_and_constant(
    q: Tensor, k: Tensor, v: Tensor, specs: Sequence[HeadSpec], scaling: float
) -> tuple[Tensor, Tensor]:
    """Heads of one KV head at order 1 around zero: far keys all weigh the same, so that only near ones need scores."""
    T, window, sinks = q.shape[2], specs[0].window, specs[0].sinks
    constants = [spec.polynomial[0] for spec in specs]
    # The denominator is the constant times the number of far keys, so that the guard knows no rows, only heads.
    guarded = [constant <= GUARD for constant in constants]
    weight = q.new_tensor([1.0 if hit else constant for constant, hit in zip(constants, guarded, strict=True)])
    weight = weight[:, None, None]
    before = torch.cat([torch.zeros_like(v[:, :, :1]), v.cumsum(2)], 2)  # sums of the values before each token
    outputs = []
    for rows, keys, values, near in near_blocks(k, v, window, sinks):
        row = torch.arange(rows.start, rows.stop, device=q.device)
        far_values, far = far_sums(before, row, window, sinks)
        scores = (q[:, :, rows] * scaling @ keys.mT).masked_fill(~near, -math.inf)
        top = scores.detach().amax(-1, keepdim=True)
        top = torch.where(far > 0, top.clamp(min=0.0), top)
        weights, scale = (scores - top).exp(), weight * (-top).exp()
        numerator = weights @ values + scale * far_values
        outputs.append(numerator / (weights.sum(-1, keepdim=True) + scale * far))
    truncated = q.shape[0] * max(0, T - window - sinks)
    hits = torch.tensor([truncated if hit else 0 for hit in guarded], dtype=torch.int64, device=q.device)
    return torch.cat(outputs, 2), hits
