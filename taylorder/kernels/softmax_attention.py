"""Softmax attention to the keys given: by torch's own function where it can, or with the scores written out."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from .score_terms import PLAIN, ScoreTerms

_UNIT = 64.0
"""Coordinate of the key that stands for the learned sink: queries hold so many times less, within float16's range."""

_SCORES = 1 << 22
"""Most scores written out at a time, of all sequences and heads."""


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scaling: float,
    mask: Optional[Tensor] = None,
    causal: bool = False,
    terms: ScoreTerms = PLAIN,
) -> Tensor:
    """Attend; differentiable.

    Args:
        q: ``[B, H, T, d]``.
        k: ``[B, G, S, d]``.
        v: ``[B, G, S, d_v]``.
        scaling: factor of q.k.
        mask: bool ``[T, S]`` or ``[B, H, T, S]``, dimensions of 1 standing for all; None if there is none.
        causal: whether there is no mask and row i sees keys 0 … i; T is S then.
        terms: of the rows ``[B, H, T]``.

    Returns:
        Output ``[B, H, T, d_v]`` in the dtype of q.

    """
    if terms.softcap is not None:
        return _written_out(q, k, v, scaling, mask, causal, terms)
    grouped, sinks = q.shape[1] != k.shape[1], terms.sinks
    if sinks is None:
        return scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=grouped
        )
    # One key more, in front. Only it has the two coordinates by which queries make its score: in half precision one
    # number would not hold it. Values stay as wide as keys where they were, which fast implementations ask for.
    logits = sinks / (_UNIT * scaling)
    high = logits.to(q.dtype)
    q = torch.cat([q, high[..., None], (logits - high)[..., None].to(q.dtype)], -1)
    k, v = pad(k, (0, 2, 1, 0)), pad(v, (0, 2, 1, 0))
    k[:, :, 0, -2:] = _UNIT
    if causal:
        q = pad(q, (0, 0, 1, 0))  # a row that sees this key alone, so that the others see it and themselves
    if mask is not None:
        mask = pad(mask, (1, 0), value=True)
    rows = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=grouped)
    return rows[:, :, 1 if causal else 0 :, :-2]


def _written_out(
    q: Tensor, k: Tensor, v: Tensor, scaling: float, mask: Optional[Tensor], causal: bool, terms: ScoreTerms
) -> Tensor:
    """Attend with scores as matrices, some rows at a time, in the dtype of sums: torch's function cannot cap them."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    B, H, T, d = q.shape
    G, S = k.shape[1:3]
    queries = q.reshape(B, G, H // G, T, d).to(dtype) * scaling
    keys, values = k.to(dtype).mT[:, :, None], v.to(dtype)[:, :, None]
    column = torch.arange(S, device=q.device)
    blocks = []
    together = max(1, _SCORES // max(1, B * H * S))
    for start in range(0, T, together):
        block = slice(start, min(start + together, T))
        rows = torch.arange(start, block.stop, device=q.device)
        of_block = terms.at((..., block))
        scores = of_block.capped((queries[:, :, :, block] @ keys).flatten(1, 2))
        seen = torch.ones_like(column, dtype=torch.bool)
        if causal or mask is not None:
            seen = column <= rows[:, None] if mask is None else mask[..., block, :]
        # Weights of what is hidden are zero, also in rows that see nothing.
        weights = of_block.softmax(scores.masked_fill(~seen, torch.finfo(dtype).min)) * seen
        blocks.append((weights.view(B, G, H // G, len(rows), S) @ values).flatten(1, 2))
    return torch.cat(blocks, 2).to(q.dtype)
