"""Alphas of a layer's projections as columns of text: never a bare number where the fit does not carry one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.text import Text

from taylorder.analysis.results import Analysis, Projection, SpectralRow
from taylorder.reports import summary
from taylorder.reports.grid_columns import heading, row_label
from taylorder.reports.numbers import layer_names

WIDE = 0.5
"""Where the alphas of near-tied tail starts span more than this, the printed one is one of several."""

_FIELD, _DISTANCE = 7, 6
_PROJECTIONS: tuple[Projection, ...] = ("q", "k", "v", "o")


@dataclass(frozen=True, slots=True)
class AlphaColumns:
    """Which projections are shown, and which of them with the distance D of their fit."""

    rows: dict[tuple[str, Projection], SpectralRow]
    shown: tuple[Projection, ...]
    with_distance: tuple[Projection, ...]

    @property
    def width(self) -> int:
        """Characters of one row."""
        return _FIELD * len(self.shown) + _DISTANCE * len(self.with_distance)

    @property
    def left_out(self) -> str:
        """The alphas that have no column here, and D where no alpha has it; empty if there is nothing to say."""
        missing = [projection for projection in _PROJECTIONS if projection not in self.shown]
        parts = [f"the alphas of {' and '.join(missing)}"] if missing else []
        return " and ".join(parts if self.with_distance else [*parts, "every D"])

    def header(self) -> Text:
        """Projection names, with the note that these are alphas."""
        parts = []
        for place, projection in enumerate(self.shown):
            name = f"alpha {projection}" if place == 0 else projection
            parts.append(
                f"{name:>{_FIELD - 1}} " + (f"{'D':>{_DISTANCE - 1}} " if projection in self.with_distance else "")
            )
        return Text("".join(parts))

    def line(self, module: str) -> Text:
        """The alphas of one layer."""
        parts = []
        for projection in self.shown:
            row = self.rows.get((module, projection))
            parts.append(_alpha(row))
            if projection in self.with_distance:
                distance = f"{row.D:.3f}".removeprefix("0") if row is not None and row.D is not None else ""
                parts.append(f"{distance:>{_DISTANCE - 1}} ")
        return Text("".join(parts))


def fitting_columns(spectral: Iterable[SpectralRow], room: int) -> AlphaColumns:
    """As much as fits: q, k with D and v, o; q and k with D; or q and k alone."""
    rows = {(row.module, row.projection): row for row in spectral if row.head is None}
    layouts: tuple[tuple[tuple[Projection, ...], tuple[Projection, ...]], ...] = (
        (_PROJECTIONS, _PROJECTIONS),
        (_PROJECTIONS, ("q", "k")),
        (("q", "k"), ("q", "k")),
        (("q", "k"), ()),
    )
    columns = [AlphaColumns(rows, shown, with_distance) for shown, with_distance in layouts]
    return next((column for column in columns if column.width <= room), columns[-1])


NARROWEST = 2 * _FIELD


def legend(analysis: Analysis) -> str:
    """What the figures and those marks that occur mean, and what dequantised weights do to alphas."""
    whole = [row for row in analysis.spectral if row.head is None]
    told = [
        "alpha is the power-law exponent of a weight's eigenvalue spectrum, from WeightWatcher; D, the distance of "
        "that fit, is better when smaller"
    ]
    if any(_is_wide(row) for row in whole):
        told.append(f"? marks alphas that spread over more than {WIDE} among fits as good (D within 0.01)")
    if any(row.status == "failed" for row in whole):
        told.append("failed: no usable fit")
    if any(row.status == "unavailable" for row in whole):
        told.append("-: the layer has no such matrix")
    note = " They are the alphas of dequantised weights and differ from the original checkpoint's."
    return f"{'; '.join(told)}.{note if analysis.model.weights_note else ''}"


def head_alphas(analysis: Analysis) -> list[Text]:
    """Lowest, median and highest alpha of single heads per layer and projection; empty unless they were measured."""
    rows = [row for row in analysis.spectral if row.head is not None]
    if not rows:
        return []
    names = layer_names([module.name for module in analysis.model.modules])
    shown = [projection for projection in _PROJECTIONS if any(row.projection == projection for row in rows)]
    header = heading(names) + Text("".join(f"{projection:>17}" for projection in shown))
    header.stylize("bold")
    lines = [header]
    for module in analysis.model.modules:
        line = row_label(names, module)
        for projection in shown:
            here = [row for row in rows if row.module == module.name and row.projection == projection]
            fitted = [row.alpha for row in here if row.alpha is not None]
            figures = [summary.quantile(fitted, share) for share in (0.0, 0.5, 1.0)]
            text = " ".join(f"{alpha:.1f}" for alpha in figures) if fitted else "failed" if here else "-"
            line += Text(f"{text:>17}")
        lines.append(line)
    return lines


def _is_wide(row: SpectralRow) -> bool:
    return row.alpha_low is not None and row.alpha_high is not None and row.alpha_high - row.alpha_low > WIDE


def _alpha(row: SpectralRow | None) -> str:
    if row is None or row.status == "unavailable":
        return f"{'-':>{_FIELD - 1}} "
    if row.alpha is None or row.status == "failed":
        return f"{'failed':>{_FIELD - 1}} "
    return f"{row.alpha:>{_FIELD - 1}.2f}{'?' if _is_wide(row) else ' '}"
