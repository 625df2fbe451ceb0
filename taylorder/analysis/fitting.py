"""Polynomial coefficients fitted to a head: least squares on the error of its output, instead of ``1 / p!``.

The output of a row is ``(N_0 + sum_p c_p N_p) / (D_0 + sum_p c_p D_p)``, with the sums over near keys ``N_0, D_0`` and
those of the p-th power of the score over far keys ``N_p, D_p``. Against the exact output ``o``, its error is
``(N(c) - o D(c)) / D(c)``: linear in ``c`` once the denominator is known, so it is solved again with the denominators
of the solution before (iteratively reweighted least squares), beginning with the exact ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taylorder.analysis.candidates import Candidate
from taylorder.analysis.truncation import GUARD

_ROUNDS = 4
_LEAST_DENOMINATOR = 0.1
"""Of the exact one: a row whose polynomial nearly vanishes must not outweigh all others."""


class HeadRows:
    """Some query rows of one query head against all keys of one sequence, float64, with what all candidates share."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> None:
        """Form the scores.

        Args:
            q: ``[R, d]``, scaled (and rotated, if candidates have ranks).
            k: ``[T, d]``, centred (and rotated).
            v: ``[T, d_v]``.
            rows: positions of the queries ``[R]``.

        """
        self.q, self.k = q, k
        self.row, self.key = rows[:, None], torch.arange(len(k), device=k.device)
        self.seen = self.key <= self.row
        self.values = torch.cat([v, v.new_ones(len(v), 1)], -1)
        self.scores = q @ k.T
        masked = self.scores.masked_fill(~self.seen, -math.inf)
        self.top = masked.amax(-1, keepdim=True)
        self.weights = (masked - self.top).exp()
        self.exact = self.weights @ self.values


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


def moments(head: HeadRows, candidate: Candidate) -> Moments:
    """Sum over near and far keys of a candidate, in score space."""
    if candidate.order is None:
        raise ValueError("an exact head has no moments")
    recent = head.key > head.row - candidate.window
    near = head.seen & (recent | (head.key < candidate.sinks))
    far = (head.seen & ~near).double()
    count = far.sum(-1, keepdim=True)
    d = head.q.shape[-1]

    def centred(rank: int) -> tuple[Tensor, Tensor]:
        part = head.scores if rank == d else head.q[:, :rank] @ head.k[:, :rank].T
        if candidate.expansion != "mean":
            return part, torch.zeros_like(count)
        mean = (part * far).sum(-1, keepdim=True) / count.clamp(min=1)
        return part - mean, mean

    x, point = centred(d)
    scale = (point - head.top).exp()
    powers, power = [scale * (far @ head.values)], far
    for degree in range(1, candidate.order):
        if candidate.ranks is not None and degree > 1:
            x, _ = centred(candidate.ranks[degree])
            power = far * x ** (degree - 1)
        power = power * x
        powers.append(scale * (power @ head.values))
    return Moments((head.weights * near) @ head.values, torch.stack(powers, 1), head.exact, (count * scale)[:, 0])


def fit(parts: Sequence[Moments], order: int) -> tuple[float, ...]:
    """Coefficients of least squared output error over all rows, the guard applied; never worse there than 1 / p!.

    Args:
        parts: the moments of one query head, one for each sequence.
        order: P.

    """
    near, powers, exact = (torch.cat([getattr(part, name) for part in parts]) for name in ("near", "powers", "exact"))
    far = torch.cat([part.far for part in parts])
    truncated = far > 0
    near, powers, exact, far = near[truncated], powers[truncated], exact[truncated], far[truncated]
    taylor = torch.tensor([1 / math.factorial(p) for p in range(order)], dtype=torch.float64)
    if not len(near):
        return tuple(taylor.tolist())
    target = exact[:, :-1] / exact[:, -1:]
    constant = near[:, :-1] - target * near[:, -1:]  # [R, d_v]
    columns = powers[..., :-1] - target[:, None] * powers[..., -1:]  # [R, P, d_v]

    def error(c: Tensor) -> float:
        polynomial = torch.einsum("p,rpd->rd", c, powers)
        guarded = polynomial[:, -1:] <= GUARD * far[:, None]
        total = near + torch.where(guarded, powers[:, 0], polynomial)
        return float((total[:, :-1] / total[:, -1:] - target).square().sum())

    best, least = taylor, error(taylor)
    denominator = exact[:, -1]
    for _ in range(_ROUNDS):
        a = (columns / denominator[:, None, None]).transpose(1, 2).reshape(-1, order)
        b = -(constant / denominator[:, None]).reshape(-1, 1)
        size = a.norm(dim=0).clamp(min=1e-300)
        c = torch.linalg.lstsq(a / size, b, driver="gelsd").solution[:, 0] / size
        if not torch.isfinite(c).all():
            break
        found = error(c)
        if found < least:
            best, least = c, found
        own = near[:, -1] + torch.einsum("p,rp->r", c, powers[..., -1])
        denominator = torch.maximum(own, _LEAST_DENOMINATOR * exact[:, -1])
    return tuple(best.tolist())
