"""What the kernels look up per head: polynomials by level and as expansions, near fields, ranks.

The query heads of a KV head share near field and ranks; orders, coefficients and expansion points are their own. All
of it is data of fixed shape, padded with zeros, so that heads of every order run in one launch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Optional

import torch
from torch import Tensor

from ..spec import Dropped, HeadSpec, Taylor, deepest, ignores_shifts
from .layout_tables import Kind
from .tiles import Layout

UNDECIDED = 1 << 30
"""Tokens after a token's own at which it becomes far, where that depends on priorities: beyond every position."""


@dataclass(frozen=True, eq=False)
class HeadTables:
    """Tables of G KV heads with g query heads each; P is the largest order, L the number of levels.

    A level is a rank and the terms of that rank. Level 0 has all coordinates, for its mean is the expansion point.

    Attributes:
        head_dim: d.
        order: P.
        layouts: of each KV head's state; None where there is none (order 1, or no far field).
        kinds: of each KV head's state.
        windows, sinks, kept: of each KV head.
        drops: whether no query head of a KV head has a far field.
        orders: ``[G][g]``, 1 for heads without a far field: they read nothing.
        expansions: float32 ``[G * g, P, P]``, entry (r, m) what ``x^m`` has of the coefficient c_r in ``(x - y)^r``,
            powers of -y left out: ``c_r C(r, m)``.
        degree_ranks: int32 ``[G, P]``, coordinates that each degree uses; all for degree 0.
        around_mean: float32 ``[G * g]``, 1 where the expansion point is the mean; None if it is nowhere.
        shifts: bool ``[G]``, KV heads none of whose query heads notices a vector subtracted from all keys.
        levels: L.
        level_ranks: int32 ``[G, L]``.
        polynomials: float32 ``[G * g, L, P]``.
        drop_heads: uint8 ``[G * g]``.
        sink_counts: int32 ``[G]``.
        kept_counts: int32 ``[G]``.
        delays: int32 ``[G, 1]``, tokens after a token's own at which it becomes far.

    """

    head_dim: int
    order: int
    layouts: tuple[Optional[Layout], ...]
    kinds: tuple[Kind, ...]
    windows: tuple[int, ...]
    sinks: tuple[int, ...]
    kept: tuple[int, ...]
    drops: tuple[bool, ...]
    orders: tuple[tuple[int, ...], ...]
    expansions: Tensor
    degree_ranks: Tensor
    around_mean: Optional[Tensor]
    shifts: Tensor
    levels: int
    level_ranks: Tensor
    polynomials: Tensor
    drop_heads: Tensor
    sink_counts: Tensor
    kept_counts: Tensor
    delays: Tensor


@lru_cache(maxsize=64)
def head_tables(specs: Sequence[Sequence[HeadSpec]], head_dim: int, device: torch.device) -> HeadTables:
    """Look up everything about KV heads ``specs[G][g]``, none of them exact."""
    longest = [deepest(group) or Taylor(1) for group in specs]
    order = max(far.order for far in longest)
    ranks = [(head_dim, *(far.rank(p, head_dim) if p < far.order else 0 for p in range(1, order))) for far in longest]
    coefficients = torch.zeros(len(specs), len(specs[0]), order, dtype=torch.float64)
    for g, group in enumerate(specs):
        for h, spec in enumerate(group):
            for degree, coefficient in enumerate(spec.far.polynomial if isinstance(spec.far, Taylor) else ()):
                # A power of no coordinates is zero, and no feature stands for it.
                coefficients[g, h, degree] = coefficient if degree == 0 or ranks[g][degree] else 0.0
    kinds = [_kind(far, head_dim) for far in longest]
    drops = [deepest(group) is None for group in specs]
    layouts = [
        Layout.choose(head_dim, kind.order, kind.ranks) if kind.order > 1 and far.rank(1, head_dim) else None
        for kind, far in zip(kinds, longest)
    ]
    levels_of = [sorted({head_dim, *(rank for rank in row[1:] if rank)}, reverse=True) for row in ranks]
    levels = max(map(len, levels_of))
    level_ranks = torch.zeros(len(specs), levels, dtype=torch.int32)
    polynomials = torch.zeros(len(specs), len(specs[0]), levels, order)
    for g, row in enumerate(levels_of):
        level_ranks[g, : len(row)] = torch.tensor(row)
        for level, rank in enumerate(row):
            for degree in range(order):
                if ranks[g][degree] == rank:
                    polynomials[g, :, level, degree] = coefficients[g, :, degree].float()
    binomials = torch.tensor([[float(math.comb(r, m)) for m in range(order)] for r in range(order)])
    flat, nears = [spec for group in specs for spec in group], [group[0].near for group in specs]
    means = torch.tensor([float(spec.around_mean) for spec in flat])
    return HeadTables(
        head_dim,
        order,
        tuple(layouts),
        tuple(kinds),
        tuple(near.window for near in nears),
        tuple(near.sinks for near in nears),
        tuple(near.kept for near in nears),
        tuple(drops),
        tuple(tuple(spec.order for spec in group) for group in specs),
        (coefficients.float()[..., None] * binomials).flatten(0, 1).to(device),
        torch.tensor(ranks, dtype=torch.int32, device=device),
        means.to(device) if bool(means.any()) else None,
        torch.tensor([ignores_shifts(group) for group in specs], device=device),
        levels,
        level_ranks.to(device),
        polynomials.flatten(0, 1).to(device),
        torch.tensor([isinstance(spec.far, Dropped) for spec in flat], dtype=torch.uint8, device=device),
        torch.tensor([near.sinks for near in nears], dtype=torch.int32, device=device),
        torch.tensor([near.kept for near in nears], dtype=torch.int32, device=device),
        torch.tensor([[UNDECIDED if near.kept else near.window] for near in nears], dtype=torch.int32, device=device),
    )


def _kind(far: Taylor, head_dim: int) -> Kind:
    ranks = (0, *(far.rank(p, head_dim) for p in range(1, far.order)))
    return Kind(far.order, None if all(rank == head_dim for rank in ranks[1:]) else ranks)
