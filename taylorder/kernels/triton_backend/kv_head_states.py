"""What the Triton backend remembers of the tokens it has seen: states of all truncated KV heads, one behind another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Optional

import torch
from torch import Tensor

from .. import fold_rule
from ..spec import HeadSpec
from ..state import TruncatedKvHeads
from .extents import Extents
from .far_sums import FarSums
from .head_tables import HeadTables, head_tables
from .layout_tables import Kind, LayoutTables, layout_tables
from .pending import PendingTokens
from .tiles import Layout


class KvHeadStates(TruncatedKvHeads):
    """All truncated KV heads of a call, whatever their orders, ranks and near fields.

    Features of the KV heads that have folded tokens lie in one tensor, one head's tiles behind another's.

    Attributes:
        pending: tokens that are not folded.
        features: float32 ``[B, rows, d_v]``, sum of multiplicity x feature x value over the folded tokens.
        sums: float32 ``[B, rows]``, the same with value 1.
        state_rows: first row of each KV head's features; None until it has folded something.
        folded_values, folded_counts: float32 ``[B, G, d_v]`` and ``[B, G]``, degree 0 of the folded tokens.
        far: sums over the far tokens of the last row, folded or not: its mean, and what it falls back to if guarded.
        origin: float32 ``[B, G, d]``, subtracted from keys when they are folded, see ``torch_backend``.

    """

    def __init__(self, kv_heads: Sequence[int], specs: Sequence[Sequence[HeadSpec]], k: Tensor, v: Tensor) -> None:
        super().__init__(kv_heads, specs, k, v)
        B, G, d, d_v = k.shape[0], len(kv_heads), k.shape[-1], v.shape[-1]
        device = k.device
        self.pending = PendingTokens(G, k, v, ranked=any(group[0].near.kept for group in specs))
        self.features = torch.zeros(B, 0, d_v, device=device)
        self.sums = torch.zeros(B, 0, device=device)
        self.state_rows: list[Optional[int]] = [None] * G
        self.folded_values = torch.zeros(B, G, d_v, device=device)
        self.folded_counts = torch.zeros(B, G, device=device)
        tables = head_tables(self.specs, d, device)
        self.far = FarSums.none(B, G, 0 if tables.around_mean is None else d, d_v, device)
        self.origin = torch.zeros(B, G, d if bool(tables.shifts.any()) else 0, device=device)

    @cached_property
    def tables(self) -> HeadTables:
        """Tables of the heads, on their device."""
        return head_tables(self.specs, self.pending.keys.shape[-1], self.seen.device)

    @cached_property
    def layouts(self) -> dict[Layout, LayoutTables]:
        """Tables of every layout there is."""
        kinds: dict[Layout, list[Kind]] = {}
        for layout, kind in zip(self.tables.layouts, self.tables.kinds):
            if layout is not None and kind not in kinds.setdefault(layout, []):
                kinds[layout].append(kind)
        d = self.pending.keys.shape[-1]
        return {
            layout: layout_tables(layout, d, tuple(of_layout), self.seen.device) for layout, of_layout in kinds.items()
        }

    @cached_property
    def extents(self) -> Extents:
        """Where kernels find the pending tokens."""
        return Extents()

    def rows_needed(self, kv_head: int) -> int:
        """Rows of a KV head's features."""
        layout = self.tables.layouts[kv_head]
        return 0 if layout is None else self.layouts[layout].tiles(self.tables.kinds[kv_head]) * layout.tile

    @property
    def settled(self) -> list[bool]:
        """KV heads that hold few tokens from now on, because older ones are folded or forgotten."""
        return [drop or row is not None for drop, row in zip(self.tables.drops, self.state_rows)]

    def state_origins(self, layout: Layout) -> Tensor:
        """Row where tile 0 of the layout's tables would lie, per sequence and KV head: int64 ``[B * G]``."""
        of_layout, tables = self.layouts[layout], self.tables
        origins = tuple(
            row - of_layout.first_tile(kind) * layout.tile if row is not None and other == layout else 0
            for row, kind, other in zip(self.state_rows, tables.kinds, tables.layouts)
        )
        return _in_every_sequence(origins, *self.features.shape[:2], self.features.device)

    def foldable(self) -> list[int]:
        """How many tokens of each KV head to fold now: those far for the last row, once they are worth it.

        A KV head without a far field forgets them instead.
        """
        d, d_v = self.pending.keys.shape[-1], self.pending.values.shape[-1]
        counts = []
        for g, length in enumerate(self.pending.lengths):
            far = length - self.tables.windows[g] - self.tables.kept[g]
            worth = fold_rule.BLOCK
            if not self.settled[g]:
                worth = fold_rule.worth_a_state(self.rows_needed(g), d, d_v)
            counts.append(far if far >= worth else 0)
        return counts

    def start(self, kv_heads: Sequence[int]) -> None:
        """Make room for the features of KV heads that fold for the first time."""
        if not kv_heads:
            return
        total = self.features.shape[1]
        for g in kv_heads:
            self.state_rows[g] = total
            total += self.rows_needed(g)
        more = total - self.features.shape[1]
        self.features = torch.nn.functional.pad(self.features, (0, 0, 0, more))
        self.sums = torch.nn.functional.pad(self.sums, (0, more))

    def take_sinks(self, k: Tensor, v: Tensor, valid: Optional[Tensor]) -> tuple[Optional[Tensor], Optional[Tensor]]:
        """Store new sinks ``k`` ``[B, G, T, d]``, ``v``.

        Returns:
            Which tokens remain, bool ``[B, G, T]`` (None: all), and the rank of the last valid token so far, int32
            ``[B, T]`` (None: every sink is visible).

        """
        rank = self.store_sinks(k, v, valid)
        if rank is None:
            return None if valid is None else valid[:, None].expand(-1, k.shape[1], -1), None
        remains = rank[:, None] > self.tables.sink_counts[None, :, None]
        return remains if valid is None else valid[:, None] & remains, rank.int()

    def held(self) -> dict[str, Tensor]:
        """Return everything held, by name."""
        rows = torch.tensor([-1 if row is None else row for row in self.state_rows])
        return {**super().held(), "state_rows": rows}

    def make_room(self, held: dict[str, Tensor]) -> None:
        order = held.get("state_rows", torch.zeros(0)).tolist()
        self.start(sorted((g for g, row in enumerate(order) if row >= 0), key=lambda g: order[g]))
        super().make_room(held)

    @property
    def nominal_bytes(self) -> int:
        """Bytes with keys and values counted in 16 bits and sums in 32: states, sinks and pending tokens."""
        B, _, d = self.pending.keys.shape
        d_v = self.pending.values.shape[-1]
        tokens = sum(self.pending.lengths) + sum(self.tables.sinks)
        tables = self.tables
        ranked = sum(
            min(kept, max(0, length - window))
            for length, window, kept in zip(self.pending.lengths, tables.windows, tables.kept)
        )
        folded = sum(1 for row in self.state_rows if row is not None) * (d_v + 1) + ranked
        return 2 * B * tokens * (d + d_v) + 4 * (self.features.numel() + self.sums.numel() + B * folded)


@lru_cache(maxsize=256)
def _in_every_sequence(origins: Sequence[int], batch: int, rows: int, device: torch.device) -> Tensor:
    """Rows of the first sequence, and the same in all others, ``rows`` further on in each: int64 ``[batch * G]``."""
    return (torch.arange(batch)[:, None] * rows + torch.tensor(origins)).flatten().to(device)
