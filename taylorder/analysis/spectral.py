"""Spectral exponent alpha of the q, k, v and o matrices, measured by WeightWatcher and never re-implemented.

WeightWatcher fits a power law ``p(x) ~ x^-alpha``, x >= x_min, to the eigenvalues of ``W^T W`` (Clauset, Shalizi and
Newman, arXiv 0706.1062), taking the x_min with the smallest Kolmogorov-Smirnov distance D. That minimum is often nearly
tied between tails of very different length, so next to alpha stands the range over all tail starts nearly as good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from taylorder.analysis import _weightwatcher
from taylorder.analysis.results import Projection, SpectralRow
from taylorder.errors import TaylorderError

NEAR_TIE = 0.01
"""Tail starts whose D is at most this far above the smallest one count as tied with it."""

PER_HEAD_NOTE = (
    "Per-head alphas are noisy: a head's slice has only as many eigenvalues as the head has dimensions (WeightWatcher "
    "advises at least 50), and its shape differs from the whole matrix's, so the two alphas cannot be compared."
)

_ROUNDING = 1e-5
"""Relative spread that rounding weights to float32 can give equal eigenvalues: some ``2 eps sqrt(rank)``."""

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """One projection matrix to fit: ``weight`` is ``[out, in]`` in a floating dtype, on any device.

    ``head`` is the query head (q, o) or the KV head (k, v) whose slice this is, None for the whole projection.
    """

    module: str
    projection: Projection
    weight: torch.Tensor
    head: int | None = None


def fit_spectra(matrices: Sequence[Matrix]) -> tuple[SpectralRow, ...]:
    """Fit every matrix: one row for each, in the order given; a fit that cannot be used is a row saying so, not a gap.

    A row is ``failed`` where WeightWatcher fails or skips the matrix (fewer than 8 singular values), where what it
    calls a success is no power law (see :func:`_usable`), and where weights are NaN, infinite or all zero in float32.
    ``spectral_norm`` is the largest singular value of W itself (WeightWatcher's column of that name holds its square);
    ``stable_rank`` is ``|W|_F^2 / |W|_2^2``; ``hill_alpha`` is the fit over the largest half of the eigenvalues.

    WeightWatcher sees float32 on the CPU and one BLAS thread, whatever the host. Raises :class:`TaylorderError` for
    tensors that are no plain 2-D floating matrices in memory, before any fit is made.
    """
    for matrix in matrices:
        _check(matrix)
    return tuple(map(_fit, matrices))


def _check(matrix: Matrix) -> None:
    weight = matrix.weight
    if weight.ndim != 2:
        problem = f"a tensor of shape {list(weight.shape)}, expected a matrix [out, in]; reshape or slice it first"
    elif weight.dtype not in _DTYPES:
        problem = f"of dtype {weight.dtype}, expected plain floating weights; load the model dequantised"
    elif weight.is_meta:
        problem = "on the meta device, without values; load the model without offloading"
    else:
        return
    raise TaylorderError(f"{matrix.module}: projection {matrix.projection} is {problem}")


def _fit(matrix: Matrix) -> SpectralRow:
    weight = np.ascontiguousarray(matrix.weight.detach().to("cpu", torch.float32).numpy())
    rows, columns = weight.shape
    failed = SpectralRow(
        matrix.module, matrix.projection, status="failed", rows=rows, columns=columns, head=matrix.head
    )
    # One matrix with a NaN would abort WeightWatcher's whole run, and zeros have no spectrum to take logarithms of.
    if not np.isfinite(weight).all() or not weight.any():
        return failed
    analysed = _weightwatcher.analyze_matrix(weight)
    if analysed is None or not _usable(analysed[0]):
        return failed
    details, fit = analysed
    alpha = float(details["alpha"])
    low, high = _near_ties(fit, alpha)
    return replace(
        failed,
        alpha=alpha,
        D=float(details["D"]),
        sigma=float(details["sigma"]),
        tail=int(details["num_pl_spikes"]),
        status="success",
        alpha_low=low,
        alpha_high=high,
        spectral_norm=float(details["sv_max"]),
        stable_rank=float(details["stable_rank"]),
        hill_alpha=_hill(fit),
    )


def _usable(details: Mapping[str, Any]) -> bool:
    """Tell a fit from WeightWatcher's failures, including those it calls a success.

    Those are: alpha infinite (constant spectrum), or finite but from a tail no wider than rounding (an orthogonal
    matrix gives millions); sigma negative (fewer than 8 eigenvalues above WeightWatcher's floor of 1e-5).
    """
    if details["status"] != "success":
        return False
    alpha, sigma, distance, low, high = (float(details[key]) for key in ("alpha", "sigma", "D", "xmin", "xmax"))
    return (
        all(map(math.isfinite, (alpha, sigma, distance))) and alpha > 1 and sigma > 0 and high > low * (1 + _ROUNDING)
    )


def _near_ties(fit: Any, alpha: float) -> tuple[float, float]:
    """Return the smallest and largest alpha over the tail starts with D within ``NEAR_TIE`` of the best, that included.

    ``fit`` is WeightWatcher's ``WWFit``: ``alphas`` and ``Ds`` are float64, one entry per eigenvalue but the largest.
    """
    if fit is None or fit.alpha != alpha:
        raise TaylorderError(
            "this version of weightwatcher does not hand over its power-law fit, so the range over near-tied tail "
            "starts cannot be read; install weightwatcher 0.7.7"
        )
    tied = fit.alphas[(fit.Ds <= fit.D + NEAR_TIE) & (fit.alphas > 1) & np.isfinite(fit.alphas)]
    return float(tied.min()), float(tied.max())


def _hill(fit: Any) -> float | None:
    """Hill's estimate over the largest half, as AlphaPruning takes it (arXiv 2410.10912): no choice of a tail start."""
    alphas = fit.alphas
    count = len(alphas) + 1
    alpha = float(alphas[count - count // 2])
    return alpha if math.isfinite(alpha) and alpha > 1 else None
