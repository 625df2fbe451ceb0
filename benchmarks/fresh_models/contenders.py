"""Kinds of attention that models are trained with: each says what a head runs and what it holds of a long context."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from taylorder.adapt import cost
from taylorder.kernels.spec import Dropped, Exact, Expansion, HeadSpec, Near, Taylor

WINDOW, SINKS = 16, 2
SHIFTS = {2: 4.0, 4: 3.0}
"""By how much below zero the expansion points of shifted even orders lie."""


@dataclass(frozen=True)
class Contender:
    """One kind of attention, for every head alike unless ``other`` says what every second one does instead.

    Attributes:
        name: what it is called in records and tables.
        far: what a head does with far keys.
        other: the same for every second head; None as the others do.
        near: its near field.
        rank: coordinates that degrees from 2 on use; None all.
        trains_coefficients: whether the factors of the powers are learnt, from those of ``far`` on.
        guard: whether rows whose denominator is not safely positive take the plain mean.

    """

    name: str
    far: Exact | Dropped | Taylor
    near: Near = field(default_factory=Near)
    other: Taylor | None = None
    rank: int | None = None
    trains_coefficients: bool = False
    guard: bool = True

    def specs(self, head_dim: int, heads: int) -> list[HeadSpec]:
        """What the heads of a layer run, each of so many numbers."""
        return [self._spec(self.other if number % 2 and self.other else self.far, head_dim) for number in range(heads)]

    def _spec(self, far: Exact | Dropped | Taylor, head_dim: int) -> HeadSpec:
        if self.rank is not None and isinstance(far, Taylor):
            rank = min(self.rank, head_dim)
            # `centre` has ranks, and with key centres of zero it is an expansion around zero.
            far = Taylor(far.order, "centre", (head_dim, head_dim, *[rank] * (far.order - 2)), far.coefficients)
        return HeadSpec(far, self.near)

    def state_bytes(self, head_dim: int, tokens: int) -> int:
        """Nominal bytes that one KV head holds after so many tokens, the mean of two heads."""
        return sum(_held(spec, head_dim, tokens) for spec in self.specs(head_dim, 2)) // 2


def _held(spec: HeadSpec, head_dim: int, tokens: int) -> int:
    if isinstance(spec.far, Exact):
        return cost.kv_bytes(head_dim, head_dim, tokens)
    held = cost.near_bytes(spec.near, head_dim, head_dim, tokens)
    if isinstance(spec.far, Taylor):
        held += cost.state_bytes(head_dim, head_dim, spec.far.order, spec.far.ranks)
    return held


def shifted(order: int, shift: float) -> Taylor:
    """``exp`` to that order around ``-shift``, written in powers of the score: positive wherever scores lie above."""
    terms = range(order)
    below = [
        sum(shift ** (j - p) / (math.factorial(p) * math.factorial(j - p)) for j in range(p, order)) for p in terms
    ]
    return Taylor(order, coefficients=tuple(below))


ORDERS = {f"order {terms}": terms for terms in range(1, 6)}
"""Terms of the series itself, around zero, by the contender's name."""


def _orders(expansion: Expansion) -> list[Contender]:
    words = "" if expansion == "zero" else f" {expansion}"
    return [Contender(f"{name}{words}", Taylor(order, expansion)) for name, order in ORDERS.items()]


_NEAR = Near(WINDOW, SINKS)
CONTENDERS: Sequence[Contender] = (
    Contender("softmax", Exact()),
    *_orders("zero"),
    *_orders("mean"),
    Contender("window", Dropped(), _NEAR),
    Contender("order 3 beside window", Taylor(3), _NEAR),
    *(Contender(f"order {order} rank {rank}", Taylor(order), rank=rank) for order in (3, 4) for rank in (4, 8)),
    *(Contender(f"order {order} learnt", Taylor(order), trains_coefficients=True) for order in (2, 4)),
    *(Contender(f"order {order} unguarded", Taylor(order), guard=False) for order in (2, 4)),
    *(Contender(f"order {order} shifted", shifted(order, shift)) for order, shift in SHIFTS.items()),
    Contender("orders 3 and 2", Taylor(3), other=Taylor(2)),
    Contender("order 3 square", Taylor(3, coefficients=(1.0, 1.0, 0.25))),
)
TEXT = (
    "softmax", "order 3", "order 2", "window", "order 4 mean", "order 4", "orders 3 and 2", "order 1",
    "order 3 beside window", "order 3 rank 4",
)  # fmt: skip
"""Those that language models are trained with, in the order in which they matter."""

BY_NAME = {contender.name: contender for contender in CONTENDERS}
