"""Grids of layer x head: chosen orders with the layer's alphas, and errors at one order.

Every figure is printed as text; colour (one hue, from dark to light) only doubles what the text says. Where the heads
do not fit in the width, a layer is summarised instead.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from rich.style import Style
from rich.text import Text

from taylorder.adapt.config import HeadOrder
from taylorder.analysis.results import Analysis
from taylorder.kernels.spec import Dropped, Exact, Taylor
from taylorder.reports import summary
from taylorder.reports.alphas import NARROWEST, fitting_columns
from taylorder.reports.grid_columns import heading, label_width, row_label, widest_row
from taylorder.reports.numbers import counted, layer_names, percent_cell
from taylorder.selection.by_tolerance import Selection
from taylorder.selection.reasons import explained

GRID_ORDER = 3

WINDOW_MARK, WINDOW_MEANING = "w", "a window and sinks, all other keys dropped: no polynomial"
_RAMP = ("#12263f", "#1d4569", "#2c6a9b", "#5a9fd0", "#a9d6f5")
_LIGHTEST = Style(bold=True, color="#000000", bgcolor=_RAMP[-1])


def order_grid(analysis: Analysis, selection: Selection, width: int) -> list[Text]:
    """Chosen orders of every head, with the alphas of its layer beside them."""
    modules = analysis.model.modules
    names = layer_names([module.name for module in modules])
    room = width - label_width(names) - 2
    by_module = {layer.module: layer.heads for layer in selection.config.layers}
    digits = len(str(modules[0].heads - 1))
    row = widest_row(modules[0], room - NARROWEST, ((digits, " "), (1, "")))
    if row is None:
        counts = {name: _counts(heads) for name, heads in by_module.items()}
        wide = max(len("heads by order"), *map(len, counts.values()))
        cells = {name: Text(text.ljust(wide)) for name, text in counts.items()}
        header = Text("heads by order".ljust(wide))
    else:
        wide, header = row.width, row.header()
        cells = {name: row.line([_order_cell(head, row.cell) for head in heads]) for name, heads in by_module.items()}
    columns = fitting_columns(analysis.spectral, room - wide)
    lines = [_bold(heading(names) + header + Text("  ") + columns.header())]
    lines += [row_label(names, each) + cells[each.name] + Text("  ") + columns.line(each.name) for each in modules]
    if columns.left_out:
        lines.append(Text(f"Too narrow for {columns.left_out}: spectral.csv has them."))
    return lines


def error_grid(analysis: Analysis, selection: Selection, width: int) -> list[Text]:
    """Errors in percent at one order, expansion ``mean``; beside them the layer's median with expansion ``zero``."""
    modules = analysis.model.modules
    names = layer_names([module.name for module in modules])
    order = grid_order(analysis)
    mean: dict[str, list[float]] = {module.name: [] for module in modules}
    zero: dict[str, list[float]] = {module.name: [] for module in modules}
    for candidate in analysis.candidates:
        if candidate.order == order and candidate.expansion != "centre":
            (mean if candidate.expansion == "mean" else zero)[candidate.module].append(candidate.relative_l2)
    row = widest_row(modules[0], width - label_width(names) - 7, ((4, " "), (4, "")))
    header = Text(f"{'lowest':>7}{'median':>8}{'highest':>8} ") if row is None else row.header(" ")
    lines = [_bold(heading(names) + header + Text(f"{'zero':>7}"))]
    for module in modules:
        errors = mean[module.name]
        if row is None:
            figures = [summary.quantile(errors, share) for share in (0.0, 0.5, 1.0)]
            cells = Text("    ").join([Text(), *(_error_cell(figure, selection.tolerance) for figure in figures)])
        else:
            cells = row.line([_error_cell(error, selection.tolerance) for error in errors])
        lines.append(row_label(names, module) + cells + Text(f"{percent_cell(summary.median(zero[module.name])):>7}"))
    return lines


def grid_order(analysis: Analysis) -> int:
    """Order of the error grid: 3, or the largest measured one if that is smaller."""
    return min(GRID_ORDER, analysis.max_order)


def order_legend(selection: Selection) -> list[Text]:
    """What the cells of the order grid mean, with the number of heads behind each."""
    choices = [head.choice for head in selection.heads]
    reasons = Counter(explained(choice.reason) for choice in choices if isinstance(choice.spec.far, Exact))
    lines = [Text(f"{mark}  {meaning} ({counted(count, 'head')})") for (mark, meaning), count in reasons.most_common()]
    windows = sum(isinstance(choice.spec.far, Dropped) for choice in choices)
    if windows:
        lines.insert(0, Text(WINDOW_MARK, style=_LIGHTEST) + Text(f"  {WINDOW_MEANING} ({counted(windows, 'head')})"))
    orders = sorted({choice.spec.far.order for choice in choices if isinstance(choice.spec.far, Taylor)})
    if orders:
        shown = Text(", ").join([Text(str(order), style=_LIGHTEST) for order in orders])
        chosen = len(choices) - reasons.total() - windows
        lines.insert(0, shown + Text(f"  the order chosen ({counted(chosen, 'head')})"))
    return lines


def shade(error: float, tolerance: float) -> Style:
    """No fill for errors of 100 % or more, then from dark to the lightest step, which is within the tolerance."""
    if error <= tolerance:
        return _LIGHTEST
    if not error < 1:
        return Style()
    share = math.log(error) / math.log(tolerance)  # 0 at 100 %, 1 at the tolerance
    step = min(int(share * 4), 3)
    return Style(color="#000000" if step == 3 else "#ffffff", bgcolor=_RAMP[step])


def _order_cell(head: HeadOrder, width: int) -> Text:
    if isinstance(head.spec.far, Exact):
        return Text(f"{explained(head.reason).mark:>{width}}")
    mark = str(head.spec.far.order) if isinstance(head.spec.far, Taylor) else WINDOW_MARK
    return Text(" " * (width - 1)) + Text(mark, style=_LIGHTEST)


def _error_cell(error: float, tolerance: float) -> Text:
    return Text(f"{percent_cell(error)}{'*' if error <= tolerance else ' '}".rjust(4), style=shade(error, tolerance))


def _counts(heads: Sequence[HeadOrder]) -> str:
    orders = Counter(head.spec.far.order for head in heads if isinstance(head.spec.far, Taylor))
    parts = [f"{order}: {count}" for order, count in sorted(orders.items())]
    for name, kind in (("window", Dropped), ("exact", Exact)):
        if count := sum(isinstance(head.spec.far, kind) for head in heads):
            parts.append(f"{name}: {count}")
    return ", ".join(parts)


def _bold(text: Text) -> Text:
    text.stylize("bold")
    return text
