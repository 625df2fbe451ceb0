"""Keys folded into states and queries that read them, with gradients: what ``recorded_features`` does, in Triton.

Forward is the kernels that fold and read without gradients. What flows back through a reading is folded like keys are,
with the rows' coefficients; what flows back to values is read from the gradient of the state like queries read a state;
and one kernel has the gradients of coordinates and coefficients for both. Products are as precise as float32's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..polynomial import Polynomials
from ..recorded_features import Features
from .fold import STEP
from .launch import launch, machine, product_constants, triton_problem
from .layout_tables import Kind, LayoutTables, layout_tables
from .plan import TOGETHER
from .settings import (
    GRADIENT_ROWS,
    GRADIENT_SETTINGS,
    GRADIENT_TILE,
    MOST_GRADIENT_DIM,
    Precision,
    fold_settings,
    power_of_two,
    query_rows,
    state_settings,
)
from .tiles import TOP, Layout


@dataclass(frozen=True)
class TritonFeatures(Features):
    """In the tiles of a layout: values summed ``[N, 1, d_v + 1]``, features ``[N, R, d_v]`` and sums ``[N, R]``.

    Attributes:
        head_dim: d.
        ranks: coordinates of every degree, that of degree 1 at least 1; entry 0 is unused.

    """

    head_dim: int
    ranks: tuple[int, ...]

    def fold(self, keys: Tensor, values: Tensor) -> list[Tensor]:
        tables = _Tables.of(self.head_dim, self.ranks, keys.device)
        ones, values = values[..., -1:], values[..., :-1]
        folded = _Fold.apply(  # type: ignore[no-untyped-call]  # not typed by torch
            tables, _columns(keys, ones), _padded(values.contiguous(), 1)
        )
        return [torch.cat([values, ones], -1).sum(1, keepdim=True), *folded]

    def read(
        self, queries: Tensor, folded: Sequence[Tensor], polynomials: Polynomials, means: Optional[list[Tensor]]
    ) -> Tensor:
        N, g, C, d = queries.shape
        tables = _Tables.of(self.head_dim, self.ranks, queries.device)
        values, features, sums = folded
        rows = queries.reshape(N, g * C, d)
        coefficients = _slot_coefficients(polynomials, means, tables.of_layout.slots, C).reshape(N, -1, g * C)
        numerator, denominator = _Read.apply(  # type: ignore[no-untyped-call]  # not typed by torch
            tables, _columns(rows, torch.ones_like(rows[..., :1])), _padded(coefficients, 2), features, sums
        )
        total = torch.cat([numerator, denominator[..., None]], -1)[:, : g * C] + coefficients[:, 0, :, None] * values
        return total.view(N, g, C, -1)


def triton_features(
    head_dim: int, value_dim: int, ranks: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> Optional[TritonFeatures]:
    """What folds and reads here, in that dtype; None where Triton cannot, or would be short of registers."""
    fits = max(head_dim, value_dim) <= MOST_GRADIENT_DIM and dtype == torch.float32 and ranks[1] > 0
    return TritonFeatures(head_dim, ranks) if fits and triton_problem(device) is None else None


def _columns(rows: Tensor, ones: Tensor) -> Tensor:
    """Coordinates ``[N, 1 + d, ld]`` of rows ``[N, C, d]``, above them ones where rows count ``[N, C, 1]``."""
    return _padded(torch.cat([ones, rows], -1).mT.contiguous(), 2)


def _padded(tensor: Tensor, dim: int) -> Tensor:
    """The same with zeros up to a multiple of ``STEP`` along a dimension."""
    more = -tensor.shape[dim] % STEP
    return torch.nn.functional.pad(tensor, (0, 0) * (tensor.ndim - 1 - dim) + (0, more)) if more else tensor


def _slot_coefficients(
    polynomials: Polynomials, means: Optional[list[Tensor]], slots: Sequence[tuple[int, int]], rows: int
) -> Tensor:
    """What multiplies the features of every slot, ``[N, slots, g, C]``; see ``Polynomials.state_coefficients``."""
    c = polynomials.coefficients[:, :, None]
    of_slots = []
    for degree, last in slots:
        total = c[..., degree].expand(-1, -1, rows)
        if means is not None:
            for p in range(degree + 1, polynomials.order if last == TOP else last + 1):
                total = total + c[..., p] * math.comb(p, degree) * (-means[p]) ** (p - degree)
        of_slots.append(total)
    return torch.stack(of_slots, 1)


def gradient_layout(head_dim: int, order: int, ranks: Optional[Sequence[int]] = None) -> Layout:
    """The layout of states that pass gradients, which no call without gradients goes on from."""
    layout = Layout.choose(head_dim, order, ranks)
    return replace(layout, tile=min(layout.tile, GRADIENT_TILE))


@dataclass(frozen=True, eq=False)
class _Tables:
    """What launches for states of one kind have in common.

    Attributes:
        of_layout: tables of the layout.
        kind: the only kind in them.
        precision: of products.
        head_dim: d.

    """

    of_layout: LayoutTables
    kind: Kind
    precision: Precision
    head_dim: int

    @staticmethod
    @lru_cache(maxsize=32)
    def of(head_dim: int, ranks: tuple[int, ...], device: torch.device) -> _Tables:
        kind = Kind(len(ranks), ranks)
        layout = gradient_layout(head_dim, kind.order, ranks)
        with torch.inference_mode(False):
            of_layout = layout_tables(layout, head_dim, (kind,), device)
        return _Tables(of_layout, kind, Precision.of(torch.float32, machine()), head_dim)

    @property
    def rows(self) -> int:
        """Of a state."""
        return self.of_layout.tiles(self.kind) * self.of_layout.layout.tile

    def common(self, coordinates: Tensor) -> dict[str, Any]:
        """Arguments of every launch: the tables, and where each state begins."""
        N, _, ld = coordinates.shape
        return {
            "coordinates": coordinates,
            "state_rows": torch.arange(N, device=coordinates.device) * self.rows,
            "factors": self.of_layout.factors,
            "prefixes": self.of_layout.prefixes,
            "ld": ld,
        }

    def constants(self, value_dim: int) -> dict[str, Any]:
        """Compile-time constants of every launch."""
        return {**product_constants(self.head_dim, value_dim, self.precision), **self.of_layout.constants}

    def runs(self, device: torch.device) -> Tensor:
        """All of a state, int32 ``[runs, 3]``."""
        runs = [(run.group, run.first, run.count) for run in self.of_layout.runs_of(self.kind, self.kind.order)]
        return torch.tensor(runs, dtype=torch.int32, device=device)

    def tiles(self, states: int, device: torch.device) -> Tensor:
        """Every tile of every state, int32 ``[programs, 2]``."""
        n, tile = torch.arange(states, device=device), torch.arange(self.of_layout.tiles(self.kind), device=device)
        return torch.cartesian_prod(n, tile).int()

    def blocks(self, states: int, ld: int, rows: int, device: torch.device) -> Tensor:
        """All rows of every state, int32 ``[programs, 2]``: the state, and the first row of the block."""
        n, first = torch.arange(states, device=device), torch.arange(0, ld, rows, device=device)
        return torch.cartesian_prod(n, first).int()

    def fold(self, coordinates: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Features and sums of keys in columns, with their values ``[N, ld, d_v]``."""
        N, _, ld = coordinates.shape
        features = values.new_zeros(N, self.rows, values.shape[-1])
        sums = values.new_zeros(N, self.rows)
        items = self.tiles(N, values.device)
        launch(
            "fold_tokens",
            len(items),
            fold_settings(self.head_dim, values.shape[-1], self.precision),
            {
                **self.common(coordinates), "values": values, "features": features, "sums": sums, "items": items,
                "tokens": torch.full((N,), ld, device=values.device), "tile_groups": self.of_layout.tile_groups,
                "multiplicity": self.of_layout.multiplicity,
            },
            self.constants(values.shape[-1]),
        )  # fmt: skip
        return features, sums

    def fold_rows(
        self, coordinates: Tensor, coefficients: Tensor, row_values: Tensor, row_weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of features and sums that rows have read, from those of what they read."""
        N, d_v = coordinates.shape[0], row_values.shape[-1]
        features, sums = row_values.new_empty(N, self.rows, d_v), row_values.new_empty(N, self.rows)
        items = self.tiles(N, row_values.device)
        launch(
            "fold_rows",
            len(items),
            fold_settings(self.head_dim, d_v, self.precision),
            {
                **self.common(coordinates), "coefficients": coefficients, "row_values": row_values,
                "row_weights": row_weights, "features": features, "sums": sums, "items": items,
                "tile_groups": self.of_layout.tile_groups, "slots": coefficients.shape[1],
            },
            self.constants(d_v),
        )  # fmt: skip
        return features, sums

    def read(self, coordinates: Tensor, coefficients: Tensor, features: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Numerators ``[N, ld, d_v]`` and denominators ``[N, ld]`` of rows in columns, degree 0 aside."""
        N, _, ld = coordinates.shape
        d_v = features.shape[-1]
        rows = query_rows(self.head_dim, d_v, self.precision, None)
        blocks, runs = self.blocks(N, ld, rows, features.device), self.runs(features.device)
        whole = torch.tensor([[0, len(runs)]], dtype=torch.int32, device=features.device).expand(len(blocks), 2)
        pieces = torch.arange(len(blocks), dtype=torch.int32, device=features.device)[:, None]
        numerator, denominator = features.new_empty(N, ld, d_v), features.new_empty(N, ld)
        launch(
            "read_state",
            len(blocks),
            state_settings(rows),
            {
                **self.common(coordinates), "coefficients": coefficients, "features": features, "sums": sums,
                "items": torch.cat([blocks, whole, pieces], 1).contiguous(), "runs": runs, "numerators": numerator,
                "denominators": denominator, "slots": coefficients.shape[1],
            },
            {**self.constants(d_v), "ROWS": rows, "TOGETHER": TOGETHER},
        )  # fmt: skip
        return numerator, denominator

    def differentiate(
        self, coordinates: Tensor, coefficients: Tensor, row_values: Tensor, row_weights: Tensor, features: Tensor,
        sums: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Gradients of coordinates ``[N, 1 + d, ld]``, zero for the ones, and of coefficients ``[N, slots, ld]``."""
        N, _, ld = coordinates.shape
        d_v = features.shape[-1]
        blocks, runs = self.blocks(N, ld, GRADIENT_ROWS, features.device), self.runs(features.device)
        whole = torch.tensor([[0, len(runs)]], dtype=torch.int32, device=features.device).expand(len(blocks), 2)
        by_coordinates = features.new_empty(N, self.head_dim, ld)
        by_coefficients = torch.empty_like(coefficients)
        launch(
            "differentiate_rows",
            len(blocks),
            GRADIENT_SETTINGS,
            {
                **self.common(coordinates), "coefficients": coefficients, "row_values": row_values,
                "row_weights": row_weights, "features": features, "sums": sums,
                "items": torch.cat([blocks, whole], 1).contiguous(), "runs": runs, "by_coordinates": by_coordinates,
                "by_coefficients": by_coefficients, "slots": coefficients.shape[1],
            },
            {
                **self.constants(d_v), "HEAD_BLOCK": power_of_two(self.head_dim),
                "SLOTS": power_of_two(coefficients.shape[1]), "ROWS": GRADIENT_ROWS,
            },
        )  # fmt: skip
        return torch.nn.functional.pad(by_coordinates, (0, 0, 1, 0)), by_coefficients


class _Fold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tables: _Tables, coordinates: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        ctx.tables = tables
        ctx.save_for_backward(coordinates, values)
        return tables.fold(coordinates, values)

    @staticmethod
    @once_differentiable  # type: ignore[misc]  # not typed by torch
    def backward(ctx: Any, by_features: Tensor, by_sums: Tensor) -> tuple[None, Tensor, Tensor]:
        tables: _Tables = ctx.tables
        coordinates, values = ctx.saved_tensors
        times = tables.of_layout.multiplicity
        by_features, by_sums = (by_features * times[:, None]).contiguous(), by_sums * times
        ones = values.new_ones(len(values), len(tables.of_layout.slots), values.shape[1])
        by_values, _ = tables.read(coordinates, ones, by_features, by_sums)
        by_coordinates, _ = tables.differentiate(
            coordinates, ones, values, ones[:, 0].contiguous(), by_features, by_sums
        )
        return None, by_coordinates, by_values


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tables: _Tables, coordinates: Tensor, coefficients: Tensor, features: Tensor, sums: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.tables = tables
        ctx.save_for_backward(coordinates, coefficients, features, sums)
        return tables.read(coordinates, coefficients, features, sums)

    @staticmethod
    @once_differentiable  # type: ignore[misc]  # not typed by torch
    def backward(ctx: Any, by_numerator: Tensor, by_denominator: Tensor) -> tuple[Optional[Tensor], ...]:
        tables: _Tables = ctx.tables
        coordinates, coefficients, features, sums = ctx.saved_tensors
        rows = by_numerator.contiguous(), by_denominator.contiguous()
        by_state = tables.fold_rows(coordinates, coefficients, *rows)
        return None, *tables.differentiate(coordinates, coefficients, *rows, features, sums), *by_state
