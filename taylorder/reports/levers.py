"""What the levers led to, for the terminal: the choice of every KV head, and polynomials beside windows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from taylorder.adapt.config import HeadOrder
from taylorder.analysis.results import Analysis
from taylorder.kernels.spec import Exact, Taylor
from taylorder.reports.evaluation_words import figure
from taylorder.reports.fitting_tables import dense_table
from taylorder.reports.grid_columns import SLIDING_MARK
from taylorder.reports.numbers import LayerNames, compact, counted, layer_names, number, percent, size
from taylorder.reports.parts import INDENT, note
from taylorder.selection.by_tolerance import Selection
from taylorder.selection.lever_summary import LeverSummary

_NAMED = 6
"""KV heads named in a sentence before it says how many others there are."""


def kept_grid(analysis: Analysis, selection: Selection, width: int) -> Padding:
    """Tokens that every KV head keeps, and the order of its polynomial; layers side by side if they fit."""
    modules = analysis.model.modules
    names = layer_names([module.name for module in modules])
    by_module = {layer.module: layer.heads for layer in selection.config.layers}
    rows = []
    for module in modules:
        heads = by_module[module.name][:: module.group]
        mark = SLIDING_MARK if module.sliding_window is not None else ""
        rows.append([names.labels[module.name] + mark, *(_kept(head) for head in heads)])
    widest = max(len(cell) for row in rows for cell in row)
    columns = max(1, (width - 2) // ((len(rows[0])) * (widest + 2) + 4))
    height = -(-len(rows) // columns)
    table = dense_table()
    for column in range(columns):
        if column * height < len(rows):
            table.add_column("layer" if not column else "  layer", justify="right", no_wrap=True)
            for kv_head in range(len(rows[0]) - 1):
                table.add_column(f"KV {kv_head}", justify="right", no_wrap=True)
    for line in range(height):
        cells: list[str] = []
        for place in range(line, len(rows), height):
            cells += rows[place]
        table.add_row(*cells)
    return Padding(table, INDENT, expand=False)


def _kept(head: HeadOrder) -> str:
    if isinstance(head.spec.far, Exact):
        return "all"
    kept, far = number(head.spec.near.tokens), head.spec.far
    return f"{kept} +P{far.order}{'r' if far.ranks is not None else ''}" if isinstance(far, Taylor) else kept


def counts(summary: LeverSummary) -> Table:
    """How many KV heads run each candidate."""
    table = dense_table()
    table.add_column("chosen", no_wrap=True)
    table.add_column("KV heads", justify="right", no_wrap=True)
    for label, count in summary.chosen:
        table.add_row(label, number(count))
    return table


def beside_windows(summary: LeverSummary) -> Table:
    """Every candidate with a polynomial, beside the same bytes of window."""
    table = dense_table()
    table.add_column("polynomial", overflow="fold")
    for title in ("bytes", "error", "of window", "better on"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in summary.beside_window:
        table.add_row(
            each.label,
            size(each.nominal_bytes),
            percent(each.relative_l2),
            percent(each.window_relative_l2),
            number(len(each.better)),
        )
    return table


def legend(summary: LeverSummary) -> str:
    """What the grid says."""
    return (
        f"Tokens with the true exponential, window and {counted(4, 'sink')} or more; +P1 adds a polynomial of order 1 "
        "for all others (r: with low ranks), without it they are dropped; all is exact. Measured on "
        f"{counted(summary.sequences, 'sequence')} of {counted(summary.sequence_length, 'token')}."
    )


def program(summary: LeverSummary) -> str:
    """What was minimised, what the solver proved, and what the iterative scheme measured."""
    limit = (
        f"budget {size(summary.budget)}"
        if summary.budget is not None
        else f"tolerance {percent(summary.tolerance or 0.0, 3)}, root mean square over KV heads"
    )
    told = (
        f"{size(summary.nominal_bytes)} per KV head on average at {counted(summary.context, 'token')} ({limit}; exact "
        f"takes {size(summary.exact_bytes)}). "
    )
    if summary.rounds:
        stages = {"windows": "with plain windows ", "all": "with all candidates "}
        measured = "; ".join(
            stages[among] + ", ".join(figure(each.kl) for each in rounds)
            for among, rounds in groupby(summary.rounds, key=lambda each: each.among)
        )
        return told + (
            f"Criterion {summary.criterion}: KL to exact on the calibration text, measured round by round: {measured}. "
            f"The least was taken. Gap of the integer program of its step: {summary.gap:.1e}."
        )
    if summary.budget is None:
        return told + (
            f"Fewest bytes: {compact(round(summary.objective), 6)} in all, none below "
            f"{compact(round(summary.bound), 6)} (gap {summary.gap:.1e})."
        )
    return told + (
        f"Criterion {summary.criterion}: {summary.objective:.4g} in all, no allocation below {summary.bound:.4g} "
        f"(gap {summary.gap:.1e})."
    )


def sentences(analysis: Analysis, summary: LeverSummary) -> list[str]:
    """Whether Taylor terms serve any KV head better than the same bytes of window, and which."""
    names = layer_names([module.name for module in analysis.model.modules])
    places = [(module.name, kv_head) for module in analysis.model.modules for kv_head in range(module.kv_heads)]
    told = []
    for order in sorted({each.order for each in summary.beside_window}):
        found = {head for each in summary.beside_window if each.order == order for head in each.better}
        better = [head for head in places if head in found]
        total = summary.kv_heads
        if better:
            told.append(f"order {order} on {len(better)} of {total} KV heads (layer {_named(better, names)})")
        else:
            told.append(f"order {order} on none")
    if not told:
        return ["No polynomial was among the candidates."]
    first = (
        "Served better by Taylor terms than by the same bytes of window, by gradient-weighted error and at any window "
        f"measured: {'; '.join(told)}."
    )
    chosen = len(summary.chosen_better) + len(summary.chosen_worse)
    if not chosen:
        return [first, "The config gives no KV head a polynomial."]
    second = f"Of the {counted(chosen, 'KV head')} with a polynomial in this config, {len(summary.chosen_better)} are."
    return [first, second]


def _named(heads: Sequence[tuple[str, int]], names: LayerNames) -> str:
    shown = [f"{names.labels[module]}.{kv_head}" for module, kv_head in heads[:_NAMED]]
    return ", ".join(shown) + (f" and {counted(len(heads) - _NAMED, 'other')}" if len(heads) > _NAMED else "")


def section(analysis: Analysis, selection: Selection, width: int) -> Iterable[Table | Text | Padding]:
    """Everything below the heading."""
    summary = selection.levers
    if summary is None:
        return
    yield kept_grid(analysis, selection, width)
    yield Text()
    yield note(legend(summary))
    yield note(program(summary))
    yield Text()
    yield counts(summary)
    yield Text()
    if summary.beside_window:
        yield beside_windows(summary)
        yield Text()
        yield note(
            f"Relative L2 error of the median KV head, and that of a window of the same bytes; on how many of "
            f"{summary.kv_heads} KV heads the polynomial is better by gradient-weighted error, never needing the guard."
        )
    for line in sentences(analysis, summary):
        yield note(line)
