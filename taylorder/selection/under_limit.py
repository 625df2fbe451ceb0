"""From measured candidates to a config that fits a budget or a tolerance, by any of the criteria."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from taylorder.adapt.config import OrderConfig
from taylorder.kernels.spec import Dropped, Exact
from taylorder.selection.candidates import Candidate
from taylorder.selection.config_of import config_of, table_bytes
from taylorder.selection.criteria import Criterion, eligible, losses, options
from taylorder.selection.knapsack import Allocation, allocate, allocate_within
from taylorder.selection.lever_table import LeverTable
from taylorder.selection.refine import MORE_ROUNDS, Refinement, Round, refine
from taylorder.selection.screening import screen, screening_reference
from taylorder.storage.progress import Progress
from taylorder.storage.records import Records


@dataclass(frozen=True, slots=True)
class Limit:
    """What a choice has to keep to: bytes or error, whichever is not None.

    ``budget`` is the average nominal bytes per KV head at ``context`` tokens; ``tolerance`` the largest root mean
    square of the KV heads' relative L2 errors.
    """

    context: int
    budget: int | None = None
    tolerance: float | None = None


@dataclass(frozen=True)
class Chosen:
    """A config, and how it came about.

    ``choice`` is the place of the candidate of every KV head, ``nominal_bytes`` the average per KV head, ``objective``,
    ``bound`` and ``gap`` are those of the integer program: in the criterion's unit for a budget, in bytes for a
    tolerance, and for the iterative scheme those of the step that led to the config. ``rounds`` are the configs that
    the iterative scheme measured.
    """

    config: OrderConfig
    choice: tuple[int, ...]
    criterion: Criterion
    limit: Limit
    nominal_bytes: int
    objective: float
    bound: float
    gap: float
    rounds: tuple[Round, ...] = ()


def choose(
    model: Any,
    table: LeverTable,
    limit: Limit,
    criterion: Criterion,
    *,
    sequences: Tensor,
    screening: Tensor,
    records: Records,
    progress: Progress,
    calibration: dict[str, Any] | None = None,
    name: str = "",
) -> Chosen:
    """Choose one candidate for every KV head.

    Args:
        model: the model.
        table: its measured candidates.
        limit: what the choice has to keep to. A tolerance is about relative errors, so no other criterion has a say.
        criterion: what is minimised within a budget.
        sequences: calibration sequences ``[N, T]``, for the iterative scheme.
        screening: calibration sequences for the criteria ``kl`` and ``sqrt-kl``.
        records: where finished pieces are kept.
        progress: called with a stage, what is done of it, and its size.
        calibration: provenance for the config.
        name: tells the records of several such choices from one table apart.

    Raises:
        UsageError: no choice fits.

    """
    sizes = table_bytes(table, limit.context)
    heads = len(sizes)
    rounds: tuple[Round, ...] = ()
    if limit.budget is None:
        criterion = "relative-l2"
        found, places = options(losses(table, criterion), sizes)
        allocation = allocate_within(found, (limit.tolerance or 0.0) ** 2 * heads)
    elif criterion == "iterative":
        label = f"{name or 'budget'}-{limit.budget}"
        run = partial(
            refine, model, budget=limit.budget * heads, sequences=sequences, records=records, progress=progress
        )
        refinement = _by_stages(run, table, sizes, limit.budget, label)
        rounds, best = refinement.rounds, refinement.best
        total = sum(size[place] for size, place in zip(sizes, best.choice, strict=True))
        allocation = Allocation(best.choice, total, best.promised or 0.0, best.bound, best.gap)
        places = [list(range(len(table.candidates)))] * heads
    else:
        screened = None
        if criterion in ("kl", "sqrt-kl"):
            screened = screen(model, table, screening, records=records, progress=progress)
        values = losses(table, criterion, screened, screening_reference(table))
        found, places = options(values, sizes)
        allocation = allocate(found, limit.budget * heads)
    choice = tuple(own[taken] for own, taken in zip(places, allocation.choice, strict=True))
    provenance = {
        "policy": "levers",
        "criterion": criterion,
        "budget": limit.budget,
        "tolerance": limit.tolerance,
        "context": limit.context,
        "candidates": [candidate.label() for candidate in table.candidates],
    }
    return Chosen(
        config=config_of(
            table,
            choice,
            context=limit.context,
            criterion=provenance,
            calibration=calibration,
            reason="levers" if limit.budget is None else "budget",
        ),
        choice=choice,
        criterion=criterion,
        limit=limit,
        nominal_bytes=allocation.nominal_bytes // heads,
        objective=allocation.loss if limit.budget is not None else float(allocation.nominal_bytes),
        bound=allocation.bound,
        gap=allocation.gap,
        rounds=rounds,
    )


def windows_alone(candidates: Sequence[Candidate]) -> list[int]:
    """Places of exact attention and of plain windows with the usual number of sinks."""
    specs = [candidate.spec for candidate in candidates]
    sinks = next((spec.near.sinks for spec in specs if isinstance(spec.far, Dropped)), 0)
    return [
        place
        for place, spec in enumerate(specs)
        if isinstance(spec.far, Exact) or (isinstance(spec.far, Dropped) and spec.near.sinks == sinks)
    ]


def _by_stages(
    run: Callable[..., Refinement],
    table: LeverTable,
    sizes: Sequence[Sequence[int]],
    budget: int,
    label: str,
) -> Refinement:
    """Move bytes between plain windows first, then let all candidates improve on what these reach.

    Polynomials promise more than they keep (docs/notebook/2026-11-choosing.md): offered from the beginning they led to
    worse configs than windows alone do. This way the calibration loss is never above that of the best rival, which is
    the first stage by itself.
    """
    places = windows_alone(table.candidates)
    part, own = table.only(places), [[size[place] for place in places] for size in sizes]
    first = uniform_start(part, own, budget)
    if sum(size[place] for size, place in zip(own, first, strict=True)) > budget * len(own):  # no window is that short
        return run(table, sizes, start=uniform_start(table, sizes, budget), name=f"{label}-all")
    windows = run(part, own, start=first, name=f"{label}-windows")
    rounds = [
        replace(each, choice=tuple(places[place] for place in each.choice), among="windows") for each in windows.rounds
    ]
    if len(places) < len(table.candidates):
        start = Refinement(tuple(rounds)).best.choice
        # Its first round is the start once more, for the slopes of the other candidates.
        rounds += run(table, sizes, start=start, name=f"{label}-all", rounds=MORE_ROUNDS + 1).rounds[1:]
    return Refinement(tuple(rounds))


def uniform_start(table: LeverTable, sizes: Sequence[Sequence[int]], budget: int) -> list[int]:
    """One candidate for all KV heads: of those that fit and may be chosen everywhere, that of least gradient error.

    Polynomials come second to exact attention and plain windows, whatever their error: what single heads gain from them
    says little about all heads together. Where none fits everywhere, the cheapest that each KV head may run.
    """
    rows = table.rows()
    best, least = None, (True, math.inf)
    for place, candidate in enumerate(table.candidates):
        fits = all(size[place] <= budget for size in sizes)
        if fits and all(eligible(candidate, own[place]) for own in rows):
            rank = (candidate.truncates, sum(own[place].gradient_error for own in rows))
            if rank < least:
                best, least = place, rank
    if best is None:
        return [
            min(
                (place for place, row in enumerate(own) if eligible(table.candidates[place], row)), key=size.__getitem__
            )
            for size, own in zip(sizes, rows, strict=True)
        ]
    return [best] * len(sizes)
