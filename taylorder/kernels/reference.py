"""The truth: truncated attention in score space, float64, one head and one row of scores at a time in spirit.

``out = (e^-M sum_near e^s v + e^(mu-M) sum_far w v) / (the same with v = 1)``, ``w = sum_p c_p (s^[r_p] - mu^[r_p])^p``
(arXiv 2602.00294 is the case of no near field, ``mu = 0`` and full ranks). Learned sinks are one more near key, of
value zero; a soft cap is one of the scores of near keys. Nothing here is fast. Every fast path is compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .spec import GUARD, Exact, HeadSpec, Near, Taylor, check_heads


@dataclass(frozen=True)
class ReferenceState:
    """Everything seen so far: float64 keys ``[B, G, S, d]``, values ``[B, G, S, d_v]``, ``valid`` bool ``[B, S]``.

    ``priority`` ``[B, G, S]``, or None where nobody asked for any.
    """

    keys: Tensor
    values: Tensor
    valid: Tensor
    priority: Tensor | None = None


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: Sequence[HeadSpec],
    *,
    scaling: float,
    causal: bool = True,
    valid: Tensor | None = None,
    priority: Tensor | None = None,
    sink_logits: Tensor | None = None,
    softcap: float | None = None,
    shift: Tensor | None = None,
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
        priority: ``[B, G, T]``, of the keys; needed where a head keeps keys.
        sink_logits: learned sinks ``[H]``; None if there are none.
        softcap: cap of scores under the true exponential; None if there is none.
        shift: by how much scores are less than the model's because keys are centred, ``[B, H, T]``; None if they are
            not.
        state: what an earlier call returned, to go on from there.
        backend: accepted for the common signature and ignored.

    Returns:
        Output ``[B, H, T, d_v]`` in float64, and the state after these tokens (None if bidirectional).

    """
    sums, after = reference_sums(
        q, k, v, heads, scaling=scaling, causal=causal, valid=valid, priority=priority, sink_logits=sink_logits,
        softcap=softcap, shift=shift, state=state,
    )  # fmt: skip
    return sums.numerator / sums.denominator.clamp(min=torch.finfo(torch.float64).tiny)[..., None], after


@dataclass(frozen=True)
class ReferenceSums:
    """Numerator and denominator of every row, and what rounding errors in them are to be compared with.

    Attributes:
        numerator: ``[B, H, T, d_v]``, zero for padding queries.
        denominator: ``[B, H, T]``.
        numerator_scale: ``[B, H, T, d_v]``, the numerator of absolute values and absolute terms of the polynomial.
        denominator_scale: ``[B, H, T]``, the denominator of absolute terms.
        guard_margin: ``[B, H, T]``, how far the row is from the guard's threshold, relative to its absolute far terms.

    """

    numerator: Tensor
    denominator: Tensor
    numerator_scale: Tensor
    denominator_scale: Tensor
    guard_margin: Tensor


def reference_sums(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: Sequence[HeadSpec],
    *,
    scaling: float,
    causal: bool = True,
    valid: Tensor | None = None,
    priority: Tensor | None = None,
    sink_logits: Tensor | None = None,
    softcap: float | None = None,
    shift: Tensor | None = None,
    state: ReferenceState | None = None,
) -> tuple[ReferenceSums, ReferenceState | None]:
    """Return what ``reference_attention`` divides; same arguments."""
    check_heads(heads, q.shape[1], k.shape[1], causal)
    B, H, T, _ = q.shape
    if valid is None:
        valid = torch.ones(B, T, dtype=torch.bool, device=q.device)
    keys, values, known = k.double(), v.double(), valid
    if state is not None:
        keys = torch.cat([state.keys, keys], dim=2)
        values = torch.cat([state.values, values], dim=2)
        known = torch.cat([state.valid, valid], dim=1)
        if priority is not None and state.priority is not None:
            priority = torch.cat([state.priority, priority], dim=2)
    S = keys.shape[2]
    key = torch.arange(S, device=q.device)
    row = key[S - T :, None]
    allowed = known[:, None, :] & (key <= row if causal else torch.ones(T, S, dtype=torch.bool, device=q.device))
    lost = torch.zeros(B, H, T, dtype=torch.float64, device=q.device) if shift is None else shift.double()
    sinks = q.new_full((H,), -math.inf) if sink_logits is None else sink_logits  # without any, a key of no weight
    sinks = sinks.double()[None, :, None] - lost
    heads_of: list[tuple[Tensor, ...]] = []
    for h, spec in enumerate(heads):
        g = h * k.shape[1] // H
        near = allowed
        if not isinstance(spec.far, Exact):
            near = allowed & spec.near.mask(row, key, known.cumsum(-1)[:, None, :])
        if spec.near.kept:
            if priority is None:
                raise ValueError(f"head {h} keeps {spec.near.kept} keys and priority is None, expected [B, G, T]")
            near = near | _kept(priority[:, g], known, spec.near)[:, S - T :]
        far = allowed & ~near
        heads_of.append(
            _one_head(q[:, h].double(), keys[:, g], spec, near, far, scaling, sinks[:, h], softcap, lost[:, h])
        )
    weights, sizes, sunk, margins = (torch.stack(parts, 1) for parts in zip(*heads_of))
    weights, sizes = weights * valid[:, None, :, None], sizes * valid[:, None, :, None]
    sunk = sunk * valid[:, None]
    per_head = values.repeat_interleave(H // k.shape[1], 1)
    sums = ReferenceSums(
        weights @ per_head, weights.sum(-1) + sunk, sizes @ per_head.abs(), sizes.sum(-1) + sunk, margins
    )
    return sums, ReferenceState(keys, values, known, priority) if causal else None


def _kept(priority: Tensor, known: Tensor, near: Near) -> Tensor:
    """Which keys each row keeps by priority, bool ``[B, S, S]``: token after token, as it is told in words.

    priority ``[B, S]``, known bool ``[B, S]``.
    """
    B, S = priority.shape
    mask = torch.zeros(B, S, S, dtype=torch.bool, device=priority.device)
    for b in range(B):
        kept: list[tuple[float, int]] = []
        sinks = set(known[b].nonzero()[: near.sinks, 0].tolist())
        for row in range(S):
            leaves = row - near.window
            if leaves >= 0 and known[b, leaves] and leaves not in sinks:
                kept.append((float(priority[b, leaves]), leaves))
            if len(kept) > near.kept:
                kept.remove(min(kept))  # of equal priorities the earlier one goes
            mask[b, row, [key for _, key in kept]] = True
    return mask


def _one_head(
    q: Tensor,
    k: Tensor,
    spec: HeadSpec,
    near: Tensor,
    far: Tensor,
    scaling: float,
    sinks: Tensor,
    softcap: float | None,
    lost: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One head: q ``[B, T, d]``, k ``[B, S, d]``, near and far bool ``[B, T, S]``, learned sinks and shift ``[B, T]``.

    Returns:
        Weights ``[B, T, S]``, the same with every term of the polynomial taken absolute, the weight of the learned sink
        and guard margins, ``[B, T]``.

    """
    scores = scaling * q @ k.transpose(1, 2)
    far_count = far.sum(-1, keepdim=True)
    weights, sizes = torch.zeros_like(scores), torch.zeros_like(scores)
    point = scores.new_full((*scores.shape[:2], 1), -math.inf)
    margin = torch.full_like(point, math.inf)
    if isinstance(spec.far, Taylor):
        point = torch.where(far_count > 0, _mean(scores, far) if spec.far.expansion == "mean" else 0.0, -math.inf)
        for degree, coefficient in enumerate(spec.far.polynomial):
            rank = spec.far.rank(degree, q.shape[-1])
            x = scaling * q[..., :rank] @ k[..., :rank].transpose(1, 2)
            if spec.far.expansion == "mean":
                x = x - _mean(x, far)
            weights = weights + coefficient * x**degree
            sizes = sizes + abs(coefficient * x**degree)
        above = (weights * far).sum(-1, keepdim=True) - GUARD * far_count
        margin = torch.where(far_count > 0, above.abs() / (sizes * far).sum(-1, keepdim=True), math.inf)
        weights = torch.where(above > 0, weights, 1.0) * far
        sizes = torch.where(above > 0, sizes, 1.0) * far
    if softcap is not None:  # of the true exponential alone
        scores = softcap * torch.tanh((scores + lost[..., None]) / softcap) - lost[..., None]
    candidates = torch.cat([point, sinks[..., None], scores.masked_fill(~near, -math.inf)], -1)
    top = candidates.amax(-1, keepdim=True)
    top = torch.where(top == -math.inf, 0.0, top)  # a row without any key: its sums are empty
    exponentials = (scores - top).exp().masked_fill(~near, 0.0)
    scale = (point - top).exp()
    sunk = (sinks - top[..., 0]).exp()
    return exponentials + scale * weights, exponentials + scale * sizes, sunk, margin[..., 0]


def _mean(scores: Tensor, where: Tensor) -> Tensor:
    return (scores * where).sum(-1, keepdim=True) / where.sum(-1, keepdim=True).clamp(min=1)
