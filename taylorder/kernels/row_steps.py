"""How the rows of one kind of KV head are worked through: block after block, far keys waiting or folded before each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from .row_attention import RowAttention
from .row_blocks import NOBODY, RowBlock, Tokens, row_blocks
from .spec import Near


@dataclass(frozen=True)
class Step:
    """One block of rows, and what happens before it.

    Attributes:
        block: the rows.
        waiting: tokens that are far for all of them and not folded.
        folding: tokens folded before.
        gone: tokens added before to the sums of all that are far.

    """

    block: RowBlock
    waiting: Tokens
    folding: Tokens
    gone: Tokens


@dataclass(frozen=True)
class Plan:
    """What is the same for all KV heads of a kind.

    Attributes:
        attention: what blocks compute.
        near: the near field.
        causal: as in ``taylor_attention``.
        rows: of a block.
        together: how many KV heads, of all sequences, are computed together.
        fold: fewest waiting tokens that are folded; None folds none.
        waits: whether far tokens that are not folded have to be looked at one by one.
        known: bool ``[N, T]``, False for padding; None if there is none.
        priority: ``[N, T]``, where keys are kept.

    """

    attention: RowAttention
    near: Near
    causal: bool
    rows: int
    together: int
    fold: Optional[int]
    waits: bool
    known: Optional[Tensor]
    priority: Optional[Tensor]

    @property
    def ranks(self) -> tuple[int, ...]:
        """Coordinates of every degree; nothing without polynomials."""
        polynomials = self.attention.polynomials
        return () if polynomials is None else polynomials.ranks

    def parts(self, heads: int) -> Iterator[slice]:
        """KV heads computed together, of so many in all."""
        for start in range(0, heads, self.together):
            yield slice(start, min(start + self.together, heads))

    def steps(self, part: slice, tokens: int, device: torch.device) -> Iterator[Step]:
        """What is done for some KV heads, in order."""
        known = None if self.known is None else self.known[part]
        priority = None if self.priority is None else self.priority[part]
        blocks = row_blocks(tokens, self.near, self.rows, device, known, priority, self.causal)
        # In both directions everything is far from the beginning on.
        gone = NOBODY if self.causal else Tokens((slice(0, tokens),))
        waiting = gone if self.waits else NOBODY
        for block in blocks:
            folding = NOBODY
            if self.fold is not None and waiting.number and (waiting.number >= self.fold or not self.causal):
                folding, waiting = waiting, NOBODY
            yield Step(block, waiting, folding, gone)
            gone = block.lost
            if self.waits and gone.number:
                waiting = waiting.followed_by(gone) if waiting.number else gone
