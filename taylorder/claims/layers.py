"""The figures of a model's layers that claims set against each other, from a finished analysis."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from taylorder.analysis.results import Analysis, CandidateRow, Role, SpectralRow
from taylorder.kernels.spec import Expansion

Floats: TypeAlias = NDArray[np.float64]

_SMALLEST = 1e-12
"""Errors below this are this: their logarithm is taken."""


@dataclass(frozen=True)
class Layers:
    """One model's attention modules, in order, and lookups of their figures.

    ``label`` is what to call the model, None for its name. All methods that return arrays return float64 ``[layers]``,
    NaN where a layer has no such figure.
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

    def spectral(self, role: Role, figure: Callable[[SpectralRow], float | None]) -> Floats:
        """A figure of the whole projection."""
        by_module = {
            row.module: figure(row)
            for row in self.analysis.spectral
            if row.role == role and row.head is None and row.status == "success"
        }
        return _array(by_module.get(module) for module in self.modules)

    def distance_of_alpha_from_2(self) -> Floats:
        """``|alpha - 2|``, where a layer's alpha is the mean of those of q and k."""
        of_q, of_k = self.spectral("q", lambda row: row.alpha), self.spectral("k", lambda row: row.alpha)
        distance: Floats = abs((of_q + of_k) / 2 - 2)
        return distance

    def heads(self, order: int, expansion: Expansion) -> dict[str, list[CandidateRow]]:
        """The rows of a candidate by module."""
        by_module: dict[str, list[CandidateRow]] = {module: [] for module in self.modules}
        for row in self.analysis.candidates:
            if row.order == order and row.expansion == expansion:
                by_module[row.module].append(row)
        return by_module

    def rows(self, order: int, expansion: Expansion) -> list[CandidateRow]:
        """The rows of a candidate, of all heads."""
        return [row for heads in self.heads(order, expansion).values() for row in heads]

    def over_heads(self, order: int, expansion: Expansion, figure: Callable[[CandidateRow], float]) -> Floats:
        """Mean of a figure over the query heads of each layer."""
        return _array(
            statistics.fmean(map(figure, heads)) if heads else None for heads in self.heads(order, expansion).values()
        )

    def log_error(self, order: int, expansion: Expansion) -> Floats:
        """Mean over heads of the decimal logarithm of the relative L2 error."""
        return self.over_heads(order, expansion, lambda row: log10(row.relative_l2))

    def log_score_std(self, order: int, expansion: Expansion) -> Floats:
        """Mean over heads of the decimal logarithm of the score standard deviation."""
        return self.over_heads(order, expansion, lambda row: log10(row.score_std))


def log10(value: float) -> float:
    """Decimal logarithm of an error that may be nothing."""
    return math.log10(max(value, _SMALLEST))


def complete(*figures: Floats) -> list[Floats]:
    """The figures of the layers that have all of them."""
    known = np.all([np.isfinite(figure) for figure in figures], axis=0)
    return [figure[known] for figure in figures]


def _array(values: Iterable[float | None]) -> Floats:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)
