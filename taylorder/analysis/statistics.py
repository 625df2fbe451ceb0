"""Predictors of the truncation error that need no measurement of it (docs/math.md#13-predictors).

``std`` is a head's score standard deviation, ``P`` the order. None of these decides alone; they are reported beside the
measured error.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import lru_cache

import numpy as np
import torch
from scipy import special
from torch import Tensor

from taylorder.storage.processes import total

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(160)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_LARGEST = 400  # order that is looked for


def relative_remainder(scores: np.ndarray, order: int) -> np.ndarray:
    """``1 - e^-s T_P(s)`` for ``T_P(s) = sum_{p<P} s^p / p!``, without cancellation.

    For ``s >= 0`` it is the regularised lower incomplete gamma function; for ``s < 0`` Kummer's function continues it.
    """
    positive = special.gammainc(order, np.maximum(scores, 0.0))
    depth = np.maximum(-scores, 0.0)
    power = (-1.0) ** order * np.exp(special.xlogy(order, depth) - special.gammaln(order + 1))
    negative = power * special.hyp1f1(order, order + 1, depth)
    remainder: np.ndarray = np.where(scores >= 0, positive, negative)
    return remainder


@lru_cache(maxsize=65536)
def gaussian_prediction(std: float, order: int) -> float:
    """``sqrt(E[(e^s - T_P(s))^2] / E[e^2s])`` for normal scores of that standard deviation, expanded at their mean.

    ``e^2s`` times the normal density is a normal density around ``2 std^2``, which is where Gauss-Hermite puts its
    nodes; so wide heads do not overflow.
    """
    nodes = 2 * std * std + std * _NODES
    return float(np.sqrt(np.dot(_WEIGHTS, relative_remainder(nodes, order) ** 2)))


def fitted_floor(std: float, order: int) -> float:
    """Smallest such error any polynomial of degree P-1 can reach: ``sqrt(P[Poisson(std^2) >= P])``.

    It is the tail of the Hermite expansion of ``e^s``; the probability is a regularised incomplete gamma function.
    """
    return float(np.sqrt(special.gammainc(order, std * std)))


def certified_bound(radius: float, order: int, largest_value: float) -> float | None:
    """Rigorous bound on any element's error, ``2 R e^b max|v| / (1 - R e^b)``; None where it is vacuous.

    Args:
        radius: b, the largest distance of a far score from the expansion point.
        order: P; ``R = sum_{p>=P} b^p / p!``.
        largest_value: ``max|v|``.

    """
    log_remainder = radius + math.log(special.gammainc(order, radius)) if radius > 0 else -math.inf
    log_product = log_remainder + radius
    if log_product >= 0:
        return None
    product = math.exp(log_product)
    return 2 * product * largest_value / (1 - product)


def order_for(std: float, tolerance: float) -> int | None:
    """Smallest order whose Gaussian prediction meets the tolerance; None if none up to 400 does."""

    def meets(order: int) -> bool:
        return gaussian_prediction(std, order) <= tolerance

    return 1 + bisect_left(range(1, _LARGEST), True, key=meets) if meets(_LARGEST) else None


def logit_ranks(q: Tensor, k: Tensor, valid: Tensor) -> list[int]:
    """Coordinates that carry 90 % of each head's logit variance after balancing queries and keys of all processes.

    The variance of centred scores is ``tr(C_q C_k)``; the eigenvalues of that product are the squared balanced
    coordinates (balanced truncation; compare arXiv 2604.04384).

    Args:
        q: queries ``[B, H, T, d]``.
        k: keys ``[B, G, T, d]``.
        valid: bool ``[B, T]``, False for padding.

    Returns:
        One rank per query head.

    """
    H, G = q.shape[1], k.shape[1]
    ranks, tokens = [], total(valid.sum())
    for kv_head in range(G):
        keys = k[:, kv_head][valid].double()
        keys = keys - total(keys.sum(0)) / tokens
        covariance = total(keys.T @ keys) / tokens
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors * values.clamp(min=0).sqrt()
        for head in range(kv_head * (H // G), (kv_head + 1) * (H // G)):
            queries = q[:, head][valid].double() @ root
            energy = torch.linalg.eigvalsh(total(queries.T @ queries)).flip(0).clamp(min=0).cumsum(0)
            ranks.append(int((energy < 0.9 * energy[-1]).sum()) + 1)
    return ranks
