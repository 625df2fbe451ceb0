"""Sums over the far tokens of a row, whether they are in a state or not: for means, and for guarded rows."""

from __future__ import annotations

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
        return self.continued(pending, rows.view(1, len(pending.lengths), -1)).last()

    def continued(self, pending: PendingTokens, leavers: Tensor) -> FarSums:
        """Sums of more rows, given those of the row before them, and the token that becomes far from each.

        Args:
            pending: where that token still is, because nothing is folded before it is far for a row.
            leavers: row of it in ``pending``, int64 ``[B, G, n]`` or ``[1, G, n]``; negative where there is none.

        """
        B, G = self.counts.shape
        sequence = torch.arange(B, device=leavers.device)[:, None]
        rows = leavers.clamp(min=0).flatten(1)
        counts = ((pending.far_from[sequence, rows] >= 0).view(B, G, -1) & (leavers >= 0)).float()
        values = pending.values[sequence, rows].view(*counts.shape, -1).float() * counts[..., None]
        keys = counts.new_zeros(*counts.shape, 0)
        if self.keys.shape[-1]:
            keys = pending.keys[sequence, rows].view(*counts.shape, -1).float() * counts[..., None]
        return FarSums(
            keys.cumsum(2) + self.keys[:, :, None],
            values.cumsum(2) + self.values[:, :, None],
            counts.cumsum(2) + self.counts[..., None],
        )

    def repeated(self, n: int) -> FarSums:
        """The sums of one row, n times."""
        return self.map(lambda tensor: tensor[:, :, None].expand(*tensor.shape[:2], n, *tensor.shape[2:]).contiguous())

    def last(self) -> FarSums:
        """The sums of the last row alone."""
        return self.map(lambda tensor: tensor[:, :, -1].clone())
