"""Which monomials the features are, and in which order.

Degree p has one feature per multiset of p coordinates, ``C(r + p - 1, p)`` of them over r coordinates, ordered by their
largest coordinate first (colexicographic order). Three things follow, and everything else rests on them:

* the features over the first r' < r coordinates are the first ``C(r' + p - 1, p)``: ranks cut every table at its end;
* the features whose largest coordinate is i are ``x_i`` times the first ``C(i + p - 1, p - 1)`` of degree p - 1;
* degrees follow one another, so the state of an order is a prefix of the state of a higher one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Optional

import torch
from torch import Tensor


def count(degree: int, coordinates: int) -> int:
    """Monomials of that degree in that many coordinates."""
    return math.comb(coordinates + degree - 1, degree) if coordinates or not degree else 0


@dataclass(frozen=True)
class Monomials:
    """All monomials of one degree, each as an earlier one times its largest coordinate.

    Attributes:
        parent: int64 ``[D_p]``, the feature of degree p - 1 it extends.
        last: int64 ``[D_p]``, its largest coordinate.
        multiplicity: float32 ``[D_p, 1]``, how often it occurs in ``(q.k)^p`` (the multinomial count).
        pair: int64 ``[D_p]``, its place in the flattened ``[largest coordinate, parent]`` rectangle.
        unpair: int64 ``[r D_(p-1)]``, the feature at each place of that rectangle, D_p where there is none.

    """

    parent: Tensor
    last: Tensor
    multiplicity: Tensor
    pair: Tensor
    unpair: Tensor


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # kept for callers that record gradients too, in which such tensors take no part
def monomials(degree: int, coordinates: int, device: torch.device) -> Monomials:
    """Build the table of a degree >= 1 over that many coordinates."""
    parent = torch.zeros(coordinates, dtype=torch.int64)
    last = torch.arange(coordinates)
    repeats = torch.ones(coordinates, dtype=torch.int64)
    multiplicity = torch.ones(coordinates, dtype=torch.float64)
    for p in range(2, degree + 1):
        sizes = torch.tensor([count(p - 1, i + 1) for i in range(coordinates)], dtype=torch.int64)
        new_last = torch.repeat_interleave(torch.arange(coordinates), sizes)
        starts = torch.cumsum(sizes, 0) - sizes
        parent = torch.arange(len(new_last)) - starts[new_last]
        repeats = torch.where(last[parent] == new_last, repeats[parent], 0) + 1
        multiplicity = multiplicity[parent] * p / repeats
        last = new_last
    below = count(degree - 1, coordinates) if degree > 1 else 1
    pair = last * below + parent
    unpair = torch.full((coordinates * below,), len(last), dtype=torch.int64)
    unpair[pair] = torch.arange(len(last))
    multiplicity = multiplicity.round().float()[:, None]
    return Monomials(*(table.to(device) for table in (parent, last, multiplicity, pair, unpair)))


@dataclass(frozen=True)
class FeatureTable:
    """The features of one KV head: degrees 0 … order - 1, degree p over the first ``ranks[p]`` coordinates.

    Attributes:
        ranks: per degree; degree 1 always has all head_dim coordinates, because means are read from it.
        offsets: first feature of every degree, and the number D of all features at the end.

    """

    ranks: tuple[int, ...]
    offsets: tuple[int, ...]

    @staticmethod
    def build(head_dim: int, order: int, ranks: Optional[Sequence[int]] = None) -> FeatureTable:
        """Lay out an order's features; ``ranks`` may be shorter than the order (full rank above)."""
        chosen = [0] + [head_dim] * (order - 1)
        for degree in range(2, order):
            if ranks is not None and degree < len(ranks):
                chosen[degree] = min(ranks[degree], head_dim)
        offsets = [0]
        for degree, rank in enumerate(chosen):
            offsets.append(offsets[-1] + (count(degree, rank) if degree else 1))
        return FeatureTable(tuple(chosen), tuple(offsets))

    @property
    def order(self) -> int:
        """Degrees kept."""
        return len(self.ranks)

    @property
    def features(self) -> int:
        """D, monomials of all degrees."""
        return self.offsets[-1]
