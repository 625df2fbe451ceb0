"""The torch backend: linear-time attention with tensor operations alone, on any device.

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
from functools import lru_cache
from typing import Optional

import torch
from torch import Tensor

from . import fold_rule
from .attend import Extent, Memory, Sinks, Sums, Unfolded, attend
from .exact import attend_exact_part, windowed_attention
from .polynomial import Polynomials
from .spec import Exact, HeadSpec, Taylor, deepest, grouped, ignores_shifts
from .state import ExactPart, Part, State, StateShape, TaylorPart
from .state_products import Chunk, fold
from .tables import count
from .token_buffer import Joined, Piece, TokenBuffer, selection

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


class Output:
    """Where rows go: the quotient, in the caller's dtype, zero for padding."""

    def __init__(self, output: Tensor, valid: Optional[Tensor], guarded: Tensor) -> None:
        """Write into output ``[B, H, T, d_v]`` and count guarded rows in int64 ``[H]``."""
        self.output, self.valid, self.guarded = output, valid, guarded

    def write(self, where: Slice, rows: slice, heads: slice, sums: Sums) -> None:
        """Take the sums of ``rows`` for query heads ``heads`` of each group in ``where``."""
        b, G = where.sequences.stop - where.sequences.start, len(where.kv_heads)
        _, g, C, d_v = sums.numerator.shape
        denominator = sums.denominator.masked_fill(sums.denominator == 0, 1.0)
        quotient = sums.numerator.div_(denominator[..., None]).view(b, G, g, C, d_v)
        guarded = sums.guarded.view(b, G, g, C)
        if self.valid is not None:
            known = self.valid[where.sequences, rows][:, None, None]
            quotient.masked_fill_(~known[..., None], 0.0)
            guarded = guarded & known
        B, _, T, _ = self.output.shape
        grouped = self.output.view(B, -1, where.group, T, d_v)
        grouped[where.sequences, selection(where.kv_heads), heads, rows] = quotient
        if bool(guarded.any()):
            counts = guarded.sum((0, 3))
            for index, kv_head in enumerate(where.kv_heads):
                self.guarded.view(-1, where.group)[kv_head, heads] += counts[index]


@dataclass(frozen=True)
class Slice:
    """Sequences and KV heads computed together; ``group`` query heads read each KV head."""

    sequences: slice
    kv_heads: tuple[int, ...]
    indices: slice
    group: int


@dataclass(frozen=True)
class Step:
    """Fold tokens ``fold_from … fold_to - 1``, then attend with the queries ``start … stop - 1``."""

    start: int
    stop: int
    fold_from: int
    fold_to: int


def new_state(heads: Sequence[HeadSpec], k: Tensor, v: Tensor) -> State:
    """Return an empty state for keys and values like these."""
    groups = grouped(heads, k.shape[1])
    exact = [g for g, group in enumerate(groups) if isinstance(group[0].far, Exact)]
    kinds: dict[object, list[int]] = {}
    for g, group in enumerate(groups):
        if g not in exact:
            longest = deepest(group)
            features = None if longest is None else (longest.order, longest.ranks)
            kind = features, group[0].near, any(spec.around_mean for spec in group), ignores_shifts(group)
            kinds.setdefault(kind, []).append(g)
    parts: list[Part] = [TaylorPart(kv, [groups[g] for g in kv], k, v) for kv in kinds.values()]
    if exact:
        parts.append(ExactPart(exact, TokenBuffer(k, v, len(exact))))
    return State(heads, "torch", parts, StateShape.of(k, v))


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: State,
    output: Output,
    *,
    scaling: float,
    causal: bool,
    valid: Optional[Tensor],
) -> None:
    """Attend, write the rows and bring the state up to date. Arguments as in ``taylor_attention``, already checked."""
    for part in state.parts:
        if isinstance(part, ExactPart):
            attend_exact_part(part, q, k, v, output.output, scaling=scaling, causal=causal, valid=valid)
        elif isinstance(part, TaylorPart):
            _TaylorRun(part, q, k, v, output, scaling, causal, valid).run()


class _TaylorRun:
    """One call's work on the KV heads of one part."""

    def __init__(
        self,
        part: TaylorPart,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        output: Output,
        scaling: float,
        causal: bool,
        valid: Optional[Tensor],
    ) -> None:
        self.part, self.q, self.k, self.v = part, q, k, v
        self.output, self.scaling, self.causal = output, scaling, causal
        self.dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        self.earlier = part.recent.length
        self.group = q.shape[1] // k.shape[1]
        fresh = causal and valid is None and self.earlier == 0 and not bool(part.seen.any())
        # A prefill of sinks and a window is ordinary attention, which torch does best; half precisions it rounds twice.
        self.near_alone = fresh and part.drops_far and part.near.window > 0 and self.dtype == q.dtype
        self.keep, self.rank = _take_sinks(part, k, v, valid)
        # Heads with small states share their products; the chunk shrinks in turn, which saves work on its own scores.
        state_bytes = part.table.features * v.shape[-1] * 4
        self.together = min(len(part.kv_heads), max(1, _TOGETHER_BYTES // state_bytes), _ROWS // _CHUNK_TOGETHER)
        self.chunk = _CHUNK if self.together == 1 else _CHUNK_TOGETHER
        self.reading, self.folding = Chunk(part.table), Chunk(part.table)
        self.had_state = part.features is not None
        # A decode step copies its token to the end of a buffer, not the buffer to a new one.
        self.appends = q.shape[2] <= fold_rule.BLOCK

    @property
    def settled(self) -> bool:
        """Whether the tokens at hand stay few from now on, because older ones are folded or forgotten."""
        return self.part.features is not None or self.part.drops_far

    def run(self) -> None:
        part, T = self.part, self.q.shape[2]
        steps = list(self._steps())
        if self.appends:
            reserve = part.near.window + fold_rule.BLOCK if self.settled else 0
            part.recent.append(*self._new(), reserve)
        if steps[-1].fold_to and self.causal and not part.drops_far:
            part.start_features(self.dtype)
        if self.near_alone:
            self._run_near()
        else:
            for where in self._slices():
                self._run_slice(where, steps)
        folded = steps[-1].fold_to
        if self.appends:
            part.recent.drop(folded)
            if self.settled:
                part.recent.shrink(part.near.window + fold_rule.BLOCK)
        elif self.causal:
            rest = Joined(part.recent.view(), self._new()).cut(folded, self.earlier + T)
            part.recent = TokenBuffer(rest[0], rest[1], len(part.kv_heads))
            part.recent.append(*rest, part.near.window + fold_rule.BLOCK if self.settled else 0)

    def _run_near(self) -> None:
        part = self.part
        for g in part.kv_heads:
            own = slice(g * self.group, (g + 1) * self.group)
            self.output.output[:, own] = windowed_attention(
                self.q[:, own],
                self.k[:, g : g + 1],
                self.v[:, g : g + 1],
                part.near,
                scaling=self.scaling,
            )

    def _new(self) -> Piece:
        """The new tokens of this part's KV heads."""
        heads = selection(self.part.kv_heads)
        return self.k[:, heads], self.v[:, heads], self.keep

    def _steps(self) -> Iterator[Step]:
        """Chunks, and what is folded before each; the last step folds for the next call and has no queries."""
        T, earlier, table = self.q.shape[2], self.earlier, self.part.table
        started = self.part.features is not None
        raw = fold_rule.BLOCK
        if not self.part.drops_far:
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
            yield Slice(slice(0, B), part.kv_heads, slice(0, Gb), self.group)
            return
        for b in range(B):
            start = 0
            for index in range(1, Gb + 1):
                if index < Gb and index - start < self.together and self._alike(index - 1, index):
                    continue
                yield Slice(slice(b, b + 1), part.kv_heads[start:index], slice(start, index), self.group)
                start = index

    def _alike(self, one: int, other: int) -> bool:
        """Whether the query heads of two KV heads have the same orders."""
        return _orders(self.part.specs[one]) == _orders(self.part.specs[other])

    def _run_slice(self, where: Slice, steps: Sequence[Step]) -> None:
        part = self.part
        joined = self._tokens(where)
        memory = self._memory(where, steps)
        queries = torch.unflatten(self.q, 1, (-1, self.group))[where.sequences]
        kv_heads = selection(where.kv_heads)
        # Query heads of different order go one by one: each reads the prefix of the state that its own order needs.
        T = self.q.shape[2]
        alike = all(len(set(_orders(group))) == 1 for group in part.specs[where.indices])
        whole = T == 1 or (alike and min(T, self.chunk) * self.group * len(where.kv_heads) <= _ROWS)
        splits = [slice(0, self.group)] if whole else [slice(h, h + 1) for h in range(self.group)]
        repeats = where.sequences.stop - where.sequences.start
        specs = part.specs[where.indices] * repeats
        polynomials = [
            _polynomials(tuple(group[heads] for group in specs), self.q.shape[-1], self.dtype, self.q.device)
            for heads in splits
        ]
        for step in steps:
            if step.fold_to > step.fold_from and not part.drops_far:
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
                q = queries[:, :, heads, rows][:, kv_heads].flatten(0, 1).to(self.dtype) * self.scaling
                self.output.write(where, rows, heads, attend(q, tokens, held, sinks, polynomial, extent))

    def _tokens(self, where: Slice) -> Joined:
        """The tokens not folded before this call, and the new ones."""
        keys, values, keep = self.part.recent.view()
        first = (
            keys[where.sequences, where.indices],
            values[where.sequences, where.indices],
            None if keep is None else keep[where.sequences],
        )
        if self.appends:
            return Joined(first)
        new = (
            self.k[where.sequences],
            self.v[where.sequences],
            None if self.keep is None else self.keep[where.sequences],
        )
        return Joined(first, new, selection(where.kv_heads))

    def _memory(self, where: Slice, steps: Sequence[Step]) -> Optional[Memory]:
        """The part's state for that slice; bidirectional attention has one of its own, thrown away afterwards."""
        part = self.part
        if part.features is not None and part.sums is not None:
            held = (part.features, part.sums, part.origin)
            own = (None if t is None else t[where.sequences, where.indices].flatten(0, 1) for t in held)
            features, sums, origin = own
            if features is not None and sums is not None:
                return Memory(features, sums, self.reading, origin)
        if self.causal or steps[-1].fold_to == 0 or part.drops_far:
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

    def _sinks(self, where: Slice, step: Step, origin: Optional[Tensor]) -> Optional[Sinks]:
        part = self.part
        if not part.near.sinks:
            return None
        visible = None
        if self.rank is not None:
            slots = torch.arange(part.near.sinks, device=self.rank.device)
            visible = self.rank[where.sequences, step.start : step.stop, None] > slots
            visible = visible.repeat_interleave(len(where.kv_heads), 0)
        keys = part.sink_keys[where.sequences, where.indices].flatten(0, 1).to(self.dtype)
        keys = keys if origin is None else keys - origin[:, None]
        return Sinks(keys, part.sink_values[where.sequences, where.indices].flatten(0, 1).to(self.dtype), visible)


def _take_sinks(
    part: TaylorPart, k: Tensor, v: Tensor, valid: Optional[Tensor]
) -> tuple[Optional[Tensor], Optional[Tensor]]:
    """Store new sinks; return which new tokens remain, bool ``[B, T]``, and the rank of the last valid token so far.

    Both are None where they say nothing: every token remains, every sink was there before.
    """
    if valid is not None and bool(valid.all()):
        valid = None
    if not part.near.sinks or bool((part.seen >= part.near.sinks).all()):
        return valid, None
    known = torch.ones(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device) if valid is None else valid
    rank = part.seen[:, None] + known.cumsum(1)
    sink = known & (rank <= part.near.sinks)
    heads = list(part.kv_heads)
    for b in range(k.shape[0]):
        index = sink[b].nonzero()[:, 0]
        slots = rank[b, index] - 1
        part.sink_keys[b, :, slots] = k[b, heads][:, index]
        part.sink_values[b, :, slots] = v[b, heads][:, index]
    part.seen = rank[:, -1].clone()  # a view would keep the whole prefill alive
    return known & ~sink, rank


def _orders(group: Sequence[HeadSpec]) -> list[int]:
    """How many degrees of the state each query head of a group reads; without a far field one, whose weight is 0."""
    return [spec.far.order if isinstance(spec.far, Taylor) else 1 for spec in group]


@lru_cache(maxsize=256)
def _polynomials(
    specs: tuple[tuple[HeadSpec, ...], ...], head_dim: int, dtype: torch.dtype, device: torch.device
) -> Polynomials:
    return Polynomials.build(specs, head_dim, torch.zeros(0, dtype=dtype, device=device))
