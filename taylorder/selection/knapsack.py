"""Which option every KV head gets, so that all of them together fit a budget.

The multiple-choice knapsack problem: ``min sum_h loss[h, i_h]`` subject to ``sum_h bytes[h, i_h] <= budget``, with one
option ``i_h`` per KV head; or the other way round, the fewest bytes within a loss. HiGHS solves it as an integer
program (``scipy.optimize.milp``) with its own tolerances, about 1e-6 of the largest number; the limit is checked on the
options chosen, where it holds exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from taylorder.errors import TaylorderError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROUNDING = 1e-9
"""Gaps below this are rounding errors of the bound."""
_TOLERANCE = 1e-6
"""By how much HiGHS lets a row exceed its limit, which scipy does not let us set."""
_TINY = 1e-300
_SECONDS = 60
"""When they are over, the best choice so far is returned with the gap that is left."""
_ATTEMPTS = 20
"""Solves at most, each with less room than the one before, until rounding no longer exceeds the limit."""


@dataclass(frozen=True, slots=True)
class Option:
    """One candidate of one KV head: what it costs, and the loss it was measured to cause (negative if it helps)."""

    nominal_bytes: int
    loss: float

    def __post_init__(self) -> None:
        if self.nominal_bytes < 0:
            raise UsageError(
                f"an option has {self.nominal_bytes} nominal bytes, expected 0 or more; recompute its cost"
            )
        if not math.isfinite(self.loss):
            raise UsageError(
                f"an option has loss {self.loss}, expected a finite number; measure it again or leave it out"
            )


@dataclass(frozen=True, slots=True)
class Allocation:
    """One option per KV head, their sums, and how good the solver proved them to be."""

    choice: tuple[int, ...]
    """Per KV head, the index of the option taken."""
    nominal_bytes: int
    loss: float
    bound: float
    """No choice within the limit has an objective below this (a loss, or bytes): proven."""
    gap: float
    """``(objective - bound) / max(|objective|, |bound|)``, 0 if proven optimal."""


_Total = Callable[[Iterable[Option]], float]


def allocate(options: Sequence[Sequence[Option]], budget: int) -> Allocation:
    """Return the choice of least loss whose nominal bytes add up to no more than ``budget``.

    Args:
        options: per KV head, what it can get.
        budget: nominal bytes of all KV heads together.

    Raises:
        UsageError: even the cheapest options do not fit.

    """
    frontiers = _frontiers(options)
    least = _bytes(min(head, key=lambda option: option.nominal_bytes) for head in options)
    if least > budget:
        heads = len(options)
        raise UsageError(
            f"the budget is {budget} bytes ({budget / heads / 1024:.1f} KiB per KV head on average), but the cheapest "
            f"options of the {heads} KV heads need {least} bytes ({least / heads / 1024:.1f} KiB per KV head on "
            "average): raise the budget to at least that, or offer cheaper options"
        )
    return _minimise(options, frontiers, cost=_loss, weight=_bytes, limit=budget)


def allocate_within(options: Sequence[Sequence[Option]], largest_loss: float) -> Allocation:
    """Return the choice of fewest nominal bytes whose losses add up to at most ``largest_loss``; see `allocate`."""
    frontiers = _frontiers(options)
    if not math.isfinite(largest_loss):
        raise UsageError(f"the largest loss is {largest_loss}, expected a finite number; give the loss you can accept")
    least = _loss(min(head, key=lambda option: option.loss) for head in options)
    if least > largest_loss:
        raise UsageError(
            f"the largest loss is {largest_loss!r}, but the best options of the {len(options)} KV heads add up to "
            f"{least!r}: allow at least that, or offer better options"
        )
    return _minimise(options, frontiers, cost=_bytes, weight=_loss, limit=largest_loss)


def _bytes(options: Iterable[Option]) -> int:
    return sum(option.nominal_bytes for option in options)


def _loss(options: Iterable[Option]) -> float:
    """The sum rounded once: independent of the order, and never falling where a term grows."""
    return math.fsum(option.loss for option in options)


def _frontiers(options: Sequence[Sequence[Option]]) -> list[list[int]]:
    """Per KV head, cheapest first, the options that no other matches or beats in both figures (of equals the first)."""
    if not options:
        raise UsageError("there are 0 KV heads, expected at least one; give the options of every KV head")
    frontiers = []
    for kv_head, candidates in enumerate(options):
        if not candidates:
            raise UsageError(f"KV head {kv_head} has 0 options, expected at least one; offer it the exact cache")
        frontier: list[int] = []
        for index in sorted(range(len(candidates)), key=lambda i: (candidates[i].nominal_bytes, candidates[i].loss, i)):
            if not frontier or candidates[index].loss < candidates[frontier[-1]].loss:
                frontier.append(index)
        frontiers.append(frontier)
    return frontiers


def _minimise(
    options: Sequence[Sequence[Option]],
    frontiers: Sequence[Sequence[int]],
    *,
    cost: _Total,
    weight: _Total,
    limit: float,
) -> Allocation:
    """Minimise the total cost with a total weight of at most ``limit``, which the lightest options meet."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    rows = [[offered[i] for i in frontier] for offered, frontier in zip(options, frontiers, strict=True)]
    # Frontiers go from the fewest bytes to the least loss.
    by_bytes, by_loss = [row[0] for row in rows], [row[-1] for row in rows]
    lightest, cheapest = (by_bytes, by_loss) if weight is _bytes else (by_loss, by_bytes)
    # Relative to the least of each KV head, and to the largest: HiGHS's tolerances are absolute.
    costs, weights = (_above_least(rows, total) for total in (cost, weight))
    cost_unit, weight_unit = max(costs.max(), _TINY), max(weights.max(), _TINY)
    room = (limit - weight(lightest)) / weight_unit
    heads = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    one_each = csr_array((np.ones(len(heads)), (heads, np.arange(len(heads)))))
    margin = 0.0
    for _ in range(_ATTEMPTS):
        result = milp(
            costs / cost_unit,
            integrality=np.ones(len(heads)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(weights[None] / weight_unit, -np.inf, max(room - margin, 0.0)),
            ],
            options={"mip_rel_gap": 0.0, "time_limit": _SECONDS},
        )
        if result.x is None:
            raise TaylorderError(f"no allocation was found in {_SECONDS} s ({result.message}); offer fewer options")
        picks = [int(np.argmax(result.x[heads == head])) for head in range(len(rows))]
        chosen = [row[pick] for row, pick in zip(rows, picks, strict=True)]
        if weight(chosen) <= limit:
            break
        margin = 2 * margin + 2 * _TOLERANCE  # within the solver's tolerance of the limit, and above it
    else:
        raise TaylorderError("the allocation exceeds its limit by rounding errors; change the limit a little")
    objective = float(cost(chosen))
    bound = min(objective, float(cost(cheapest) + result.mip_dual_bound * cost_unit))
    gap = (objective - bound) / max(abs(objective), abs(bound), _TINY)
    choice = tuple(row[pick] for row, pick in zip(frontiers, picks, strict=True))
    return Allocation(choice, _bytes(chosen), _loss(chosen), bound, gap if gap > _ROUNDING else 0.0)


def _above_least(rows: Sequence[Sequence[Option]], total: _Total) -> NDArray[Any]:
    """By how much each option exceeds the least of its KV head, float64, one row after the other."""
    import numpy as np

    values = [[float(total([option])) for option in row] for row in rows]
    return np.array([value - min(row) for row in values for value in row])
