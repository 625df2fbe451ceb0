"""The iterative scheme: move bytes between KV heads, measure the whole model, move again.

Criteria that look at one head at a time miss that heads make up for each other, and that errors of early layers move
what later layers see. So the loss is modelled around where the model *is*. With the present config running, one
backward pass of the KL to the exact model gives, for every KV head and every candidate in reach, the change ``delta``
of its output and ``gradient . delta``. To that comes what the change costs by itself, ``s |delta|^2 / 2``, with the
sensitivity ``s`` of the head that the gradient-weighted errors tell (a block-diagonal Gauss-Newton model). An integer
program moves bytes along the model, no KV head further than a factor of its present bytes; then the whole model is
measured. After a step that did not help, the next starts from the best config again and pays more for every change, and
so does one after a step that helped much less than promised, as in the method of Levenberg and Marquardt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

from torch import Tensor

from taylorder.adapt.handle import Handle, attach
from taylorder.analysis.losses import kl_gradient
from taylorder.models.attention import Observer
from taylorder.selection.candidates import Candidate
from taylorder.selection.criteria import eligible, options
from taylorder.selection.gradients import Observed, observe_sequence
from taylorder.selection.knapsack import allocate
from taylorder.selection.lever_errors import LayerLevers, LeverRow, Runner, group_specs
from taylorder.selection.lever_table import LeverTable
from taylorder.selection.near_sizes import kept_share
from taylorder.selection.whole_model import WholeModel
from taylorder.storage.processes import from_first, gathered
from taylorder.storage.progress import Progress
from taylorder.storage.records import Records

MOVING = "moving bytes"
"""A stage, as progress is told."""

REACH = 2.0
"""A step changes the bytes of a KV head by no more than this factor."""

Among: TypeAlias = Literal["uniform", "windows", "near fields", "all"]
"""What a config was chosen from: one candidate for all KV heads; or per KV head from exact attention and plain windows,
from these and near fields with kept keys, or from all candidates."""

ROUNDS, MORE_ROUNDS = 8, 3
"""Configs measured at most, the first included; and those measured when more candidates join, the first not."""

_FAILED, _SHORT, _KEPT, _LEAST_PRICE, _MOST_PRICE = 4.0, 2.0, 0.5, 0.5, 64.0
"""What the price of changes, 1 in the Gauss-Newton model, is multiplied by after a step that did not help, that helped
by less than :data:`_LITTLE` of its promise, and that helped by more than :data:`_MUCH` of it."""

_LITTLE, _MUCH = 0.25, 0.75

_WORTHWHILE = 0.005
"""A step that promises less than this share of the KL is not tried."""


@dataclass(frozen=True, slots=True)
class Round:
    """One config that was measured.

    ``choice`` is the candidate of every KV head, ``kl`` the mean KL to exact in nats per token on the calibration
    sequences, ``promised`` the change of it that was predicted for the step, at ``price``; both None for the first. No
    choice in reach had a better promise than ``bound``; ``gap`` is what the solver left of that. ``among`` says which
    candidates the step was chosen from.
    """

    choice: tuple[int, ...]
    kl: float
    promised: float | None = None
    price: float | None = None
    bound: float = 0.0
    gap: float = 0.0
    among: Among = "all"


def best_of(rounds: Sequence[Round]) -> Round:
    """The config of least KL; of equals the first."""
    return min(rounds, key=lambda measured: measured.kl)


@dataclass(frozen=True, slots=True)
class Slopes:
    """What the candidates in reach of one config would change, ``[KV heads][candidates]``, None out of reach.

    ``first_order`` is ``gradient . delta``, and ``squared`` is ``|delta|^2`` relative to the output.
    """

    first_order: list[list[float | None]]
    squared: list[list[float | None]]

    def promises(self, sensitivities: Sequence[float], price: float) -> list[list[float]]:
        """Modelled change of the KL ``[KV heads][candidates]``; infinite out of reach."""
        return [
            [
                math.inf if slope is None or square is None else slope + price * sensitivity * square / 2
                for slope, square in zip(slopes, squares, strict=True)
            ]
            for slopes, squares, sensitivity in zip(self.first_order, self.squared, sensitivities, strict=True)
        ]


_Slope: TypeAlias = tuple[int, int, float, float]
"""KV head, candidate, ``gradient . delta`` and relative ``|delta|^2``."""


def refine(
    whole: WholeModel,
    table: LeverTable,
    sizes: Sequence[Sequence[int]],
    budget: int,
    start: Sequence[int],
    *,
    rounds: int = ROUNDS,
    name: str,
    records: Records,
    progress: Progress,
) -> tuple[Round, ...]:
    """Improve a choice that fits the budget, and return the rounds in order.

    Args:
        whole: the model, on its calibration sequences.
        table: its candidates.
        sizes: nominal bytes of every candidate, for every KV head.
        budget: nominal bytes of all KV heads together.
        start: the choice to begin with.
        rounds: configs measured at most, the first included.
        name: of the records, in which finished rounds are found again.
        records: where they are kept.
        progress: called with the stage, rounds done, and their number.

    """
    of_heads = sensitivities(table)
    done: list[Round] = []
    best, around = None, None
    step = Round(tuple(start), math.nan)
    price = 1.0
    for number in range(rounds):
        progress(MOVING, number, rounds)
        record = records.get(f"{name}-{number}")
        if record is None or tuple(record["round"]["choice"]) != step.choice:
            record = _measured(whole, table, sizes, step, first=best is None)
            records.put(f"{name}-{number}", record)
        measured = Round(**record["round"] | {"choice": tuple(record["round"]["choice"])})
        done.append(measured)
        better = best is None or measured.kl < best.kl
        if best is None or better:
            price = max(_LEAST_PRICE, price * _kept_promise(best, measured))
            best = measured
        else:
            price *= _FAILED
        if number + 1 == rounds:
            break
        if better:
            if "slopes" not in record:
                _, slopes = measure_slopes(whole, table, sizes, step.choice)
                record |= {"slopes": asdict(slopes)}
                records.put(f"{name}-{number}", record)
            around = Slopes(**record["slopes"])
        if around is None:
            break
        step = _best_step(around.promises(of_heads, price), sizes, budget, price)
        while step.choice in {earlier.choice for earlier in done} and price <= _MOST_PRICE:
            price *= _FAILED  # measured before, and no better
            step = _best_step(around.promises(of_heads, price), sizes, budget, price)
        if price > _MOST_PRICE or (step.promised or 0.0) > -_WORTHWHILE * best.kl:
            break
    progress(MOVING, rounds, rounds)
    return tuple(done)


def _measured(
    whole: WholeModel, table: LeverTable, sizes: Sequence[Sequence[int]], step: Round, *, first: bool
) -> dict[str, Any]:
    """The record of a step: its KL, and its slopes where it is the first; of the others, those that help need slopes.

    Slopes take several times as long as the KL, and from a step that did not help nothing goes on.
    """
    if not first:
        return {"round": asdict(step) | {"kl": whole.kl(table, step.choice)}}
    kl, slopes = measure_slopes(whole, table, sizes, step.choice)
    return {"round": asdict(step) | {"kl": kl}, "slopes": asdict(slopes)}


def _kept_promise(best: Round | None, measured: Round) -> float:
    """What a step that helped does to the price: the model is trusted as far as it was right."""
    if best is None or not measured.promised:
        return 1.0
    share = (best.kl - measured.kl) / -measured.promised
    return _SHORT if share < _LITTLE else _KEPT if share > _MUCH else 1.0


def _best_step(promises: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], budget: int, price: float) -> Round:
    """The step that the model promises most of."""
    offered, candidates = options(promises, sizes)
    allocation = from_first(lambda: allocate(offered, budget))  # which a clock may end
    choice = tuple(indices[option] for indices, option in zip(candidates, allocation.choice, strict=True))
    return Round(choice, math.nan, allocation.loss, price, allocation.bound, allocation.gap)


def sensitivities(table: LeverTable) -> list[float]:
    """What a squared relative error of one costs, in nats squared per token, for every KV head."""
    of_heads = []
    for rows in table.rows():
        errors = sum(row.relative_l2**2 for row in rows)
        of_heads.append(sum(row.gradient_error for row in rows) / errors if errors else 0.0)
    return of_heads


def measure_slopes(
    whole: WholeModel, table: LeverTable, sizes: Sequence[Sequence[int]], choice: Sequence[int]
) -> tuple[float, Slopes]:
    """Mean KL of the config of a choice, and what the candidates in reach would change.

    Args:
        whole: the model, on its calibration sequences.
        table: its candidates.
        sizes: nominal bytes of every candidate, for every KV head.
        choice: index of the candidate of every KV head.

    """
    prepared = whole.prepared(table, choice)

    def running(model: Any, observe: Observer) -> Handle:
        return attach(model, prepared, observe=observe)

    reach = _in_reach(table, sizes, choice)
    first_order: list[list[float | None]] = [
        [0.0 if index in candidates else None for index in range(len(table.candidates))] for candidates in reach
    ]
    squared = [list(of_head) for of_head in first_order]
    of_modules = _kv_heads_of_modules(table)

    def of_sequence(sequence: Tensor, exact: Tensor) -> tuple[float, list[_Slope]]:
        slopes: list[_Slope] = []

        def add_layer(name: str, observed: Observed) -> None:
            if name in of_modules:
                layer, kv_heads = of_modules[name]
                for kv_head, *slope in _slopes_of_layer(observed, table, layer, reach[kv_heads], choice[kv_heads]):
                    slopes.append((kv_heads.start + kv_head, *slope))

        gradient = partial(kl_gradient, whole.head, exact)
        return observe_sequence(whole.model, sequence, gradient, add_layer, running), slopes

    loss = 0.0
    for kl, slopes in gathered([of_sequence(*pair) for pair in zip(whole.sequences, whole.exact, strict=True)]):
        loss += kl / whole.count
        for kv_head, index, slope, square in slopes:
            for totals, value in ((first_order, slope), (squared, square)):
                totals[kv_head][index] = (totals[kv_head][index] or 0.0) + value / whole.count
    return loss, Slopes(first_order, squared)


def _kv_heads_of_modules(table: LeverTable) -> dict[str, tuple[LayerLevers, slice]]:
    """By module, what was measured of it, and the places of its KV heads among those of all."""
    places, start = {}, 0
    for layer, module in zip(table.layers, table.modules, strict=True):
        places[layer.module] = layer, slice(start, start + module.kv_heads)
        start += module.kv_heads
    return places


def _in_reach(table: LeverTable, sizes: Sequence[Sequence[int]], choice: Sequence[int]) -> list[list[int]]:
    """Candidates that may be chosen and whose bytes are within the factor of the present ones, per KV head."""
    reach = []
    for rows, size, now in zip(table.rows(), sizes, choice, strict=True):
        within = [
            index
            for index, (candidate, row) in enumerate(zip(table.candidates, rows, strict=True))
            if eligible(candidate, row) and size[now] <= size[index] * REACH and size[index] <= size[now] * REACH
        ]
        unbeaten = _without_beaten(table.candidates, rows, size, within)
        reach.append(sorted({now, *unbeaten}))
    return reach


def _without_beaten(
    candidates: Sequence[Candidate], rows: Sequence[LeverRow], size: Sequence[int], within: Sequence[int]
) -> list[int]:
    """Those of the candidates ``within`` reach that none with another share of kept keys was measured to beat.

    One beats another by no more bytes and both errors less; running them all would take most of the time.
    """
    shares = [kept_share(candidate.spec.near) for candidate in candidates]

    def beats(one: int, other: int) -> bool:
        return (
            shares[one] != shares[other]
            and size[one] <= size[other]
            and rows[one].gradient_error < rows[other].gradient_error
            and rows[one].relative_l2 < rows[other].relative_l2
        )

    return [index for index in within if not any(beats(other, index) for other in within)]


def _slopes_of_layer(
    observed: Observed, table: LeverTable, layer: LayerLevers, reach: Sequence[Sequence[int]], choice: Sequence[int]
) -> list[_Slope]:
    """What the candidates in reach would change in one module, whose KV heads are counted from 0 on.

    ``reach`` holds the candidates of each of its KV heads, ``choice`` the one that runs now, whose change is nothing.
    """
    runner = Runner(observed, layer.prepared)
    slopes = []
    for kv_head, (in_reach, now) in enumerate(zip(reach, choice, strict=True)):
        others = [index for index in in_reach if index != now]
        size = runner.squared_output(kv_head)
        runs = [group_specs(table.candidates, layer.fitted, index, kv_head, runner.group) for index in others]
        for run, output, _ in runner.run(kv_head, runs):
            first_order, change = runner.change(kv_head, output)
            slopes.append((kv_head, others[run], float(first_order.sum()), change / size))
    return slopes
