"""Attention of a block of query rows in operations that autograd records: the formula of ``attend``, out of place.

Values carry a column of ones, so that numerator and denominator come out of one product; what must not count has a zero
there too. Far keys are weighed in score space, or read from features once they are folded into them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from .polynomial import Polynomials, partial_scores
from .recorded_products import extended, power_sum
from .score_terms import ScoreTerms
from .spec import GUARD
from .tables import count, monomials


class RowTensors(NamedTuple):
    """What a block of rows is computed from.

    Attributes:
        queries: ``[N, g, C, d]``, scaled.
        coefficients: ``[N, g, P]``.
        sinks, shift: of the rows, as in ``ScoreTerms``, ``[N, g, C]``.
        keys, values: at hand, ``[N, K, d]`` and ``[N, K, d_v + 1]``.
        waiting_keys, waiting_values: far for every row and not folded, ``[N, W, *]``.
        key_sums, value_sums: of all that are far for every row, ``[N, d]`` and ``[N, d_v + 1]``.

    """

    queries: Tensor
    coefficients: Tensor
    sinks: Optional[Tensor]
    shift: Optional[Tensor]
    keys: Tensor
    values: Tensor
    waiting_keys: Tensor
    waiting_values: Tensor
    key_sums: Tensor
    value_sums: Tensor


@dataclass(frozen=True)
class RowAttention:
    """What all blocks of one kind of KV head have in common.

    Attributes:
        polynomials: of the query heads; None where all far fields are dropped.
        near: whether there is a near field.
        softcap: as in ``ScoreTerms``.

    """

    polynomials: Optional[Polynomials]
    near: bool
    softcap: Optional[float]

    def rows(
        self, tensors: RowTensors, features: Sequence[Tensor], masks: Optional[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            tensors: all of them.
            features: of every degree, as ``folded`` returns them; none where nothing is folded.
            masks: which keys at hand are near, bool ``[N or 1, C, K]``, and which of the first F are far; None where
                nobody is at hand.

        Returns:
            Output ``[N, g, C, d_v]``, and where the guard took effect, bool ``[N, g, C]``.

        """
        q, terms = tensors.queries, ScoreTerms(tensors.sinks, self.softcap, tensors.shift)
        scores = partial_scores(q, tensors.keys) if masks is not None and self.near else None
        far = guarded = point = None
        if self.polynomials is not None:
            polynomials = replace(self.polynomials, coefficients=tensors.coefficients, square=None)
            far, guarded, point = _far_sums(tensors, features, polynomials, None if masks is None else masks[1], scores)
        if scores is None and terms.plain and far is not None:
            total = far
        else:
            total = _with_near(tensors, terms, scores, None if masks is None else masks[0], far, point)
        numerator, denominator = total[..., :-1], total[..., -1:]
        output = numerator / denominator.masked_fill(denominator == 0, 1.0)
        return output, torch.zeros_like(output[..., 0], dtype=torch.bool) if guarded is None else guarded


def folded(keys: Tensor, values: Tensor, ranks: Sequence[int]) -> list[Tensor]:
    """Features of tokens, summed with their values: per degree p ``[N, D_p, d_v + 1]``, over ``ranks[p]`` coordinates.

    Args:
        keys: ``[N, C, d]``.
        values: ``[N, C, d_v + 1]``.
        ranks: of every degree; entry 0 is unused.

    """
    sums = [values.sum(1, keepdim=True)]
    columns = keys.mT.contiguous()
    below = columns
    for degree, rank in enumerate(ranks[1:], 1):
        if rank == 0:
            break
        below = below[:, :rank] if degree == 1 else _extended(below, columns[:, :rank], degree)
        product = torch.bmm(below, values)
        sums.append(product if degree == 1 else product * _multiplicity(degree, rank, keys))
    return sums


def _extended(below: Tensor, coordinates: Tensor, degree: int) -> Tensor:
    return extended(below[:, : count(degree - 1, coordinates.shape[1])], coordinates, degree)


def _multiplicity(degree: int, rank: int, like: Tensor) -> Tensor:
    return monomials(degree, rank, like.device).multiplicity.to(like.dtype)


def _read(
    queries: Tensor, features: Sequence[Tensor], polynomials: Polynomials, means: Optional[list[Tensor]]
) -> Tensor:
    """What the folded tokens contribute, ``[N, g, C, d_v + 1]``."""
    N, g, C, d = queries.shape
    columns = queries.permute(0, 3, 1, 2).reshape(N, d, g * C)
    coefficients = [
        b.permute(0, 3, 1, 2).expand(-1, -1, -1, C).reshape(N, b.shape[-1], g * C)
        for b in polynomials.state_coefficients(means)
    ]
    total = coefficients[0].mT * features[0]
    below = columns
    for degree, rank in enumerate(polynomials.ranks[1:], 1):
        if rank == 0:
            break
        coordinates = columns[:, :rank]
        weighted = coordinates * coefficients[degree]
        if degree > 1:
            weighted = _extended(below, weighted, degree)
            below = _extended(below, coordinates, degree) if degree + 1 < polynomials.order else below
        total = torch.baddbmm(total, weighted.mT, features[degree])
    return total.view(N, g, C, -1)


def _far_sums(
    tensors: RowTensors, features: Sequence[Tensor], polynomials: Polynomials, mask: Optional[Tensor],
    scores: Optional[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Sums over far keys relative to ``e^point`` ``[N, g, C, d_v + 1]``, where the guard took effect, and the point.

    ``scores`` are those of the keys at hand ``[N, g, C, K]``, if there are any; ``mask`` is of the first F of them.
    """
    q, keys, values = tensors.queries, tensors.keys, tensors.values
    width = 0 if mask is None else mask.shape[-1]
    share = None if mask is None or not width else mask.to(q.dtype)
    counts = tensors.value_sums[:, None, -1:].detach()  # [N, C, 1]
    if share is not None:
        counts = counts + share.sum(-1, keepdim=True)
    counts = counts[:, None, :, 0]  # [N, 1, C]
    means, point = None, torch.zeros_like(counts)
    if polynomials.around_mean is not None:
        centre = tensors.key_sums[:, None]
        if share is not None:
            centre = centre + share @ keys[:, :width]
        products = q * (centre[:, None] / counts.clamp(min=1.0)[..., None])
        of_rank = {
            rank: products[..., :rank].sum(-1) * polynomials.around_mean
            for rank in {q.shape[-1], *polynomials.ranks[1:]}
        }
        point = of_rank[q.shape[-1]]
        means = [point, *(of_rank[rank] for rank in polynomials.ranks[1:])]

    def plain() -> Tensor:
        """Sums over far keys of weight 1, ``[N, 1, C, d_v + 1]``."""
        sums = tensors.value_sums[:, None]
        if share is not None:
            sums = sums + share @ values[:, :width]
        return sums[:, None]

    if polynomials.order == 1:
        total = tensors.coefficients[:, :, None, :] * plain()
    else:
        parts = [_read(q, features, polynomials, means)] if features else []
        if tensors.waiting_keys.shape[1]:
            weights = _weights(q, tensors.waiting_keys, polynomials, means, None)
            parts.append(_weighted(weights, tensors.waiting_values))
        if share is not None:
            beside = None if scores is None else scores[..., :width]
            weights = _weights(q, keys[:, :width], polynomials, means, beside) * share[:, None]
            parts.append(_weighted(weights, values[:, :width]))
        total = sum(parts[1:], parts[0]) if parts else q.new_zeros(*q.shape[:3], values.shape[-1])
    total = total.expand(*q.shape[:3], -1)
    guarded = (total[..., -1].detach() <= GUARD * counts) & (counts > 0)
    dropped = polynomials.drops_far
    if dropped is not None:
        guarded &= ~dropped
    if bool(guarded.any()):
        total = torch.where(guarded[..., None], plain(), total)
    point = point.masked_fill(counts == 0, -math.inf).expand(q.shape[:3])
    return total, guarded, point if dropped is None else point.masked_fill(dropped, -math.inf)


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    N, g, C, F = weights.shape
    return torch.bmm(weights.reshape(N, g * C, F), values).view(N, g, C, -1)


def _weights(
    queries: Tensor, keys: Tensor, polynomials: Polynomials, means: Optional[list[Tensor]], scores: Optional[Tensor]
) -> Tensor:
    """Weights ``[N, g, C, F]`` of keys ``[N, F, d]``; ``scores`` are theirs, if known."""
    ranks, total = polynomials.ranks, None
    degree = 1
    while degree < polynomials.order:
        lowest, rank = 0 if degree == 1 else degree, ranks[degree]
        while degree < polynomials.order and ranks[degree] == rank:
            degree += 1
        if scores is not None and rank == queries.shape[-1]:
            x = scores
        else:
            x = partial_scores(queries[..., :rank], keys[..., :rank])
        if means is not None:
            x = x - means[degree - 1][..., None]
        part = power_sum(x, polynomials.coefficients[..., lowest:degree], lowest)
        total = part if total is None else total + part
    if total is None:
        raise RuntimeError("a polynomial of order 1 needs no scores")
    return total


def _with_near(
    tensors: RowTensors, terms: ScoreTerms, scores: Optional[Tensor], mask: Optional[Tensor], far: Optional[Tensor],
    point: Optional[Tensor],
) -> Tensor:  # fmt: skip
    """The far sums on the common scale ``e^-M``, and the true exponentials of near keys and learned sinks."""
    q, learned = tensors.queries, terms.sinks
    top = q.new_full(q.shape[:3], -math.inf) if point is None else point.detach()
    if learned is not None:
        top = torch.maximum(top, learned.detach())
    near = None
    if scores is not None and mask is not None:
        near = terms.capped(scores).masked_fill(~mask[:, None], -math.inf)
        top = torch.maximum(top, near.detach().amax(-1))
    # A row without any key has no top; and since any top would do, no gradient goes through it.
    top = top.masked_fill(top == -math.inf, 0.0)
    total = None if near is None else _weighted((near - top[..., None]).exp(), tensors.values)
    if far is not None and point is not None:
        scaled = (point - top).exp()[..., None] * far
        total = scaled if total is None else total + scaled
    if total is None:
        total = q.new_zeros(*q.shape[:3], tensors.values.shape[-1])
    if learned is None:
        return total
    return torch.cat([total[..., :-1], total[..., -1:] + (learned - top).exp()[..., None]], -1)
