"""One call of the Triton backend: take tokens in, attend, fold what has become far.

A call is cut into segments. Each is appended to the pending tokens; ``prepare_rows`` writes down what is read per query
row, and three kernels read it: ``read_state`` (what is folded), ``read_pending`` (far tokens that are not),
``add_near_and_divide`` (sums, guard, near field, quotient). Then ``fold_tokens`` folds whatever is worth it. While
tokens come one by one, ``take_token`` appends them: beside the kernels, hardly more than room for results is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Optional

import torch
from torch import Tensor

from ..request import Request
from ..spec import GUARD, HeadSpec
from ..token_buffer import of_heads
from . import kept_tokens
from . import plan as work
from .far_sums import FarSums
from .fold import fold
from .kv_head_states import KvHeadStates
from .launch import launch, machine, product_constants
from .layout_tables import slot_table
from .plan import Plan, Rows
from .settings import (
    PREPARE_ROWS,
    PREPARED_ROWS,
    TAKE_TOKEN,
    Precision,
    near_settings,
    pending_settings,
    power_of_two,
    query_rows,
    state_settings,
)

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


@dataclass(frozen=True)
class _Prepared:
    """What kernels read per query row of N pairs of sequence and KV head.

    Attributes:
        coordinates: ``[N, 1 + d, width]``, ones and queries.
        means: float32 ``[N, L, width]``, expansion point of every level.
        coefficients: float32 ``[N, slots, width]`` of all layouts, one behind another; row 0 is degree 0.

    """

    coordinates: Tensor
    means: Tensor
    coefficients: Tensor


class _Call:
    """One call's work on the truncated KV heads."""

    def __init__(self, part: KvHeadStates, request: Request) -> None:
        self.step = request.causal and request.q.shape[2] == 1 and part.sinks_filled
        if request.valid is not None and not self.step and bool(request.valid.all()):
            request = replace(request, valid=None)
        self.part, self.request = part, request
        self.causal, self.scaling, k, v = request.causal, request.scaling, request.k, request.v
        self.q, self.k, self.v = (of_heads(tensor, part.kv_heads) for tensor in (request.by_group(request.q), k, v))
        self.priority = None if request.priority is None else of_heads(request.priority, part.kv_heads)
        self.terms = request.terms
        self.valid = None if request.valid is None else request.valid.contiguous().view(torch.uint8)
        self.precision = Precision.of(k.dtype, machine())
        self.value_dim = v.shape[-1]
        self.constants = product_constants(k.shape[-1], self.value_dim, self.precision)

    def run(self) -> None:
        T = self.q.shape[3]
        if self.step:
            self._take_token()
            self._attend(0, 1, self.part.far, None)
            fold(self.part, self.precision)
            self.part.pending.shrink(self.part.settled)
            return
        if not self.causal:
            self._append(0, T)
            self.part.far = self.part.far.of_all(self.part.pending)
            fold(self.part, self.precision)
        for start in range(0, T, SEGMENT):
            stop = min(start + SEGMENT, T)
            ranks = self._append(start, stop) if self.causal else None
            self._attend(start, stop, self._far(stop - start), ranks)
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

    def _take_token(self) -> None:
        """Take the one token in, and add what becomes far by it to the far sums of its row, which are the part's."""
        part, pending, tables = self.part, self.part.pending, self.part.tables
        B, G, _, d = self.k.shape
        pending.reserve(1, part.settled)
        priority = None if pending.priority is None else self.priority
        launch(
            "take_token",
            B * G,
            TAKE_TOKEN,
            {
                "new_keys": self.k.contiguous(),
                "new_values": self.v.contiguous(),
                "new_priorities": part.far.counts if priority is None else priority.contiguous(),
                "valid": _constant(B, 1, 1, torch.uint8, self.k.device) if self.valid is None else self.valid,
                "keys": pending.keys,
                "values": pending.values,
                "far_from": pending.far_from,
                "priorities": part.far.counts if priority is None else pending.priority,
                "extents": part.extents.of(pending, tables, 1, causal=True),
                "kept": tables.kept_counts,
                "delays": tables.delays,
                "far_keys": part.far.keys,
                "far_values": part.far.values,
                "far_counts": part.far.counts,
                "kv_heads": G,
            },
            {
                "HEAD_DIM": d,
                "HEAD_BLOCK": power_of_two(d),
                "VALUE_DIM": self.value_dim,
                "VALUE_BLOCK": power_of_two(self.value_dim),
                "RANKED": priority is not None,
                "MEANS": tables.around_mean is not None,
            },
        )
        pending.count(1)
        part.extents.advanced(pending, tables)

    # Attending

    def _attend(self, start: int, stop: int, far: FarSums, ranks: Optional[Tensor]) -> None:
        """Attend with rows ``start … stop - 1``, of which ``far`` are the far sums."""
        part, tables = self.part, self.part.tables
        q = (self.q if stop - start == self.q.shape[3] else self.q[:, :, :, start:stop]).contiguous()
        B, G, g, n, d = q.shape
        stacked = n <= work.STACKED_TOKENS
        block = query_rows(d, self.value_dim, self.precision, g * n if stacked else None)
        rows = Rows(g, n, block, stacked)
        todo = self._plan(rows, n)
        prepared = self._prepare(rows, q, far)
        numerators = part.sums.new_empty(max(1, todo.pieces), block, self.value_dim)
        denominators = part.sums.new_empty(max(1, todo.pieces), block)
        self._read_states(todo, rows, prepared, numerators, denominators)
        common: dict[str, Any] = {
            "coordinates": prepared.coordinates,
            "means": prepared.means,
            "keys": part.pending.keys,
            "values": part.pending.values,
            "far_from": part.pending.far_from,
            "extents": part.extents.of(part.pending, tables, n, self.causal),
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
        launch(
            "add_near_and_divide",
            len(todo.blocks),
            near_settings(d, self.value_dim, self.precision, block),
            {
                **common,
                "coefficients": prepared.coefficients,
                "slots": prepared.coefficients.shape[1],
                "folded_values": part.folded_values,
                "folded_counts": part.folded_counts,
                "far_values": far.values,
                "far_counts": far.counts,
                "drops": tables.drop_heads,
                "sink_keys": part.sink_keys,
                "sink_values": part.sink_values,
                "sink_counts": tables.sink_counts,
                "sink_slots": part.sink_keys.shape[2],
                **self._terms(),
                "ranks": _constant(B, n, EVERY, torch.int32, q.device) if ranks is None else ranks,
                "items": todo.blocks,
                "numbers": _numbers(part.kv_heads, q.device),
                "valid": _constant(B, 1, 1, torch.uint8, q.device) if self.valid is None else self.valid,
                "output": self.request.output,
                "guarded": self.request.guarded,
                "heads": self.request.q.shape[1],
                "all_tokens": self.request.q.shape[2],
                "first_token": start,
                "padded": int(self.valid is not None),
                "threshold": GUARD,
            },
            {
                **constants,
                "LEARNED": self.terms.sink_logits is not None,
                "CAPPED": self.terms.softcap is not None,
                "SHIFTED": self.terms.shift is not None,
            },
        )

    def _terms(self) -> dict[str, Any]:
        """What ``add_near_and_divide`` is given of learned sinks and soft cap."""
        terms, unread = self.terms, self.part.folded_counts
        return {
            "sink_logits": unread if terms.sink_logits is None else terms.sink_logits[0, :, 0].contiguous(),
            "shifts": unread if terms.shift is None else terms.shift.contiguous(),
            "softcap": terms.softcap or 0.0,
        }

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

    def _prepare(self, rows: Rows, q: Tensor, far: FarSums) -> _Prepared:
        """Write down what is read per row of queries ``[B, G, g, n, d]``."""
        part, tables = self.part, self.part.tables
        B, G, g, n, d = q.shape
        slots = slot_table(tuple(part.layouts.values()), q.device)
        prepared = _Prepared(
            q.new_empty(B * G, 1 + d, rows.width, dtype=self.precision.storage),
            part.sums.new_empty(B * G, tables.levels, rows.width),
            part.sums.new_empty(B * G, len(slots), rows.width),
        )
        launch(
            "prepare_rows",
            B * G * rows.width // PREPARED_ROWS,
            PREPARE_ROWS,
            {
                "queries": q,
                "far_keys": far.keys,
                "far_counts": far.counts,
                "origin": part.origin,
                "around_mean": part.sums if tables.around_mean is None else tables.around_mean,
                "level_ranks": tables.level_ranks,
                "degree_ranks": tables.degree_ranks,
                "expansions": tables.expansions,
                "slot_degrees": slots,
                "coordinates": prepared.coordinates,
                "means": prepared.means,
                "coefficients": prepared.coefficients,
                "ld": rows.width,
                "pitch": rows.pitch,
                "new": n,
                "kv_heads": G,
                "group": g,
                "number": len(slots),
                "scaling": self.scaling,
            },
            {
                "HEAD_DIM": d,
                "HEAD_BLOCK": power_of_two(d),
                "LEVELS": tables.levels,
                "DEGREES": tables.order,
                "SLOTS": 1 << (len(slots) - 1).bit_length(),
                "MEANS": tables.around_mean is not None,
                "ORIGIN": part.origin.shape[-1] > 0,
                "ROWS": PREPARED_ROWS,
            },
        )
        return prepared

    def _read_states(
        self, todo: Plan, rows: Rows, prepared: _Prepared, numerators: Tensor, denominators: Tensor
    ) -> None:
        """Read every layout's states."""
        part = self.part
        # Blocks of one head are many, and each reads the whole state: a copy half as large is worth its making.
        features = part.features if rows.stacked else part.features.to(self.precision.storage)
        first = 0
        for layout, of_layout in part.layouts.items():
            if layout in todo.states:
                todo_state = todo.states[layout]
                launch(
                    "read_state",
                    len(todo_state.items),
                    state_settings(rows.rows),
                    {
                        "coordinates": prepared.coordinates,
                        "coefficients": prepared.coefficients[:, first:],
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
                        "slots": prepared.coefficients.shape[1],
                    },
                    {**self.constants, **of_layout.constants, "ROWS": rows.rows, "TOGETHER": work.TOGETHER},
                )
            first += len(of_layout.slots)


@lru_cache(maxsize=64)
def _numbers(kv_heads: Sequence[int], device: torch.device) -> Tensor:
    """Those of KV heads, on a device."""
    return torch.tensor(kv_heads, dtype=torch.int32, device=device)


@lru_cache(maxsize=64)
def _constant(rows: int, columns: int, value: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor that is the same everywhere, and in every step: it is only read."""
    return torch.full((rows, columns), value, dtype=dtype, device=device)
