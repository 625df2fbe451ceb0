"""Attention of an adapted layer with gradients, at lengths where score space would not fit into memory.

The linear-time kernels pass no gradients. Exact KV heads and those whose far field is dropped are ordinary attention to
some of the keys, which torch differentiates well; at order 1 far keys need no scores; the others go through score
space. Weights are computed again on the way back instead of being kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Optional

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .exact import far_sums, near_blocks, windowed_attention
from .near_fields import NearField
from .score_space import attend_in_score_space
from .score_terms import ScoreTerms
from .spec import Exact, HeadSpec, Near, grouped


def differentiable_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: Sequence[HeadSpec],
    *,
    scaling: float,
    priority: Optional[Tensor] = None,
    sink_logits: Optional[Tensor] = None,
    softcap: Optional[float] = None,
    shift: Optional[Tensor] = None,
) -> tuple[Tensor, Tensor]:
    """Attend causally to T keys without padding, through which gradients flow; the guard is applied.

    Args:
        query: ``[B, H, T, d]``.
        key: ``[B, G, T, d]``, prepared as for ``taylor_attention``.
        value: ``[B, G, T, d_v]``.
        heads: one spec per query head.
        scaling: factor of q.k.
        priority: ``[B, G, T]``, needed where a head keeps keys; no gradients flow through it.
        sink_logits: learned sinks ``[H]``; None if there are none.
        softcap: cap of scores under the true exponential; None if there is none.
        shift: by how much scores are less because keys are centred, ``[B, H, T]``; None if they are not.

    Returns:
        Output ``[B, H, T, d_v]``, and guarded rows per query head, int64 ``[H]``.

    """
    T, group = query.shape[2], query.shape[1] // key.shape[1]
    all_terms = ScoreTerms.of_rows(query, sink_logits, softcap, shift)
    outputs, guarded = [], []
    for kv_head, specs in enumerate(grouped(heads, key.shape[1])):
        of_group = slice(kv_head * group, (kv_head + 1) * group)
        q, terms = query[:, of_group], all_terms.at((slice(None), of_group))
        k, v = key[:, kv_head : kv_head + 1], value[:, kv_head : kv_head + 1]
        ranking = None if priority is None else priority[:, kv_head : kv_head + 1].detach()
        field = NearField(Near(T), None) if isinstance(specs[0].far, Exact) else NearField.of(specs)
        if field is None:
            output, hits = checkpoint(_score_space, q, k, v, specs, scaling, ranking, terms, use_reentrant=False)
        else:
            if field.constants is None:
                attend = partial(windowed_attention, scaling=scaling, priority=ranking, terms=terms)
                if terms.softcap is None:
                    output = attend(q, k, v, field.near)
                else:  # with scores written out, which are computed again on the way back too
                    output = checkpoint(attend, q, k, v, field.near, use_reentrant=False)
            else:
                output = checkpoint(_window_and_constant, q, k, v, field, scaling, ranking, terms, use_reentrant=False)
            rows = field.guarded(T) or [0] * group
            hits = query.shape[0] * torch.tensor(rows, dtype=torch.int64, device=query.device)
        outputs.append(output)
        guarded.append(hits)
    return torch.cat(outputs, 1), torch.cat(guarded)


def _score_space(
    q: Tensor, k: Tensor, v: Tensor, specs: Sequence[HeadSpec], scaling: float, priority: Optional[Tensor],
    terms: ScoreTerms,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return attend_in_score_space(q, k, v, specs, terms, scaling=scaling, priority=priority)


def _window_and_constant(
    q: Tensor, k: Tensor, v: Tensor, field: NearField, scaling: float, priority: Optional[Tensor],
    terms: ScoreTerms,
) -> Tensor:  # fmt: skip
    """Heads of one KV head at order 1 around zero: far keys all weigh the same, so that only near ones need scores."""
    weight = q.new_tensor(field.weights)[:, None, None]
    before = torch.cat([torch.zeros_like(v[:, :, :1]), v.cumsum(2)], 2)  # sums of the values before each token
    outputs = []
    for rows, keys, values, near in near_blocks(k, v, field.near, priority):
        row = torch.arange(rows.start, rows.stop, device=q.device)
        if field.near.kept:  # far is what is not near
            far_values = before[:, :, rows.start + 1 : rows.stop + 1] - near.to(values.dtype) @ values
            far = (row + 1)[:, None] - near.sum(-1, keepdim=True)
        else:
            far_values, far = far_sums(before, row, field.near)
        of_block = terms.at((..., rows))
        scores = of_block.capped(q[:, :, rows] * scaling @ keys.mT).masked_fill(~near, -math.inf)
        top = scores.detach().amax(-1, keepdim=True)
        top = torch.where(far > 0, top.clamp(min=0.0), top)
        sinks = of_block.sinks
        if sinks is not None:
            top = torch.maximum(top, sinks[..., None].detach())
        weights, scale = (scores - top).exp(), weight * (-top).exp()
        numerator, denominator = weights @ values + scale * far_values, weights.sum(-1, keepdim=True) + scale * far
        outputs.append(numerator / (denominator if sinks is None else denominator + (sinks[..., None] - top).exp()))
    return torch.cat(outputs, 2)
