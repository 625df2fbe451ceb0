"""One call of the torch backend on KV heads whose near field is a window and sinks.

Prefill, continuation and decode are one loop: take a chunk of queries, fold what has become far for its first row, read
the state, treat the tokens not folded in score space. What is folded when changes no result, only the time:

* nothing is folded until the tokens at hand outweigh the state; short sequences never build one;
* after that, whole blocks of tokens (``fold_rule``), so that decoding mostly only reads.

Precision: a state holds powers of the score, and a head that expands around its row's mean reads them re-expanded,
which cancels where that mean is large. So if all heads of a KV head do, keys are held relative to the mean of the first
ones folded, and errors stay at rounding level for means of 20 and order 8. A KV head that mixes expansions subtracts
nothing, and its denominators err, relative to their absolute terms, by up to about 2e-7 (1 + |mean|)^(P - 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from . import fold_rule
from .attend import Extent, Memory, Sinks, Sums, Unfolded, attend
from .polynomial import Polynomials
from .request import Request
from .score_terms import ScoreTerms
from .state import TaylorPart
from .state_products import Chunk, fold
from .tables import count
from .token_buffer import Joined, Piece, TokenBuffer, of_heads, selection

_CHUNK = 512
"""Tokens read or folded at a time."""

_CHUNK_TOGETHER = 256
"""The same, of several heads computed together."""

_ROWS = 2048
"""Rows of several heads computed together."""

_TOGETHER_BYTES = 5 << 19
"""States of heads computed together."""

_SCORES = 1 << 20
"""Most scores of one head and chunk (4 MiB in float32)."""

_BATCH = 5 << 17
"""Most numbers of one step for all heads to go through one batch of products instead of head by head."""


@dataclass(frozen=True)
class Slice:
    """Sequences and KV heads computed together, N pairs; ``indices`` are those of the KV heads in their part."""

    sequences: slice
    kv_heads: tuple[int, ...]
    indices: slice

    def cut(self, tensor: Tensor) -> Tensor:
        """Of a part's tensor ``[B, G, *]``: ``[N, *]``."""
        return tensor[self.sequences, self.indices].flatten(0, 1)

    def tokens(self, piece: Piece, indices: slice) -> Piece:
        """Those of the sequences, of KV heads ``indices``."""
        keys, values, keep = piece
        keep = None if keep is None else keep[self.sequences]
        return keys[self.sequences, indices], values[self.sequences, indices], keep


@dataclass(frozen=True)
class Step:
    """Fold tokens ``fold_from … fold_to - 1``, then attend with the queries ``start … stop - 1``."""

    start: int
    stop: int
    fold_from: int
    fold_to: int


class TaylorRun:
    """One call's work on the KV heads of one part."""

    def __init__(self, part: TaylorPart, request: Request) -> None:
        self.part, self.request, self.causal, self.group = part, request, request.causal, request.group
        self.q = request.q
        k, v = (of_heads(tensor, part.kv_heads) for tensor in (request.k, request.v))
        valid = None if request.valid is None or bool(request.valid.all()) else request.valid
        self.dtype = torch.float64 if self.q.dtype == torch.float64 else torch.float32
        self.earlier = part.recent.length
        self.rank = part.store_sinks(k, v, valid)
        self.keep = valid  # new tokens that count and are no sinks, bool [B, T]; None if all do
        if self.rank is not None:
            self.keep = self.rank > part.near.sinks if valid is None else valid & (self.rank > part.near.sinks)
        if self.keep is not None:
            # Not a product: whatever padding holds, infinities included, must leave no trace.
            k, v = (tensor.masked_fill(~self.keep[:, None, :, None], 0.0) for tensor in (k, v))
        self.k, self.v = k, v  # of the part's KV heads
        # Heads with small states share their products; the chunk shrinks in turn, which saves work on its own scores.
        state_bytes = part.table.features * v.shape[-1] * 4
        self.together = min(len(part.kv_heads), max(1, _TOGETHER_BYTES // state_bytes), _ROWS // _CHUNK_TOGETHER)
        self.chunk = _CHUNK if self.together == 1 else _CHUNK_TOGETHER
        self.reading, self.folding = Chunk(part.table), Chunk(part.table)
        self.had_state = part.features is not None
        # A decode step copies its token to the end of a buffer, not the buffer to a new one.
        self.appends = self.q.shape[2] <= fold_rule.BLOCK

    @property
    def room(self) -> int:
        """How many tokens to have room for, if they stay few from now on because older ones are folded."""
        return 0 if self.part.features is None else self.part.near.window + fold_rule.BLOCK

    def run(self) -> None:
        part, T = self.part, self.q.shape[2]
        steps = list(self._steps())
        if self.appends:
            part.recent.append(*self._new(), self.room)
        if steps[-1].fold_to and self.causal:
            part.start_features(self.dtype)
        for where in self._slices():
            self._run_slice(where, steps)
        folded = steps[-1].fold_to
        if self.appends:
            part.recent.drop(folded)
            if self.room:
                part.recent.shrink(self.room)
        elif self.causal:
            rest = Joined(part.recent.view(), self._new()).cut(folded, self.earlier + T)
            part.recent = TokenBuffer(rest[0], rest[1], len(part.kv_heads))
            part.recent.append(*rest, self.room)

    def _new(self) -> Piece:
        return self.k, self.v, self.keep

    def _steps(self) -> Iterator[Step]:
        """Chunks, and what is folded before each; the last step folds for the next call and has no queries."""
        T, earlier, table = self.q.shape[2], self.earlier, self.part.table
        started = self.part.features is not None
        raw = fold_rule.worth_a_state(table.features, self.k.shape[-1], self.v.shape[-1])
        if not self.causal:
            folded = T if raw < T else 0
            rows = self.chunk if folded else max(16, min(self.chunk, _SCORES // max(T, 1)))
            done = 0
            for start in range(0, T, rows):
                yield Step(start, min(start + rows, T), done, folded)
                done = folded
            return
        start = done = 0
        while True:
            far = earlier + start - max(self.part.near.window - 1, 0) - done
            goal = done + far if far >= (fold_rule.BLOCK if started else raw) else done
            started = started or goal > done
            rows = max(16, min(self.chunk, _SCORES // (earlier + start - goal + 1)))
            stop = min(start + rows, T)
            yield Step(start, stop, done, goal)
            if start == T:
                return
            start, done = stop, goal

    def _slices(self) -> Iterator[Slice]:
        """Everything at once if the step is small, else heads that compute alike, as many as fit in cache."""
        part = self.part
        B, Gb, T = self.q.shape[0], len(part.kv_heads), self.q.shape[2]
        table = part.table
        width = max(count(2, table.ranks[2]) if table.order > 2 else 1, self.earlier + T)
        if B * Gb * self.group * T * width <= _BATCH:
            yield Slice(slice(0, B), part.kv_heads, slice(0, Gb))
            return
        orders = [[spec.order for spec in group] for group in part.specs]
        for b in range(B):
            start = 0
            for index in range(1, Gb + 1):
                if index < Gb and index - start < self.together and orders[index - 1] == orders[index]:
                    continue
                yield Slice(slice(b, b + 1), part.kv_heads[start:index], slice(start, index))
                start = index

    def _run_slice(self, where: Slice, steps: Sequence[Step]) -> None:
        part = self.part
        joined = self._tokens(where)
        memory = self._memory(where, steps)
        queries = self.request.by_group(self.q)[where.sequences]
        kv_heads = selection(where.kv_heads)
        # Query heads of different order go one by one: each reads the prefix of the state that its own order needs.
        T = self.q.shape[2]
        alike = all(len({spec.order for spec in group}) == 1 for group in part.specs[where.indices])
        whole = T == 1 or (alike and min(T, self.chunk) * self.group * len(where.kv_heads) <= _ROWS)
        splits = [slice(0, self.group)] if whole else [slice(h, h + 1) for h in range(self.group)]
        repeats = where.sequences.stop - where.sequences.start
        specs = part.specs[where.indices] * repeats
        polynomials = [
            Polynomials.build(tuple(group[heads] for group in specs), self.q.shape[-1], self.dtype, self.q.device)
            for heads in splits
        ]
        for step in steps:
            if step.fold_to > step.fold_from:
                self._fold(joined, memory, step)
            if step.start == step.stop:
                continue
            stop = self.earlier + step.stop if self.causal else joined.length
            held = memory if self.had_state or step.fold_to else None
            origin = None if held is None else held.origin
            tokens = Unfolded.build(*joined.cut(step.fold_to, stop), self.dtype, origin)
            extent = Extent(step.stop - step.start, stop - step.fold_to, part.near.window, self.causal)
            sinks = self._sinks(where, step, origin)
            rows = slice(step.start, step.stop)
            for heads, polynomial in zip(splits, polynomials):
                q = queries[:, :, heads, rows][:, kv_heads].flatten(0, 1).to(self.dtype) * self.request.scaling
                terms = self._terms(where, rows, heads, q, origin)
                self.write(where, rows, heads, attend(q, tokens, held, sinks, polynomial, extent, terms))

    def write(self, where: Slice, rows: slice, heads: slice, sums: Sums) -> None:
        """Put out the quotients of the sums of ``rows`` for query heads ``heads`` of each group in ``where``."""
        shape = (-1, len(where.kv_heads), *sums.denominator.shape[1:])
        denominator = sums.denominator.masked_fill(sums.denominator == 0, 1.0)
        quotient = sums.numerator.div_(denominator[..., None]).view(*shape, sums.numerator.shape[-1])
        guarded = sums.guarded.view(shape) if bool(sums.guarded.any()) else None
        self.request.write(where.kv_heads, quotient, guarded, rows, where.sequences, heads)

    def _tokens(self, where: Slice) -> Joined:
        """The tokens not folded before this call, and the new ones."""
        earlier = where.tokens(self.part.recent.view(), where.indices)
        if self.appends:
            return Joined(earlier)
        return Joined(earlier, where.tokens(self._new(), where.indices))

    def _memory(self, where: Slice, steps: Sequence[Step]) -> Optional[Memory]:
        """The part's state for that slice; bidirectional attention has one of its own, thrown away afterwards."""
        part = self.part
        if part.features is not None and part.sums is not None:
            origin = None if part.origin is None else where.cut(part.origin)
            return Memory(where.cut(part.features), where.cut(part.sums), self.reading, origin)
        if self.causal or steps[-1].fold_to == 0:
            return None
        N, d = (where.sequences.stop - where.sequences.start) * len(where.kv_heads), self.k.shape[-1]
        features = self.v.new_zeros(N, part.table.features, self.v.shape[-1], dtype=self.dtype)
        sums = features.new_zeros(N, part.table.features)
        return Memory(features, sums, self.reading, features.new_zeros(N, d) if part.shifts else None)

    def _fold(self, joined: Joined, memory: Optional[Memory], step: Step) -> None:
        if memory is None:
            raise RuntimeError(f"{step} folds, but there is no state to fold into")
        spans = [(a, min(a + self.chunk, step.fold_to)) for a in range(step.fold_from, step.fold_to, self.chunk)]
        if memory.origin is not None and step.fold_from == 0 and not self.had_state:
            count = torch.zeros_like(memory.sums[:, :1])
            for span in spans:
                tokens = Unfolded.build(*joined.cut(*span), self.dtype)
                memory.origin.add_(tokens.keys.sum(1))
                count += tokens.counted()[:, None]
            memory.origin.div_(count.clamp(min=1.0))
        for span in spans:
            tokens = Unfolded.build(*joined.cut(*span), self.dtype, memory.origin)
            memory.sums[:, 0] += tokens.counted()
            for first in range(0, len(memory.sums), self.together):
                some = slice(first, first + self.together)
                fold(self.folding, tokens.keys[some], tokens.values[some], memory.features[some], memory.sums[some])

    def _terms(self, where: Slice, rows: slice, heads: slice, queries: Tensor, origin: Optional[Tensor]) -> ScoreTerms:
        """Terms ``[N, g, C]`` for scaled queries ``[N, g, C, d]`` and keys relative to ``origin``."""
        terms = self.request.terms
        if terms.plain:
            return terms
        terms = terms.by_group(self.group).at((where.sequences, slice(None), heads, rows))
        terms = terms.at((slice(None), selection(where.kv_heads))).flatten(0, 1)
        return terms if origin is None else terms.lowered((queries @ origin[:, None, :, None])[..., 0])

    def _sinks(self, where: Slice, step: Step, origin: Optional[Tensor]) -> Optional[Sinks]:
        part = self.part
        if not part.near.sinks:
            return None
        visible = None
        if self.rank is not None:
            slots = torch.arange(part.near.sinks, device=self.rank.device)
            visible = self.rank[where.sequences, step.start : step.stop, None] > slots
            visible = visible.repeat_interleave(len(where.kv_heads), 0)
        keys, values = (where.cut(tensor).to(self.dtype) for tensor in (part.sink_keys, part.sink_values))
        return Sinks(keys if origin is None else keys - origin[:, None], values, visible)
