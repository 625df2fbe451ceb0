"""What one query head runs, a near field and a far field, and which of these may share a KV head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Optional, TypeVar, Union

if TYPE_CHECKING:
    from torch import Tensor

Expansion = Literal["zero", "centre", "mean"]
EXPANSIONS: tuple[Expansion, ...] = ("zero", "centre", "mean")

MAX_ORDER = 8

SINKS = 4
"""First tokens that are kept where nothing else is said (arXiv 2309.17453)."""

GUARD = 1e-3
"""A row whose far denominator (relative to ``e^mu``) is not above this share of its far keys falls back to order 1."""

LONGEST_WINDOW = 2**24
"""Tokens: more than any model's context, and far from where the kernels' 32-bit positions end."""

MOST_SINKS = 2**16
"""Tokens: room for all of them is held from the first token on."""

_T = TypeVar("_T")


@dataclass(frozen=True, repr=False)
class Near:
    """The keys that keep the true exponential: the last ``window``, the query's own included, and the first ``sinks``.

    Of all other keys, the ``kept`` ones of highest priority do too (:mod:`~taylorder.kernels.kept_keys`).

    Raises:
        ValueError: a number is out of range.

    """

    window: int = 0
    sinks: int = 0
    kept: int = 0

    def __post_init__(self) -> None:
        for name, most in (("window", LONGEST_WINDOW), ("sinks", MOST_SINKS), ("kept", LONGEST_WINDOW)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to {most}")

    def __repr__(self) -> str:
        """As of a dataclass; kept keys only where there are any, as digests of configs without them had it."""
        kept = f", kept={self.kept}" if self.kept else ""
        return f"Near(window={self.window}, sinks={self.sinks}{kept})"

    @property
    def tokens(self) -> int:
        """Most keys that are near at once, which is what a cache holds of them."""
        return self.window + self.sinks + self.kept

    def mask(self, row: Tensor, key: Tensor, rank: Optional[Tensor] = None) -> Tensor:
        """Which keys up to the query's own are near by their position, where ``row``, ``key`` and ``rank`` broadcast.

        Args:
            row: position of the query.
            key: position of the key.
            rank: how many valid keys there are up to this one, itself included; None if all are valid.

        """
        return (key <= row) & ((key > row - self.window) | ((key + 1 if rank is None else rank) <= self.sinks))


@dataclass(frozen=True)
class Exact:
    """Ordinary softmax attention: every key keeps the true exponential, and there is no far field."""


@dataclass(frozen=True)
class Dropped:
    """Far keys are left out: ordinary attention to the near field, which needs no state and no guard."""


@dataclass(frozen=True)
class Taylor:
    """Far keys get ``sum_p coefficients[p] x_p^p`` over degrees ``p < order`` instead of the exponential.

    ``x_p`` is the score over the first ``ranks[p]`` coordinates minus the expansion point: 0 for ``zero`` and
    ``centre``, the mean of those scores over the row's far keys for ``mean``. ``centre`` says that the caller has
    subtracted a key centre from the keys, and ``zero`` that it has not.

    Attributes:
        order: number of terms, 1 … 8.
        expansion: ``zero``, ``centre`` or ``mean``.
        ranks: one per degree, ``ranks[0]`` unused, ``ranks[1] >= ranks[2] >= …``; None uses all d coordinates.
        coefficients: one per degree; None is ``1 / p!``.

    Raises:
        ValueError: a field is out of range or contradicts another.

    """

    order: int
    expansion: Expansion = "zero"
    ranks: Optional[tuple[int, ...]] = None
    coefficients: Optional[tuple[float, ...]] = None

    def __post_init__(self) -> None:
        if not 1 <= self.order <= MAX_ORDER:
            raise ValueError(f"order is {self.order}, expected 1 to {MAX_ORDER}")
        if self.expansion not in EXPANSIONS:
            raise ValueError(f"expansion is {self.expansion!r}, expected one of {EXPANSIONS}")
        for name in ("ranks", "coefficients"):
            values = getattr(self, name)
            if values is not None and len(values) != self.order:
                raise ValueError(f"{name} has {len(values)} entries, expected one per degree: {self.order}")
        if self.ranks is not None:
            if self.expansion == "zero":
                raise ValueError("ranks are not defined for expansion 'zero'; use 'centre' or 'mean'")
            if any(a < b for a, b in zip(self.ranks[1:], self.ranks[2:])):
                raise ValueError(f"ranks is {list(self.ranks)}, expected ranks that do not increase from degree 1 on")
            if any(rank < 0 for rank in self.ranks):
                raise ValueError(f"ranks is {list(self.ranks)}, expected no negative rank")
        if self.coefficients is not None:
            if not all(math.isfinite(c) for c in self.coefficients):
                raise ValueError(f"coefficients is {list(self.coefficients)}, expected finite numbers")
            if not any(self.coefficients):
                raise ValueError(f"coefficients is {list(self.coefficients)}, which drops the far field: use Dropped()")

    @property
    def polynomial(self) -> tuple[float, ...]:
        """Coefficient of every degree 0 … order-1."""
        return self.coefficients or tuple(1.0 / math.factorial(p) for p in range(self.order))

    def rank(self, degree: int, head_dim: int) -> int:
        """Coordinates the term of that degree uses."""
        return head_dim if self.ranks is None or degree == 0 else min(self.ranks[degree], head_dim)


FarField = Union[Exact, Dropped, Taylor]


@dataclass(frozen=True)
class HeadSpec:
    """What one query head runs: a far field, and the near field whose keys keep the true exponential.

    Raises:
        ValueError: the head is exact and has a near field.

    """

    far: FarField
    near: Near = field(default_factory=Near)

    def __post_init__(self) -> None:
        if isinstance(self.far, Exact) and self.near != Near():
            raise ValueError(f"an exact head has no near field, found {self.near}: expected {Near()}")

    @property
    def runs(self) -> str:
        """What it is called in ``orders.json``: ``exact``, ``window`` or ``taylor``."""
        return "exact" if isinstance(self.far, Exact) else "window" if isinstance(self.far, Dropped) else "taylor"

    @property
    def ranks(self) -> Optional[tuple[int, ...]]:
        """Those of the polynomial; None if it has none, or if there is no polynomial."""
        return self.far.ranks if isinstance(self.far, Taylor) else None

    @property
    def order(self) -> int:
        """How many degrees of a state it reads; without a polynomial one, which weighs nothing."""
        return self.far.order if isinstance(self.far, Taylor) else 1

    @property
    def around_mean(self) -> bool:
        """Whether far keys get a polynomial around the mean of the row's far scores."""
        return isinstance(self.far, Taylor) and self.far.expansion == "mean"


def grouped(heads: Sequence[_T], kv_heads: int) -> list[Sequence[_T]]:
    """Cut what belongs to the query heads into what belongs to the group of each KV head."""
    group = len(heads) // kv_heads
    return [heads[start : start + group] for start in range(0, group * kv_heads, group)] if group else []


def deepest(group: Sequence[HeadSpec]) -> Optional[Taylor]:
    """The polynomial of highest order in a group, of whose state the others read a prefix; None if there is none."""
    return max((spec.far for spec in group if isinstance(spec.far, Taylor)), key=lambda far: far.order, default=None)


def ignores_shifts(group: Sequence[HeadSpec]) -> bool:
    """Whether a group has polynomials, and none of them notices a vector subtracted from all keys."""
    return deepest(group) is not None and all(s.around_mean for s in group if isinstance(s.far, Taylor))


def check_group(where: str, group: Sequence[HeadSpec]) -> None:
    """Refuse what query heads that share a KV head cannot have different; ``where`` names the KV head in the sentence.

    Raises:
        ValueError: some are exact and some are not, near fields or ranks differ, or expansions that want unlike keys
            are mixed.

    """
    exact = [isinstance(spec.far, Exact) for spec in group]
    if any(exact) and not all(exact):
        raise ValueError(f"{where}: some heads are exact and some are not; the cache is shared, so all must be exact")
    for name in ("window", "sinks", "kept"):
        values = sorted({getattr(spec.near, name) for spec in group})
        if len(values) > 1:
            raise ValueError(f"{where}: {name} differs within the group ({values}); one value is expected")
    polynomials = [spec.far for spec in group if isinstance(spec.far, Taylor)]
    ranks = [far.ranks for far in polynomials if far.ranks is not None]
    if ranks:
        if len(ranks) < len(polynomials):
            raise ValueError(f"{where}: some heads have ranks and some have none; the state is shared")
        longest = max(ranks, key=len)
        if any(r != longest[: len(r)] for r in ranks):
            raise ValueError(f"{where}: ranks differ within the group ({ranks}); each must be a prefix of the longest")
    if len({far.expansion == "zero" for far in polynomials}) > 1:
        raise ValueError(
            f"{where}: expansion 'zero' is mixed with 'centre' or 'mean'; their states hold different keys"
        )


def keeps_keys(heads: Sequence[HeadSpec]) -> bool:
    """Whether any of the heads keeps keys by priority."""
    return any(spec.near.kept for spec in heads)


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
    for kv_head, group in enumerate(grouped(heads, kv_heads)):
        check_group(f"KV head {kv_head}", group)
        if not causal and any(spec.near.tokens for spec in group):
            raise ValueError(f"KV head {kv_head} has a near field, but attention is bidirectional (causal=False)")
