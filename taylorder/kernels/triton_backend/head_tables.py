"""What the kernels look up per head: polynomials by level, near fields, and the coefficients of the state's features.

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
from .tiles import TOP, Layout, Slot

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
        coefficients: float64 ``[G, g, P]``, per degree.
        degree_ranks: ``[G][P]``, entry 0 unused.
        around_mean: float32 ``[G, g, 1]``, 1 where the expansion point is the mean; None if it is nowhere.
        shifts: bool ``[G]``, KV heads none of whose query heads notices a vector subtracted from all keys.
        levels: L.
        level_ranks: int32 ``[G, L]``.
        polynomials: float32 ``[G * g, L, P]``.
        drop_heads: uint8 ``[G * g]``.
        sink_counts: int32 ``[G]``.
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
    coefficients: Tensor
    degree_ranks: tuple[tuple[int, ...], ...]
    around_mean: Optional[Tensor]
    shifts: Tensor
    levels: int
    level_ranks: Tensor
    polynomials: Tensor
    drop_heads: Tensor
    sink_counts: Tensor
    delays: Tensor

    @property
    def full_rank(self) -> bool:
        """Whether every term of every head uses all coordinates."""
        return self.levels == 1


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
    means = torch.tensor([[[float(spec.around_mean)] for spec in group] for group in specs])
    flat, nears = [spec for group in specs for spec in group], [group[0].near for group in specs]
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
        coefficients.to(device),
        tuple(ranks),
        means.to(device) if bool(means.any()) else None,
        torch.tensor([ignores_shifts(group) for group in specs], device=device),
        levels,
        level_ranks.to(device),
        polynomials.flatten(0, 1).to(device),
        torch.tensor([isinstance(spec.far, Dropped) for spec in flat], dtype=torch.uint8, device=device),
        torch.tensor([near.sinks for near in nears], dtype=torch.int32, device=device),
        torch.tensor([[UNDECIDED if near.kept else near.window] for near in nears], dtype=torch.int32, device=device),
    )


def _kind(far: Taylor, head_dim: int) -> Kind:
    ranks = (0, *(far.rank(p, head_dim) for p in range(1, far.order)))
    return Kind(far.order, None if all(rank == head_dim for rank in ranks[1:]) else ranks)


def level_means(tables: HeadTables, queries: Tensor, centres: Optional[Tensor]) -> list[Tensor]:
    """Mean far scores over the coordinates of every degree, 0 … P - 1; entry 0 has all coordinates.

    Args:
        tables: of the heads.
        queries: float32 ``[B, G, g, n, d]``, scaled.
        centres: float32 ``[B, G, n, d]``, mean far key of every row; None if nothing expands around it.

    Returns:
        P tensors ``[B, G, g, n]``, zero for heads that expand around zero.

    """
    if centres is None or tables.around_mean is None:
        return [queries.new_zeros(queries.shape[:-1])] * tables.order
    terms = queries * centres[:, :, None]
    if tables.full_rank:
        return [terms.sum(-1) * tables.around_mean] * tables.order
    running = torch.nn.functional.pad(terms.cumsum(-1), (1, 0))
    means = []
    for degree in range(tables.order):
        rank = torch.tensor([row[degree] for row in tables.degree_ranks], device=queries.device)
        index = rank[None, :, None, None, None].expand(*terms.shape[:-1], 1)
        means.append(running.gather(-1, index)[..., 0] * tables.around_mean)
    return means


def by_level(tables: HeadTables, means: Sequence[Tensor]) -> Tensor:
    """Sort the means of degrees into levels: ``[B, G, L, g, n]``."""
    if tables.full_rank:
        return means[0][:, :, None]
    result = torch.zeros_like(means[0])[:, :, None].repeat(1, 1, tables.levels, 1, 1)
    for g, row in enumerate(tables.degree_ranks):
        levels = tables.level_ranks[g].tolist()
        for degree, rank in enumerate(row):
            if rank:
                result[:, g, levels.index(rank)] = means[degree][:, g]
    return result


def state_coefficients(tables: HeadTables, slots: Sequence[Slot], means: Sequence[Tensor], scaling: float) -> Tensor:
    """What multiplies features of each slot: ``[B, G, slots, g, n]`` for queries that are not scaled.

    Powers around the mean are read from powers around zero: slot (m, p) has ``scaling^m`` times
    ``sum_(m <= r <= p) c_r C(r, m) (-mean_r)^(r - m)``. Means are relative to where the state's keys start from.
    """
    rows = []
    for degree, last in slots:
        c = tables.coefficients.float()
        total = c[None, :, :, degree, None].expand_as(means[0])
        if tables.around_mean is not None:
            for r in range(degree + 1, tables.order if last == TOP else last + 1):
                total = total + c[None, :, :, r, None] * math.comb(r, degree) * (-means[r]) ** (r - degree)
        rows.append(total * scaling**degree)
    return torch.stack(rows, 2)
