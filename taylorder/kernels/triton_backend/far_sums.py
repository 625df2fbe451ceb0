"""Sums over the far tokens of a row, whether they are in a state or not: for means, and for guarded rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..held import Holder
from .pending import PendingTokens


@dataclass(eq=False)
class FarSums(Holder):
    """Sums per row, or of one row; all float32.

    Attributes:
        keys: ``[B, G, n, d]`` or ``[B, G, d]``; d is 0 where no head expands around its mean.
        values: ``[B, G, n, d_v]`` or ``[B, G, d_v]``.
        counts: ``[B, G, n]`` or ``[B, G]``.

    """

    keys: Tensor
    values: Tensor
    counts: Tensor

    @staticmethod
    def none(batch: int, kv_heads: int, head_dim: int, value_dim: int, device: torch.device) -> FarSums:
        """Of a row without far tokens."""
        keys, values, counts = (
            torch.zeros(batch, kv_heads, width, device=device) for width in (head_dim, value_dim, 1)
        )
        return FarSums(keys, values, counts[..., 0])

    def of_all(self, pending: PendingTokens) -> FarSums:
        """The same over all tokens at hand, of which every KV head has the same number."""
        rows = pending.rows(pending.starts, pending.lengths[0])
        return self._over(pending, rows, torch.ones(1, device=rows.device)).last()

    def continued(self, pending: PendingTokens, windows: Sequence[int], n: int) -> FarSums:
        """Sums of the last n tokens' rows, given those of the row before them.

        From one row to the next one token becomes far: the one that leaves the window. It is still pending, because
        nothing is folded before it is far for a row.
        """
        device = pending.keys.device
        firsts = [length - n - window for length, window in zip(pending.lengths, windows)]
        offsets = torch.tensor(firsts)[:, None] + torch.arange(n)
        rows = offsets.clamp(min=0) + torch.tensor(pending.starts)[:, None]
        return self._over(pending, rows.flatten().to(device), (offsets >= 0).float().to(device))

    def repeated(self, n: int) -> FarSums:
        """The sums of one row, n times."""
        return self.map(lambda tensor: tensor[:, :, None].expand(*tensor.shape[:2], n, *tensor.shape[2:]).contiguous())

    def last(self) -> FarSums:
        """The sums of the last row alone."""
        return self.map(lambda tensor: tensor[:, :, -1].clone())

    def _over(self, pending: PendingTokens, rows: Tensor, count: Tensor) -> FarSums:
        """Running sums over tokens ``rows`` ``[G * n]`` where ``count`` (``[G, n]``, 0 or 1), from these sums on."""
        B, G = self.counts.shape
        counts = pending.keep[:, rows].view(B, G, -1).float() * count
        values = pending.values[:, rows].view(*counts.shape, -1).float() * count[..., None]
        keys = counts.new_zeros(*counts.shape, 0)
        if self.keys.shape[-1]:
            keys = pending.keys[:, rows].view(*counts.shape, -1).float() * count[..., None]
        return FarSums(
            keys.cumsum(2) + self.keys[:, :, None],
            values.cumsum(2) + self.values[:, :, None],
            counts.cumsum(2) + self.counts[..., None],
        )
