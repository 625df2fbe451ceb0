"""What a KV head could run instead of exact attention: the candidates among which the allocation chooses.

A candidate holds for the whole group of query heads that share a KV head: it decides what is cached, and thus the cost.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from taylorder.errors import UsageError
from taylorder.kernels.spec import SINKS, Dropped, Exact, HeadSpec, Near, Taylor

Lever: TypeAlias = Literal["order", "expansion", "window", "sinks", "ranks", "coefficients"]
LEVERS: tuple[Lever, ...] = get_args(Lever)

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
    """One way to run a KV head: what its query heads run, keys centred, and rotated if there are ranks.

    Where ``fitted``, each query head has coefficients of its own: least squares on its output.
    """

    spec: HeadSpec
    fitted: bool = False

    @property
    def truncates(self) -> bool:
        """Whether far keys are weighed by a polynomial, rather than exactly or not at all."""
        return isinstance(self.spec.far, Taylor)

    def head_spec(self, fitted: tuple[float, ...] | None = None) -> HeadSpec:
        """Return what one query head runs; ``fitted`` are its coefficients, where the candidate asks for any."""
        if not self.fitted or not isinstance(self.spec.far, Taylor):
            return self.spec
        if fitted is None:
            raise ValueError(f"{self} needs fitted coefficients")
        return replace(self.spec, far=replace(self.spec.far, coefficients=fitted))

    def columns(self) -> dict[str, Any]:
        """Return the options side by side, as ``levers.csv`` has them."""
        far, near = self.spec.far, self.spec.near
        taylor = far if isinstance(far, Taylor) else Taylor(1, "centre")
        return {
            "order": "exact" if isinstance(far, Exact) else taylor.order,
            "expansion": taylor.expansion,
            "window": near.window,
            "sinks": near.sinks,
            "ranks": taylor.ranks,
            "coefficients": "dropped" if isinstance(far, Dropped) else "fitted" if self.fitted else "taylor",
        }

    def label(self) -> str:
        """Name it in a few words, window and sinks last, as a column of a table does."""
        far, near = self.spec.far, f"{self.spec.near.window:,} + {self.spec.near.sinks} keys"
        if isinstance(far, Exact):
            return "exact"
        if isinstance(far, Dropped):
            return near
        ranks = f", rank {far.ranks[-1]}" if far.ranks is not None else ""
        return f"order {far.order} {far.expansion}{' fitted' if self.fitted else ''}{ranks}, {near}"


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
    nears = [Near(window, sinks) for window in windows]
    dropped = [Candidate(HeadSpec(Dropped(), field)) for field in nears]
    if "order" not in levers:
        offered = dropped
    else:
        offered = _spread(dropped, _GRID_MOST)
        # One row of state, the sum of the far values, costs as much as one token; it helps where much is forgotten.
        chosen = _spread(nears[: 2 * len(nears) // 3 + 1], _CONSTANT_MOST)
        offered += [Candidate(HeadSpec(Taylor(1, "centre"), field), "coefficients" in levers) for field in chosen]
        beside = Near(length // _BASE_SHARE if "window" in levers else near[0], sinks)
        offered += _polynomials(levers, head_dim, beside)
    if "sinks" in levers and windows and windows[-1] > MORE_SINKS:
        middle = offered[min(len(windows), _GRID_MOST) // 2].spec
        offered.append(Candidate(replace(middle, near=Near(middle.near.tokens - MORE_SINKS, MORE_SINKS))))
    return tuple(dict.fromkeys([Candidate(HeadSpec(Exact())), *offered]))


def _spread(items: list[_T], most: int) -> list[_T]:
    """At most so many of the items, evenly spaced, the last included."""
    if len(items) <= most:
        return items
    return [items[(nth + 1) * len(items) // most - 1] for nth in range(most)]


def _polynomials(levers: Collection[Lever], head_dim: int, near: Near) -> list[Candidate]:
    """Candidates that truncate at order 2 and up, with one near field."""
    low = min(LOW_RANK, head_dim)
    offered = [Candidate(HeadSpec(Taylor(2, "mean"), near))]
    if "coefficients" in levers:
        offered.append(replace(offered[0], fitted=True))
    if "expansion" in levers:
        offered.append(Candidate(HeadSpec(Taylor(2, "centre"), near)))
    far = [Taylor(3, "mean")]
    if "ranks" in levers:
        far = [Taylor(order, "mean", (head_dim,) * 2 + (low,) * (order - 2)) for order in (3, 4)]
    return offered + [Candidate(HeadSpec(polynomial, near)) for polynomial in far]
