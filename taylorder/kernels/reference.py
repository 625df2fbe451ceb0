"""The truth: truncated attention in score space, float64, one head and one row of scores at a time in spirit.

``out = (e^-M sum_near e^s v + e^(mu-M) sum_far w v) / (the same with v = 1)`` with ``w = sum_p c_p (s^[r_p] - mu^[r_p])^p``
(arXiv 2602.00294 is the case of no near field, ``mu = 0`` and full ranks). Nothing here is fast. Every fast path is
compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .spec import GUARD, HeadSpec, check_heads


@dataclass(frozen=True)
class ReferenceState:
    """Everything seen so far: float64 keys ``[B, G, S, d]``, values ``[B, G, S, d_v]``, ``valid`` bool ``[B, S]``."""

    keys: Tensor
    values: Tensor
    valid: Tensor


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: Sequence[HeadSpec],
    *,
    scaling: float,
    causal: bool = True,
    valid: Tensor | None = None,
    state: ReferenceState | None = None,
    backend: str | None = None,
) -> tuple[Tensor, ReferenceState | None]:
    """Attend with the same signature as ``taylor_attention``, in float64.

    Args:
        q: queries of the new tokens ``[B, H, T, d]``.
        k: their keys ``[B, G, T, d]``, prepared by the caller (centred, rotated).
        v: their values ``[B, G, T, d_v]``.
        heads: one spec per query head.
        scaling: factor of q.k.
        causal: False attends in both directions (no near field, no state).
        valid: bool ``[B, T]``, False for padding; rows of padding queries are zero.
        state: what an earlier call returned, to go on from there.
        backend: accepted for the common signature and ignored.

    Returns:
        Output ``[B, H, T, d_v]`` in float64, and the state after these tokens (None if bidirectional).

    """
    check_heads(heads, q.shape[1], k.shape[1], causal)
    B, H, T, _ = q.shape
    if valid is None:
        valid = torch.ones(B, T, dtype=torch.bool, device=q.device)
    keys, values, known = k.double(), v.double(), valid
    if state is not None:
        keys = torch.cat([state.keys, keys], dim=2)
        values = torch.cat([state.values, values], dim=2)
        known = torch.cat([state.valid, valid], dim=1)
    S = keys.shape[2]
    key = torch.arange(S, device=q.device)
    row = key[S - T :, None]
    allowed = known[:, None, :] & (key <= row if causal else torch.ones(T, S, dtype=torch.bool, device=q.device))
    output = torch.zeros(B, H, T, v.shape[-1], dtype=torch.float64, device=q.device)
    for h, spec in enumerate(heads):
        g = h * k.shape[1] // H
        recent = (key <= row) & (key > row - spec.window)
        first = known.cumsum(-1)[:, None, :] <= spec.sinks
        near = allowed & (recent | first) if spec.order is not None else allowed
        far = allowed & ~near & (not spec.drops_far)
        output[:, h] = _one_head(q[:, h].double(), keys[:, g], values[:, g], spec, near, far, scaling)
    output = output * valid[:, None, :, None]
    return output, ReferenceState(keys, values, known) if causal else None


def _one_head(q: Tensor, k: Tensor, v: Tensor, spec: HeadSpec, near: Tensor, far: Tensor, scaling: float) -> Tensor:
    """One head: q ``[B, T, d]``, k ``[B, S, d]``, v ``[B, S, d_v]``, near and far bool ``[B, T, S]``."""
    scores = scaling * q @ k.transpose(1, 2)
    far_count = far.sum(-1, keepdim=True)
    weights = torch.zeros_like(scores)
    point = torch.full_like(scores[..., :1], -math.inf)
    if spec.order is not None:
        point = torch.where(far_count > 0, _mean(scores, far) if spec.expansion == "mean" else 0.0, -math.inf)
        for degree, coefficient in enumerate(spec.polynomial):
            rank = spec.rank(degree, q.shape[-1])
            x = scaling * q[..., :rank] @ k[..., :rank].transpose(1, 2)
            if spec.expansion == "mean":
                x = x - _mean(x, far)
            weights = weights + coefficient * x**degree
        guarded = (weights * far).sum(-1, keepdim=True) <= GUARD * far_count
        weights = torch.where(guarded, 1.0, weights) * far
    top = torch.maximum(point, scores.masked_fill(~near, -math.inf).amax(-1, keepdim=True))
    top = torch.where(top == -math.inf, 0.0, top)  # a row without any key: its sums are empty
    total = (scores - top).exp().masked_fill(~near, 0.0) + (point - top).exp() * weights
    return total @ v / total.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)


def _mean(scores: Tensor, where: Tensor) -> Tensor:
    return (scores * where).sum(-1, keepdim=True) / where.sum(-1, keepdim=True).clamp(min=1)
