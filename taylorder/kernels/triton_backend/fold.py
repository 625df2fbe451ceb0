"""Folding: tokens that are far for every row to come leave the queue and are added to their KV head's state."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Optional

import torch
from torch import Tensor

from . import kept_tokens
from .kv_head_states import KvHeadStates
from .launch import launch, product_constants
from .layout_tables import Kind, LayoutTables
from .settings import Precision, fold_settings

FOLD_TOKENS = 4096
"""Tokens folded at a time: the matrices of their coordinates are short-lived but not small."""

STEP = 64
"""What the number of columns of those matrices is a multiple of: no setting takes more tokens per step."""


def fold(part: KvHeadStates, precision: Precision) -> None:
    """Fold, of every KV head, what is far and worth it; forget it where there is no far field."""
    counts = part.foldable()
    kept_tokens.bring_far_forward(part, counts)
    tables = part.tables
    part.start([g for g, n in enumerate(counts) if n and not tables.drops[g] and part.state_rows[g] is None])
    while any(counts):
        now = [min(count, FOLD_TOKENS) for count in counts]
        kv_heads = [g for g, count in enumerate(now) if count and not tables.drops[g]]
        if kv_heads:
            _fold_some(part, kv_heads, [now[g] for g in kv_heads], precision)
        part.pending.drop(now)
        counts = [count - done for count, done in zip(counts, now)]


def _fold_some(part: KvHeadStates, kv_heads: list[int], counts: list[int], precision: Precision) -> None:
    """Fold the first ``counts`` pending tokens of those KV heads."""
    pending, tables, device = part.pending, part.tables, part.seen.device
    width = -(-max(counts) // STEP) * STEP
    B, Gf = pending.keys.shape[0], len(kv_heads)
    offsets = torch.arange(width)
    inside = offsets < torch.tensor(counts)[:, None]
    rows = torch.where(inside, offsets + torch.tensor([pending.starts[g] for g in kv_heads])[:, None], 0)
    rows, inside = rows.flatten().to(device), inside.to(device)
    keep = (pending.far_from[:, rows].view(B, Gf, width) >= 0) & inside
    keys = pending.keys[:, rows].view(B, Gf, width, -1).float() * keep[..., None]
    values = pending.values[:, rows].view(B, Gf, width, -1) * keep[..., None]
    if part.origin.shape[-1]:
        fresh = (part.folded_counts[:, kv_heads] == 0) & tables.shifts[kv_heads]
        mean = keys.sum(2) / keep.sum(2).clamp(min=1)[..., None]
        part.origin[:, kv_heads] = torch.where(fresh[..., None], mean, part.origin[:, kv_heads])
        keys = (keys - part.origin[:, kv_heads, None]) * keep[..., None]
    part.folded_values[:, kv_heads] += values.float().sum(2)
    part.folded_counts[:, kv_heads] += keep.sum(2)
    coordinates = torch.cat([keep[..., None].float(), keys], -1).transpose(2, 3).to(precision.storage).contiguous()
    tokens = torch.tensor(counts).repeat(B).to(device)
    constants = product_constants(keys.shape[-1], values.shape[-1], precision)
    for layout, of_layout in part.layouts.items():
        kinds = tuple(tables.kinds[g] if tables.layouts[g] == layout else None for g in kv_heads)
        items = _items(of_layout, kinds, B)
        launch(
            "fold_tokens",
            len(items),
            fold_settings(keys.shape[-1], values.shape[-1], precision),
            {
                "coordinates": coordinates,
                "values": values.contiguous(),
                "features": part.features,
                "sums": part.sums,
                "state_rows": part.state_origins(layout).view(B, -1)[:, kv_heads].flatten(),
                "tokens": tokens,
                "items": items,
                "factors": of_layout.factors,
                "prefixes": of_layout.prefixes,
                "tile_groups": of_layout.tile_groups,
                "multiplicity": of_layout.multiplicity,
                "ld": width,
            },
            {**constants, **of_layout.constants},
        )


@lru_cache(maxsize=64)
def _items(of_layout: LayoutTables, kinds: Sequence[Optional[Kind]], batch: int) -> Tensor:
    """Work list of ``fold_tokens``: int32 ``[programs, 2]``, every tile of every KV head of a kind in the tables."""
    items = [
        (b * len(kinds) + index, of_layout.first_tile(kind) + tile)
        for b in range(batch)
        for index, kind in enumerate(kinds)
        if kind is not None
        for tile in range(of_layout.tiles(kind))
    ]
    return torch.tensor(items, dtype=torch.int32).view(-1, 2).to(of_layout.multiplicity.device)
