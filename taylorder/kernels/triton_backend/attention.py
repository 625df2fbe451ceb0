"""One call of the Triton backend: take tokens in, attend, fold what has become far.

A call is cut into segments. Each is appended to the pending tokens and read by three kernels: ``read_state`` (what is
folded), ``read_pending`` (far tokens that are not), ``add_near_and_divide`` (sums, guard, near field, quotient). Then
``fold_tokens`` folds whatever is worth it. Decoding is a segment of one token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Optional

import torch
from torch import Tensor

from ..request import Request
from ..spec import GUARD, HeadSpec
from ..token_buffer import selection
from . import kept_tokens
from . import plan as work
from .far_sums import FarSums
from .fold import fold
from .head_tables import by_level, level_means, state_coefficients
from .kv_head_states import KvHeadStates
from .launch import launch, machine, product_constants
from .plan import Plan, Rows
from .settings import (
    Precision,
    near_settings,
    pending_settings,
    power_of_two,
    query_rows,
    state_settings,
)
from .tiles import CONSTANT

SEGMENT = 1024
"""Query tokens at a time: states are folded once per segment, and until then its own keys are read one by one."""

EVERY = 1 << 30
"""A rank that every sink is below."""


def new_parts(groups: Mapping[int, Sequence[HeadSpec]], k: Tensor, v: Tensor) -> list[KvHeadStates]:
    """Return one empty part for the specs of all truncated KV heads, and keys and values like these."""
    return [KvHeadStates(list(groups), list(groups.values()), k, v)]


def run(part: KvHeadStates, request: Request) -> None:
    """Attend, write the rows of the part's KV heads and bring it up to date."""
    _Call(part, request).run()


class _Call:
    """One call's work on the truncated KV heads."""

    def __init__(self, part: KvHeadStates, request: Request) -> None:
        if request.valid is not None and bool(request.valid.all()):
            request = replace(request, valid=None)
        self.part, self.request = part, request
        self.causal, self.scaling, k, v = request.causal, request.scaling, request.k, request.v
        heads = selection(part.kv_heads)
        self.q, self.k, self.v = request.by_group(request.q)[:, heads], k[:, heads], v[:, heads]
        self.priority = None if request.priority is None else request.priority[:, heads]
        self.precision = Precision.of(k.dtype, machine())
        self.value_dim = v.shape[-1]
        self.constants = product_constants(k.shape[-1], self.value_dim, self.precision)

    def run(self) -> None:
        T = self.q.shape[3]
        if not self.causal:
            self._append(0, T)
            self.part.far = self.part.far.of_all(self.part.pending)
            fold(self.part, self.precision)
        for start in range(0, T, SEGMENT):
            stop = min(start + SEGMENT, T)
            ranks = self._append(start, stop) if self.causal else None
            self._attend(start, stop, ranks)
            if self.causal:
                fold(self.part, self.precision)
        if self.causal:
            self.part.pending.shrink(self.part.settled)

    def _append(self, start: int, stop: int) -> Optional[Tensor]:
        """Take tokens in; return the rank of the last valid token of each row, see ``KvHeadStates.take_sinks``."""
        rows, valid, pending = slice(start, stop), self.request.valid, self.part.pending
        k, v = self.k[:, :, rows], self.v[:, :, rows]
        keep, ranks = self.part.take_sinks(k, v, None if valid is None else valid[:, rows])
        position = torch.arange(pending.tokens, pending.tokens + stop - start, dtype=torch.int32, device=k.device)
        delays = self.part.tables.delays
        far_from = position + delays if self.causal else torch.zeros_like(position).expand(len(delays), -1)
        priority = None if self.priority is None else self.priority[:, :, rows]
        pending.append(k, v, far_from, keep, priority, self.part.settled)
        return ranks

    # Attending

    def _attend(self, start: int, stop: int, ranks: Optional[Tensor]) -> None:
        part, tables = self.part, self.part.tables
        q = self.q[:, :, :, start:stop]
        B, G, g, n, d = q.shape
        stacked = n <= work.STACKED_TOKENS
        block = query_rows(d, self.value_dim, self.precision, g * n if stacked else None)
        rows = Rows(g, n, block, stacked)
        far = self._far(n)
        todo = self._plan(rows, n)

        scaled = q.float() * self.scaling
        centres = None if tables.around_mean is None else far.keys / far.counts.clamp(min=1.0)[..., None]
        means = level_means(tables, scaled, centres)
        relative = means
        if part.origin.shape[-1] and centres is not None:
            relative = level_means(tables, scaled, centres - part.origin[:, :, None])
        ones = torch.ones_like(q[..., :1])
        coordinates = rows.pack(torch.cat([ones, q], -1).movedim(-1, 2)).to(self.precision.storage).flatten(0, 1)
        levels = rows.pack(by_level(tables, means)).flatten(0, 1)
        numerators = scaled.new_empty(max(1, todo.pieces), block, self.value_dim)
        denominators = scaled.new_empty(max(1, todo.pieces), block)
        coefficients = self._read_states(todo, rows, coordinates, relative, numerators, denominators)
        extents = self._extents(n)
        common: dict[str, Any] = {
            "coordinates": coordinates,
            "means": levels,
            "keys": part.pending.keys,
            "values": part.pending.values,
            "far_from": part.pending.far_from,
            "extents": extents,
            "numerators": numerators,
            "denominators": denominators,
            "ld": rows.width,
            "pitch": rows.pitch,
            "new": n,
            "kv_heads": G,
            "group": g,
            "scaling": self.scaling,
        }
        constants = {
            **self.constants,
            "HEAD_BLOCK": power_of_two(d),
            "LEVELS": tables.levels,
            "ROWS": block,
        }
        launch(
            "read_pending",
            len(todo.pending),
            pending_settings(d, self.value_dim, self.precision, block),
            {
                **common,
                "polynomials": tables.polynomials,
                "level_ranks": tables.level_ranks,
                "items": todo.pending,
                "share": todo.share,
            },
            {**constants, "DEGREES": tables.order},
        )
        result = q.new_empty(B, G, g, n, self.value_dim)
        guarded = torch.empty(B, G, g, n, dtype=torch.uint8, device=q.device)
        launch(
            "add_near_and_divide",
            len(todo.blocks),
            near_settings(d, self.value_dim, self.precision, block),
            {
                **common,
                "coefficients": coefficients,
                "slots": coefficients.shape[1],
                "folded_values": part.folded_values,
                "folded_counts": part.folded_counts,
                "far_values": far.values,
                "far_counts": far.counts,
                "drops": tables.drop_heads,
                "sink_keys": part.sink_keys,
                "sink_values": part.sink_values,
                "sink_counts": tables.sink_counts,
                "sink_slots": part.sink_keys.shape[2],
                "ranks": torch.full((B, n), EVERY, dtype=torch.int32, device=q.device) if ranks is None else ranks,
                "items": todo.blocks,
                "output": result,
                "guarded": guarded,
                "threshold": GUARD,
            },
            constants,
        )
        self.request.write(part.kv_heads, result, guarded.bool(), slice(start, stop))

    def _far(self, n: int) -> FarSums:
        part = self.part
        if not self.causal:
            return part.far.repeated(n)
        far = part.far.continued(part.pending, kept_tokens.leavers(part, n))
        part.far = far.last()
        return far

    def _plan(self, rows: Rows, n: int) -> Plan:
        part = self.part
        far_tokens = []
        for length, window, drop in zip(part.pending.lengths, part.tables.windows, part.tables.drops):
            far = 0 if drop else max(0, length - window if self.causal else length)
            # While tokens come one by one the plan stays the same for many of them.
            far_tokens.append(-(-far // work.PIECE_TOKENS) * work.PIECE_TOKENS if rows.stacked else far)
        started = tuple(row is not None for row in part.state_rows)
        layouts = tuple(part.layouts.values())
        return work.plan(part.tables, layouts, self.q.shape[0], rows, started, tuple(far_tokens), self.causal)

    def _extents(self, n: int) -> Tensor:
        """Where the kernels find what of the pending tokens of every sequence and KV head: int64 ``[N, 5]``.

        First row, number of tokens, tokens up to a query's own that are never far, those that may be near, and the
        position of the first of n queries.
        """
        pending, tables = self.part.pending, self.part.tables
        windows = tables.windows if self.causal else [-n] * len(tables.windows)  # both directions: all of them are far
        reaches = [
            length - front if kept else window
            for length, front, kept, window in zip(pending.lengths, pending.fronts, tables.kept, tables.windows)
        ]
        position = [pending.tokens - n] * len(reaches)
        extents = torch.tensor(list(zip(pending.starts, pending.lengths, windows, reaches, position)))
        extents = extents.repeat(self.q.shape[0], 1, 1)
        extents[:, :, 0] += torch.arange(self.q.shape[0])[:, None] * pending.keys.shape[1]
        return extents.flatten(0, 1).to(pending.keys.device)

    def _read_states(
        self,
        todo: Plan,
        rows: Rows,
        coordinates: Tensor,
        means: Sequence[Tensor],
        numerators: Tensor,
        denominators: Tensor,
    ) -> Tensor:
        """Read every layout's states; return coefficients whose row 0 is degree 0, float32 ``[N, slots, width]``."""
        part, tables = self.part, self.part.tables
        # Blocks of one head are many, and each reads the whole state: a copy half as large is worth its making.
        features = part.features if rows.stacked else part.features.to(self.precision.storage)
        constant = state_coefficients(tables, (CONSTANT,), means, self.scaling)
        coefficients = rows.pack(constant).flatten(0, 1)
        for layout, todo_state in todo.states.items():
            of_layout = part.layouts[layout]
            coefficients = rows.pack(state_coefficients(tables, of_layout.slots, means, self.scaling)).flatten(0, 1)
            launch(
                "read_state",
                len(todo_state.items),
                state_settings(rows.rows),
                {
                    "coordinates": coordinates,
                    "coefficients": coefficients,
                    "features": features,
                    "sums": part.sums,
                    "state_rows": part.state_origins(layout),
                    "items": todo_state.items,
                    "runs": todo_state.runs,
                    "factors": of_layout.factors,
                    "prefixes": of_layout.prefixes,
                    "numerators": numerators,
                    "denominators": denominators,
                    "ld": rows.width,
                    "slots": len(of_layout.slots),
                },
                {**self.constants, **of_layout.constants, "ROWS": rows.rows, "TOGETHER": work.TOGETHER},
            )
        return coefficients
