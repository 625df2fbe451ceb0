"""Tokens that are in no state yet, of KV heads that keep different numbers of them, in one buffer.

A kernel finds a KV head's tokens by the row they start at, so the buffer needs no padding to the longest. It reads from
``far_from`` whether a token is near or far: near for queries from its own position on, far for those from ``far_from``
on. Positions count every token that the queue has taken in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Optional

import torch
from torch import Tensor

from ..held import Holder

SPARE = 64
"""Tokens a KV head that folds regularly has room for beyond what it holds."""


class PendingTokens(Holder):
    """A ragged queue of tokens: they enter at the end of each KV head's stretch and leave at its front.

    Attributes:
        keys: ``[B, R, d]`` in the caller's dtype.
        values: ``[B, R, d_v]``.
        far_from: int32 ``[B, R]``, position from which on a token is far; negative for tokens that must not count
            (padding, sinks), whose keys and values are zero.
        priority: float32 ``[B, R]``, see ``kept_tokens``; None where no KV head keeps keys.
        starts: row of each KV head's first token.
        lengths: tokens of each KV head.
        ends: row behind each KV head's stretch.
        fronts: first tokens of each KV head known to be far, where it keeps keys.
        tokens: taken in so far, by each KV head.

    """

    def __init__(self, kv_heads: int, k: Tensor, v: Tensor, *, ranked: bool) -> None:
        """Start empty, for keys like ``k`` ``[B, *, *, d]``, values like ``v`` ``[B, *, *, d_v]``, and priorities."""
        B = k.shape[0]
        self.keys, self.values = k.new_empty(B, 0, k.shape[-1]), v.new_empty(B, 0, v.shape[-1])
        self.far_from = torch.empty(B, 0, dtype=torch.int32, device=k.device)
        self.priority = torch.empty(B, 0, device=k.device) if ranked else None
        self.starts, self.lengths, self.ends, self.fronts = ([0] * kv_heads for _ in range(4))
        self.tokens = 0

    def append(
        self,
        k: Tensor,
        v: Tensor,
        far_from: Tensor,
        keep: Optional[Tensor],
        priority: Optional[Tensor],
        settled: Sequence[bool],
    ) -> None:
        """Add tokens to every KV head.

        Args:
            k: ``[B, G, T, d]``.
            v: ``[B, G, T, d_v]``.
            far_from: int32 ``[G, T]``.
            keep: bool ``[B, G, T]``; None keeps all.
            priority: ``[B, G, T]``, read where KV heads keep keys.
            settled: as in ``reserve``.

        """
        T = k.shape[2]
        self.reserve(T, settled)
        rows = self.rows([start + length for start, length in zip(self.starts, self.lengths)], T)
        if keep is not None:
            # A weight of zero does not silence an infinity: what does not count must be zero itself.
            k, v = k.masked_fill(~keep[..., None], 0.0), v.masked_fill(~keep[..., None], 0.0)
            far_from = far_from.masked_fill(~keep, -1)
            priority = None if priority is None else priority.masked_fill(~keep, -math.inf)
        self.keys.index_copy_(1, rows, k.flatten(1, 2))
        self.values.index_copy_(1, rows, v.flatten(1, 2))
        self.far_from[:, rows] = far_from.flatten(-2)
        if self.priority is not None and priority is not None:
            self.priority[:, rows] = priority.flatten(1)
        self.count(T)

    def reserve(self, tokens: int, settled: Sequence[bool]) -> None:
        """Have room for so many more tokens of every KV head.

        Args:
            tokens: how many.
            settled: KV heads that hand tokens on and so need room for few more; others grow by an eighth at a time.

        """
        lengths = [length + tokens for length in self.lengths]
        if any(start + length > end for start, length, end in zip(self.starts, lengths, self.ends)):
            rooms = (length + (SPARE if calm else max(SPARE, length // 8)) for length, calm in zip(lengths, settled))
            self._move([max(room, SPARE) for room in rooms])

    def count(self, tokens: int) -> None:
        """Know of so many more tokens of every KV head, in the rows behind those in use."""
        self.lengths, self.tokens = [length + tokens for length in self.lengths], self.tokens + tokens

    def drop(self, counts: Sequence[int]) -> None:
        """Forget the first ``counts[g]`` tokens of each KV head."""
        self.starts = [start + count for start, count in zip(self.starts, counts)]
        self.lengths = [length - count for length, count in zip(self.lengths, counts)]
        self.fronts = [max(0, front - count) for front, count in zip(self.fronts, counts)]

    def reorder(self, rows: Tensor, order: Tensor) -> None:
        """Have the tokens of rows ``[H, M]`` stand there in another order, int64 ``[B, H, M]``."""
        sequence = torch.arange(len(order), device=rows.device)[:, None]
        source = rows.expand_as(order).gather(2, order).flatten(1)
        for tensor in super().held().values():
            tensor[:, rows.flatten()] = tensor[sequence, source]

    def shrink(self, settled: Sequence[bool]) -> None:
        """Give back most of what is not in use, once KV heads have handed a long prefill on."""
        wanted = [
            length + (2 * SPARE if calm else end - start - length)
            for start, length, end, calm in zip(self.starts, self.lengths, self.ends, settled)
        ]
        if 2 * sum(wanted) < self.keys.shape[1]:
            self._move(wanted)

    def rows(self, firsts: Sequence[int], count: int) -> Tensor:
        """Rows ``firsts[g] … firsts[g] + count - 1`` of every KV head, int64 ``[G * count]``."""
        first = torch.tensor(list(firsts), device=self.keys.device)
        return (first[:, None] + torch.arange(count, device=self.keys.device)).flatten()

    def held(self) -> dict[str, Tensor]:
        """Return what is in use, without the spare room between KV heads, and the number of tokens of each."""
        stretches = [torch.arange(first, first + n) for first, n in zip(self.starts, self.lengths)]
        used = torch.cat(stretches).to(self.keys.device)
        held = {name: tensor[:, used] for name, tensor in super().held().items()}
        return {**held, "lengths": torch.tensor(self.lengths), "tokens": torch.tensor(self.tokens)}

    def make_room(self, held: dict[str, Tensor]) -> None:
        """Hold as many tokens of each KV head as ``held``, to be replaced, without spare room."""
        lengths = held.get("lengths", torch.zeros(0, dtype=torch.int64)).tolist()
        self.lengths = [0] * len(lengths)
        self._move(lengths)
        self.lengths, self.tokens = lengths, int(held.get("tokens", torch.tensor(0)))

    def _move(self, rooms: Sequence[int]) -> None:
        """Move to a new buffer with that room for each KV head."""
        *starts, total = accumulate(rooms, initial=0)
        for name, tensor in super().held().items():
            # Zeros, not whatever memory held: kernels mask what they load, but rows may be read before they are filled.
            moved = tensor.new_zeros(tensor.shape[0], total, *tensor.shape[2:])
            for old, new, length in zip(self.starts, starts, self.lengths):
                moved[:, new : new + length] = tensor[:, old : old + length]
            setattr(self, name, moved)
        self.starts, self.ends = starts, [start + room for start, room in zip(starts, rooms)]
