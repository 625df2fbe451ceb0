"""One call of the Triton backend: take tokens in, attend, fold what has become far.

A call is cut into segments. Each is appended to the pending tokens and read by three kernels: ``read_state`` (what is
folded), ``read_pending`` (far tokens that are not), ``add_near_and_divide`` (sums, guard, near field, quotient). Then
``fold_tokens`` folds whatever is worth it. Decoding is a segment of one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from ..exact import attend_exact_part
from ..spec import GUARD, Exact, HeadSpec, grouped
from ..state import ExactPart, Part, State, StateShape
from ..token_buffer import TokenBuffer, selection
from . import plan as work
from .far_sums import FarSums
from .fold import fold
from .head_tables import by_level, level_means, state_coefficients
from .kv_head_states import KvHeadStates
from .launch import launch, machine, triton_type
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


def new_state(heads: Sequence[HeadSpec], k: Tensor, v: Tensor) -> State:
    """Return an empty state for keys and values like these."""
    groups = grouped(heads, k.shape[1])
    exact = [g for g, group in enumerate(groups) if isinstance(group[0].far, Exact)]
    truncated = [g for g in range(len(groups)) if g not in exact]
    parts: list[Part] = []
    if truncated:
        parts.append(KvHeadStates(truncated, [groups[g] for g in truncated], k, v))
    if exact:
        parts.append(ExactPart(exact, TokenBuffer(k, v, len(exact))))
    return State(heads, "triton", parts, StateShape.of(k, v))


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: State,
    output: Tensor,
    *,
    scaling: float,
    causal: bool,
    valid: Optional[Tensor],
) -> None:
    """Attend, write ``output`` ``[B, H, T, d_v]`` and bring the state up to date; arguments already checked."""
    for part in state.parts:
        if isinstance(part, ExactPart):
            attend_exact_part(part, q, k, v, output, scaling=scaling, causal=causal, valid=valid)
        elif isinstance(part, KvHeadStates):
            _Call(part, q, k, v, output, state.guarded, scaling, causal, valid).run()


class _Call:
    """One call's work on the truncated KV heads."""

    def __init__(
        self,
        part: KvHeadStates,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        output: Tensor,
        guarded: Tensor,
        scaling: float,
        causal: bool,
        valid: Optional[Tensor],
    ) -> None:
        self.part, self.output, self.guarded, self.scaling, self.causal = part, output, guarded, scaling, causal
        self.valid = None if valid is None or bool(valid.all()) else valid
        own = list(part.kv_heads)
        every = own == list(range(k.shape[1]))
        self.q = torch.unflatten(q, 1, (k.shape[1], -1))
        self.q, self.k, self.v = (t if every else t[:, own] for t in (self.q, k, v))
        self.precision = Precision.of(q.dtype, machine())
        self.dims = {
            "HEAD_DIM": q.shape[-1],
            "VALUE_DIM": v.shape[-1],
            "VALUE_BLOCK": power_of_two(v.shape[-1]),
        }
        self.products = {"DOT": triton_type(self.precision.triton), "PRECISION": self.precision.inputs}

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
        rows = slice(start, stop)
        k, v = self.k[:, :, rows], self.v[:, :, rows]
        keep, ranks = self.part.take_sinks(k, v, None if self.valid is None else self.valid[:, rows])
        self.part.pending.append(k, v, keep, self.part.settled)
        return ranks

    # Attending

    def _attend(self, start: int, stop: int, ranks: Optional[Tensor]) -> None:
        part, tables = self.part, self.part.tables
        q = self.q[:, :, :, start:stop]
        B, G, g, n, d = q.shape
        stacked = n <= work.STACKED_TOKENS
        block = query_rows(d, self.dims["VALUE_DIM"], self.precision, g * n if stacked else None)
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
        numerators = scaled.new_empty(max(1, todo.pieces), block, self.dims["VALUE_DIM"])
        denominators = scaled.new_empty(max(1, todo.pieces), block)
        coefficients = self._read_states(todo, rows, coordinates, relative, numerators, denominators)
        extents = self._extents()
        common: dict[str, Any] = {
            "coordinates": coordinates,
            "means": levels,
            "keys": part.pending.keys,
            "values": part.pending.values,
            "keep": part.pending.keep,
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
            **self.dims,
            "HEAD_BLOCK": power_of_two(d),
            "LEVELS": tables.levels,
            "ROWS": block,
            **self.products,
        }
        launch(
            "read_pending",
            len(todo.pending),
            pending_settings(d, self.dims["VALUE_DIM"], self.precision, block),
            "COLUMNS",
            {
                **common,
                "polynomials": tables.polynomials,
                "level_ranks": tables.level_ranks,
                "items": todo.pending,
                "share": todo.share,
            },
            {**constants, "DEGREES": tables.order, "CAUSAL": self.causal},
            ("HEAD_DIM", "VALUE_DIM", "LEVELS", "ROWS"),
        )
        result = q.new_empty(B, G, g, n, self.dims["VALUE_DIM"])
        guarded = torch.empty(B, G, g, n, dtype=torch.uint8, device=q.device)
        launch(
            "add_near_and_divide",
            len(todo.blocks),
            near_settings(d, self.dims["VALUE_DIM"], self.precision, block),
            "COLUMNS",
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
            ("HEAD_DIM", "VALUE_DIM", "LEVELS", "ROWS"),
        )
        self._write(start, stop, result, guarded)

    def _far(self, n: int) -> FarSums:
        part = self.part
        if not self.causal:
            return part.far.repeated(n)
        far = part.far.continued(part.pending, part.tables.windows, n)
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

    def _extents(self) -> Tensor:
        """First row, number and window of the pending tokens of every sequence and KV head: int64 ``[N, 3]``."""
        pending = self.part.pending
        own = torch.tensor(list(zip(pending.starts, pending.lengths, self.part.tables.windows)))
        every = own.repeat(self.q.shape[0], 1, 1)
        every[:, :, 0] += torch.arange(self.q.shape[0])[:, None] * pending.keys.shape[1]
        return every.flatten(0, 1).to(pending.keys.device)

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
            own = part.layouts[layout]
            coefficients = rows.pack(state_coefficients(tables, own.slots, means, self.scaling)).flatten(0, 1)
            launch(
                "read_state",
                len(todo_state.items),
                state_settings(self.dims["HEAD_DIM"], self.dims["VALUE_DIM"], self.precision, rows.rows),
                None,
                {
                    "coordinates": coordinates,
                    "coefficients": coefficients,
                    "features": features,
                    "sums": part.sums,
                    "state_rows": part.state_origins(layout),
                    "items": todo_state.items,
                    "runs": todo_state.runs,
                    "factors": own.factors,
                    "prefixes": own.prefixes,
                    "numerators": numerators,
                    "denominators": denominators,
                    "ld": rows.width,
                    "slots": len(own.slots),
                },
                {
                    **self.dims,
                    "T": layout.tile,
                    "BASE": own.base_factors,
                    "PREFIX": own.prefix_factors,
                    "ROWS": rows.rows,
                    "TOGETHER": work.TOGETHER,
                    **self.products,
                },
                ("HEAD_DIM", "VALUE_DIM", "T", "BASE", "PREFIX", "ROWS"),
            )
        return coefficients

    def _write(self, start: int, stop: int, result: Tensor, guarded: Tensor) -> None:
        """Put rows into the caller's output, zero for padding, and count the guarded ones."""
        known = None if self.valid is None else self.valid[:, None, None, start:stop]
        hits = guarded.bool()
        if known is not None:
            result.masked_fill_(~known[..., None], 0.0)
            hits &= known
        group, heads = result.shape[2], selection(self.part.kv_heads)
        torch.unflatten(self.output, 1, (-1, group))[:, heads, :, start:stop] = result
        self.guarded.view(-1, group)[heads] += hits.sum((0, 3))
