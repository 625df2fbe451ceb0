"""Attention to many near fields at once: one pass over the scores for all windows of a KV head.

A window and some sinks, with the rest dropped or weighed by one constant (order 1), differ only in which keys are near.
So the true exponential is taken once for every key, and the sums over a window grow from those over the next smaller
one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .exact import far_sums
from .score_terms import PLAIN, ScoreTerms
from .spec import GUARD, Dropped, HeadSpec, Near, Taylor

_ROWS = 128
"""Query rows of a block: few, so that the edges of a band of keys, computed and masked, are a small part of it."""

LEAST_SUM = 1e-30
"""Weights are relative to the greatest of all keys; a near field whose sum is less than this has lost digits."""


@dataclass(frozen=True, slots=True)
class NearField:
    """A near field with a window or kept keys, and what each query head gives a far key: ``constants``, or None.

    Constants are relative to exp(0).
    """

    near: Near
    constants: tuple[float, ...] | None

    @staticmethod
    def of(specs: Sequence[HeadSpec]) -> NearField | None:
        """Return what the query heads of one KV head run, or None where that is more than a near field."""
        near = specs[0].near
        if not (near.window or near.kept) or any(spec.near != near for spec in specs):
            return None
        if all(isinstance(spec.far, Dropped) for spec in specs):
            return NearField(near, None)
        fars = [spec.far for spec in specs if isinstance(spec.far, Taylor)]
        if len(fars) < len(specs) or any(far.order != 1 or far.expansion == "mean" for far in fars):
            return None
        return NearField(near, tuple(far.polynomial[0] for far in fars))

    @property
    def weights(self) -> list[float]:
        """What a far key weighs for each query head; 1 where the constant is too small, as the guard has it."""
        return [constant if constant > GUARD else 1.0 for constant in self.constants or ()]

    def guarded(self, tokens: int) -> list[int]:
        """Guarded rows of each query head; a constant that is too small is so for every row with far keys."""
        truncated = max(0, tokens - self.near.tokens)
        return [truncated if constant <= GUARD else 0 for constant in self.constants or ()]


def attend_near_fields(
    q: Tensor, k: Tensor, v: Tensor, fields: Sequence[NearField], *, scaling: float, terms: ScoreTerms = PLAIN
) -> Tensor:
    """Attend causally with the query heads of one KV head, once for every near field.

    Args:
        q: ``[h, T, d]``, float32.
        k: ``[T, d]``, float32, centred where there are constants.
        v: ``[T, d_v]``, float32.
        fields: what to run, at least one; without kept keys.
        scaling: factor of q.k.
        terms: of the rows ``[h, T]``.

    Returns:
        Outputs ``[len(fields), h, T, d_v]``. NaN in rows whose near field weighs nothing beside other keys.

    """
    T = q.shape[1]
    windows = sorted({min(field.near.window, T) for field in fields})
    most_sinks = min(max(field.near.sinks for field in fields), T)
    constant = any(field.constants for field in fields)
    at_least = least_top(q, terms, constant=constant)
    within, sinks, top = _sums_by_window(q * scaling, k, v, windows, most_sinks, at_least, terms)
    sunk = sink_weight(terms, top)
    row = torch.arange(T, device=q.device)
    before = torch.cat([torch.zeros_like(v[:1]), v.cumsum(0)])  # sums of the values before each token
    outputs = q.new_empty(len(fields), *q.shape[:2], v.shape[-1])
    for field, output in zip(fields, outputs, strict=True):
        near = field.near
        total = within[windows.index(min(near.window, T))]
        if near.sinks:
            outside = row[:, None] - row[: near.sinks] >= near.window
            total = total + _sums(sinks[..., : near.sinks] * outside, v[: near.sinks])
        total = total.where(total[..., -1:] > LEAST_SUM, math.nan)
        if field.constants is not None:
            far = torch.cat(far_sums(before, row, near), -1)
            total = total + (-top).exp() * q.new_tensor(field.weights)[:, None, None] * far
        torch.div(total[..., :-1], total[..., -1:] + sunk, out=output)
    return outputs


def least_top(q: Tensor, terms: ScoreTerms, *, constant: bool) -> Tensor:
    """Scores that the one which a row's weights are relative to must not be below ``[h, T]``, beside its keys' scores.

    Args:
        q: ``[h, T, d]``.
        terms: of the rows.
        constant: whether far keys weigh as much as a score of 0.

    """
    least = q.new_full(q.shape[:2], 0.0 if constant else -math.inf)
    return least if terms.sinks is None else torch.maximum(least, terms.sinks)


def sink_weight(terms: ScoreTerms, top: Tensor) -> Tensor | float:
    """Weights of learned sinks relative to scores ``top`` ``[h, T, 1]``, of the same shape."""
    return 0.0 if terms.sinks is None else (terms.sinks[..., None] - top).exp()


def _sums_by_window(
    q: Tensor, k: Tensor, v: Tensor, windows: Sequence[int], most_sinks: int, at_least: Tensor,
    terms: ScoreTerms,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Sums over the last keys, by number of keys; weights of the first keys; and the score all weights are relative to.

    Args:
        q: ``[h, T, d]``, scaled.
        k: ``[T, d]``.
        v: ``[T, d_v]``.
        windows: numbers of keys, ascending.
        most_sinks: of how many first keys to return the weights.
        at_least: lower bound of the score that a row's weights are relative to, ``[h, T]``.
        terms: of the rows.

    Returns:
        ``[len(windows), h, T, d_v + 1]`` with the sum of the weights last, ``[h, T, most_sinks]`` and ``[h, T, 1]``.

    """
    h, T, d = q.shape
    within = q.new_empty(len(windows), h, T, v.shape[-1] + 1)
    tops, sinks = q.new_empty(h, T, 1), q.new_empty(h, T, most_sinks)
    positions = torch.arange(T, device=q.device)
    for start in range(0, T, _ROWS):
        rows = slice(start, min(start + _ROWS, T))
        first = max(0, start - windows[-1] + 1)
        distance = positions[rows, None] - positions[first : rows.stop]  # 0 is the query's own key
        queries = q[:, rows].reshape(-1, d)
        of_block = terms.at((..., rows))
        scores = of_block.capped((queries @ k[first : rows.stop].mT).view(h, *distance.shape))
        scores.masked_fill_(distance < 0, -math.inf)
        top = torch.maximum(scores.amax(-1, keepdim=True), at_least[:, rows, None])
        if most_sinks:
            firsts = of_block.capped((queries @ k[:most_sinks].mT).view(h, -1, most_sinks))
            firsts.masked_fill_(positions[:most_sinks] > positions[rows, None], -math.inf)
            top = torch.maximum(top, firsts.amax(-1, keepdim=True))
            sinks[:, rows] = (firsts - top).exp()
        tops[:, rows] = top
        weights = scores.sub_(top).exp_()
        sums = q.new_zeros(h, len(distance), v.shape[-1] + 1)
        for index, (near, end) in enumerate(pairwise([0, *windows])):
            # Keys at distances near ... end - 1 from any of the rows; the edges are masked.
            band = slice(max(first, start - end + 1), max(first, rows.stop - near))
            columns = slice(band.start - first, band.stop - first)
            inside = (distance[:, columns] >= near) & (distance[:, columns] < end)
            sums = within[index, :, rows] = sums + _sums(weights[..., columns] * inside, v[band])
    return within, sinks, tops


def _sums(weights: Tensor, values: Tensor) -> Tensor:
    """``weights @ values``, and the sum of the weights as one more column."""
    return torch.cat([weights @ values, weights.sum(-1, keepdim=True)], -1)
