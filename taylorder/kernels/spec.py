"""What one query head computes, and which specs may share a KV head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

EXPANSIONS = ("zero", "mean")

MAX_ORDER = 8

SINKS = 4
"""First tokens that are kept where nothing else is said (arXiv 2309.17453)."""

GUARD = 1e-3
"""A row whose far denominator (relative to ``e^mu``) is not above this share of its far keys falls back to order 1."""


@dataclass(frozen=True)
class HeadSpec:
    """How one query head weighs its keys.

    Keys of the near field (the last ``window``, the query's own included, and the first ``sinks`` valid ones) get the
    true exponential; every other key gets ``sum_p coefficients[p] x_p^p`` over degrees ``p < order``, where ``x_p`` is
    the score over the first ``ranks[p]`` coordinates minus the expansion point: 0 for ``zero``, the mean of those
    scores over the row's far keys for ``mean``.

    Attributes:
        order: number of terms, 1 … 8; None is ordinary softmax attention, and then every other field must be absent.
        expansion: ``zero`` or ``mean``.
        window: keys, 0 for none.
        sinks: keys, 0 for none.
        ranks: one per degree, ``ranks[0]`` unused, ``ranks[1] >= ranks[2] >= …``; None uses all d coordinates.
        coefficients: one per degree; None is ``1 / p!``. If all are 0 the far field is dropped, and what is left is
            ordinary attention to sinks and a sliding window, which needs no state.

    Raises:
        ValueError: a field is out of range or contradicts another.

    """

    order: int | None
    expansion: str = "zero"
    window: int = 0
    sinks: int = 0
    ranks: tuple[int, ...] | None = None
    coefficients: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.order is None:
            if (self.expansion, self.window, self.sinks, self.ranks, self.coefficients) != ("zero", 0, 0, None, None):
                raise ValueError(
                    f"{self} is exact (order None), expected no expansion, near field, ranks or coefficients"
                )
            return
        if not 1 <= self.order <= MAX_ORDER:
            raise ValueError(f"order is {self.order}, expected 1 to {MAX_ORDER}, or None for exact")
        if self.expansion not in EXPANSIONS:
            raise ValueError(f"expansion is {self.expansion!r}, expected one of {EXPANSIONS}")
        for name in ("window", "sinks"):
            if not 0 <= getattr(self, name) < 2**31:  # kernels count tokens in 32 bits
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to {2**31 - 1}")
        for name in ("ranks", "coefficients"):
            values = getattr(self, name)
            if values is not None and len(values) != self.order:
                raise ValueError(f"{name} is {values}, expected one entry per degree: {self.order}")
        if self.ranks is not None and any(a < b for a, b in zip(self.ranks[1:], self.ranks[2:])):
            raise ValueError(f"ranks is {self.ranks}, expected ranks that do not increase from degree 1 on")
        if self.ranks is not None and any(rank < 0 for rank in self.ranks):
            raise ValueError(f"ranks is {self.ranks}, expected no negative rank")
        if self.coefficients is not None and not all(math.isfinite(c) for c in self.coefficients):
            raise ValueError(f"coefficients is {self.coefficients}, expected finite numbers")

    @property
    def polynomial(self) -> tuple[float, ...]:
        """Coefficient of every degree 0 … order-1."""
        if self.order is None:
            raise ValueError("an exact head has no polynomial")
        return self.coefficients or tuple(1.0 / math.factorial(p) for p in range(self.order))

    @property
    def drops_far(self) -> bool:
        """Whether far keys are left out altogether; the guard has nothing to guard then."""
        return self.coefficients is not None and not any(self.coefficients)

    def rank(self, degree: int, head_dim: int) -> int:
        """Coordinates the term of that degree uses."""
        return head_dim if self.ranks is None or degree == 0 else min(self.ranks[degree], head_dim)


def check_heads(heads: Sequence[HeadSpec], query_heads: int, kv_heads: int, causal: bool) -> None:
    """Refuse tables that the heads' shared KV cannot honour.

    Raises:
        ValueError: the number of specs is wrong, specs of one group differ in what their KV head shares, or a
            bidirectional head asks for a near field.

    """
    if len(heads) != query_heads:
        raise ValueError(f"heads has {len(heads)} specs, expected one per query head: {query_heads}")
    if kv_heads < 1 or query_heads % kv_heads:
        raise ValueError(f"q has {query_heads} heads and k has {kv_heads}, expected a multiple")
    group = query_heads // kv_heads
    for kv_head in range(kv_heads):
        members = heads[kv_head * group : (kv_head + 1) * group]
        if len({spec.order is None for spec in members}) > 1:
            raise ValueError(f"heads of KV head {kv_head} are partly exact; they share the cache, so all must be")
        for name in ("window", "sinks"):
            found = sorted({getattr(spec, name) for spec in members})
            if len(found) > 1:
                raise ValueError(f"heads of KV head {kv_head} have {name} {found}, expected one value")
        ranks = [spec.ranks for spec in members if spec.ranks is not None]
        longest = max(ranks, key=len, default=())
        if (ranks and len(ranks) < group) or any(r != longest[: len(r)] for r in ranks):
            raise ValueError(
                f"heads of KV head {kv_head} have ranks {[s.ranks for s in members]}, expected prefixes of one"
            )
        if not causal and any(spec.window or spec.sinks for spec in members):
            raise ValueError(
                f"heads of KV head {kv_head} have a near field, but attention is bidirectional (causal=False)"
            )
