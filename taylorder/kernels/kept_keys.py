"""Which keys a near field keeps beside its window, found from priorities alone.

A key competes from the row at which it leaves the window on, and its priority never changes. So the kept keys are the
top of a prefix, and a key is near up to the row at which as many keys as there are places rank above it, whatever the
chunks that tokens come in. Of equal priorities the later key stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappushpop
from typing import Optional

import torch
from torch import Tensor

from .spec import Near

BLOCK_ROWS = 256
"""Query rows of a block: few, so that few keys are at hand that are far from most rows; finding the rows at which keys
become far takes the square of it."""


@dataclass(frozen=True)
class NearBlock:
    """Query rows computed together, and the keys at hand: those that any of the rows is near to, and those before.

    Keys are numbered in the order they were made; ``first`` is the number of the first row's own key.

    Attributes:
        rows: which of the new tokens.
        first: number of the key of the first row.
        kept: keys kept before the first row, int64 ``[B, G, K]``, ascending.
        recent: keys in the window of the first row, and those of the rows themselves.
        far_from: row, counted from the first, from which on a key of ``kept`` or ``recent`` is far, int64
            ``[B, G, K + n]``; the number of rows where it stays near.
        lost: numbers of the keys that are far from the last row and were not from the one before the first, int64
            ``[B, G, X]``, best first.

    """

    rows: slice
    first: int
    kept: Tensor
    recent: slice
    far_from: Tensor
    lost: Tensor

    def gather(self, tokens: Tensor) -> Tensor:
        """The keys at hand ``[B, G, K + n, *]`` of ``[B, G, S, *]``."""
        recent = tokens[:, :, self.recent]
        if not self.kept.shape[-1]:
            return recent
        index = self.kept if tokens.ndim == 3 else self.kept[..., None].expand(-1, -1, -1, tokens.shape[-1])
        return torch.cat([tokens.gather(2, index), recent], 2)

    def masks(self) -> tuple[Tensor, Tensor]:
        """Which keys at hand are near, and which are far, bool ``[B, G, R, K + n]`` each; neither are those to come."""
        device = self.kept.device
        row = torch.arange(self.rows.stop - self.rows.start, device=device)[:, None]
        own = torch.arange(self.recent.start, self.recent.stop, device=device) - self.first
        made = torch.nn.functional.pad(own, (self.kept.shape[-1], 0), value=-1) <= row
        before = row < self.far_from[:, :, None]
        return made & before, made & ~before


class KeptKeys:
    """The keys a near field keeps, row after row.

    Attributes:
        kept: the keys kept before the next row, int64 ``[B, G, K]``, ascending.

    """

    def __init__(self, priority: Tensor, near: Near, *, places: int, held: int = 0, new: int) -> None:
        """Begin where ``held`` keys are kept already.

        Args:
            priority: ``[B, G, S]`` of keys in the order they were made: kept ones, those in the window, new ones. Minus
                infinity for keys that are never kept, plus infinity for those that always are.
            near: the near field; its window counts.
            places: keys kept at most.
            held: how many of the first keys are kept.
            new: how many of the last are the query rows' own.

        """
        B, G, S = priority.shape
        self.priority, self.window, self.places = priority, near.window, places
        self.held, self.before = held, S - new  # keys before the first new one
        self.kept = torch.arange(held, device=priority.device).expand(B, G, held)

    def blocks(self, rows: Optional[int] = None) -> Iterator[NearBlock]:
        """Blocks of the new tokens, in order, each of at most so many rows, :data:`BLOCK_ROWS` if None."""
        rows = rows or BLOCK_ROWS
        new = self.priority.shape[2] - self.before
        for start in range(0, new, rows):
            yield self.advance(slice(start, min(start + rows, new)))

    def far_from(self) -> Tensor:
        """Take all new rows in; return the one from which on each key is far, int64 ``[B, G, S]``.

        Rows are counted from the first new one; their number stands for keys that stay near, and for those that were
        far before.
        """
        new = self.priority.shape[2] - self.before
        result = torch.full_like(self.priority, new, dtype=torch.int64)
        for block in self.blocks():
            number = torch.arange(block.recent.start, block.recent.stop, device=result.device)
            at_hand = torch.cat([block.kept, number.expand(*result.shape[:2], -1)], -1)
            rows = block.rows.stop - block.rows.start
            row = torch.where(block.far_from < rows, block.far_from + block.rows.start, new)
            result.scatter_(2, at_hand, row)
        return result

    def advance(self, rows: slice) -> NearBlock:
        """Take the next rows in, and return what is near to them."""
        kept, first = self.kept, self.before + rows.start
        leaving = slice(max(self.held, first - self.window), max(self.held, self.before + rows.stop - self.window))
        recent = slice(leaving.start, self.before + rows.stop)
        B, G, K = kept.shape
        far_from = kept.new_full((B, G, K + recent.stop - recent.start), rows.stop - rows.start)
        competing = K + leaving.stop - leaving.start
        leavers = torch.arange(leaving.start, leaving.stop, device=kept.device)
        candidates = torch.cat([kept, leavers.expand(B, G, -1)], -1)
        self.kept, lost = candidates, candidates[..., :0]
        if competing > self.places:
            order = _by_rank(self.priority.gather(2, candidates))
            losers = order[..., self.places :]
            self.kept = candidates.gather(2, order[..., : self.places].sort(-1).values)
            lost = candidates.gather(2, losers)
            far_from.scatter_(2, losers, _first_rows(order, K, self.places, leavers + self.window - first))
        return NearBlock(rows, first, kept, recent, far_from, lost)


def _by_rank(priority: Tensor) -> Tensor:
    """Indices of ``[B, G, N]``, best first; of equal ones the last first."""
    last = priority.shape[-1] - 1
    return last - torch.sort(priority.flip(-1), dim=-1, descending=True, stable=True).indices


def _first_rows(order: Tensor, held: int, places: int, leaves: Tensor) -> Tensor:
    """Row from which on each key that loses its place is far, int64 ``[B, G, X]``.

    Args:
        order: indices of the N competing keys, best first, ``[B, G, N]``; the first ``held`` indices compete from the
            beginning on, the others one after another.
        held: how many.
        places: keys that stay, the first of ``order``; the other X lose.
        leaves: the row at which each of the others begins to compete, ``[N - held]``, ascending.

    """
    rank = torch.empty_like(order)
    rank.scatter_(2, order, torch.arange(order.shape[-1], device=order.device).expand_as(order))
    losers = order[..., places:]
    from_beginning = (order < held).cumsum(-1)[..., places:] - (losers < held).long()  # of those above
    above = rank[..., None, held:] < rank.gather(2, losers)[..., None]
    full = above.cumsum(-1) + from_beginning[..., None] >= places
    row = leaves[full.int().argmax(-1)]  # that of the first True
    own = leaves[(losers - held).clamp(min=0)]
    return torch.where(losers < held, row, torch.maximum(row, own))


class UnrankedKeyError(ValueError):
    """A valid key has a priority that is not finite."""


def check_priority(priority: Optional[Tensor], k: Tensor, valid: Optional[Tensor]) -> None:
    """Refuse priorities that cannot rank keys ``[B, G, S, d]``.

    Those of padding, where ``valid`` ``[B, S]`` is False, may be anything.

    Raises:
        ValueError: priorities are missing, or of another shape or device.
        UnrankedKeyError: that of a valid key is not finite.
        TypeError: they are not float32.

    """
    shape = tuple(k.shape[:3])
    if priority is None:
        raise ValueError(f"priority is None, but a head keeps keys; expected a float32 tensor {shape}")
    if not isinstance(priority, Tensor) or priority.dtype != torch.float32:
        found = getattr(priority, "dtype", type(priority).__name__)
        raise TypeError(f"priority is {found}, expected a float32 tensor {shape}: [batch, KV heads, tokens]")
    if tuple(priority.shape) != shape:
        raise ValueError(f"priority has shape {tuple(priority.shape)}, expected {shape}: [batch, KV heads, tokens]")
    if priority.device != k.device:
        raise ValueError(f"priority is on {priority.device}, expected the device of k: {k.device}")
    if math.isfinite(float(priority.sum(dtype=torch.float64))):  # in float64 no sum of finite ones overflows
        return
    finite = priority.isfinite()
    broken = ~(finite if valid is None else finite | ~valid[:, None])
    for b, kv_head, token in broken.nonzero()[:1].tolist():
        raise UnrankedKeyError(
            f"priority is {float(priority[b, kv_head, token])} for sequence {b}, KV head {kv_head}, token {token}, "
            "expected a finite number: a key that has none cannot be ranked"
        )


def competing(priority: Tensor, valid: Optional[Tensor], sinks: int) -> Tensor:
    """Priorities ``[B, G, S]`` with which keys compete: padding never wins, and the first ``sinks`` valid keys do.

    Args:
        priority: ``[B, G, S]``.
        valid: bool ``[B, S]``; None if all are.
        sinks: how many.

    """
    if valid is None:
        priority = priority.clone()
        priority[:, :, :sinks] = math.inf
        return priority
    first = valid & (valid.cumsum(-1) <= sinks)
    return priority.masked_fill(~valid[:, None], -math.inf).masked_fill(first[:, None], math.inf)


def far_from(priority: Tensor, valid: Optional[Tensor], near: Near) -> Tensor:
    """Row from which on each key of whole sequences is far, int64 ``[B, G, S]``; S for keys that stay near.

    Key by key with a heap: a tenth of the time that blocks of rows take, where there is nothing to attend to.

    Args:
        priority: ``[B, G, S]``.
        valid: bool ``[B, S]``; None if all are.
        near: the near field.

    """
    B, G, S = priority.shape
    places = near.sinks + near.kept
    ascending = torch.sort(competing(priority, valid, near.sinks).flatten(0, 1), dim=-1, stable=True).indices
    ranks = ascending.argsort(-1).tolist()
    rows = []
    for rank, key_of_rank in zip(ranks, ascending.tolist()):
        far = [S] * S
        best = rank[:places]
        heapify(best)
        for key in range(places, S - near.window):
            far[key_of_rank[heappushpop(best, rank[key])]] = key + near.window
        rows.append(far)
    return torch.tensor(rows, dtype=torch.int64, device=priority.device).view(B, G, S)
