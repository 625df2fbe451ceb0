"""Which option every KV head gets, so that all of them together fit a budget.

The multiple-choice knapsack problem: ``min sum_h loss[h, i_h]`` subject to ``sum_h bytes[h, i_h] <= budget``, with one
option ``i_h`` per KV head; or the other way round, the fewest bytes within a loss. Lagrangian relaxation prices the
limit, and dynamic programming over the few choices that could still beat the best known one closes the gap, up to the
rounding of float64. The limit itself holds exactly.
"""

from __future__ import annotations

import math
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from taylorder.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROUNDING = 1e-13
"""Relative error allowed to a sum of float64 over the KV heads."""
_MOST_STATES = 5_000_000
"""Partial choices held at once, some hundreds of megabytes; needing more ends the search as the time limit does."""
_UNITS = {"b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_SIZE = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{0,18})?)\s*([kmg]i?b|b)?\s*", re.ASCII | re.IGNORECASE)


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


def allocate(options: Sequence[Sequence[Option]], budget: int, *, seconds: float = 60) -> Allocation:
    """Return the choice of least loss whose nominal bytes add up to no more than ``budget``.

    Args:
        options: per KV head, what it can get.
        budget: nominal bytes of all KV heads together.
        seconds: time limit; if it is reached, the best choice so far is returned with the gap that is left.

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
    return _minimise(options, frontiers, cost=_loss, weight=_bytes, limit=budget, seconds=seconds)


def allocate_within(options: Sequence[Sequence[Option]], largest_loss: float, *, seconds: float = 60) -> Allocation:
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
    return _minimise(options, frontiers, cost=_bytes, weight=_loss, limit=largest_loss, seconds=seconds)


def parse_bytes(text: str) -> int:
    """Return a number of bytes, rounded down, from a number with or without a unit.

    Raises:
        UsageError: not a number, an unknown unit, or less than one byte.

    """
    match = _SIZE.fullmatch(text)
    size = int(Fraction(match[1]) * _UNITS[(match[2] or "B").lower()]) if match else 0
    if size < 1:
        raise UsageError(
            f"size is {text!r}, expected a positive number of bytes, alone or with a unit: B, KiB, MiB, GiB (powers of "
            "1024), KB, MB or GB (powers of 1000), for example 65536 or 1.5MiB"
        )
    return size


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
        kept: list[int] = []
        for index in sorted(range(len(candidates)), key=lambda i: (candidates[i].nominal_bytes, candidates[i].loss, i)):
            if not kept or candidates[index].loss < candidates[kept[-1]].loss:
                kept.append(index)
        frontiers.append(kept)
    return frontiers


def _minimise(
    options: Sequence[Sequence[Option]],
    frontiers: Sequence[Sequence[int]],
    *,
    cost: _Total,
    weight: _Total,
    limit: float,
    seconds: float,
) -> Allocation:
    """Minimise the total cost with a total weight of at most ``limit``, which the lightest options meet.

    At any price ``y >= 0`` a choice within the limit costs ``L + sum_h r[h, i_h] + y (limit - weight)``: ``r >= 0`` is
    how far ``cost + y weight`` of an option exceeds the least of its KV head, and ``L``, the Lagrangian bound, is the
    same for all choices. So only choices whose excess over ``L`` is below that of the best known one are worth a look.
    The allowance for the excess rises until it reaches the best known one: then nothing is left that could be better.
    """
    import numpy as np

    deadline = time.monotonic() + seconds
    # Lightest first: weights rise strictly, costs fall strictly. Both relative to the KV head's least: [options] each.
    rows = [list(row) if weight is _bytes else list(row[::-1]) for row in frontiers]
    ranked = [[head[i] for i in row] for head, row in zip(options, rows, strict=True)]
    costs = [np.array([float(cost([o]) - cost([row[-1]])) for o in row]) for row in ranked]
    weights = [np.array([float(weight([o]) - weight([row[0]])) for o in row]) for row in ranked]
    # Sums of losses round: leave so much more room that this never hides a choice, and check the choices found.
    sizes = [abs(limit), *(abs(weight([row[0]])) for row in ranked), *(float(w.max()) for w in weights)]
    slack = 0.0 if weight is _bytes else _ROUNDING * math.fsum(sizes)
    room = float(limit - weight(row[0] for row in ranked)) + slack
    least = float(cost(row[-1] for row in ranked))

    def taken(picks: Iterable[int]) -> list[Option]:
        return [row[pick] for row, pick in zip(ranked, picks, strict=True)]

    def at_price(price: float) -> list[int]:
        return [int(np.argmin(c + price * w)) for c, w in zip(costs, weights, strict=True)]

    prices = [0.0]
    for c, w in zip(costs, weights, strict=True):
        i, j = np.nonzero(w[:, None] < w)
        prices += ((c[i] - c[j]) / (w[j] - w[i])).tolist()
    prices = [*sorted(prices), 2 * max(prices)]
    price = prices[bisect_left(prices, True, hi=len(prices) - 1, key=lambda y: weight(taken(at_price(y))) <= limit)]
    best = at_price(price)
    priced = [c + price * w for c, w in zip(costs, weights, strict=True)]
    lagrangian = math.fsum(x.min() for x in priced) - price * room
    rounding = _ROUNDING * (math.fsum(x.min() for x in priced) + price * room)
    reduced = [x - x.min() for x in priced]

    def excess_of(picks: Sequence[int]) -> float:
        return max(math.fsum(c[pick] for c, pick in zip(costs, picks, strict=True)) - lagrangian, 0.0)

    proven = 0.0  # no choice has a smaller excess
    while proven + rounding < (excess := excess_of(best)):
        allowance = min(max(4 * proven, excess * 2**-20), excess)
        found = _cheapest_first(costs, weights, reduced, room, price, allowance + rounding, deadline)
        if found is None:
            break
        fitting = next((picks for picks in found if weight(taken(picks)) <= limit), best)
        best = min(best, fitting, key=excess_of)
        proven = allowance
    chosen = taken(best)
    objective = float(cost(chosen))
    bound = min(least + lagrangian + proven, objective) if proven + rounding < excess_of(best) else objective
    gap = (objective - bound) / max(abs(objective), abs(bound)) if bound < objective else 0.0
    choice = tuple(row[pick] for row, pick in zip(rows, best, strict=True))
    return Allocation(choice, _bytes(chosen), _loss(chosen), bound, gap)


def _cheapest_first(
    costs: Sequence[NDArray[np.float64]],
    weights: Sequence[NDArray[np.float64]],
    reduced: Sequence[NDArray[np.float64]],
    room: float,
    price: float,
    allowance: float,
    deadline: float,
) -> Iterator[list[int]] | None:
    """Yield, cheapest first, the choices within the allowance that no other one within it matches or beats.

    None if time or memory run out.
    """
    import numpy as np

    offered = [np.flatnonzero(r <= allowance) for r in reduced]
    heaviest = [float(w[row].max()) for w, row in zip(weights, offered, strict=True)]
    # One state per partial choice: what it costs, weighs and exceeds so far, [states] each.
    c = w = r = np.zeros(1)
    trail: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for head, row in enumerate(offered):
        if time.monotonic() >= deadline or len(c) * len(row) > _MOST_STATES:
            return None
        c, w, r = ((a[:, None] + b[head][row]).ravel() for a, b in ((c, costs), (w, weights), (r, reduced)))
        unused = np.maximum(room - w - sum(heaviest[head + 1 :]), 0.0)
        kept = np.flatnonzero((w <= room) & (r + price * unused <= allowance))
        kept = kept[np.lexsort((c[kept], w[kept]))]
        kept = kept[c[kept] < np.concatenate(([np.inf], np.minimum.accumulate(c[kept])[:-1]))]
        c, w, r = c[kept], w[kept], r[kept]
        trail.append((kept // len(row), row[kept % len(row)]))
    return (_walk_back(trail, state) for state in reversed(range(len(c))))


def _walk_back(trail: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], state: int) -> list[int]:
    picks = []
    for parents, picked in reversed(trail):
        picks.append(int(picked[state]))
        state = int(parents[state])
    return picks[::-1]
