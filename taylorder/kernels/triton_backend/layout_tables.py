"""The tables a launch reads, for every kind of KV head it serves: integers on the device, and what the host needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Optional

import torch
from torch import Tensor

from .tiles import CONSTANT, Layout, Slot, groups


@dataclass(frozen=True)
class Kind:
    """KV heads with the same features: largest order, and the ranks of its degrees (None: full)."""

    order: int
    ranks: Optional[tuple[int, ...]]


@dataclass(frozen=True)
class Run:
    """Tiles ``first … first + count - 1`` of a group, in the numbering of the tables."""

    degree: int
    group: int
    first: int
    count: int


@dataclass(frozen=True, eq=False)
class LayoutTables:
    """Tables of one layout, the kinds one after another.

    Attributes:
        layout: the layout.
        kinds: which kinds it holds.
        slots: what the rows of a launch's coefficients are for; row 0 is degree 0.
        runs: per kind, its groups as runs, degrees ascending.
        first_tiles: first tile of every kind, and the number of tiles at the end.
        factors: int32 ``[groups, base factors + 1, T]``, coordinates of each base, and the row of its coefficient.
        prefixes: int32 ``[tiles, max(1, prefix factors)]``, coordinates, 0 for none.
        tile_groups: int32 ``[tiles]``.
        multiplicity: float32 ``[tiles * T]``.
        constants: see ``Layout.constants``.

    """

    layout: Layout
    kinds: tuple[Kind, ...]
    slots: tuple[Slot, ...]
    runs: tuple[tuple[Run, ...], ...]
    first_tiles: tuple[int, ...]
    factors: Tensor
    prefixes: Tensor
    tile_groups: Tensor
    multiplicity: Tensor
    constants: dict[str, int]

    def tiles(self, kind: Kind) -> int:
        """Tiles of a kind's state."""
        index = self.kinds.index(kind)
        return self.first_tiles[index + 1] - self.first_tiles[index]

    def first_tile(self, kind: Kind) -> int:
        """Where its numbering starts."""
        return self.first_tiles[self.kinds.index(kind)]

    def runs_of(self, kind: Kind, order: int) -> tuple[Run, ...]:
        """Runs a query head of that order reads: a prefix of the kind's."""
        return tuple(run for run in self.runs[self.kinds.index(kind)] if run.degree < order)


@lru_cache(maxsize=64)
def slot_table(layouts: Sequence[LayoutTables], device: torch.device) -> Tensor:
    """Slots of all layouts, one layout's behind another's, int32 ``[slots, 2]``; the first is that of degree 0."""
    slots = [slot for of_layout in layouts for slot in of_layout.slots] or [CONSTANT]
    return torch.tensor(slots, dtype=torch.int32, device=device)


@lru_cache(maxsize=32)
def layout_tables(layout: Layout, head_dim: int, kinds: Sequence[Kind], device: torch.device) -> LayoutTables:
    """Lay the tables of all kinds out one after another."""
    order = max(kind.order for kind in kinds)
    constants = layout.constants(order)
    groups_of = [groups(layout, head_dim, kind.order, kind.ranks) for kind in kinds]
    every_group = [group for of_kind in groups_of for group in of_kind]
    slots = [CONSTANT, *sorted({slot for group in every_group for slot in group.slots} - {CONSTANT})]
    rows = {slot: row for row, slot in enumerate(slots)}
    runs: list[tuple[Run, ...]] = []
    first_tiles = [0]
    factors: list[Tensor] = []
    prefixes: list[tuple[int, ...]] = []
    tile_groups: list[int] = []
    for of_kind in groups_of:
        kind_runs = []
        for group in of_kind:
            kind_runs.append(Run(group.degree, len(factors), len(prefixes), len(group.prefixes)))
            lead = torch.zeros(constants["BASE"] - len(group.base), layout.tile, dtype=torch.int64)
            slot_rows = torch.tensor([[rows[slot] for slot in group.slots]])
            tile_groups += [len(factors)] * len(group.prefixes)
            factors.append(torch.cat([lead, group.base, slot_rows]))
            prefixes += [prefix + (0,) * (max(1, constants["PREFIX"]) - len(prefix)) for prefix in group.prefixes]
        runs.append(tuple(kind_runs))
        first_tiles.append(len(prefixes))
    multiplicity = [group.multiplicity.flatten() for group in every_group]
    return LayoutTables(
        layout,
        tuple(kinds),
        tuple(slots),
        tuple(runs),
        tuple(first_tiles),
        torch.stack(factors).to(device, torch.int32),
        torch.tensor(prefixes, dtype=torch.int32, device=device),
        torch.tensor(tile_groups, dtype=torch.int32, device=device),
        torch.cat(multiplicity).to(device),
        constants,
    )
