"""Alphas of a layer's projections: never a bare number where the fit does not carry one."""

from __future__ import annotations

from taylorder.analysis.results import ROLES, Analysis, SpectralRow
from taylorder.reports import summary
from taylorder.reports.numbers import layer_labels
from taylorder.reports.sections import Beside, Cell, GridLayout, GridRow, HeadGrid

WIDE = 0.5
"""Where the alphas of near-tied tail starts span more than this, the printed one is one of several."""


def beside() -> tuple[tuple[Beside, ...], tuple[GridLayout, ...]]:
    """Columns for the alphas of a layer, each with the distance D of its fit, and which are shown as room shrinks."""
    titles = ("alpha q", *ROLES[1:])
    columns = tuple(column for title in titles for column in (Beside(title, 7, True), Beside("D", 6, True)))
    missing, too_narrow = "the alphas of v and o", "Too narrow for {}: spectral.csv has them."
    return columns, (
        GridLayout(tuple(range(8))),
        GridLayout((0, 1, 2, 3, 4, 6)),
        GridLayout((0, 1, 2, 3), too_narrow.format(missing)),
        GridLayout((0, 2), too_narrow.format(f"{missing} and every D")),
    )


def of_layers(analysis: Analysis) -> dict[str, tuple[Cell, ...]]:
    """What stands in those columns for every layer."""
    fits = {(row.module, row.role): row for row in analysis.spectral if row.head is None}
    return {
        module.name: tuple(
            cell
            for role in ROLES
            for cell in (alpha(fits.get((module.name, role))), _distance(fits.get((module.name, role))))
        )
        for module in analysis.model.modules
    }


def alpha(fit: SpectralRow | None) -> Cell:
    """An alpha, or why there is none; ``?`` marks one of several fits as good."""
    if fit is None or fit.status == "unavailable":
        return Cell("-")
    if fit.alpha is None or fit.status == "failed":
        return Cell("failed")
    return Cell(f"{fit.alpha:.2f}", fit.alpha, "?" if _is_wide(fit) else "")


def _distance(fit: SpectralRow | None) -> Cell:
    if fit is None or fit.D is None:
        return Cell("")
    return Cell(f"{fit.D:.3f}".removeprefix("0"), fit.D)


def legend(analysis: Analysis) -> str:
    """What the figures and those marks that occur mean, and what dequantised weights do to alphas."""
    whole = [row for row in analysis.spectral if row.head is None]
    notes = [
        "alpha is the power-law exponent of a weight's eigenvalue spectrum, from WeightWatcher; D, the distance of "
        "that fit, is better when smaller"
    ]
    if any(_is_wide(row) for row in whole):
        notes.append(f"? marks alphas that spread over more than {WIDE} among fits as good (D within 0.01)")
    behind = {row.role: row.projection for row in whole if row.projection != row.role}
    if roles := [role for role in ROLES if role in behind]:
        notes.append(
            f"{', '.join(roles)}: of the matrices behind the latent ({', '.join(behind[role] for role in roles)} in "
            "spectral.csv: q_b_proj, and the rows of kv_b_proj)"
        )
    if any(row.status == "failed" for row in whole):
        notes.append("failed: no usable fit")
    if any(row.status == "unavailable" for row in whole):
        notes.append("-: the layer has no such matrix")
    note = " They are the alphas of dequantised weights and differ from the original checkpoint's."
    return f"{'; '.join(notes)}.{note if analysis.model.weights_note else ''}"


def of_heads(analysis: Analysis) -> HeadGrid | None:
    """Lowest, median and highest alpha of single heads per layer and projection; None unless they were measured."""
    fits = [row for row in analysis.spectral if row.head is not None]
    if not fits:
        return None
    shown = [role for role in ROLES if any(row.role == role for row in fits)]
    rows = []
    for module, label in layer_labels(analysis.model.modules):
        cells = []
        for role in shown:
            here = [row for row in fits if row.module == module.name and row.role == role]
            fitted = [row.alpha for row in here if row.alpha is not None]
            figures = [summary.quantile(fitted, share) for share in (0.0, 0.5, 1.0)]
            cells.append(Cell(" ".join(f"{alpha:.1f}" for alpha in figures) if fitted else "failed" if here else "-"))
        rows.append(GridRow(label, (), (), tuple(cells)))
    columns = tuple(Beside(role, 17) for role in shown)
    return HeadGrid(tuple(rows), 1, (), (), columns, (GridLayout(tuple(range(len(columns)))),))


def _is_wide(row: SpectralRow) -> bool:
    return row.alpha_low is not None and row.alpha_high is not None and row.alpha_high - row.alpha_low > WIDE
