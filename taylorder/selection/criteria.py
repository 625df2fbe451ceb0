"""What an allocation minimises: the loss that each candidate of each KV head is thought to cost.

None of these is the loss of the whole model. Which comes nearest is a matter of measurement (docs/choosing.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from taylorder.kernels.spec import Taylor
from taylorder.selection.candidates import Candidate
from taylorder.selection.knapsack import Option
from taylorder.selection.lever_errors import LeverRow
from taylorder.selection.lever_table import LeverTable

Criterion = Literal["relative-l2", "gradient", "kl", "sqrt-kl", "iterative"]
CRITERIA: tuple[Criterion, ...] = ("relative-l2", "gradient", "kl", "sqrt-kl", "iterative")
DEFAULT_CRITERION: Criterion = "iterative"
"""The shipped one: the least loss on unseen text in benchmarks/policies.py, at both budgets (docs/choosing.md)."""


def eligible(candidate: Candidate, row: LeverRow) -> bool:
    """Whether a candidate may be chosen: plain odd orders always, others only if no calibration row was guarded."""
    far = candidate.spec.far
    if not isinstance(far, Taylor):
        return True
    positive = not candidate.fitted and far.ranks is None and far.order % 2 == 1
    return positive or row.guarded_share == 0


def losses(
    table: LeverTable, criterion: Criterion, screened: Mapping[tuple[str, int], float] | None = None, reference: int = 0
) -> list[list[float]]:
    """Loss of every candidate for every KV head, in the order of ``table.kv_heads``; infinite if not eligible, or if
    what was measured is not a number.

    ``relative-l2`` is the squared relative error of the output. ``gradient`` is the gradient-weighted error. ``kl`` and
    ``sqrt-kl`` give the KV head the measured KL of the model when that head alone runs the ``reference`` candidate (or
    its square root), and the other candidates as much of it as their squared relative error is of the reference's.
    """
    result = []
    for head, rows in zip(table.kv_heads, table.rows(), strict=True):
        if criterion == "relative-l2":
            values = [row.relative_l2**2 for row in rows]
        elif criterion == "gradient":
            values = [row.gradient_error for row in rows]
        else:
            if screened is None:
                raise ValueError(f"criterion {criterion} needs the KL of each KV head")
            whole = screened[head] if criterion == "kl" else math.sqrt(screened[head])
            unit = rows[reference].relative_l2 ** 2
            values = [whole * row.relative_l2**2 / unit if unit else 0.0 for row in rows]
        pairs = zip(table.candidates, rows, values, strict=True)
        result.append(
            [value if eligible(candidate, row) and value >= 0 else math.inf for candidate, row, value in pairs]
        )
    return result


def options(
    values: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]]
) -> tuple[list[list[Option]], list[list[int]]]:
    """Options of every KV head that have a finite loss, and the places of their candidates."""
    places = [[place for place, value in enumerate(own) if math.isfinite(value)] for own in values]
    found = [
        [Option(size[place], value[place]) for place in own]
        for own, size, value in zip(places, sizes, values, strict=True)
    ]
    return found, places
