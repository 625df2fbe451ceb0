"""The choice that levers led to, in figures: what was chosen, the bound, and polynomials beside equal windows."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from taylorder.adapt.near_example import NearExample
from taylorder.kernels.spec import Exact, Taylor
from taylorder.selection.candidates import Candidate
from taylorder.selection.config_of import table_bytes
from taylorder.selection.criteria import eligible
from taylorder.selection.lever_table import LeverTable
from taylorder.selection.near_sizes import kept_share
from taylorder.selection.probe_report import ProbeReport
from taylorder.selection.refine import Among
from taylorder.selection.under_limit import Chosen


@dataclass(frozen=True, slots=True)
class BesideWindow:
    """One candidate with a polynomial, beside the same bytes of window, over all KV heads.

    Errors are the median KV head's; ``better`` names the KV heads (module and number) on which its gradient-weighted
    error is the smaller one, those left out on which it may not be chosen.
    """

    label: str
    order: int
    nominal_bytes: int
    relative_l2: float
    window_relative_l2: float
    better: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class ChosenKind:
    """KV heads that run the same kind of thing: how many, and their nominal bytes on average."""

    label: str
    kv_heads: int
    nominal_bytes: int


@dataclass(frozen=True, slots=True)
class MeasuredRound:
    """A config the iterative scheme measured: mean KL in nats per token, what was promised of it, and among what."""

    kl: float
    promised: float | None
    price: float | None
    among: Among = "all"


@dataclass(frozen=True, slots=True)
class LeverSummary:
    """How the candidates were measured and what was chosen.

    ``budget`` and ``nominal_bytes`` are averages per KV head at the context; ``rounds`` are those of the iterative
    scheme, ``starts`` the KL of each near field that was measured for all KV heads alike; ``chosen`` counts KV heads by
    candidate, ``kinds`` by what they run whatever the size; ``probes`` says how well probes rank keys, None where none
    were judged, and ``example`` what of a text is near to KV heads, None where nobody looked. ``chosen_better`` names
    those with a polynomial that serves them better than the same bytes of near field, and ``chosen_worse`` those that
    it serves worse. Class attributes are as in
    :class:`~taylorder.selection.policies.Policy`.
    """

    name: ClassVar[Literal["levers"]] = "levers"
    bounded: ClassVar[bool] = False
    chooser: ClassVar[str] = "The levers"
    rule: ClassVar[str] = "Chosen together with all other KV heads, for the least loss or the fewest bytes"

    levers: tuple[str, ...]
    sequences: int
    sequence_length: int
    kv_heads: int
    criterion: str
    budget: int | None
    tolerance: float | None
    context: int
    nominal_bytes: int
    exact_bytes: int
    objective: float
    bound: float
    gap: float
    rounds: tuple[MeasuredRound, ...]
    chosen: tuple[tuple[str, int], ...]
    chosen_better: tuple[tuple[str, int], ...]
    chosen_worse: tuple[tuple[str, int], ...]
    beside_window: tuple[BesideWindow, ...]
    kinds: tuple[ChosenKind, ...] = ()
    starts: tuple[tuple[str, float], ...] = ()
    probes: ProbeReport | None = None
    example: NearExample | None = None

    def __repr__(self) -> str:
        """One line."""
        return (
            f"<LeverSummary: {self.kv_heads} KV heads by {self.criterion}, {self.nominal_bytes:,} of "
            f"{self.exact_bytes:,} bytes each at {self.context:,} tokens>"
        )


def summarise(
    table: LeverTable,
    chosen: Chosen,
    *,
    levers: tuple[str, ...],
    sequences: tuple[int, int],
    probes: ProbeReport | None = None,
) -> LeverSummary:
    """Summarise a choice; ``sequences`` is their number and length, ``probes`` how well these do."""
    kv_heads = table.kv_heads
    rows = list(zip(kv_heads, table.rows(), strict=True))  # of all candidates, by KV head
    sizes = table_bytes(table, chosen.limit.context)
    beside = []
    for index, candidate in enumerate(table.candidates):
        of_candidate = [(kv_head, of_head[index]) for kv_head, of_head in rows]
        windows = [row.window_relative_l2 for _, row in of_candidate if row.window_relative_l2 is not None]
        far = candidate.spec.far
        if not isinstance(far, Taylor) or len(windows) < len(of_candidate):
            continue
        better = tuple(
            kv_head
            for kv_head, row in of_candidate
            if eligible(candidate, row) and row.gradient_error < (row.window_gradient_error or 0.0)
        )
        error = statistics.median(row.relative_l2 for _, row in of_candidate)
        beside.append(
            BesideWindow(candidate.label(), far.order, sizes[0][index], error, statistics.median(windows), better)
        )
    counts = Counter(chosen.choice)
    taken = {kv_head: of_head[index] for (kv_head, of_head), index in zip(rows, chosen.choice, strict=True)}
    serves = {
        kv_head: row.gradient_error < row.window_gradient_error
        for kv_head, row in taken.items()
        if row.window_gradient_error is not None
    }
    limit = chosen.limit
    return LeverSummary(
        levers=levers,
        sequences=sequences[0],
        sequence_length=sequences[1],
        kv_heads=len(kv_heads),
        criterion=chosen.criterion,
        budget=limit.budget,
        tolerance=limit.tolerance,
        context=limit.context,
        nominal_bytes=chosen.nominal_bytes,
        exact_bytes=sum(size[0] for size in sizes) // len(sizes),
        objective=chosen.objective,
        bound=chosen.bound,
        gap=chosen.gap,
        rounds=tuple(
            MeasuredRound(config.kl, config.promised, config.price, config.among)
            for config in chosen.rounds
            if config.among != "uniform"
        ),
        chosen=tuple((table.candidates[index].label(), counts[index]) for index in sorted(counts)),
        chosen_better=tuple(kv_head for kv_head, better in serves.items() if better),
        chosen_worse=tuple(kv_head for kv_head, better in serves.items() if not better),
        beside_window=tuple(beside),
        kinds=_kinds(table, chosen, sizes),
        starts=tuple(
            (table.candidates[config.choice[0]].label(), config.kl)
            for config in chosen.rounds
            if config.among == "uniform"
        ),
        probes=probes,
    )


def _kinds(table: LeverTable, chosen: Chosen, sizes: Sequence[Sequence[int]]) -> tuple[ChosenKind, ...]:
    """What is run and by how many KV heads, in the order of the candidates."""
    taken: dict[str, list[int]] = {}
    for index, candidate in enumerate(table.candidates):
        own = [size[index] for size, choice in zip(sizes, chosen.choice, strict=True) if choice == index]
        taken.setdefault(_kind(candidate), []).extend(own)
    return tuple(ChosenKind(label, len(own), sum(own) // len(own)) for label, own in taken.items() if own)


def _kind(candidate: Candidate) -> str:
    """What a candidate is, whatever its size."""
    far, share = candidate.spec.far, kept_share(candidate.spec.near)
    near = f"near field, {share} kept" if share else "window"
    if isinstance(far, Exact):
        return "exact"
    return f"order {far.order} beside {near}" if isinstance(far, Taylor) else near
