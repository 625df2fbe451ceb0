"""Attention of an adapted layer with gradients, at lengths where score space would not fit into memory.

The linear-time kernels pass no gradients. Exact KV heads and those whose far field is dropped are ordinary attention to
some of the keys, which torch differentiates well; the others go through score space, whose weights are computed again
on the way back instead of being kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from taylorder.kernels import HeadSpec, score_space_attention, windowed_attention


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
        output, hits = checkpoint(
            score_space_attention, q, k, v, specs, scaling=scaling, causal=True, use_reentrant=False
        )
        outputs.append(output)
        guarded.append(hits)
    return torch.cat(outputs, 1), torch.cat(guarded)
