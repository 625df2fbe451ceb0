"""Which monomials the rows of a state are, for Triton: tiles of T features that share work.

A feature is a product of coordinates. Each tile holds the T features ``base[u] * prefix``: the base is one of a few
lists of T short products, kept as an operand of matrix products through all the tiles of a *group*, and the prefix is a
product of coordinates common to the tile, which scales the *result* of that matrix product. Three layouts differ in
what the base is:

* ``linear``: T consecutive coordinates. For orders up to 3.
* ``pair``: T consecutive pairs ``j <= k``. For order 4 and more.
* ``gather``: T whole monomials and no prefix; hardly any rows are wasted. For low ranks and few dimensions.

Coordinates count from 1; index 0 is a row of ones, so that short products need no special case. Rows of a tile whose
prefix exceeds their base would occur twice and have multiplicity 0. Degree 0 is not in the tiles: its sums are kept
apart. Degrees follow one another, so the state of an order is a prefix of the state of a higher one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement
from typing import Optional

import torch
from torch import Tensor

from ..spec import MAX_ORDER
from ..tables import monomials

TOP = MAX_ORDER
"""In a slot, the degree that stands for the last one a head has."""

Slot = tuple[int, int]
"""Degree m and the highest degree p whose rank still covers the feature: all that its coefficient depends on."""

CONSTANT: Slot = (0, TOP)
"""The slot of degree 0."""


@dataclass(frozen=True)
class Layout:
    """How tiles are made; heads of one layout are computed by one launch.

    Attributes:
        name: ``linear``, ``pair`` or ``gather``.
        tile: T, features per tile.

    """

    name: str
    tile: int

    @staticmethod
    def choose(head_dim: int, order: int, ranks: Optional[Sequence[int]] = None) -> Layout:
        """Pick the layout for a KV head from its largest order and the ranks of its degrees."""
        low_rank = any(rank < head_dim for rank in (ranks or ())[2:order])
        if low_rank or head_dim < 32:
            return Layout("gather", 32)
        if order <= 3:
            return Layout("linear", 32 if head_dim >= 64 and head_dim % 32 == 0 else 16)
        return Layout("pair", 64 if head_dim >= 64 else 32)

    def base_factors(self, order: int) -> int:
        """Coordinates multiplied in a base, at most."""
        return {"linear": 1, "pair": 2, "gather": max(1, order - 1)}[self.name]

    def constants(self, order: int) -> dict[str, int]:
        """What kernels are compiled for: T, and how many coordinates base and prefix have; 0 where there is none."""
        base = self.base_factors(order)
        return {"T": self.tile, "BASE": base, "PREFIX": 0 if self.name == "gather" else max(1, order - 1 - base)}


@dataclass(frozen=True)
class Group:
    """Consecutive tiles with one base.

    Attributes:
        degree: of its features; the lowest one where a tile mixes degrees.
        base: int64 ``[base factors, T]``, coordinates, 0 for none.
        slots: slot of each of the T features.
        prefixes: coordinates of each tile's prefix.
        multiplicity: float32 ``[tiles, T]``, how often a feature occurs in ``(q.k)^degree``; 0 for unused rows.

    """

    degree: int
    base: Tensor
    slots: tuple[Slot, ...]
    prefixes: tuple[tuple[int, ...], ...]
    multiplicity: Tensor


@lru_cache(maxsize=64)
def groups(layout: Layout, head_dim: int, order: int, ranks: Optional[tuple[int, ...]]) -> tuple[Group, ...]:
    """All groups of degrees 1 … order - 1.

    Args:
        layout: the layout.
        head_dim: d.
        order: number of degrees, that of degree 0 included.
        ranks: coordinates each degree uses (entry 0 unused), not increasing; None uses all.

    """
    limits = (0, *(head_dim if ranks is None else min(ranks[p], head_dim) for p in range(1, order)))
    if layout.name == "gather":
        return tuple(_whole_monomials(layout.tile, limits))
    return tuple(group for degree in range(1, order) for group in _based(layout, degree, limits) if limits[degree])


def _slot(degree: int, coordinate: int, limits: Sequence[int]) -> Slot:
    """Slot of a feature with that largest coordinate (from 1)."""
    last = max(p for p in range(degree, len(limits)) if limits[p] >= coordinate)
    return degree, TOP if last == len(limits) - 1 else last


def _based(layout: Layout, degree: int, limits: Sequence[int]) -> Iterator[Group]:
    """Groups of one degree of the linear and pair layouts."""
    T, rank = layout.tile, limits[degree]
    in_base = min(degree, layout.base_factors(len(limits)))
    bases = list(combinations_with_replacement(range(1, rank + 1), in_base))
    for start in range(0, len(bases), T):
        chosen = bases[start : start + T]
        widest = max(base[0] for base in chosen)
        prefixes = tuple(combinations_with_replacement(range(1, widest + 1), degree - in_base))
        padding = T - len(chosen)
        base = torch.tensor(chosen + [(0,) * in_base] * padding).T
        lead = torch.zeros(layout.base_factors(len(limits)) - in_base, T, dtype=torch.int64)
        slots = [_slot(degree, factors[-1], limits) for factors in chosen] + [CONSTANT] * padding
        multiplicity = _multiplicity(torch.tensor(prefixes).view(len(prefixes), degree - in_base), base)
        yield Group(degree, torch.cat([lead, base]), tuple(slots), prefixes, multiplicity)


def _multiplicity(prefixes: Tensor, base: Tensor) -> Tensor:
    """``[tiles, T]`` from prefixes ``[tiles, a]`` and base ``[b, T]``: (a + b)! over the factorials of repeats."""
    tiles, T = prefixes.shape[0], base.shape[1]
    chosen = torch.cat([prefixes.T[:, :, None].expand(-1, -1, T), base[:, None].expand(-1, tiles, -1)])
    repeats, divisor = torch.ones(tiles, T, dtype=torch.int64), torch.ones(tiles, T, dtype=torch.float64)
    valid = (chosen > 0).all(0)
    for before, after in zip(chosen, chosen[1:]):
        repeats = torch.where(before == after, repeats + 1, 1)
        divisor *= repeats
        valid &= before <= after
    return (valid * math.factorial(len(chosen)) / divisor).float()


def _whole_monomials(tile: int, limits: Sequence[int]) -> Iterator[Group]:
    """Groups of one tile each, in which every row has factors of its own."""
    width, order = max(1, len(limits) - 1), len(limits)
    columns, slots, multiplicities = [], [], []
    for degree in range(1, order):
        if not limits[degree]:
            break
        factors = torch.zeros(0, 1, dtype=torch.int64)
        for p in range(1, degree + 1):
            names = monomials(p, limits[degree], factors.device)
            factors = torch.cat([factors[:, names.parent], names.last[None] + 1])
        columns.append(torch.nn.functional.pad(factors, (0, 0, width - degree, 0)))
        slots += [_slot(degree, coordinate, limits) for coordinate in factors[-1].tolist()]
        multiplicities.append(names.multiplicity[:, 0])
    if not columns:
        return
    padding = -len(slots) % tile
    factors = torch.nn.functional.pad(torch.cat(columns, 1), (0, padding))
    multiplicity = torch.nn.functional.pad(torch.cat(multiplicities), (0, padding))
    slots += [CONSTANT] * padding
    for start in range(0, len(slots), tile):
        rows = slice(start, start + tile)
        yield Group(slots[start][0], factors[:, rows], tuple(slots[rows]), ((),), multiplicity[None, rows])
