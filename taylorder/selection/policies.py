"""The policies: rules by which every head of a layer gets an order, or a reason to stay exact.

A policy is an entry of :data:`POLICIES`: its name on the command line, its function, and what reports say of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from taylorder.analysis.alpha_ranks import layer_alpha, rank_by_alpha, spread
from taylorder.analysis.results import Analysis, CandidateRow
from taylorder.models.description import AttentionModule
from taylorder.selection.reasons import Reason
from taylorder.selection.settings import PolicyName

_FAMILIES = (("zero",), ("centre", "mean"))
"""Expansions that heads of one group may mix."""

Pick: TypeAlias = CandidateRow | Reason
"""What a policy decides for one head: a candidate, or why it stays exact."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What a policy may look at to decide for one layer.

    ``rows`` are the candidates of each head ``[H][candidates]``; ``largest_order`` pays off at the context, 0 if none.
    """

    analysis: Analysis
    module: AttentionModule
    rows: Sequence[Sequence[CandidateRow]]
    tolerance: float
    largest_order: int


@dataclass(frozen=True, slots=True)
class Policy:
    """A rule that gives heads orders.

    ``picks`` gives one pick per head of a layer. ``bounded`` says that all orders it gives meet the tolerance: reports
    then tell how many heads do, and otherwise what the errors turned out to be, of orders that ``chooser`` gave.
    ``rule`` is what the page says of a head, with places for ``{limit}`` (the tolerance) and ``{where}`` (the context).
    """

    name: PolicyName
    picks: Callable[[Layer], list[Pick]] = field(repr=False)
    bounded: bool
    chooser: str
    rule: str


def eligible(row: CandidateRow) -> bool:
    """Whether policy ``error`` may choose this: an even order only if no calibration row needed the guard."""
    return row.order % 2 == 1 or row.nonpositive_share == 0


def by_error(layer: Layer) -> list[Pick]:
    """The smallest affordable order whose measured error meets the tolerance, where all heads of a group have one."""
    picks: list[Pick] = []
    for heads in layer.module.groups(layer.rows):
        together: list[list[CandidateRow]] = []
        for family in _FAMILIES:
            smallest = [_smallest(rows, family, layer) for rows in heads]
            if all(row is not None for row in smallest):
                together.append([row for row in smallest if row is not None])
        if together:
            best: list[CandidateRow] = min(together, key=_state_then_error)
            picks += best
            continue
        for rows in heads:
            alone = any(_smallest(rows, family, layer) for family in _FAMILIES)
            meets = any(eligible(row) and row.relative_l2 <= layer.tolerance for row in rows)
            picks.append("group" if alone else "cost" if meets else "tolerance")
    return picks


def _smallest(rows: Iterable[CandidateRow], family: tuple[str, ...], layer: Layer) -> CandidateRow | None:
    """Return the affordable candidate of smallest order that meets the tolerance; of equals, that of lower error."""
    meeting = [
        row
        for row in rows
        if row.expansion in family
        and row.order <= layer.largest_order
        and eligible(row)
        and row.relative_l2 <= layer.tolerance
    ]
    return min(meeting, key=lambda row: (row.order, row.relative_l2), default=None)


def _state_then_error(rows: Sequence[CandidateRow]) -> tuple[int, int, float]:
    return max(row.order for row in rows), sum(row.order for row in rows), sum(row.relative_l2 for row in rows)


def by_alpha(layer: Layer) -> list[Pick]:
    """Orders 1 … max spread over the layers ranked by ``|alpha - 2|``, as the public hypothesis would have it.

    The nearer to 2, the fewer terms, with expansion ``zero``. Neither the guard nor cost has a say: the policy is there
    to show what alpha alone would do.
    """
    analysis, name = layer.analysis, layer.module.name
    ranks = rank_by_alpha(
        {module.name: layer_alpha(analysis.spectral, module.name) for module in analysis.model.modules}
    )
    if name not in ranks:
        return ["alpha"] * len(layer.rows)
    order = spread(ranks[name], len(ranks), analysis.max_order)
    return [next(row for row in rows if row.order == order and row.expansion == "zero") for rows in layer.rows]


POLICIES: dict[PolicyName, Policy] = {
    policy.name: policy
    for policy in (
        Policy(
            "error",
            by_error,
            bounded=True,
            chooser="The measured errors",
            rule="The smallest order that pays off {where} and meets {limit}, as all heads of its KV cache do",
        ),
        Policy(
            "alpha",
            by_alpha,
            bounded=False,
            chooser="The alphas alone",
            rule="From the alphas of the layer alone, without looking at any error",
        ),
    )
}
