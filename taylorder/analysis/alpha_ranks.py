"""Layers ranked by how near their alpha is to 2, and orders spread over those ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from taylorder.analysis.results import SpectralRow


def layer_alpha(spectral: Iterable[SpectralRow], module: str) -> float | None:
    """Mean of the alphas of q and k, the projections that make the scores; None if neither could be fitted."""
    alphas = [
        row.alpha
        for row in spectral
        if row.module == module and row.role in ("q", "k") and row.head is None and row.alpha is not None
    ]
    return sum(alphas) / len(alphas) if alphas else None


def rank_by_alpha(alphas: Mapping[str, float | None]) -> dict[str, int]:
    """Rank of every layer that has an alpha, nearest to 2 first."""
    known = sorted((abs(alpha - 2), name) for name, alpha in alphas.items() if alpha is not None)
    return {name: rank for rank, (_, name) in enumerate(known)}


def spread(rank: int, layers: int, largest: int) -> int:
    """Order of the layer of that rank when 1 … ``largest`` are spread evenly over all ranks."""
    return 1 + rank * largest // layers
