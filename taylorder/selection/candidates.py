"""What a KV head could run instead of exact attention: the candidates among which the allocation chooses.

A candidate holds for the whole group of query heads that share a KV head: it decides what is cached, and thus the cost.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from taylorder.adapt.cost import kv_bytes
from taylorder.errors import UsageError
from taylorder.kernels.spec import SINKS, Dropped, Exact, HeadSpec, Near, Taylor
from taylorder.selection.near_sizes import SHARES, keeping

Lever: TypeAlias = Literal["order", "expansion", "window", "sinks", "kept", "ranks", "coefficients"]
LEVERS: tuple[Lever, ...] = get_args(Lever)

MORE_SINKS = 16
MOST, MOST_WITH_KEPT = 24, 42
"""Candidates of a KV head, without the lever ``kept`` and with it."""

LOW_RANK = 8
"""Coordinates of the terms of degree 2 and up: the logits of the median head of the built-in model reach 90 % of their
variance in about 12 (docs/math.md#7-ranks), and the features grow with the power of it."""

_WINDOWS = (12, 28, 60, 92, 124, 188, 252, 380, 508, 764, 1020, 1532, 2044, 3068, 4092, 6140, 8188, 12284, 16380)
"""Powers of two and the values half-way between, less the sinks."""

_BASE_SHARE = 64
"""The window beside polynomials of order 2 and up is this fraction of the sequence."""

_GRID_MOST, _CONSTANT_MOST = 14, 3
"""Near fields that are measured with the rest dropped, and with a constant for the rest, where other levers need room.

The grid of plain windows is the finer one: single heads do better with the constant, but many of them together do not
(docs/notebook/2026-11-choosing.md), and a choice that has few plain windows to go to never finds that out.
"""


_WINDOWS_MOST, _OTHERS_MOST, _OTHERS_LEAST = 8, 5, 124
"""Beside kept keys: windows alone, near fields of every other share of kept keys, and the window whose bytes these take
at least. They have fewer sizes to go to, powers of two."""

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
            "kept": near.kept,
            "ranks": taylor.ranks,
            "coefficients": "dropped" if isinstance(far, Dropped) else "fitted" if self.fitted else "taylor",
        }

    def label(self) -> str:
        """Name it in a few words, window, sinks and kept keys last, as a column of a table does."""
        far, field = self.spec.far, self.spec.near
        near = f"{field.window:,} + {field.sinks}{f' + {field.kept:,} kept' if field.kept else ''} keys"
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


def candidates(
    levers: Collection[Lever], head_dim: int, length: int, near: tuple[int, int], value_dim: int | None = None
) -> tuple[Candidate, ...]:
    """List what a KV head may run, at most :data:`MOST` or :data:`MOST_WITH_KEPT`, exact first, without repetition.

    Args:
        levers: what may differ between KV heads. Without ``window`` all have near fields of the same bytes; without
            ``kept`` these are windows and sinks; without ``order`` there are no polynomials; without ``expansion``
            those of order 2 and up are expanded around the mean.
        head_dim: d.
        length: tokens of a sequence; a window of that length is exact.
        near: window and sinks where they are not to be chosen.
        value_dim: d_v, default d.

    """
    windows = [window for window in _WINDOWS if window + SINKS < length] if "window" in levers else [near[0]]
    sinks = SINKS if "window" in levers else near[1]
    token = kv_bytes(head_dim, value_dim or head_dim, 1)

    def keep(field: Near) -> Near:
        return keeping(field, SHARES[0], token) if "kept" in levers else field

    plain = [Near(window, sinks) for window in windows]
    grid = _spread(plain, _GRID_MOST) if "order" in levers or "kept" in levers else plain
    fields = [keep(field) for field in grid]
    if "kept" in levers:
        fields += _fields_beside(plain, token, powers="window" in levers)
    offered = [Candidate(HeadSpec(Dropped(), field)) for field in fields]
    if "order" in levers:
        # One row of state, the sum of the far values, costs as much as one token; it helps where much is forgotten.
        chosen = [keep(field) for field in _spread(plain[: 2 * len(plain) // 3 + 1], _CONSTANT_MOST)]
        offered += [Candidate(HeadSpec(Taylor(1, "centre"), field), "coefficients" in levers) for field in chosen]
        beside = Near(length // _BASE_SHARE if "window" in levers else near[0], sinks)
        offered += _polynomials(levers, head_dim, keep(beside))
    if "sinks" in levers and windows and windows[-1] > MORE_SINKS:
        middle = grid[min(len(windows), _GRID_MOST) // 2]
        offered.append(Candidate(HeadSpec(Dropped(), keep(Near(middle.tokens - MORE_SINKS, MORE_SINKS)))))
    return tuple(dict.fromkeys([Candidate(HeadSpec(Exact())), *offered]))


def _fields_beside(plain: list[Near], token: int, *, powers: bool) -> list[Near]:
    """Near fields of the bytes of windows that give none of them to kept keys, or another share than most do.

    Where the sizes are to be chosen, they are ``powers`` of two.
    """
    chosen = [field for field in plain if not powers or field.tokens & (field.tokens - 1) == 0]
    large = [field for field in chosen if not powers or field.window >= _OTHERS_LEAST]
    others = [keeping(field, share, token) for share in SHARES[1:] for field in _spread(large, _OTHERS_MOST)]
    return _spread(chosen, _WINDOWS_MOST) + others


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
