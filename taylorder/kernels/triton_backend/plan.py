"""The work list: which programs run, on which rows and which stretch of which state, decided on the host.

A block is up to ``rows`` query rows of one KV head. What it reads is cut into pieces, each a program of its own: a
stretch of the state's runs, or a stretch of pending tokens. Pieces of a block are numbered one after another, and the
last kernel adds them up in that order, so results do not depend on which program finishes first. Only work that exists
is listed: a head of low order has fewer runs, a head of order 1 none. Long programs come first, so that the last to
finish are short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Optional

import torch
from torch import Tensor

from .head_tables import HeadTables
from .layout_tables import LayoutTables, Run
from .tiles import Layout

PROGRAMS = 264
"""Programs to aim at: two for each of the 132 multiprocessors of an H100."""

PIECE_TILES = 8
"""Fewest tiles that are worth a program of their own: a piece writes as much as half a tile or a whole one."""

PIECE_TOKENS = 512
"""Fewest pending tokens that are worth a program of their own."""

STACKED_TOKENS = 16
"""Most new tokens for which the query heads of a KV head share blocks, and with them one pass over the state."""

TOGETHER = 16
"""Tiles whose denominators are computed in one product: the fewest columns one may have."""


@dataclass(frozen=True)
class Rows:
    """How the query rows of a KV head are numbered: token t of its query head h is row ``h * pitch + t``.

    Attributes:
        group: g, query heads per KV head.
        new: query tokens.
        rows: of a block.
        stacked: whether blocks hold rows of several heads; they read the state of the largest order among them.

    """

    group: int
    new: int
    rows: int
    stacked: bool

    @property
    def pitch(self) -> int:
        """Rows from one head to the next; blocks that do not mix heads start at multiples of their size."""
        return self.new if self.stacked else -(-self.new // self.rows) * self.rows

    @property
    def width(self) -> int:
        """Columns of matrices that hold all rows."""
        return -(-self.group * self.pitch // self.rows) * self.rows

    def tokens_after(self, first: int) -> int:
        """Query tokens after the last one of the block that starts at that row."""
        return 0 if self.stacked else max(0, self.new - first % self.pitch - self.rows)

    def blocks(self, orders: Sequence[int]) -> list[tuple[int, int]]:
        """First row and largest order of every block; ``orders`` are those of the KV head's query heads."""
        if not self.stacked:
            return [
                (h * self.pitch + start, orders[h])
                for h in range(self.group)
                for start in range(0, self.new, self.rows)
            ]
        heads = [
            range(first // self.new, min(-(-(first + self.rows) // self.new), self.group))
            for first in range(0, self.group * self.new, self.rows)
        ]
        return [(index * self.rows, max(orders[h] for h in stretch)) for index, stretch in enumerate(heads)]


@dataclass(frozen=True)
class StateWork:
    """One launch of ``read_state``: runs int32 ``[*, 3]`` and items int32 ``[programs, 5]``."""

    runs: Tensor
    items: Tensor


@dataclass(frozen=True)
class Plan:
    """All launches that attend for one stretch of queries.

    Attributes:
        states: per layout, what is read from states.
        pending: int32 ``[programs, 4]``, items of ``read_pending``.
        blocks: int32 ``[programs, 4]``, items of ``add_near_and_divide``.
        pieces: how many pieces there are.
        share: most pending tokens of a piece.

    """

    states: dict[Layout, StateWork]
    pending: Tensor
    blocks: Tensor
    pieces: int
    share: int


@dataclass(frozen=True)
class _Piece:
    """A program of ``read_state``: its block's KV head and first row, its number, and the runs it reads."""

    n: int
    first: int
    number: int
    runs: tuple[Run, ...]

    @property
    def cost(self) -> int:
        return sum(run.count for run in self.runs)


@lru_cache(maxsize=256)
def plan(
    tables: HeadTables,
    layouts: tuple[LayoutTables, ...],
    batch: int,
    rows: Rows,
    started: tuple[bool, ...],
    far_tokens: tuple[int, ...],
    causal: bool,
) -> Plan:
    """Make the work list.

    Args:
        tables: of the heads.
        layouts: one per layout.
        batch: sequences.
        rows: how query rows are numbered.
        started: KV heads that have a state.
        far_tokens: at least as many pending tokens of each KV head as are far for its last row.
        causal: whether earlier rows have fewer.

    """
    G = len(tables.kinds)
    by_layout = {of_layout.layout: of_layout for of_layout in layouts}
    blocks: list[tuple[int, int, int, Optional[Layout], tuple[Run, ...]]] = []
    for n in range(batch * G):
        g = n % G
        layout = tables.layouts[g] if started[g] else None
        for first, order in rows.blocks(tables.orders[g]):
            far = far_tokens[g] - (rows.tokens_after(first) if causal else 0)
            runs = by_layout[layout].runs_of(tables.kinds[g], order) if layout else ()
            blocks.append((n, first, max(0, far), layout, runs))
    tile_share = max(PIECE_TILES, -(-sum(run.count for *_, runs in blocks for run in runs) // PROGRAMS))
    token_total = sum(far for _, _, far, _, _ in blocks)
    share = max(PIECE_TOKENS, -(-token_total // PROGRAMS // PIECE_TOKENS) * PIECE_TOKENS)
    states: dict[Optional[Layout], list[_Piece]] = {layout: [] for layout in by_layout}
    pending, quotients, pieces = [], [], 0
    for n, first, far, layout, runs in blocks:
        before = pieces
        for stretch in _stretches(runs, tile_share):
            states[layout].append(_Piece(n, first, pieces, stretch))
            pieces += 1
        for begin in range(0, far, share):
            pending.append((n, first, begin, pieces))
            pieces += 1
        quotients.append((n, first, before, pieces - before))
    device = tables.sink_counts.device
    work = {layout: _state_work(programs, device) for layout, programs in states.items() if layout and programs}
    return Plan(work, _integers(pending, 4, device), _integers(quotients, 4, device), pieces, share)


def _stretches(runs: Sequence[Run], tiles: int) -> list[tuple[Run, ...]]:
    """Cut runs into consecutive stretches of about that many tiles each."""
    total = sum(run.count for run in runs)
    if not total:
        return []
    pieces = max(1, round(total / tiles))
    stretches: list[tuple[Run, ...]] = []
    taking: list[Run] = []
    done = taken = 0
    for run in runs:
        first, left = run.first, run.count
        while left:
            goal = -(-total * (len(stretches) + 1) // pieces)
            count = min(left, goal - done - taken)
            taking.append(Run(run.degree, run.group, first, count))
            first, left, taken = first + count, left - count, taken + count
            if done + taken == goal:
                stretches.append(tuple(taking))
                taking, done, taken = [], done + taken, 0
    return stretches


def _state_work(pieces: Sequence[_Piece], device: torch.device) -> StateWork:
    runs: list[tuple[int, int, int]] = []
    starts: dict[tuple[Run, ...], int] = {}
    items = []
    for piece in sorted(pieces, key=lambda piece: -piece.cost):
        if piece.runs not in starts:  # blocks of one head read the same runs
            starts[piece.runs] = len(runs)
            runs += [(run.group, run.first, run.count) for run in piece.runs]
        start = starts[piece.runs]
        items.append((piece.n, piece.first, start, start + len(piece.runs), piece.number))
    return StateWork(_integers(runs, 3, device), _integers(items, 5, device))


def _integers(rows: Sequence[Sequence[int]], width: int, device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32).view(-1, width).to(device)
