"""Attention to many near fields that keep keys by priority: one pass over the scores for those of a KV head.

Of two near fields with equal sinks, one of which has neither more window nor more kept keys, each row's keys of the one
are keys of the other too: a kept key of the smaller either lies in the window of the larger, or fewer keys compete with
it there. So near fields form chains in which a key, as rows go on, falls from field to field. The true exponential is
taken once for every key, and the sums over a near field grow from those over the next smaller one, by the keys between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .kept_keys import far_from
from .near_fields import LEAST_SUM, NearField, least_top, sink_weight
from .score_terms import PLAIN, ScoreTerms
from .spec import Near

_ROWS = 128
"""Query rows of a block: few, so that few keys fall from one near field to the next among them."""


def attend_kept_fields(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    priority: Tensor,
    fields: Sequence[NearField],
    *,
    scaling: float,
    terms: ScoreTerms = PLAIN,
) -> Tensor:
    """Attend causally with the query heads of one KV head, once for every near field.

    Args:
        q: ``[h, T, d]``, float32.
        k: ``[T, d]``, float32, centred where there are constants.
        v: ``[T, d_v]``, float32.
        priority: ``[T]``, of the keys.
        fields: what to run, at least one, all of them with kept keys.
        scaling: factor of q.k.
        terms: of the rows ``[h, T]``.

    Returns:
        Outputs ``[len(fields), h, T, d_v]``. NaN in rows whose near field weighs nothing beside other keys.

    """
    T = len(k)
    row = torch.arange(T + 1, device=q.device)
    queries = q * scaling
    outputs = q.new_empty(len(fields), *q.shape[:2], v.shape[-1])
    for chain in chains(list({field.near for field in fields})):
        members = [index for index, field in enumerate(fields) if field.near in chain]
        far_rows = torch.stack([far_from(priority[None, None], None, near)[0, 0] for near in chain])
        constant = any(fields[index].constants for index in members)
        sums, top = _nested_sums(queries, k, v, far_rows, least_top(q, terms, constant=constant), terms)
        sunk = sink_weight(terms, top)
        for index in members:
            field, place = fields[index], chain.index(fields[index].near)
            total = sums[place].where(sums[place][..., -1:] > LEAST_SUM, math.nan)
            if field.constants is not None:
                with_ones = torch.cat([v, v.new_ones(T, 1)], -1)
                lost = v.new_zeros(T + 1, v.shape[-1] + 1).index_add_(0, far_rows[place], with_ones)
                far = lost.cumsum(0)[row[:-1]]
                total = total + (-top).exp() * q.new_tensor(field.weights)[:, None, None] * far
            torch.div(total[..., :-1], total[..., -1:] + sunk, out=outputs[index])
    return outputs


def chains(fields: Sequence[Near]) -> list[list[Near]]:
    """Cut near fields into chains, in each of which every one holds the keys of the one before it."""
    result: list[list[Near]] = []
    for near in sorted(fields, key=lambda near: (near.sinks, near.window, near.kept)):
        for chain in result:
            if chain[-1].sinks == near.sinks and chain[-1].window <= near.window and chain[-1].kept <= near.kept:
                chain.append(near)
                break
        else:
            result.append([near])
    return result


def _nested_sums(
    q: Tensor, k: Tensor, v: Tensor, far_rows: Tensor, at_least: Tensor, terms: ScoreTerms
) -> tuple[Tensor, Tensor]:
    """Sums over near fields, each of which holds the one before it, and the score all weights are relative to.

    Args:
        q: ``[h, T, d]``, scaled.
        k: ``[T, d]``.
        v: ``[T, d_v]``.
        far_rows: row from which on each key is far, by near field, int64 ``[C, T]``.
        at_least: lower bound of the score that a row's weights are relative to, ``[h, T]``.
        terms: of the rows.

    Returns:
        ``[C, h, T, d_v + 1]`` with the sum of the weights last, and ``[h, T, 1]``.

    """
    h, T, d = q.shape
    C, width = len(far_rows), v.shape[-1] + 1
    values = torch.cat([v, v.new_ones(T, 1)], -1)
    sums, tops = q.new_empty(C, h, T, width), q.new_empty(h, T, 1)
    for start in range(0, T, _ROWS):
        rows = slice(start, min(start + _ROWS, T))
        n = rows.stop - start
        # Of each key, how many near fields it has fallen out of by the first row and by the last one.
        first = (far_rows[:, : rows.stop] <= start).sum(0)
        last = (far_rows[:, : rows.stop] < rows.stop).sum(0)
        first[start:] = 0
        moving = last > first
        moving[start:] = True  # to be seen from their own row on
        # Keys at hand: those that stay where they are, field by field, and then all others.
        place = torch.where(moving, C, first) + torch.where(first < C, 0, C + 1)
        order = place.argsort(stable=True)
        counts = torch.bincount(place, minlength=C + 1)[: C + 1].tolist()
        staying = sum(counts[:C])
        at_hand = order[: staying + counts[C]]
        movers = at_hand[staying:]
        queries = q[:, rows].reshape(h * n, d)
        # Keys first: few of them are taken, with all their rows.
        scores = _capped(terms.at((..., rows)), (k[at_hand] @ queries.mT).view(-1, h, n))
        row = torch.arange(start, rows.stop, device=q.device)
        scores[staying:].masked_fill_((movers[:, None] > row)[:, None], -math.inf)
        top = torch.maximum(scores.amax(0), at_least[:, rows])
        weights = scores.sub_(top).exp_()
        tops[:, rows, 0] = top
        fell = far_rows[:, movers]
        lowest, highest = first[movers], last[movers]
        total = q.new_zeros(h * n, width)
        end = 0
        for field in range(C):
            begin, end = end, end + counts[field]
            taken = ((lowest <= field) & (field <= highest)).nonzero()[:, 0]
            keys = values[at_hand[begin:end]]
            weight = weights[begin:end].reshape(-1, h * n)
            if len(taken):
                inside = row < fell[field, taken, None]
                if field:
                    inside &= row >= fell[field - 1, taken, None]
                part = weights[staying:][taken] * inside[:, None]
                keys = torch.cat([keys, values[movers[taken]]])
                weight = torch.cat([weight, part.view(-1, h * n)])
            total = torch.addmm(total, weight.mT, keys)
            sums[field, :, rows] = total.view(h, n, width)
    return sums, tops


def _capped(terms: ScoreTerms, scores: Tensor) -> Tensor:
    """Scores ``[S, h, n]`` with the keys first."""
    return scores if terms.softcap is None else terms.capped(scores.movedim(0, -1)).movedim(-1, 0).contiguous()
