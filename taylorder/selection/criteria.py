"""Which candidates may be chosen, and the losses of those that may, as the knapsack takes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from taylorder.kernels.spec import Taylor
from taylorder.selection.candidates import Candidate
from taylorder.selection.knapsack import Option
from taylorder.selection.lever_costs import LeverCost
from taylorder.selection.lever_errors import LeverRow
from taylorder.selection.lever_table import LeverTable


@dataclass(frozen=True, slots=True)
class Criterion:
    """A loss for every candidate of every KV head by itself; the integer program minimises their sum.

    ``losses`` gives them as ``[KV heads][candidates]``, infinite for what may not be chosen.
    """

    name: str
    losses: Callable[[LeverTable], list[list[float]]]


def eligible(candidate: Candidate, row: LeverRow | LeverCost) -> bool:
    """Whether a candidate may be chosen: plain odd orders always, others only if no calibration row was guarded."""
    far = candidate.spec.far
    if not isinstance(far, Taylor):
        return True
    positive = not candidate.fitted and far.ranks is None and far.order % 2 == 1
    return positive or row.guarded_share == 0


def where_eligible(table: LeverTable, losses: Sequence[Sequence[float]]) -> list[list[float]]:
    """The losses ``[KV heads][candidates]``, infinite for what may not be chosen and for what is not a number."""
    return [
        [
            loss if eligible(candidate, row) and loss >= 0 else math.inf
            for candidate, row, loss in zip(table.candidates, rows, of_head, strict=True)
        ]
        for rows, of_head in zip(table.rows(), losses, strict=True)
    ]


def squared_errors(table: LeverTable) -> list[list[float]]:
    """The squared relative L2 errors ``[KV heads][candidates]``, which a tolerance bounds the mean of."""
    return where_eligible(table, [[row.relative_l2**2 for row in rows] for rows in table.rows()])


RELATIVE_L2 = Criterion("relative-l2", squared_errors)


def options(
    losses: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]]
) -> tuple[list[list[Option]], list[list[int]]]:
    """The options of every KV head, those of finite loss, and which candidates they are.

    Args:
        losses: ``[KV heads][candidates]``.
        sizes: nominal bytes, of the same shape.

    """
    candidates = [[index for index, loss in enumerate(of_head) if math.isfinite(loss)] for of_head in losses]
    offered = [
        [Option(size[index], of_head[index]) for index in finite]
        for finite, size, of_head in zip(candidates, sizes, losses, strict=True)
    ]
    return offered, candidates
