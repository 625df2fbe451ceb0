"""What a KV head could run instead of exact attention: the candidates among which the allocation chooses.

A candidate holds for the whole group of query heads that share a KV head: it decides what is cached, and thus the cost.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, TypeVar

from taylorder.errors import UsageError
from taylorder.kernels import HeadSpec
from taylorder.kernels.spec import SINKS

Lever: TypeAlias = Literal["order", "expansion", "window", "sinks", "ranks", "coefficients"]
LEVERS: tuple[Lever, ...] = ("order", "expansion", "window", "sinks", "ranks", "coefficients")

MORE_SINKS = 16
MOST = 24
"""Candidates of a KV head."""

LOW_RANK = 8
"""Coordinates of the terms of degree 2 and up: the logits of the median head of the built-in model reach 90 % of their
variance in about 12 (docs/math.md#7-ranks), and the features grow with the power of it."""

_WINDOWS = (12, 28, 60, 92, 124, 188, 252, 380, 508, 764, 1020, 1532, 2044, 3068, 4092, 6140, 8188, 12284, 16380)
"""Powers of two and the values half-way between, less the sinks."""

_BASE_SHARE = 64
"""The window beside polynomials of order 2 and up is this fraction of the sequence."""

_GRID_MOST, _CONSTANT_MOST = 14, 3
"""Windows that are measured with the rest dropped, and with a constant for the rest, where other levers need room too.

The grid of plain windows is the finer one: single heads do better with the constant, but many of them together do not
(docs/notebook/2026-11-choosing.md), and a choice that has few plain windows to go to never finds that out.
"""


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run a KV head.

    ``order`` None is exact attention, and then nothing else is said. ``coefficients`` is ``taylor`` (1 / p!),
    ``fitted`` (least squares on this head's output) or ``dropped`` (the far field is left out: sinks and a sliding
    window). ``ranks`` as in ``HeadSpec``; they need calibrated rotations.
    """

    order: int | None
    expansion: Literal["centre", "mean"] = "centre"
    window: int = 0
    sinks: int = 0
    ranks: tuple[int, ...] | None = None
    coefficients: Literal["taylor", "fitted", "dropped"] = "taylor"

    @property
    def near(self) -> int:
        """Tokens that keep the true exponential."""
        return self.window + self.sinks

    @property
    def truncates(self) -> bool:
        """Whether far keys are weighed by a polynomial, rather than exactly or not at all."""
        return self.order is not None and self.coefficients != "dropped"

    def spec(self, fitted: tuple[float, ...] | None = None) -> HeadSpec:
        """Return what the kernels run; keys must be centred, and rotated if there are ranks.

        Args:
            fitted: coefficients of this query head, where ``coefficients`` is ``fitted``.

        """
        if self.order is None:
            return HeadSpec(None)
        expansion = "mean" if self.expansion == "mean" else "zero"
        given = {"taylor": None, "fitted": fitted, "dropped": (0.0,) * self.order}[self.coefficients]
        if self.coefficients == "fitted" and given is None:
            raise ValueError(f"{self} needs fitted coefficients")
        return HeadSpec(self.order, expansion, self.window, self.sinks, self.ranks, given)

    def label(self) -> str:
        """Name it in a few words, window and sinks last, as a column of a table does."""
        if self.order is None:
            return "exact"
        near = f"{self.window:,} + {self.sinks} keys"
        if self.coefficients == "dropped":
            return near
        ranks = f", rank {self.ranks[-1]}" if self.ranks is not None else ""
        fitted = " fitted" if self.coefficients == "fitted" else ""
        return f"order {self.order} {self.expansion}{fitted}{ranks}, {near}"


def parse_levers(text: str) -> frozenset[Lever]:
    """Return the levers named in ``all`` or in a list with commas.

    Raises:
        UsageError: a name is not that of a lever.

    """
    if text.strip() == "all":
        return frozenset(LEVERS)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in LEVERS:
            raise UsageError(f"--levers has {name!r}, expected all, or some of {', '.join(LEVERS)} with commas between")
    return frozenset(lever for lever in LEVERS if lever in names)


def candidates(levers: Collection[Lever], head_dim: int, length: int, near: tuple[int, int]) -> tuple[Candidate, ...]:
    """List what a KV head may run, at most :data:`MOST`, exact first, without repetition.

    Args:
        levers: what may differ between KV heads. Without ``window`` all have the same near field; without ``order``
            there are no polynomials; without ``expansion`` those of order 2 and up are expanded around the mean.
        head_dim: d.
        length: tokens of a sequence; a window of that length is exact.
        near: window and sinks where they are not to be chosen.

    """
    windows = [window for window in _WINDOWS if window + SINKS < length] if "window" in levers else [near[0]]
    sinks = SINKS if "window" in levers else near[1]
    dropped = [Candidate(1, window=window, sinks=sinks, coefficients="dropped") for window in windows]
    if "order" not in levers:
        found = dropped
    else:
        kind: Literal["taylor", "fitted"] = "fitted" if "coefficients" in levers else "taylor"
        found = _spread(dropped, _GRID_MOST)
        # One row of state, the sum of the far values, costs as much as one token; it helps where much is forgotten.
        chosen = _spread(windows[: 2 * len(windows) // 3 + 1], _CONSTANT_MOST)
        found += [Candidate(1, "centre", window, sinks, coefficients=kind) for window in chosen]
        found += _polynomials(levers, head_dim, length // _BASE_SHARE if "window" in levers else near[0], sinks)
    if "sinks" in levers and windows and windows[-1] > MORE_SINKS:
        middle = found[min(len(windows), _GRID_MOST) // 2]
        found.append(replace(middle, window=middle.window + middle.sinks - MORE_SINKS, sinks=MORE_SINKS))
    return tuple(dict.fromkeys([Candidate(None), *found]))


def _spread(items: list[_T], most: int) -> list[_T]:
    """At most so many of the items, evenly spaced, the last included."""
    if len(items) <= most:
        return items
    return [items[(place + 1) * len(items) // most - 1] for place in range(most)]


def _polynomials(levers: Collection[Lever], head_dim: int, window: int, sinks: int) -> list[Candidate]:
    """Candidates that truncate at order 2 and up, with one near field."""
    low = min(LOW_RANK, head_dim)
    found = [Candidate(2, "mean", window, sinks)]
    if "coefficients" in levers:
        found.append(Candidate(2, "mean", window, sinks, coefficients="fitted"))
    if "expansion" in levers:
        found.append(Candidate(2, "centre", window, sinks))
    if "ranks" in levers:
        found += [Candidate(order, "mean", window, sinks, (head_dim,) * 2 + (low,) * (order - 2)) for order in (3, 4)]
    else:
        found.append(Candidate(3, "mean", window, sinks))
    return found
