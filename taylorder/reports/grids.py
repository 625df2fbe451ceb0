"""Grids of layer x head: chosen orders with the layer's alphas, and errors at one order.

Every figure is printed as text; colour (one hue, from dark to light) only doubles what the text says. Where the heads
do not fit in the width, a layer is summarised instead.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from taylorder.adapt.config import HeadOrder
from taylorder.analysis.results import Analysis
from taylorder.kernels.spec import MAX_ORDER, Dropped, Exact, Taylor
from taylorder.models.description import AttentionModule
from taylorder.reports import alphas, near_words, summary
from taylorder.reports.numbers import counted, layer_labels, percent_cell
from taylorder.reports.sections import Beside, Cell, Column, Fill, GridLayout, GridRow, HeadGrid, Key, Legend, even
from taylorder.selection.by_tolerance import Selection
from taylorder.selection.reasons import explained

GRID_ORDER = 3

_RAMP = ("#12263f", "#1d4569", "#2c6a9b", "#5a9fd0", "#a9d6f5")
LIGHTEST = Fill(_RAMP[-1], "#000000")


def order_grid(analysis: Analysis, selection: Selection) -> HeadGrid:
    """Chosen orders of every head, with the alphas of its layer beside them."""
    modules = analysis.model.modules
    by_module = {layer.module: layer.heads for layer in selection.config.layers}
    beside, layouts = alphas.beside()
    fits = alphas.of_layers(analysis)
    cells = even([_order_cell(head) for head in by_module[module.name]] for module in modules)
    rows = tuple(
        GridRow(label, heads, _counts(by_module[module.name]), fits[module.name])
        for (module, label), heads in zip(layer_labels(modules), cells, strict=True)
    )
    spacing = ((len(str(len(cells[0]) - 1)), " "), (1, ""))
    return HeadGrid(rows, _group(modules), spacing, (Column("heads by order"),), beside, layouts)


def _group(modules: Sequence[AttentionModule]) -> int:
    """Heads that stand together because they share a KV head; 1 where layers differ in that."""
    groups = {module.group for module in modules}
    return groups.pop() if len(groups) == 1 else 1


def error_grid(analysis: Analysis, selection: Selection) -> HeadGrid:
    """Errors in percent at one order, expansion ``mean``; beside them the layer's median with expansion ``zero``."""
    modules = analysis.model.modules
    order = grid_order(analysis)
    mean: dict[str, list[float]] = {module.name: [] for module in modules}
    zero: dict[str, list[float]] = {module.name: [] for module in modules}
    for candidate in analysis.candidates:
        if candidate.order == order and candidate.expansion != "centre":
            (mean if candidate.expansion == "mean" else zero)[candidate.module].append(candidate.relative_l2)
    rows = []
    cells = even([error_cell(error, selection.tolerance) for error in mean[module.name]] for module in modules)
    for (module, label), heads in zip(layer_labels(modules), cells, strict=True):
        errors = mean[module.name]
        three = (summary.quantile(errors, share) for share in (0.0, 0.5, 1.0))
        middle = summary.median(zero[module.name])
        rows.append(
            GridRow(
                label,
                heads,
                tuple(error_cell(error, selection.tolerance) for error in three),
                (Cell(percent_cell(middle), middle),),
            )
        )
    return HeadGrid(
        tuple(rows),
        _group(modules),
        ((4, " "), (4, "")),
        (Column("lowest"), Column("median"), Column("highest")),
        (Beside("zero", 5),),
        (GridLayout((0,)), GridLayout((), "Too narrow for the medians with expansion zero.")),
        figures=True,
    )


def grid_order(analysis: Analysis) -> int:
    """Order of the error grid: 3, or the largest measured one if that is smaller."""
    return min(GRID_ORDER, analysis.max_order)


def order_legend(selection: Selection) -> Legend:
    """What the cells of the order grid mean, with the number of heads behind each."""
    choices = [head.choice for head in selection.heads]
    exact = exact_keys(selection)
    alone = Counter(near_words.mark(choice.spec.near) for choice in choices if isinstance(choice.spec.far, Dropped))
    keys = []
    orders = sorted({choice.spec.far.order for choice in choices if isinstance(choice.spec.far, Taylor)})
    if orders:
        chosen = sum(isinstance(choice.spec.far, Taylor) for choice in choices)
        marks = tuple(_order_mark(order) for order in orders)
        keys.append(Key(marks, f"the order chosen ({counted(chosen, 'head')})"))
    for mark, meaning in near_words.MEANINGS.items():
        if alone[mark]:
            cell = Cell(mark, style="strong", fill=LIGHTEST)
            keys.append(Key((cell,), f"{meaning} ({counted(alone[mark], 'head')})"))
    return Legend((*keys, *exact))


def exact_keys(selection: Selection) -> tuple[Key, ...]:
    """Why heads are exact, by their marks, with the number of heads behind each."""
    exact = [head.choice for head in selection.heads if isinstance(head.choice.spec.far, Exact)]
    reasons = Counter(explained(choice.reason) for choice in exact)
    return tuple(
        Key((Cell(mark),), f"{meaning} ({counted(count, 'head')})") for (mark, meaning), count in reasons.most_common()
    )


def shade(error: float, tolerance: float) -> Fill | None:
    """No fill for errors of 100 % or more, then from dark to the lightest step, which is within the tolerance."""
    if error <= tolerance:
        return LIGHTEST
    if not error < 1:
        return None
    share = math.log(error) / math.log(tolerance)  # 0 at 100 %, 1 at the tolerance
    return tint(share * 4 / 5)


def tint(share: float) -> Fill:
    """From the darkest step at 0 to the lightest at 1, with black or white on it."""
    step = max(0, min(int(share * len(_RAMP)), len(_RAMP) - 1))
    return Fill(_RAMP[step], "#000000" if step >= 3 else "#ffffff")


def error_cell(error: float, tolerance: float) -> Cell:
    """A relative error in percent, with a star where it is within the tolerance."""
    within = error <= tolerance
    return Cell(percent_cell(error), error, "*" if within else "", "strong" if within else "", shade(error, tolerance))


def _order_cell(head: HeadOrder) -> Cell:
    match head.spec.far:
        case Exact():
            return Cell(explained(head.reason).mark)
        case Dropped():
            return Cell(near_words.mark(head.spec.near), style="strong", fill=LIGHTEST)
        case Taylor(order=order):
            return _order_mark(order)


def _order_mark(order: int) -> Cell:
    return Cell(str(order), style="strong", fill=tint(1 - (order - 1) / MAX_ORDER))


def _counts(heads: Sequence[HeadOrder]) -> tuple[Cell, ...]:
    orders = Counter(head.spec.far.order for head in heads if isinstance(head.spec.far, Taylor))
    counts: list[tuple[int | str, int]] = sorted(orders.items())
    for name, kind in (("window", Dropped), ("exact", Exact)):
        if count := sum(isinstance(head.spec.far, kind) for head in heads):
            counts.append((name, count))
    return tuple(Cell(f"{name}: {count}", count) for name, count in counts)
