"""One call of the torch backend on KV heads that keep keys by priority beside a state.

A block of queries attends to the keys at hand (those kept before it, those in its window, its own) under a mask that
says for each of them up to which row it is near; what is far from the last row goes into the state.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import fold_rule
from .attend import Chosen, Sums, Unfolded, attend
from .kept_keys import BLOCK_ROWS, KeptKeys, NearBlock
from .polynomial import Polynomials
from .request import Request
from .state import KeptPart
from .taylor_run import Slice, Step, TaylorRun
from .token_buffer import Joined, of_heads, selection

_ENTRIES = 1 << 24
"""Most scores of one block, of all sequences and query heads."""


class KeptRun(TaylorRun):
    """One call's work on the KV heads of one part."""

    part: KeptPart

    def __init__(self, part: KeptPart, request: Request) -> None:
        super().__init__(part, request)
        if request.priority is None:
            raise ValueError("priority is None, but these KV heads keep keys")
        self.before = part.priority.shape[2]
        priority = of_heads(request.priority, part.kv_heads)
        if self.keep is not None:
            priority = priority.masked_fill(~self.keep[:, None], -math.inf)
        # Keys kept, keys in the window, new ones: in the order they were made.
        self.keys, self.values, self.priority = (
            torch.cat([held, new], 2) if self.before else new
            for held, new in (
                (part.near_keys, self.k),
                (part.near_values, self.v),
                (part.priority, priority),
            )
        )
        self.chosen = KeptKeys(self.priority, part.near, places=part.near.kept, held=part.kept, new=self.q.shape[2])
        self.all = Slice(slice(0, self.q.shape[0]), part.kv_heads, slice(0, len(part.kv_heads)))

    def run(self) -> None:
        part, total = self.part, self.priority.shape[2]
        entries = self.q.shape[0] * len(part.kv_heads) * self.group * (min(part.near.tokens, total) + BLOCK_ROWS)
        for block in self.chosen.blocks(min(BLOCK_ROWS, max(16, _ENTRIES // entries))):
            self._attend(block)
            self._take_far(block)
        window = torch.arange(max(self.chosen.held, total - part.near.window), total, device=self.keys.device)
        index = torch.cat([self.chosen.kept, window.expand(*self.priority.shape[:2], -1)], -1)
        part.near_keys, part.near_values = (
            tensor.gather(2, index[..., None].expand(-1, -1, -1, tensor.shape[-1]))
            for tensor in (self.keys, self.values)
        )
        part.priority = self.priority.gather(2, index)

    def _attend(self, block: NearBlock) -> None:
        """Attend to sinks, near keys, far ones at hand, and the state."""
        part = self.part
        memory = self._memory(self.all, []) if self.had_state else None
        origin = None if memory is None else memory.origin
        far_keys, far_values, _ = part.recent.view()
        counts = (block.gather(self.priority) > -math.inf)[:, :, None]
        near, far = (mask & counts for mask in block.masks())
        waiting = torch.ones(*far.shape[:3], part.recent.length, dtype=torch.bool, device=far.device)
        if part.recent.keep is not None:
            waiting &= part.recent.keep[:, None, None, : part.recent.length]
        nears = torch.cat([torch.zeros_like(waiting), near], -1).flatten(0, 1)
        fars = torch.cat([waiting, far], -1).flatten(0, 1)
        keys, values = (
            torch.cat([held, block.gather(tensor)], 2)
            for held, tensor in ((far_keys, self.keys), (far_values, self.values))
        )
        tokens = Unfolded.build(keys, values, None, self.dtype, origin)
        q = self._queries(block.rows).flatten(0, 1).to(self.dtype) * self.request.scaling
        polynomials = Polynomials.build(part.specs * self.q.shape[0], q.shape[-1], self.dtype, q.device)
        sinks = self._sinks(self.all, Step(block.rows.start, block.rows.stop, 0, 0), origin)
        every = slice(0, self.group)
        terms = self._terms(self.all, block.rows, every, q, origin)
        sums: Sums = attend(q, tokens, memory, sinks, polynomials, Chosen(nears, fars.to(self.dtype)), terms)
        self.write(self.all, block.rows, every, sums)

    def _take_far(self, block: NearBlock) -> None:
        """Take what is far from the last row of a block out of the tokens at hand, and fold if it is worth it."""
        part, table = self.part, self.part.table
        if block.lost.shape[-1]:
            index = block.lost[..., None]
            keys, values = (x.gather(2, index.expand(-1, -1, -1, x.shape[-1])) for x in (self.keys, self.values))
            # As many sinks and padding are lost by each KV head, and they are the last.
            counts = self.priority.gather(2, block.lost)[:, 0] > -math.inf
            part.recent.append(keys, values, None if bool(counts.all()) else counts)
        raw = fold_rule.worth_a_state(table.features, self.k.shape[-1], self.v.shape[-1])
        if part.recent.length < (fold_rule.BLOCK if self.had_state else raw):
            return
        part.start_features(self.dtype)
        memory = self._memory(self.all, [])
        self._fold(Joined(part.recent.view()), memory, Step(0, 0, 0, part.recent.length))
        self.had_state = True
        part.recent.drop(part.recent.length)
        part.recent.shrink(fold_rule.BLOCK)

    def _queries(self, rows: slice) -> Tensor:
        """Queries of the part's KV heads, ``[B, G, g, R, d]``."""
        return self.request.by_group(self.q)[:, selection(self.part.kv_heads), :, rows]
