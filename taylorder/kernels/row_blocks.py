"""Blocks of query rows, and what each of them sees: keys at hand, of which some are near and some far, and the others.

All other keys are far for every row of the block. They wait, as they are, or have been folded into features. Which keys
these are follows from positions where only a window decides and no sink is looked for among padding; elsewhere the kept
keys say it (``kept_keys``), sinks being keys that always win and padding one that never does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional, Union

import torch
from torch import Tensor

from .kept_keys import KeptKeys, NearBlock, competing
from .spec import Near


@dataclass(frozen=True)
class Tokens:
    """Some tokens of N KV heads: of all alike, as slices one behind another, or by numbers int64 ``[N, S]``."""

    chosen: Union[tuple[slice, ...], Tensor]

    @property
    def number(self) -> int:
        """How many of each KV head."""
        if isinstance(self.chosen, Tensor):
            return self.chosen.shape[1]
        return sum(part.stop - part.start for part in self.chosen)

    def of(self, tensor: Tensor) -> Tensor:
        """Those of ``[N, T, *]``."""
        if isinstance(self.chosen, Tensor):
            return tensor.gather(1, _index(self.chosen, tensor)) if self.number else tensor[:, :0]
        parts = [tensor[:, part] for part in self.chosen]
        return parts[0] if len(parts) == 1 else torch.cat([tensor[:, :0], *parts], 1)

    def add(self, total: Tensor, part: Tensor) -> None:
        """Add ``part`` ``[N, S, *]`` to those of ``total`` ``[N, T, *]``, none of which is there twice."""
        if isinstance(self.chosen, Tensor):
            if self.number:
                total.scatter_add_(1, _index(self.chosen, part), part)
            return
        start = 0
        for piece in self.chosen:
            stop = start + piece.stop - piece.start
            total[:, piece] += part[:, start:stop]
            start = stop

    def followed_by(self, more: Tokens) -> Tokens:
        """These and then ``more``, which stand behind the last of them where tokens are slices."""
        if isinstance(self.chosen, Tensor) and isinstance(more.chosen, Tensor):
            return Tokens(torch.cat([self.chosen, more.chosen], 1))
        joined: list[slice] = []
        for part in (*self.chosen, *more.chosen):
            if joined and joined[-1].stop == part.start:
                joined[-1] = slice(joined[-1].start, part.stop)
            elif part.stop > part.start:
                joined.append(part)
        return Tokens(tuple(joined))


NOBODY = Tokens(())


def _index(chosen: Tensor, like: Tensor) -> Tensor:
    """Numbers ``[N, S]`` as an index of ``[N, T]`` or ``[N, T, *]``."""
    return chosen if like.ndim == 2 else chosen[..., None].expand(-1, -1, like.shape[-1])


@dataclass(frozen=True)
class RowBlock:
    """Query rows computed together.

    Attributes:
        rows: which.
        at_hand: keys that are near to one of them, or become far among them; those that may be far come first.
        far_at_hand: how many may be.
        lost: keys that are far from the last row and were not from the one before the first.
        positions: of the keys at hand, int64 ``[K]``, and how far the window reaches and how many sinks there are; or
            what the kept keys say; or None where all of them are near.

    """

    rows: slice
    at_hand: Tokens
    far_at_hand: int
    lost: Tokens
    positions: Union[tuple[Tensor, Near], NearBlock, None]

    def masks(self, known: Optional[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
        """Which keys at hand are near, bool ``[N or 1, C, K]``, and which of the first are far.

        ``known`` is bool ``[N, T]``, False for padding; None if there is none.
        """
        if self.positions is None:
            near = torch.ones(1, 1, self.at_hand.number, dtype=torch.bool, device=device)
            far = ~near
        elif isinstance(self.positions, NearBlock):
            near, far = (mask[:, 0] for mask in self.positions.masks())
        else:
            position, window = self.positions
            row = torch.arange(self.rows.start, self.rows.stop, device=position.device)[:, None]
            near = window.mask(row, position)[None]
            far = ((position <= row) & ~near)[:, :, : self.far_at_hand]
        far = far[:, :, : self.far_at_hand]
        if known is None:
            return near, far
        counts = self.at_hand.of(known)[:, None]
        return near & counts, far & counts[:, :, : self.far_at_hand]


def row_blocks(
    tokens: int,
    near: Near,
    rows: int,
    device: torch.device,
    known: Optional[Tensor],
    priority: Optional[Tensor],
    causal: bool,
) -> Iterator[RowBlock]:
    """All rows of ``tokens`` tokens, so many at a time.

    Args:
        tokens: T.
        near: the near field.
        rows: how many at a time.
        device: of the masks.
        known: bool ``[N, T]``, False for padding; None if there is none.
        priority: ``[N, T]``, needed where keys are kept.
        causal: without it all keys are near where the near field has room for all, and else far, for every row.

    """
    if not causal:
        at_hand = Tokens((slice(0, tokens),)) if near.window >= tokens else NOBODY
        for start in range(0, tokens, rows):
            yield RowBlock(slice(start, min(start + rows, tokens)), at_hand, 0, NOBODY, None)
    elif near.kept or (known is not None and near.sinks):
        yield from _ranked_blocks(tokens, near, rows, device, known, priority)
    else:
        yield from _placed_blocks(tokens, near, rows, device)


def _placed_blocks(tokens: int, near: Near, rows: int, device: torch.device) -> Iterator[RowBlock]:
    position = torch.arange(tokens, device=device)

    def first(row: int) -> int:
        """The first key of the window of that row; its own, where there is no window."""
        return max(0, row - max(near.window, 1) + 1)

    for start in range(0, tokens, rows):
        stop = min(start + rows, tokens)
        sinks = slice(0, min(near.sinks, first(start)))
        recent = slice(first(start), stop)
        at_hand = Tokens((sinks, recent) if sinks.stop else (recent,))
        far = sinks.stop + max(0, stop - near.window - recent.start)
        lost = Tokens((slice(max(near.sinks, first(start)), max(near.sinks, first(stop))),))
        yield RowBlock(slice(start, stop), at_hand, far, lost, (at_hand.of(position[None])[0], near))


def _ranked_blocks(
    tokens: int, near: Near, rows: int, device: torch.device, known: Optional[Tensor], priority: Optional[Tensor]
) -> Iterator[RowBlock]:
    if priority is None:
        if near.kept:
            raise ValueError(f"priority is None, but {near} keeps keys; expected [batch, KV heads, tokens]")
        shape = (1 if known is None else len(known), tokens)
        priority = torch.zeros(shape, device=device)
    ranks = competing(priority[:, None], known, near.sinks)
    kept = KeptKeys(ranks, near, places=near.sinks + near.kept, new=tokens)
    for block in kept.blocks(rows):
        recent = torch.arange(block.recent.start, block.recent.stop, device=device)
        at_hand = torch.cat([block.kept[:, 0], recent.expand(len(ranks), -1)], 1)
        far = at_hand.shape[1] - min(near.window, len(recent))
        yield RowBlock(block.rows, Tokens(at_hand), far, Tokens(block.lost[:, 0]), block)
