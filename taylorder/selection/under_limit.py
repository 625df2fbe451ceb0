"""One candidate for every KV head, chosen together so that all of them keep to a budget or a tolerance."""

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
from taylorder.selection.criteria import RELATIVE_L2, Criterion, eligible, options
from taylorder.selection.knapsack import Allocation, allocate, allocate_within
from taylorder.selection.lever_table import LeverTable
from taylorder.selection.near_sizes import kept_share
from taylorder.selection.refine import MORE_ROUNDS, ROUNDS, Among, Round, best_of, refine
from taylorder.selection.settings import Limit
from taylorder.selection.whole_model import WholeModel
from taylorder.storage.processes import from_first
from taylorder.storage.progress import Progress
from taylorder.storage.records import Records

UNIFORM = "near fields for all"
"""A stage, as progress is told."""

ITERATIVE = "iterative"
"""Name of the scheme that ships: the least loss on unseen text in benchmarks/policies.py (docs/choosing.md)."""

STARTS, TRIAL_ROUNDS = 2, 4
"""How many of the near fields for all the scheme begins from, and configs measured of each to see where it leads."""


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
        rounds = _by_stages(WholeModel(model, sequences), table, sizes, limit.budget, label, records, progress)
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


def _by_stages(
    whole: WholeModel,
    table: LeverTable,
    sizes: Sequence[Sequence[int]],
    budget: int,
    label: str,
    records: Records,
    progress: Progress,
) -> tuple[Round, ...]:
    """Move bytes between near fields first, then let all candidates improve on what these reach.

    Polynomials promise more than they keep (docs/notebook/2026-11-choosing.md): offered from the beginning they led to
    worse configs than windows alone do.
    """
    run = partial(refine, whole, budget=budget * len(sizes), records=records)
    near = near_fields_alone(table.candidates)
    more = len(near) < len(table.candidates)
    near_table, near_sizes = table.restricted_to(near), [[size[index] for index in near] for size in sizes]
    starts = uniform_starts(near_table, near_sizes, budget)
    if not starts:  # no near field is that small
        return run(table, sizes, start=uniform_start(table, sizes, budget), name=f"{label}-all", progress=progress)
    among: Among = "windows" if near == windows_alone(table.candidates) else "near fields"
    uniform: tuple[Round, ...] = ()
    if len(starts) > 1:
        uniform = _measured(whole, near_table, starts, f"{label}-uniform", records, progress)
        starts = [list(measured.choice) for measured in sorted(uniform, key=lambda measured: measured.kl)[:STARTS]]
    steps = _Steps(progress, most_rounds(len(starts), more=more))
    near_run = partial(run, near_table, near_sizes)
    moved = _from_where_it_leads(near_run, starts, f"{label}-{among.replace(' ', '-')}", steps)
    rounds = tuple(
        replace(measured, choice=tuple(near[index] for index in measured.choice))
        for measured in (*uniform, *(replace(measured, among=among) for measured in moved))
    )
    if more:
        start = best_of(rounds).choice
        # Its first round is the start once more, for the slopes of the other candidates.
        last = steps.after(most_rounds(len(starts), more=False))
        rounds += run(table, sizes, start=start, name=f"{label}-all", rounds=MORE_ROUNDS + 1, progress=last)[1:]
    return rounds


def most_rounds(starts: int, *, more: bool) -> int:
    """Configs that the scheme measures at most from so many starts; ``more`` where all candidates join afterwards."""
    return (starts - 1) * TRIAL_ROUNDS + ROUNDS + (MORE_ROUNDS + 1) * more


class _Steps:
    """One count of all configs, in whatever parts they are measured; what is read once more does not set it back."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.reached = progress, total, 0

    def after(self, before: int) -> Progress:
        """The progress of a part that comes after so many configs."""

        def report(stage: str, done: int, _size: int) -> None:
            self.reached = max(self.reached, before + done)
            self.progress(stage, self.reached, self.total)

        return report


def _from_where_it_leads(
    run: Callable[..., tuple[Round, ...]], starts: Sequence[Sequence[int]], name: str, steps: _Steps
) -> tuple[Round, ...]:
    """A few rounds from every start, and the rest from the one that these took furthest down, which comes last.

    Its own KL does not tell where a start leads: a KV head changes its share of kept keys only where its slope promises
    something (docs/notebook/2026-11-keeping-keys.md).
    """
    led = [
        run(start=start, name=f"{name}-{number}", rounds=TRIAL_ROUNDS, progress=steps.after(number * TRIAL_ROUNDS))
        for number, start in enumerate(starts)
    ]
    best = min(range(len(starts)), key=lambda number: best_of(led[number]).kl)
    others = [measured for number, rounds in enumerate(led) if number != best for measured in rounds]
    last = steps.after((len(starts) - 1) * TRIAL_ROUNDS)
    return (*others, *run(start=starts[best], name=f"{name}-{best}", progress=last))


def _measured(
    whole: WholeModel,
    table: LeverTable,
    starts: Sequence[Sequence[int]],
    name: str,
    records: Records,
    progress: Progress,
) -> tuple[Round, ...]:
    """A round of every choice that begins a stage, measured without what other choices would change."""
    progress(UNIFORM, 0, len(starts))
    kls = records.get(name)
    if kls is None:
        kls = [whole.kl(table, start) for start in starts]
        records.put(name, kls)
    progress(UNIFORM, len(starts), len(starts))
    return tuple(Round(tuple(start), kl, among="uniform") for start, kl in zip(starts, kls, strict=True))


def uniform_starts(table: LeverTable, sizes: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    """The best choice of one near field for all KV heads, for every share of kept keys of which one fits."""
    shares = [kept_share(candidate.spec.near) for candidate in table.candidates]
    starts: list[list[int]] = []
    for share in dict.fromkeys(shares):
        kind = [index for index, other in enumerate(shares) if other == share]
        part = [[size[index] for index in kind] for size in sizes]
        start = [kind[index] for index in uniform_start(table.restricted_to(kind), part, budget)]
        if sum(size[index] for size, index in zip(sizes, start, strict=True)) <= budget * len(sizes):
            starts.append(start)
    return starts


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
