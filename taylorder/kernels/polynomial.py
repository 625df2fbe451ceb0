"""A query's polynomial, as the state needs it: powers of the score itself instead of powers around the expansion point.

``sum_p c_p (s^[r_p] - mu_p)^p = sum_m sum_(p >= m) c_p C(p, m) (-mu_p)^(p - m) (s^[r_p])^m``. The state's features of
degree m are sorted by their largest coordinate i, and a feature belongs to the scores over r_p coordinates exactly if
``i < r_p``; so what multiplies it is ``B_m(i) = sum_(p >= m, r_p > i) c_p C(p, m) (-mu_p)^(p - m)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Optional

import torch
from torch import Tensor

from .spec import Dropped, HeadSpec, Taylor, deepest


@dataclass(frozen=True)
class Polynomials:
    """The polynomials of N x g query heads that read states of the same table.

    Attributes:
        coefficients: ``[N, g, P]``, zero above a head's own order.
        around_mean: ``[N, g, 1]``, 1 where the expansion point is the mean, 0 where it is zero; None if all are zero.
        ranks: coordinates of each degree 0 … P - 1; entry 0 is unused.
        full: whether every degree uses all coordinates.
        drops_far: bool ``[N, g, 1]``, heads without a far field; None if there is no such head.
        square: ``(a, b, c)``, each ``[N, g, 1, 1]``, such that the polynomial is ``(a x + b)^2 + c``, which takes fewer
            passes over the scores; None if it is not of degree 2 at full rank with a positive leading coefficient.

    """

    coefficients: Tensor
    around_mean: Optional[Tensor]
    ranks: tuple[int, ...]
    full: bool
    drops_far: Optional[Tensor]
    square: Optional[tuple[Tensor, Tensor, Tensor]]

    @staticmethod
    @lru_cache(maxsize=256)
    @torch.inference_mode(False)  # kept for callers that record gradients too, in which such tensors take no part
    def build(
        specs: tuple[tuple[HeadSpec, ...], ...], head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> Polynomials:
        """Stack specs ``[N][g]`` of one kind of KV head (same ranks up to their length)."""
        like = torch.zeros(0, dtype=dtype, device=device)
        flat = [spec for group in specs for spec in group]
        longest = deepest(flat) or Taylor(1)  # what is multiplied by zero where all far fields are dropped
        order = longest.order
        polynomials = [[s.far.polynomial if isinstance(s.far, Taylor) else () for s in group] for group in specs]
        rows = [[[*terms, *[0.0] * (order - len(terms))] for terms in group] for group in polynomials]
        means = [[[float(s.around_mean)] for s in group] for group in specs]
        drops = [[isinstance(s.far, Dropped) for s in group] for group in specs]
        ranks = (0, *(longest.rank(degree, head_dim) for degree in range(1, order)))
        full = all(rank == head_dim for rank in ranks[1:])
        square = None
        if order == 3 and full and all(row[2] > 0 for group in rows for row in group):
            c = torch.tensor(rows, dtype=torch.float64)[:, :, None, None, :].unbind(-1)
            root = c[2].sqrt()
            shift = c[1] / (2 * root)
            a, b, rest = (x.to(like) for x in (root, shift, c[0] - shift**2))
            square = a, b, rest
        return Polynomials(
            like.new_tensor(rows),
            like.new_tensor(means) if any(s.around_mean for s in flat) else None,
            ranks,
            full,
            torch.tensor(drops, device=like.device)[..., None] if any(map(any, drops)) else None,
            square,
        )

    @property
    def order(self) -> int:
        """Largest order among the heads."""
        return self.coefficients.shape[-1]

    def state_coefficients(self, means: Optional[Sequence[Tensor]]) -> list[Tensor]:
        """``B_m`` of every degree: ``[N, g, C, 1]`` or, where it depends on the largest coordinate, ``[N, g, C, r_m]``.

        Args:
            means: per degree, ``mu_p`` ``[N, g, C]`` (entry 0 unused); None if the expansion point is zero for all.

        """
        c = self.coefficients
        if means is None:
            return [c[:, :, None, degree : degree + 1] for degree in range(self.order)]
        result = []
        for degree in range(self.order):
            total = c[:, :, None, degree].expand_as(means[-1] if self.order > 1 else c[:, :, None, 0])
            pieces: list[Tensor] = []
            for p in range(degree, self.order):
                if p > degree:
                    weight = c[:, :, None, p] * math.comb(p, degree)
                    total = total + weight * (-means[p]) ** (p - degree)
                following = self.ranks[p + 1] if p + 1 < self.order else 0
                if degree and self.ranks[p] > following:
                    pieces.append(total[..., None].expand(*total.shape, self.ranks[p] - following))
            if len(pieces) > 1:
                result.append(torch.cat(pieces[::-1], -1))
            else:
                result.append(total[..., None])
        return result

    def weights(self, queries: Tensor, keys: Tensor, means: Optional[Sequence[Tensor]]) -> Tensor:
        """Weights ``[N, g, C, F]`` of keys ``[N, F, d]`` at hand, in score space.

        Args:
            queries: ``[N, g, C, d]``, scaled.
            keys: the keys.
            means: as in ``state_coefficients``.

        """
        c = self.coefficients[:, :, None, None, :]
        if self.square is not None:
            root, shift, rest = self.square
            y = partial_scores(queries * root, keys)
            return y.add_(shift if means is None else shift - root * means[1][..., None]).square_().add_(rest)
        if self.full and self.order > 1:
            x = self._powers_of(queries, keys, 1, means)
            result = x * c[..., self.order - 1]
            for degree in range(self.order - 2, 0, -1):
                result.add_(c[..., degree]).mul_(x)
            return result.add_(c[..., 0])
        N, g, C, _ = queries.shape
        result = queries.new_zeros(N, g, C, keys.shape[1]).add_(c[..., 0])
        for degree in range(1, self.order):
            if degree == 1 or self.ranks[degree] != self.ranks[degree - 1]:
                x = self._powers_of(queries, keys, degree, means)
            result.addcmul_(x**degree, c[..., degree])
        return result

    def _powers_of(self, queries: Tensor, keys: Tensor, degree: int, means: Optional[Sequence[Tensor]]) -> Tensor:
        """What the term of that degree is a power of: ``[N, g, C, F]``."""
        rank = self.ranks[degree]
        x = partial_scores(queries[..., :rank], keys[..., :rank])
        return x if means is None else x.sub_(means[degree][..., None])


def partial_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """``[N, g, C, F]`` products of queries ``[N, g, C, r]`` with keys ``[N, F, r]``."""
    N, g, C, r = queries.shape
    return torch.bmm(queries.reshape(N, g * C, r), keys.transpose(1, 2)).view(N, g, C, keys.shape[1])
