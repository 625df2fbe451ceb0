"""Truncated attention weights of some query rows, in float64 score space without a near field."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from taylorder.analysis.truncation import ScoreBlock
from taylorder.kernels.spec import GUARD


def degrees(block: ScoreBlock, most: int) -> Iterator[Tensor]:
    """Terms of degree 0, 1, … of every key that may be attended, around the row's mean score: ``[H, R, T]`` each."""
    count = block.allowed.sum(-1)
    x = block.scores * block.allowed
    x = (x - (x.sum(-1) / count)[..., None]) * block.allowed
    return series(x, block.allowed.double().expand_as(x), most)


def series(x: Tensor, ones: Tensor, most: int) -> Iterator[Tensor]:
    """``x^p / p!`` for p = 0, 1, … ``most - 1``; ``ones`` is the first of them, 0 where nothing counts."""
    term = ones
    for degree in range(most):
        yield term
        term = term * x / (degree + 1)


def truncated_weights(block: ScoreBlock, most: int) -> Iterator[Tensor]:
    """Weights of order 1, 2, … ``most``, expansion ``mean``, guarded: ``[H, R, T]`` each.

    Each row sums to 1, or to what a learned sink leaves.
    """
    total = torch.zeros_like(block.scores)
    count = block.allowed.sum(-1)
    sunk = torch.zeros_like(total[..., :1])  # weight of the learned sink, to the scale of the polynomial
    if block.terms.sinks is not None:
        mean = (block.scores * block.allowed).sum(-1) / count
        sunk = (block.terms.sinks - mean).exp()[..., None]
    plain = block.allowed / (count[:, None] + sunk)
    for term in degrees(block, most):
        total = total + term
        sums = total.sum(-1, keepdim=True)
        yield torch.where(sums > GUARD * count[:, None], total / (sums + sunk), plain)
