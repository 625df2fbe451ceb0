"""Tokens that are in no state yet, of KV heads that keep different numbers of them, in one buffer.

A kernel finds a KV head's tokens by the row they start at, so the buffer needs no padding to the longest.
"""

from __future__ import annotations

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
        keep: uint8 ``[B, R]``, 0 for tokens that must not count (padding, sinks); their keys and values are zero.
        starts: row of each KV head's first token.
        lengths: tokens of each KV head.
        ends: row behind each KV head's stretch.

    """

    def __init__(self, kv_heads: int, k: Tensor, v: Tensor) -> None:
        """Start empty, for keys like ``k`` ``[B, *, *, d]`` and values like ``v`` ``[B, *, *, d_v]``."""
        B = k.shape[0]
        self.keys, self.values = k.new_empty(B, 0, k.shape[-1]), v.new_empty(B, 0, v.shape[-1])
        self.keep = torch.empty(B, 0, dtype=torch.uint8, device=k.device)
        self.starts, self.lengths, self.ends = [0] * kv_heads, [0] * kv_heads, [0] * kv_heads

    def append(self, k: Tensor, v: Tensor, keep: Optional[Tensor], settled: Sequence[bool]) -> None:
        """Add tokens to every KV head.

        Args:
            k: ``[B, G, T, d]``.
            v: ``[B, G, T, d_v]``.
            keep: bool ``[B, G, T]``; None keeps all.
            settled: KV heads that hand tokens on and so need room for few more; others grow by an eighth at a time.

        """
        T = k.shape[2]
        lengths = [length + T for length in self.lengths]
        if any(start + length > end for start, length, end in zip(self.starts, lengths, self.ends)):
            rooms = (length + (SPARE if calm else max(SPARE, length // 8)) for length, calm in zip(lengths, settled))
            self._move([max(room, SPARE) for room in rooms])
        rows = self.rows([start + length for start, length in zip(self.starts, self.lengths)], T)
        if keep is not None:
            # A weight of zero does not silence an infinity: what does not count must be zero itself.
            k, v = k.masked_fill(~keep[..., None], 0.0), v.masked_fill(~keep[..., None], 0.0)
        self.keys.index_copy_(1, rows, k.flatten(1, 2))
        self.values.index_copy_(1, rows, v.flatten(1, 2))
        self.keep[:, rows] = 1 if keep is None else keep.flatten(1).to(torch.uint8)
        self.lengths = lengths

    def drop(self, counts: Sequence[int]) -> None:
        """Forget the first ``counts[g]`` tokens of each KV head."""
        self.starts = [start + count for start, count in zip(self.starts, counts)]
        self.lengths = [length - count for length, count in zip(self.lengths, counts)]

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
        return {**held, "lengths": torch.tensor(self.lengths)}

    def make_room(self, held: dict[str, Tensor]) -> None:
        """Hold as many tokens of each KV head as ``held``, to be replaced, without spare room."""
        lengths = held.get("lengths", torch.zeros(0, dtype=torch.int64)).tolist()
        self.lengths = [0] * len(lengths)
        self._move(lengths)
        self.lengths = lengths

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
