"""One candidate for every KV head, chosen together so that all of them keep to a budget or a tolerance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from taylorder.adapt.config import OrderConfig
from taylorder.kernels.spec import Dropped, Exact
from taylorder.selection.candidates import Candidate
from taylorder.selection.config_of import config_of, table_bytes
from taylorder.selection.criteria import RELATIVE_L2, Criterion, eligible, gradient_errors, options
from taylorder.selection.knapsack import Allocation, allocate, allocate_within
from taylorder.selection.lever_table import LeverTable
from taylorder.selection.refine import Among, Round, best_of, refine
from taylorder.selection.settings import Limit
from taylorder.selection.whole_model import WholeModel
from taylorder.storage.processes import from_first
from taylorder.storage.progress import Progress
from taylorder.storage.records import Records

BEGIN = "where to begin"
"""A stage, as progress is told."""

ITERATIVE = "iterative"
"""Name of the scheme that ships: the least loss on unseen text in benchmarks/policies.py (docs/choosing.md)."""


@dataclass(frozen=True)
class Chosen:
    """A config, and how it came about.

    ``choice`` is the index of the candidate of every KV head, ``nominal_bytes`` the average per KV head, ``objective``,
    ``bound`` and ``gap`` are those of the integer program: in the criterion's unit for a budget, in bytes for a
    tolerance, and for the iterative scheme those of the step that led to the config. ``rounds`` are the configs that
    the iterative scheme measured.
    """

    config: OrderConfig
    choice: tuple[int, ...]
    criterion: str
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
    criterion: Criterion | None = None,
    *,
    sequences: Tensor,
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
        criterion: what is minimised within a budget; default the iterative scheme, on the loss of the whole model.
        sequences: calibration sequences ``[N, T]``, for the iterative scheme.
        records: where finished pieces are kept.
        progress: called with a stage, what is done of it, and its size.
        calibration: provenance for the config.
        name: tells the records of several such choices from one table apart.

    Raises:
        UsageError: no choice fits.

    """
    sizes = table_bytes(table, limit.context)
    kv_heads = len(sizes)
    rounds: tuple[Round, ...] = ()
    if limit.budget is not None and criterion is None:
        label = f"{name or 'budget'}-{limit.budget}"
        rounds = _iterated(WholeModel(model, sequences), table, sizes, limit.budget, label, records, progress)
        best = best_of(rounds)
        total = sum(size[index] for size, index in zip(sizes, best.choice, strict=True))
        allocation = Allocation(best.choice, total, best.promised or 0.0, best.bound, best.gap)
        choice = best.choice
    else:
        if limit.budget is None or criterion is None:
            criterion = RELATIVE_L2
        offered, candidates = options(criterion.losses(table), sizes)
        if limit.budget is None:
            allocation = from_first(lambda: allocate_within(offered, (limit.tolerance or 0.0) ** 2 * kv_heads))
        else:
            allocation = from_first(lambda: allocate(offered, (limit.budget or 0) * kv_heads))
        choice = tuple(indices[option] for indices, option in zip(candidates, allocation.choice, strict=True))
    minimised = ITERATIVE if criterion is None else criterion.name
    provenance = {
        "policy": "levers",
        "criterion": minimised,
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
        criterion=minimised,
        limit=limit,
        nominal_bytes=allocation.nominal_bytes // kv_heads,
        objective=allocation.loss if limit.budget is not None else float(allocation.nominal_bytes),
        bound=allocation.bound,
        gap=allocation.gap,
        rounds=rounds,
    )


def windows_alone(candidates: Sequence[Candidate]) -> list[int]:
    """Indices of exact attention and of plain windows with the usual number of sinks."""
    return [index for index in near_fields_alone(candidates) if not candidates[index].spec.near.kept]


def near_fields_alone(candidates: Sequence[Candidate]) -> list[int]:
    """Indices of exact attention and of near fields with the usual number of sinks and everything else dropped."""
    specs = [candidate.spec for candidate in candidates]
    sinks = next((spec.near.sinks for spec in specs if isinstance(spec.far, Dropped)), 0)
    return [
        index
        for index, spec in enumerate(specs)
        if isinstance(spec.far, Exact) or (isinstance(spec.far, Dropped) and spec.near.sinks == sinks)
    ]


def _iterated(
    whole: WholeModel,
    table: LeverTable,
    sizes: Sequence[Sequence[int]],
    budget: int,
    label: str,
    records: Records,
    progress: Progress,
) -> tuple[Round, ...]:
    """Begin from the best of a few configs that need no slopes, and move bytes between what the best one offers.

    Polynomials promise more than they keep (docs/notebook/2026-11-choosing.md): offered where the best begin without
    them, they led to worse configs than windows alone do.
    """
    run = partial(refine, whole, budget=budget * len(sizes), records=records, progress=progress)
    near = near_fields_alone(table.candidates)
    near_table, near_sizes = table.restricted_to(near), [[size[index] for index in near] for size in sizes]
    alike = uniform_start(near_table, near_sizes, budget)
    if sum(size[index] for size, index in zip(near_sizes, alike, strict=True)) > budget * len(sizes):
        # No near field is that small.
        return run(table, sizes, start=uniform_start(table, sizes, budget), name=f"{label}-all")
    begun: dict[Among, Sequence[int]] = {
        "uniform": [near[index] for index in alike],
        "errors": [near[index] for index in by_errors(near_table, near_sizes, budget)],
    }
    if len(near) < len(table.candidates):
        begun["all errors"] = by_errors(table, sizes, budget)
    starts = _measured(whole, table, begun, f"{label}-starts", records, progress)
    best = best_of(starts)
    if best.among == "all errors":
        return *starts, *run(table, sizes, start=best.choice, name=f"{label}-all")
    among: Among = "windows" if near == windows_alone(table.candidates) else "near fields"
    start = [near.index(index) for index in best.choice]
    moved = run(near_table, near_sizes, start=start, name=f"{label}-{among.replace(' ', '-')}")
    return *starts, *(replace(step, choice=tuple(near[index] for index in step.choice), among=among) for step in moved)


def _measured(
    whole: WholeModel,
    table: LeverTable,
    begun: Mapping[Among, Sequence[int]],
    name: str,
    records: Records,
    progress: Progress,
) -> tuple[Round, ...]:
    """A round of every choice that the scheme may begin from, by what it was chosen from."""
    choices = [list(choice) for choice in begun.values()]
    record = records.get(name)
    kls = [] if record is None or record["choices"] != choices else record["kls"]
    for done, choice in enumerate(choices):
        progress(BEGIN, done, len(choices))
        if done == len(kls):
            kls.append(whole.kl(table, choice))
            records.put(name, {"choices": choices, "kls": kls})
    progress(BEGIN, len(choices), len(choices))
    return tuple(Round(tuple(choice), kl, among=among) for (among, choice), kl in zip(begun.items(), kls, strict=True))


def by_errors(table: LeverTable, sizes: Sequence[Sequence[int]], budget: int) -> tuple[int, ...]:
    """The choice within ``budget`` bytes per KV head of least summed gradient error.

    Half of that sum is the KL to the exact model as a Gauss-Newton model around it has it, where no KV head's change
    makes up for another's.
    """
    offered, candidates = options(gradient_errors(table), sizes)
    allocation = from_first(lambda: allocate(offered, budget * len(sizes)))  # which a clock may end
    return tuple(indices[option] for indices, option in zip(candidates, allocation.choice, strict=True))


def uniform_start(table: LeverTable, sizes: Sequence[Sequence[int]], budget: int) -> list[int]:
    """One candidate for all KV heads: of those that fit and may be chosen everywhere, that of least gradient error.

    Polynomials come second to exact attention and plain windows, whatever their error: what single heads gain from them
    says little about all heads together. Where none fits everywhere, the cheapest that each KV head may run.
    """
    table_rows = table.rows()
    best, least = None, (True, math.inf)
    for index, candidate in enumerate(table.candidates):
        fits = all(size[index] <= budget for size in sizes)
        if fits and all(eligible(candidate, rows[index]) for rows in table_rows):
            rank = (candidate.truncates, sum(rows[index].gradient_error for rows in table_rows))
            if rank < least:
                best, least = index, rank
    if best is not None:
        return [best] * len(sizes)
    return [
        min((index for index, row in enumerate(rows) if eligible(table.candidates[index], row)), key=size.__getitem__)
        for size, rows in zip(sizes, table_rows, strict=True)
    ]
