"""Where the attention of a head goes: to its sinks, its window, the keys it keeps by priority, and all the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from taylorder.kernels.score_terms import PLAIN, ScoreTerms
from taylorder.kernels.spec import Near

_ROWS = 256
"""Query rows whose weights are held at a time."""


@dataclass(frozen=True, slots=True)
class HeadShares:
    """What exact attention would give the parts of a query head's near field, and the rest, on average over rows.

    The four add up to 1, or to what learned sinks leave. ``rest`` is what a window drops and what a polynomial stands
    for.
    """

    module: str
    head: int
    sinks: float
    window: float
    kept: float
    rest: float


def group_shares(
    query: Tensor,
    key: Tensor,
    near: Near,
    far_from: Tensor | None,
    scaling: float,
    terms: ScoreTerms = PLAIN,
) -> Tensor:
    """Shares of sinks, window, kept keys and the rest, float64 ``[h, 4]``, of the query heads of a KV head.

    Args:
        query: ``[h, T, d]``, as it enters the softmax.
        key: ``[T, d]``.
        near: the near field of the KV head.
        far_from: row from which on each key is far, ``[T]``; None where no keys are kept.
        scaling: of the scores.
        terms: of the heads ``[h]``.

    """
    heads, T = query.shape[:2]
    place = torch.arange(T, device=key.device)
    sinks = place < near.sinks
    of_rows = terms.at((..., None))
    sums = torch.zeros(heads, 4, dtype=torch.float64, device=key.device)
    for rows in torch.split(place, _ROWS):
        row = rows[:, None]
        scores = of_rows.capped(query[:, rows].float() @ key.float().mT * scaling)
        weights = of_rows.softmax(scores.masked_fill(place > row, -torch.inf))  # [h, R, T]
        window = ~sinks & (row - place < near.window)
        kept = torch.zeros_like(window) if far_from is None else ~sinks & ~window & (row < far_from)
        parts = (sinks.expand_as(window), window, kept, ~(sinks | window | kept))
        for number, part in enumerate(parts):
            sums[:, number] += (weights * part).sum((1, 2), dtype=torch.float64)
    return sums / T
