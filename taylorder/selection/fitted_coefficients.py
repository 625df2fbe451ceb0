"""Polynomial coefficients fitted to a head: least squares on the error of its output, instead of ``1 / p!``.

The output of a row is ``(N_0 + sum_p c_p N_p) / (D_0 + sum_p c_p D_p)``, with the sums over near keys ``N_0, D_0`` and
those of the p-th power of the score over far keys ``N_p, D_p``. The quotient makes it a nonlinear problem of P
unknowns, which ``scipy.optimize.least_squares`` solves with the derivative ``(N_p - output D_p) / D``, beginning at
``1 / p!``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares
from torch import Tensor

from taylorder.kernels.score_terms import PLAIN, ScoreTerms
from taylorder.kernels.spec import GUARD, HeadSpec, Taylor

_EVALUATIONS = 50


class HeadRows:
    """Some query rows of one query head against all keys of one sequence, float64, with what all candidates share."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, terms: ScoreTerms = PLAIN) -> None:
        """Form the scores.

        Args:
            q: ``[R, d]``, scaled (and rotated, if candidates have ranks).
            k: ``[T, d]``, centred (and rotated).
            v: ``[T, d_v]``.
            rows: positions of the queries ``[R]``.
            terms: of the rows ``[R]``.

        """
        self.q, self.k = q, k
        self.row, self.key = rows[:, None].to(k.device), torch.arange(len(k), device=k.device)
        self.seen = self.key <= self.row
        self.values = torch.cat([v, v.new_ones(len(v), 1)], -1)
        self.scores = q @ k.T
        masked = terms.capped(self.scores).masked_fill(~self.seen, -math.inf)
        self.top = masked.amax(-1, keepdim=True)
        sinks = terms.sinks
        if sinks is not None:
            self.top = torch.maximum(self.top, sinks[:, None])
        self.weights = (masked - self.top).exp()
        self.sunk = q.new_zeros(len(q), self.values.shape[-1])  # what learned sinks add to sums: no values
        if sinks is not None:
            self.sunk[:, -1] = (sinks - self.top[:, 0]).exp()
        self.exact = self.weights @ self.values + self.sunk


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums of the rows of a head under a candidate, all to the scale of the row's largest weight.

    ``near`` ``[R, d_v + 1]``, ``powers`` ``[R, P, d_v + 1]``, ``exact`` ``[R, d_v + 1]`` (the last column is the
    denominator); ``far`` ``[R]`` is the number of far keys times the scale of the far part.
    """

    near: Tensor
    powers: Tensor
    exact: Tensor
    far: Tensor


def moments(head: HeadRows, spec: HeadSpec, far_rows: Tensor | None = None) -> Moments:
    """Sum over near and far keys of a candidate, in score space.

    ``far_rows`` is the row from which on each key is far, ``[T]``, asked for where keys are kept.
    """
    polynomial = spec.far
    if not isinstance(polynomial, Taylor):
        raise ValueError(f"{polynomial} has no polynomial, and so no moments")
    near = spec.near.mask(head.row, head.key) if far_rows is None else head.seen & (head.row < far_rows)
    far = (head.seen & ~near).double()
    count = far.sum(-1, keepdim=True)
    d = head.q.shape[-1]

    def centred(rank: int) -> tuple[Tensor, Tensor]:
        part = head.scores if rank == d else head.q[:, :rank] @ head.k[:, :rank].T
        if polynomial.expansion != "mean":
            return part, torch.zeros_like(count)
        mean = (part * far).sum(-1, keepdim=True) / count.clamp(min=1)
        return part - mean, mean

    x, point = centred(d)
    scale = (point - head.top).exp()
    powers, power = [scale * (far @ head.values)], far
    for degree in range(1, polynomial.order):
        if polynomial.ranks is not None and degree > 1:
            x, _ = centred(polynomial.ranks[degree])
            power = far * x ** (degree - 1)
        power = power * x
        powers.append(scale * (power @ head.values))
    return Moments(
        (head.weights * near) @ head.values + head.sunk, torch.stack(powers, 1), head.exact, (count * scale)[:, 0]
    )


def fit(parts: Sequence[Moments]) -> tuple[float, ...]:
    """Coefficients of least squared output error over all rows, the guard applied; never worse there than 1 / p!.

    ``parts`` are the moments of one query head, one for each sequence.
    """
    order = parts[0].powers.shape[1]
    near, powers, exact = (
        torch.cat([getattr(part, name) for part in parts]).cpu().numpy() for name in ("near", "powers", "exact")
    )
    far = torch.cat([part.far for part in parts]).cpu().numpy()
    taylor = np.array([1 / math.factorial(p) for p in range(order)])
    truncated = far > 0
    if not truncated.any():
        return tuple(taylor.tolist())
    near, powers, far = near[truncated], powers[truncated], far[truncated]
    target = exact[truncated, :-1] / exact[truncated, -1:]

    def output(scale: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Outputs ``[R, d_v]``, denominators ``[R, 1]``, and which rows are guarded ``[R]``."""
        polynomial = np.einsum("p,rpd->rd", scale * taylor, powers)
        guarded = polynomial[:, -1] <= GUARD * far
        total = near + np.where(guarded[:, None], powers[:, 0], polynomial)
        return total[:, :-1] / total[:, -1:], total[:, -1:], guarded

    def residual(scale: NDArray[Any]) -> NDArray[Any]:
        difference: NDArray[Any] = output(scale)[0] - target
        return difference.ravel()

    def derivative(scale: NDArray[Any]) -> NDArray[Any]:
        outputs, denominator, guarded = output(scale)
        columns: NDArray[Any] = (powers[..., :-1] - outputs[:, None] * powers[..., -1:]) / denominator[:, None]
        columns[guarded] = 0.0
        columns *= taylor[:, None]
        return columns.transpose(0, 2, 1).reshape(-1, order)

    # In units of 1 / p!, and as unlike each other as the powers are: the solver scales by the columns.
    start = np.ones(order)
    solved = least_squares(residual, start, derivative, method="lm", x_scale="jac", max_nfev=_EVALUATIONS).x
    better = np.isfinite(solved).all() and np.square(residual(solved)).sum() < np.square(residual(start)).sum()
    return tuple((taylor * (solved if better else start)).tolist())
