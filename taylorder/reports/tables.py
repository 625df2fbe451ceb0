"""Tables of a report: error by order, how far the heads are, what a near field changes."""

from __future__ import annotations

from rich.table import Table

from taylorder.analysis.results import Analysis
from taylorder.kernels.spec import EXPANSIONS
from taylorder.reports import summary
from taylorder.reports.fitting_tables import dense_table
from taylorder.reports.numbers import compact, layer_names, number, percent, percent_figure, size
from taylorder.selection.by_tolerance import Selection


def error_by_order(analysis: Analysis, selection: Selection) -> Table:
    """Median error per order and expansion point, heads within the tolerance, and what the order costs."""
    causal = analysis.model.causal
    table = dense_table()
    table.add_column("order", justify="right", no_wrap=True)
    for expansion in EXPANSIONS:
        table.add_column(expansion, justify="right")
    table.add_column("heads\nwithin", justify="right", no_wrap=True)
    table.add_column("state per\nKV head" if causal else "features\nper head", justify="right", no_wrap=True)
    table.add_column("breaks\neven at", justify="right", no_wrap=True)
    table.add_column("pays\noff", justify="right", no_wrap=True)
    for line in summary.by_order(analysis, selection):
        table.add_row(
            str(line.order),
            *(_guarded_and_raw(*line.errors[expansion]) for expansion in EXPANSIONS),
            number(line.within),
            size(line.nominal_bytes) if causal else compact(line.features),
            compact(line.break_even),
            "yes" if line.pays else "no",
        )
    return table


def distances(analysis: Analysis, selection: Selection) -> Table:
    """Quantiles over heads of each head's least error, among orders that pay off and among all measured ones."""
    table = dense_table()
    table.add_column("least error of a head")
    for title in ("lowest", "25%", "median", "75%", "highest"):
        table.add_column(title, justify="right", no_wrap=True)
    paying = [head.best.relative_l2 for head in summary.described_heads(analysis, selection) if head.best is not None]
    anyhow = [row.relative_l2 for row in summary.best_measured(analysis).values()]
    largest = min(selection.largest_order, analysis.max_order)
    for label, errors in (
        (f"order {_span(largest)} (pays off)", paying),
        (f"order {_span(analysis.max_order)}", anyhow),
    ):
        if errors:
            table.add_row(label, *(percent(summary.quantile(errors, share)) for share in summary.QUANTILES))
    return table


def nearest_heads(analysis: Analysis, selection: Selection) -> Table | None:
    """The heads that miss the tolerance by least, with the candidate that does and the order they need."""
    nearest = summary.nearest(analysis, selection)
    if not nearest:
        return None
    names = layer_names([module.name for module in analysis.model.modules])
    table = dense_table()
    table.add_column("heads that miss it by least")
    table.add_column("error", justify="right", no_wrap=True)
    table.add_column("with", no_wrap=True)
    table.add_column("needs order", justify="right", no_wrap=True)
    for head, row in nearest:
        table.add_row(
            names.head(head.module, head.head),
            percent(row.relative_l2, 3),
            f"order {row.order}, {row.expansion}",
            f"more than {analysis.max_order}" if head.needed_order is None else str(head.needed_order),
        )
    return table


def near_field(analysis: Analysis, selection: Selection) -> Table | None:
    """Median error and heads within the tolerance per order, without and with the preview's near field."""
    preview = analysis.preview
    if preview is None:
        return None
    table = dense_table()
    table.add_column("order", justify="right")
    table.add_column("no near\nfield", justify="right")
    table.add_column("heads\nwithin", justify="right")
    table.add_column(f"window {preview.window},\nsinks {preview.sinks}", justify="right")
    table.add_column("heads\nwithin", justify="right")
    for line in summary.near_field(analysis, selection):
        table.add_row(
            str(line.order),
            percent(line.without),
            number(line.within_without),
            percent(line.near),
            number(line.within_near),
        )
    return table


def _span(largest: int) -> str:
    return "1" if largest == 1 else f"1 to {largest}"


def _guarded_and_raw(guarded: float, raw: float) -> str:
    first, second = percent_figure(guarded), percent_figure(raw)
    return first if first == second else f"{first} ({second})"
