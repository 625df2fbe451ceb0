"""The figures of a model's layers that claims set against each other, from a finished analysis."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from taylorder.analysis.results import Analysis, CandidateRow, Projection, SpectralRow
from taylorder.claims.association import Floats
from taylorder.kernels.spec import Expansion

_SMALLEST = 1e-12
"""Errors below this are this: their logarithm is taken."""


@dataclass(frozen=True)
class Layers:
    """One model's attention modules, in order, and lookups of their figures.

    ``label`` is what to call the model, None for its name. All methods return float64 ``[layers]``, NaN where a layer
    has no such figure.
    """

    analysis: Analysis
    label: str | None = None

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.label or self.analysis.model.name

    @property
    def modules(self) -> list[str]:
        """Names of the modules."""
        return [module.name for module in self.analysis.model.modules]

    def depth(self) -> Floats:
        """Number of the layer, from 0."""
        return np.arange(len(self.modules), dtype=np.float64)

    def spectral(self, projection: Projection, figure: Callable[[SpectralRow], float | None]) -> Floats:
        """A figure of the whole projection."""
        found = {
            row.module: figure(row)
            for row in self.analysis.spectral
            if row.projection == projection and row.head is None and row.status == "success"
        }
        return _array(found.get(module) for module in self.modules)

    def both(self, figure: Callable[[SpectralRow], float | None]) -> Floats:
        """Mean of a figure over q and k."""
        return (self.spectral("q", figure) + self.spectral("k", figure)) / 2

    def heads(self, order: int, expansion: Expansion) -> dict[str, list[CandidateRow]]:
        """The rows of a candidate by module."""
        found: dict[str, list[CandidateRow]] = {module: [] for module in self.modules}
        for row in self.analysis.candidates:
            if row.order == order and row.expansion == expansion:
                found[row.module].append(row)
        return found

    def rows(self, order: int, expansion: Expansion) -> list[CandidateRow]:
        """The rows of a candidate, of all heads."""
        return [row for own in self.heads(order, expansion).values() for row in own]

    def over_heads(self, order: int, expansion: Expansion, figure: Callable[[CandidateRow], float]) -> Floats:
        """Mean of a figure over the query heads of each layer."""
        return _array(
            statistics.fmean(map(figure, rows)) if rows else None for rows in self.heads(order, expansion).values()
        )

    def log_error(self, order: int, expansion: Expansion) -> Floats:
        """Mean over heads of the decimal logarithm of the relative L2 error."""
        return self.over_heads(order, expansion, lambda row: log10(row.relative_l2))

    def needed_order(self, tolerance: float, expansion: Expansion) -> tuple[Floats, float]:
        """Mean over heads of the smallest order within a tolerance, and the share of heads that have none.

        Those count as one more than the largest order measured.
        """
        largest = self.analysis.max_order
        needed: dict[tuple[str, int], int] = {}
        for row in sorted(self.analysis.candidates, key=lambda row: row.order):
            if row.expansion == expansion:
                key = row.module, row.head
                known = needed.setdefault(key, largest + 1)
                if known > largest and row.relative_l2 <= tolerance:
                    needed[key] = row.order
        by_layer: dict[str, list[int]] = {module: [] for module in self.modules}
        for (module, _), order in needed.items():
            by_layer[module].append(order)
        missed = statistics.fmean(order > largest for order in needed.values())
        return _array(statistics.fmean(own) if own else None for own in by_layer.values()), missed


def log10(value: float) -> float:
    """Decimal logarithm of an error that may be nothing."""
    return math.log10(max(value, _SMALLEST))


def complete(*figures: Floats) -> list[Floats]:
    """The figures of the layers that have all of them."""
    known = np.all([np.isfinite(each) for each in figures], axis=0)
    return [each[known] for each in figures]


def _array(values: Iterable[float | None]) -> Floats:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)
