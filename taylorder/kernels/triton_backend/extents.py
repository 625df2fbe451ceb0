"""Where kernels find the pending tokens: known on the host, and held on the device from one step to the next."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from .head_tables import HeadTables
from .pending import PendingTokens

_Sent = tuple[int, int, list[tuple[int, ...]]]


class Extents:
    """For every sequence and KV head, int64 ``[N, 5]`` for the kernels.

    The first row of its pending tokens, their number, how many up to a query's own are never far, how many may be near,
    and the position of the first query. Decode steps advance them on the device (``take_token``), and the host, which
    counts along, sends them again only after it has moved or folded tokens.
    """

    def __init__(self) -> None:
        self._sent: Optional[_Sent] = None
        self._tensor: Optional[Tensor] = None

    def of(self, pending: PendingTokens, tables: HeadTables, new: int, causal: bool) -> Tensor:
        """Those for the last ``new`` tokens."""
        wanted = _wanted(pending, tables, new, causal)
        if self._tensor is None or wanted != self._sent:
            batch, rows, numbers = wanted
            every = torch.tensor(numbers).repeat(batch, 1, 1)
            every[:, :, 0] += torch.arange(batch)[:, None] * rows
            self._tensor, self._sent = every.flatten(0, 1).to(pending.keys.device), wanted
        return self._tensor

    def advanced(self, pending: PendingTokens, tables: HeadTables) -> None:
        """Know that the device has them for the one token that was taken in since."""
        self._sent = _wanted(pending, tables, 1, causal=True)


def _wanted(pending: PendingTokens, tables: HeadTables, new: int, causal: bool) -> _Sent:
    """Sequences, rows of a sequence, and the numbers of each KV head of the first one."""
    windows = tables.windows if causal else (-new,) * len(tables.windows)  # both directions: all of them are far
    numbers: list[tuple[int, ...]] = [
        (start, length, window, length - front if kept else near, pending.tokens - new)
        for start, length, front, window, kept, near in zip(
            pending.starts, pending.lengths, pending.fronts, windows, tables.kept, tables.windows
        )
    ]
    return pending.keys.shape[0], pending.keys.shape[1], numbers
