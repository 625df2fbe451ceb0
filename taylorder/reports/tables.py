"""Tables of a report: error by order, how far the heads are, what a near field changes."""

from __future__ import annotations

from taylorder.analysis.results import Analysis
from taylorder.kernels.spec import EXPANSIONS
from taylorder.reports import summary
from taylorder.reports.numbers import compact, layer_names, number, percent, percent_figure, size
from taylorder.reports.sections import Cell, Column, Table, table
from taylorder.selection.by_tolerance import Selection


def error_by_order(analysis: Analysis, selection: Selection) -> Table:
    """Median error per order and expansion point, heads within the tolerance, and what the order costs."""
    causal, latent = analysis.model.causal, analysis.model.typical.latent_dim is not None
    columns = (
        Column("order", figures=True),
        *(Column(expansion, figures=True, wraps=True) for expansion in EXPANSIONS),
        Column("heads\nwithin", figures=True),
        Column("state per\nKV head" if causal else "features\nper head", figures=True),
        Column("breaks\neven at", figures=True, spare=True),
        *([Column("beside\nlatents", figures=True, spare=True)] if latent else []),
        Column("pays\noff", figures=True, spare=True),
    )
    return table(
        columns,
        [
            (
                Cell(str(line.order), line.order),
                *(_guarded_and_raw(*line.errors[expansion]) for expansion in EXPANSIONS),
                Cell(number(line.within), line.within),
                Cell(size(line.nominal_bytes), line.nominal_bytes)
                if causal
                else Cell(compact(line.features), line.features),
                Cell(compact(line.break_even), line.break_even),
                *(Cell(compact(even), even) for even in (line.latent_break_even,) if even is not None),
                "yes" if line.pays else "no",
            )
            for line in summary.by_order(analysis, selection)
        ],
    )


def distances(analysis: Analysis, selection: Selection) -> Table:
    """Quantiles over heads of each head's least error, among orders that pay off and among all measured ones."""
    titles = ("lowest", "25%", "median", "75%", "highest")
    paying = [head.best.relative_l2 for head in summary.described_heads(analysis, selection) if head.best is not None]
    anyhow = [row.relative_l2 for row in summary.best_measured(analysis).values()]
    largest = min(selection.largest_order, analysis.max_order)
    lines = ((f"order {_span(largest)} (pays off)", paying), (f"order {_span(analysis.max_order)}", anyhow))
    return table(
        (
            Column("least error of a head", wraps=True),
            *(Column(title, figures=True, spare=title.endswith("%")) for title in titles),
        ),
        [
            (label, *(_error(summary.quantile(errors, share)) for share in summary.QUANTILES))
            for label, errors in lines
            if errors
        ],
    )


def nearest_heads(analysis: Analysis, selection: Selection) -> Table | None:
    """The heads that miss the tolerance by least, with the candidate that does and the order they need."""
    nearest = summary.nearest(analysis, selection)
    if not nearest:
        return None
    names = layer_names([module.name for module in analysis.model.modules])
    columns = (
        Column("heads that miss it by least", wraps=True),
        Column("error", figures=True),
        Column("with"),
        Column("needs order", figures=True),
    )
    rows = [
        (
            names.head(head.module, head.head),
            _error(row.relative_l2, 3),
            f"order {row.order}, {row.expansion}",
            Cell(f"more than {analysis.max_order}" if head.needed_order is None else str(head.needed_order)),
        )
        for head, row in nearest
    ]
    return table(columns, rows)


def near_field(analysis: Analysis, selection: Selection) -> Table | None:
    """Median error and heads within the tolerance per order, without and with the preview's near field."""
    preview = analysis.preview
    if preview is None:
        return None
    near = f"window {preview.window},\nsinks {preview.sinks}"
    titles = ("order", "no near\nfield", "heads\nwithin", near, "heads\nwithin")
    return table(
        [Column(title, figures=True, wraps=True) for title in titles],
        [
            (
                Cell(str(line.order), line.order),
                _error(line.without),
                Cell(number(line.within_without), line.within_without),
                _error(line.near),
                Cell(number(line.within_near), line.within_near),
            )
            for line in summary.near_field(analysis, selection)
        ],
    )


def _error(error: float, digits: int = 2) -> Cell:
    return Cell(percent(error, digits), error)


def _span(largest: int) -> str:
    return "1" if largest == 1 else f"1 to {largest}"


def _guarded_and_raw(guarded: float, raw: float) -> str:
    first, second = percent_figure(guarded), percent_figure(raw)
    return first if first == second else f"{first} ({second})"
