"""Truncated attention in score space, blocked over query rows: quadratic time, memory of one block, any spec.

The same formula as ``reference.py`` in the working precision of the caller (float32 or float64). It is what runs where
no linear-time backend does, and the yardstick of theirs at lengths where float64 is too slow. Differentiable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

from .kept_keys import check_priority, far_from
from .score_terms import ScoreTerms
from .spec import GUARD, Exact, HeadSpec, Taylor, check_heads, keeps_keys

_BLOCK_SCORES = 1 << 20
"""Scores of one head in one block of query rows: 4 MiB in float32, which stays in the cache."""


def score_space_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: Sequence[HeadSpec],
    *,
    scaling: float,
    causal: bool = True,
    valid: Optional[Tensor] = None,
    priority: Optional[Tensor] = None,
    sink_logits: Optional[Tensor] = None,
    softcap: Optional[float] = None,
    shift: Optional[Tensor] = None,
    guard: bool = True,
) -> tuple[Tensor, Tensor]:
    """Attend to all keys given; the queries are those of the last T of S keys.

    Args:
        q: ``[B, H, T, d]``, float32 or float64 (half precisions are computed in float32).
        k: ``[B, G, S, d]``, S >= T, prepared by the caller (centred, rotated).
        v: ``[B, G, S, d_v]``.
        heads: one spec per query head.
        scaling: factor of q.k.
        causal: False attends to all valid keys.
        valid: bool ``[B, S]``, False for padding.
        priority: float32 ``[B, G, S]``, needed where a head keeps keys.
        sink_logits: learned sinks ``[H]``; None if there are none.
        softcap: cap of scores under the true exponential; None if there is none.
        shift: by how much scores are less than the model's because keys are centred, ``[B, H, T]``; None if they are
            not.
        guard: False leaves vanishing or negative denominators as they are (to show what the guard hides).

    Returns:
        Output ``[B, H, T, d_v]`` in the dtype of q (zero for padding queries), and the number of guarded rows per query
        head, int64 ``[H]``.

    """
    check_heads(heads, q.shape[1], k.shape[1], causal)
    if keeps_keys(heads):
        check_priority(priority, k, valid)
    terms = ScoreTerms.of_rows(q, sink_logits, softcap, shift)
    return attend_in_score_space(
        q, k, v, heads, terms, scaling=scaling, causal=causal, valid=valid, priority=priority, guard=guard
    )


def attend_in_score_space(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: Sequence[HeadSpec],
    terms: ScoreTerms,
    *,
    scaling: float,
    causal: bool = True,
    valid: Optional[Tensor] = None,
    priority: Optional[Tensor] = None,
    guard: bool = True,
) -> tuple[Tensor, Tensor]:
    """``score_space_attention`` of what is checked already, with the terms of rows ``[B, H, T]``."""
    B, H, T, _ = q.shape
    S, G = k.shape[2], k.shape[1]
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    output = torch.zeros(B, H, T, v.shape[-1], dtype=dtype, device=q.device)
    guarded = torch.zeros(H, dtype=torch.int64, device=q.device)
    rows = max(1, _BLOCK_SCORES // max(S, 1))
    for b in range(B):
        known = torch.ones(S, dtype=torch.bool, device=q.device) if valid is None else valid[b]
        for g in range(G):
            keys, values = k[b, g].to(dtype), v[b, g].to(dtype)
            near = heads[g * (H // G)].near
            far = None
            if near.kept and priority is not None:
                far = far_from(priority[b, g][None, None], known[None], near)[0, 0]
            for h in range(g * (H // G), (g + 1) * (H // G)):
                head = _Head(keys, values, known, heads[h], causal, guard, far)
                for start in range(0, T, rows):
                    stop = min(start + rows, T)
                    of_rows = terms.at((b, h, slice(start, stop)))
                    block, hits = head.rows(q[b, h, start:stop].to(dtype) * scaling, S - T + start, of_rows)
                    output[b, h, start:stop] = block
                    guarded[h] += hits
    return output.to(q.dtype), guarded


class _Head:
    """One query head of one sequence: what all its blocks of rows share."""

    def __init__(
        self, keys: Tensor, values: Tensor, known: Tensor, spec: HeadSpec, causal: bool, guard: bool,
        far: Optional[Tensor],
    ) -> None:  # fmt: skip
        self.keys, self.values, self.known, self.far = keys, values, known, far
        self.spec, self.causal, self.guard = spec, causal, guard
        self.rank = known.cumsum(0)
        sink = known & (self.rank <= spec.near.sinks)
        self.sink_end = int(sink.nonzero()[-1]) + 1 if bool(sink.any()) else 0

    def rows(self, q: Tensor, first: int, terms: ScoreTerms) -> tuple[Tensor, int]:
        """Attend for scaled queries ``[R, d]`` at positions ``first`` …: ``[R, d_v]``, and how many rows were guarded.

        ``terms`` are those of the rows ``[R]``.

        Keys that are far for every row of the block need no causal mask and no exponential; in a long context those are
        nearly all. The others, ``mixed``, get both treatments under their masks.
        """
        stop = first + len(q) if self.causal else len(self.keys)
        column = torch.arange(stop, device=q.device)
        position = torch.arange(first, first + len(q), device=q.device)[:, None]
        start, end = self._all_far(first, stop)
        mixed = torch.cat([column[:start], column[end:]])
        allowed = self.known[mixed].expand(len(q), -1)
        if self.causal:
            allowed = allowed & (mixed <= position)
        near = allowed
        if not isinstance(self.spec.far, Exact):
            near = allowed & self._near(position, mixed)
        far = allowed & ~near
        live = self.known[position]
        numerator, denominator, point, hits = self._far_sums(q, slice(start, end), mixed, far.to(q.dtype), live)
        scores = terms.capped(q @ self.keys[mixed].T).masked_fill(~near, -math.inf)
        top = point if scores.shape[1] == 0 else torch.maximum(point, scores.amax(-1, keepdim=True))
        sinks = terms.sinks
        if sinks is not None:
            top = torch.maximum(top, sinks[:, None])
        # A row without any key has no top; and since any top would do, no gradient goes through it.
        top = torch.where(top == -math.inf, torch.zeros_like(top), top).detach()
        weights = (scores - top).exp()
        scale = (point - top).exp()
        denominator = weights.sum(-1, keepdim=True) + scale * denominator
        if sinks is not None:
            denominator = denominator + (sinks[:, None] - top).exp()
        numerator = weights @ self.values[mixed] + scale * numerator
        output = numerator / torch.where(denominator == 0, torch.ones_like(denominator), denominator)
        return output * live, hits  # rows of padding queries put out nothing

    def _near(self, position: Tensor, keys: Tensor) -> Tensor:
        """Which keys are near for queries at ``position`` ``[R, 1]``, future ones aside."""
        if self.far is not None:
            return position < self.far[keys]
        return self.spec.near.mask(position, keys, self.rank[keys])

    def _all_far(self, first: int, stop: int) -> tuple[int, int]:
        """Return the columns ``start … end - 1`` that are far for every row from ``first`` on."""
        if isinstance(self.spec.far, Exact) or self.far is not None:
            return 0, 0
        end = max(0, min(first + 1, first - self.spec.near.window + 1)) if self.causal else stop
        return min(self.sink_end, end), end

    def _far_sums(
        self, q: Tensor, pure: slice, mixed: Tensor, mixed_far: Tensor, live: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """Sums over far keys relative to ``e^point``, guard applied.

        Args:
            q: scaled queries ``[R, d]``.
            pure: columns that are far for every row.
            mixed: the other columns.
            mixed_far: which of them are far, 0 or 1, ``[R, len(mixed)]``.
            live: which rows are not padding, bool ``[R, 1]``.

        Returns:
            Numerator ``[R, d_v]``, denominator and expansion point ``[R, 1]`` (minus infinity for a row without far
            keys), and the number of guarded rows.

        """
        if not isinstance(self.spec.far, Taylor):
            nothing = torch.zeros_like(q[:, :1])
            return nothing, nothing, torch.full_like(nothing, -math.inf), 0
        keys = [self.keys[pure], self.keys[mixed]]
        values = [self.values[pure], self.values[mixed]]
        masks = [self.known[pure].to(q.dtype)[None], mixed_far]
        count = masks[0].sum() + mixed_far.sum(-1, keepdim=True)
        weights, point = _polynomial(q, keys, masks, count, self.spec.far)
        total = weights[0].sum(-1, keepdim=True) + weights[1].sum(-1, keepdim=True)
        hit = (count > 0) & (total <= GUARD * count) & live
        hits = int(hit.sum())
        if self.guard and hits:
            weights = [torch.where(hit, mask, weight) for mask, weight in zip(masks, weights)]
            total = torch.where(hit, count, total)
        numerator = weights[0] @ values[0] + weights[1] @ values[1]
        return numerator, total, torch.where(count > 0, point, torch.full_like(point, -math.inf)), hits


def _polynomial(
    q: Tensor, keys: list[Tensor], masks: list[Tensor], count: Tensor, far: Taylor
) -> tuple[list[Tensor], Tensor]:
    """Weights of the far keys of every part ``[R, S_part]``, zero elsewhere, and the expansion point ``[R, 1]``."""

    def centred(rank: int) -> tuple[list[Tensor], Tensor]:
        scores = [q[:, :rank] @ part[:, :rank].T for part in keys]
        if far.expansion != "mean":
            return scores, torch.zeros_like(count)
        total = sum(((part * mask).sum(-1, keepdim=True) for part, mask in zip(scores, masks)), torch.zeros_like(count))
        mean = total / count.clamp(min=1)
        return [part - mean for part in scores], mean

    polynomial = far.polynomial
    x, point = centred(q.shape[-1])
    if far.ranks is None:
        weights = [torch.full_like(part, polynomial[-1]) for part in x]
        for coefficient in reversed(polynomial[:-1]):
            constant = torch.tensor(coefficient, dtype=q.dtype, device=q.device)
            weights = [torch.addcmul(constant, weight, part) for weight, part in zip(weights, x)]
    else:
        weights = [torch.full_like(part, polynomial[0]) for part in x]
        for degree in range(1, len(polynomial)):
            powers, _ = centred(far.rank(degree, q.shape[-1]))
            weights = [weight + polynomial[degree] * part**degree for weight, part in zip(weights, powers)]
    return [weight * mask for weight, mask in zip(weights, masks)], point
