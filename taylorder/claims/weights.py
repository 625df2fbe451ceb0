"""Attention weights of some query rows, exact and truncated, in float64 score space without a near field."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from taylorder.analysis.truncation import ScoreBlock
from taylorder.kernels.spec import GUARD


def exact_weights(block: ScoreBlock) -> Tensor:
    """Softmax weights ``[H, R, T]``."""
    return block.scores.masked_fill(~block.allowed, -math.inf).softmax(-1)


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
    """Weights of order 1, 2, … ``most``, expansion ``mean``, guarded, each row summing to 1: ``[H, R, T]`` each."""
    total = torch.zeros_like(block.scores)
    count = block.allowed.sum(-1)
    plain = block.allowed / count[:, None]
    for term in degrees(block, most):
        total = total + term
        sums = total.sum(-1, keepdim=True)
        yield torch.where(sums > GUARD * count[:, None], total / sums, plain)
