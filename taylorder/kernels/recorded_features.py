"""Features that autograd records: keys folded into them, and queries that read them.

What is folded is a list of tensors that are added up, token by token or stretch by stretch; only what made them knows
how features lie in them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from .polynomial import Polynomials
from .recorded_products import extended
from .tables import count, monomials


class Features(ABC):
    """How keys of N KV heads are folded, and queries read what they are folded into."""

    @abstractmethod
    def fold(self, keys: Tensor, values: Tensor) -> list[Tensor]:
        """Features of tokens, summed with their values.

        Args:
            keys: ``[N, C, d]``, zero where there is padding.
            values: ``[N, C, d_v + 1]``, values and ones, likewise.

        """

    @abstractmethod
    def read(
        self, queries: Tensor, folded: Sequence[Tensor], polynomials: Polynomials, means: Optional[list[Tensor]]
    ) -> Tensor:
        """What all folded tokens contribute, ``[N, g, C, d_v + 1]``.

        Args:
            queries: ``[N, g, C, d]``, scaled.
            folded: sums of what ``fold`` has returned.
            polynomials: of the query heads.
            means: as in ``Polynomials.state_coefficients``.

        """


@dataclass(frozen=True)
class TorchFeatures(Features):
    """By tensor operations: per degree p ``[N, D_p, d_v + 1]``, over ``ranks[p]`` coordinates; see :mod:`.tables`."""

    ranks: tuple[int, ...]

    def fold(self, keys: Tensor, values: Tensor) -> list[Tensor]:
        sums = [values.sum(1, keepdim=True)]
        columns = keys.mT.contiguous()
        below = columns
        for degree, rank in enumerate(self.ranks[1:], 1):
            if rank == 0:
                break
            below = below[:, :rank] if degree == 1 else _extended(below, columns[:, :rank], degree)
            product = torch.bmm(below, values)
            sums.append(product if degree == 1 else product * _multiplicity(degree, rank, keys))
        return sums

    def read(
        self, queries: Tensor, folded: Sequence[Tensor], polynomials: Polynomials, means: Optional[list[Tensor]]
    ) -> Tensor:
        N, g, C, d = queries.shape
        columns = queries.permute(0, 3, 1, 2).reshape(N, d, g * C)
        coefficients = [
            b.permute(0, 3, 1, 2).expand(-1, -1, -1, C).reshape(N, b.shape[-1], g * C)
            for b in polynomials.state_coefficients(means)
        ]
        total = coefficients[0].mT * folded[0]
        below = columns
        for degree, rank in enumerate(self.ranks[1:], 1):
            if rank == 0:
                break
            coordinates = columns[:, :rank]
            weighted = coordinates * coefficients[degree]
            if degree > 1:
                weighted = _extended(below, weighted, degree)
                below = _extended(below, coordinates, degree) if degree + 1 < len(self.ranks) else below
            total = torch.baddbmm(total, weighted.mT, folded[degree])
        return total.view(N, g, C, -1)


def _extended(below: Tensor, coordinates: Tensor, degree: int) -> Tensor:
    return extended(below[:, : count(degree - 1, coordinates.shape[1])], coordinates, degree)


def _multiplicity(degree: int, rank: int, like: Tensor) -> Tensor:
    return monomials(degree, rank, like.device).multiplicity.to(like.dtype)
