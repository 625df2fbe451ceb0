"""One call of ``taylor_attention``, checked: what backends are given, and where they put what they find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from .score_terms import PLAIN, ScoreTerms
from .token_buffer import selection


@dataclass(frozen=True)
class Request:
    """Arguments as in ``taylor_attention``; T is at least 1.

    Attributes:
        output: ``[B, H, T, d_v]``, to be written.
        guarded: int64 ``[H]``, to which guarded rows are added.
        terms: of every row, ``[B, H, T]``.

    """

    q: Tensor
    k: Tensor
    v: Tensor
    scaling: float
    causal: bool
    valid: Optional[Tensor]
    priority: Optional[Tensor]
    output: Tensor
    guarded: Tensor
    terms: ScoreTerms = PLAIN

    @property
    def group(self) -> int:
        """Query heads per KV head, g."""
        return self.q.shape[1] // self.k.shape[1]

    def by_group(self, tensor: Tensor) -> Tensor:
        """``[B, H, T, *]`` as ``[B, G, g, T, *]``."""
        return tensor.view(tensor.shape[0], -1, self.group, *tensor.shape[2:])

    def terms_of(self, kv_heads: Sequence[int], rows: slice = slice(None)) -> ScoreTerms:
        """Terms of the query heads of some KV heads, ``[B, G g, R]``."""
        if self.terms.plain or len(kv_heads) == self.k.shape[1]:
            return self.terms.at((..., rows))
        heads = torch.arange(self.q.shape[1], device=self.q.device).view(-1, self.group)[list(kv_heads)].flatten()
        return self.terms.at((slice(None), heads)).at((..., rows))

    def write(
        self, kv_heads: Sequence[int], result: Tensor, guarded: Optional[Tensor], rows: slice,
        sequences: slice = slice(None), heads: slice = slice(None),
    ) -> None:  # fmt: skip
        """Take rows, zero for padding, and count the guarded ones.

        Args:
            kv_heads: G of them, ascending.
            result: ``[B, G, g, R, d_v]``, overwritten where rows are padding.
            guarded: bool ``[B, G, g, R]``; None where nothing is.
            rows: which ones, R.
            sequences: B of them.
            heads: g query heads of each group.

        """
        if self.valid is not None:
            known = self.valid[sequences, rows][:, None, None]
            result.masked_fill_(~known[..., None], 0.0)
            guarded = None if guarded is None else guarded & known
        chosen = selection(kv_heads)
        self.by_group(self.output)[sequences, chosen, heads, rows] = result.to(self.output.dtype)
        if guarded is not None:
            self.guarded.view(-1, self.group)[chosen, heads] += guarded.sum((0, 3))
