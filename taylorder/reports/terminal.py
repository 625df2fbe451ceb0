"""An analysis and its config as a person reads them in a terminal, or as SVG for the documentation."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from taylorder.adapt import cost
from taylorder.analysis.results import Analysis
from taylorder.evaluation.evaluate import Evaluation
from taylorder.reports import alphas, grids, levers, savings, summary, tables, verdict
from taylorder.reports.evaluation import short_section
from taylorder.reports.numbers import compact, counted, layer_names, number, percent, size
from taylorder.reports.parts import INDENT, note, title
from taylorder.reports.plain import plain_text
from taylorder.selection.by_tolerance import Selection
from taylorder.storage.files import replacing


def render(
    analysis: Analysis,
    selection: Selection,
    console: Console,
    directory: Path | None = None,
    evaluation: Evaluation | None = None,
) -> None:
    """Print the report.

    Args:
        analysis: the measurements.
        selection: the choice.
        console: where to print; its width decides the layout.
        directory: where the files of this run lie, for the last lines.
        evaluation: the short evaluation, None if it was skipped.

    """
    for part in parts(analysis, selection, console.width, directory, evaluation):
        console.print(part)


def as_text(
    analysis: Analysis,
    selection: Selection,
    directory: Path | None = None,
    width: int = 80,
    evaluation: Evaluation | None = None,
) -> str:
    """The report as plain text: no colour, no line longer than ``width``, no trailing blanks."""
    return plain_text(lambda console: render(analysis, selection, console, directory, evaluation), width)


def export_svg(
    analysis: Analysis, selection: Selection, path: str | Path, width: int = 100, evaluation: Evaluation | None = None
) -> None:
    """Write the report as an SVG picture of a terminal that is ``width`` characters wide."""
    console = Console(
        record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor", highlight=False
    )
    render(analysis, selection, console, None, evaluation)
    svg = console.export_svg(title=f"taylorder: {analysis.model.name}", unique_id="taylorder")
    # Rich points at web fonts; a report must not fetch anything, and any monospaced font will do.
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    svg = svg.replace(
        "font-family: Fira Code, monospace", "font-family: Fira Code, DejaVu Sans Mono, Menlo, Consolas, monospace"
    )
    with replacing(path) as temporary:
        temporary.write_text(svg, encoding="utf-8")


def parts(
    analysis: Analysis, selection: Selection, width: int, directory: Path | None, evaluation: Evaluation | None
) -> Iterable[RenderableType]:
    """What the report is made of, in order; arguments as in :func:`render`."""
    yield from _header(analysis, selection)
    if selection.levers is not None:
        yield title("What every KV head keeps", "config")
        yield from levers.section(analysis, selection, width)
    yield from _orders(analysis, selection, width)
    if selection.levers is None:  # else no head has to meet a tolerance
        yield from _errors(analysis, selection, width)
        yield from _by_order(analysis, selection)
        yield from _distance(analysis, selection)
        yield from _near_field(analysis, selection)
    if lines := alphas.head_alphas(analysis):
        yield title("Alphas of single heads", "each head")
        yield from lines
        yield note("Lowest, median and highest of a layer's heads. Noisy: a head's slice has few eigenvalues to fit.")
    yield from _savings(analysis, selection)
    if evaluation is not None:
        yield from short_section(evaluation)
    else:
        yield title("What the model loses", "config")
        yield note("Losses were not measured (--no-eval, or the run ended before); `taylorder eval` measures them.")
    yield from _verdict(analysis, selection, width, directory, evaluation)


def _header(analysis: Analysis, selection: Selection) -> Iterable[RenderableType]:
    model, text = analysis.model, analysis.calibration
    first = model.modules[0]
    names = layer_names([module.name for module in model.modules])
    rows = (
        "all query rows"
        if text.rows_per_sequence >= text.sequence_length
        else f"{text.rows_per_sequence} query rows each"
    )
    shared = "" if first.group == 1 else f" on {counted(first.kv_heads, 'KV head')}"
    near = f"window {analysis.window}, sinks {analysis.sinks}" if analysis.window or analysis.sinks else "none"
    facts = {
        "model": f"{model.architecture}, {'causal' if model.causal else 'bidirectional (no cache)'}",
        "heads": (
            f"{counted(len(model.modules), 'layer')} of {counted(first.heads, 'head')}{shared}, head dim "
            f"{first.head_dim}; layer N is {names.pattern}"
        ),
        "text": (
            f"{text.source}, {number(text.sequences)} x {counted(text.sequence_length, 'token')}"
            f"{'' if text.bos is None else ', each begun with BOS'}, {rows}, seed {text.seed}"
        ),
        "rows": f"{number(text.far_rows)} of {counted(text.rows, 'measured query row')} have far keys",
        "policy": f"{selection.policy}, orders 1 to {analysis.max_order}, near field: {near}",
        "tolerance": (
            f"{percent(selection.tolerance, 3)} relative L2 error of a head's output "
            f"({verdict.tier(selection.tolerance)})"
        ),
        "context": (
            f"{counted(selection.context, 'token')}; orders that pay off there "
            f"({'state no larger than the KV cache' if model.causal else 'no more FLOPs than exact attention'}): "
            f"{verdict.paying_orders(analysis, selection)}"
        ),
    }
    if selection.levers is not None:
        del facts["tolerance"]
        facts |= {
            "policy": f"levers {', '.join(selection.levers.levers)}",
            "context": counted(selection.context, "token"),
        }
    weights = [model.weights_note.removeprefix("weights ")] if model.weights_note else []
    weights += [f"run in {model.dtype}"] if model.dtype != "float32" else []
    if weights:
        facts["weights"] = "; ".join(weights)
    yield Text(f"taylorder: {model.name}", style="bold")
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, fact in facts.items():
        table.add_row(Text(name), Text(fact))
    yield Padding(table, INDENT, expand=False)


def _orders(analysis: Analysis, selection: Selection, width: int) -> Iterable[RenderableType]:
    yield title("Order of every head, and the alphas of its layer", "each head")
    yield from grids.order_grid(analysis, selection, width)
    yield Text()
    for line in grids.order_legend(selection):
        yield Padding(line, INDENT, expand=False)
    yield Text()
    yield note(alphas.legend(analysis))


def _errors(analysis: Analysis, selection: Selection, width: int) -> Iterable[RenderableType]:
    order = grids.grid_order(analysis)
    yield title(f"Error at order {order}, in percent", "each head")
    yield from grids.error_grid(analysis, selection, width)
    yield Text()
    yield note(
        f"Expansion mean, one head replaced at a time; * is within {percent(selection.tolerance, 3)}. "
        f"Last column: the layer's median with expansion zero, the plain Taylor series."
    )


def _by_order(analysis: Analysis, selection: Selection) -> Iterable[RenderableType]:
    heads = counted(len(summary.described_heads(analysis, selection)), "head")
    seeing = " that see the whole context" if summary.outcome(analysis, selection).sliding else ""
    yield title(f"Error by order, in percent: the median of {heads}{seeing}")
    yield tables.error_by_order(analysis, selection)
    yield Text()
    told = (
        f"In parentheses without the guard, where that differs. Heads within {percent(selection.tolerance, 3)} at any "
        "expansion point; an even order counts only where no row needed the guard. "
    )
    if analysis.model.causal:
        kept = size(
            cost.kv_bytes(analysis.model.modules[0].head_dim, analysis.model.modules[0].value_dim, selection.context)
        )
        told += (
            f"Nominal bytes (state fp32, KV bf16); a KV head's cache takes {kept} at "
            f"{counted(selection.context, 'token')}."
        )
    else:
        told += "An encoder has no cache: an order breaks even where it takes no more FLOPs than quadratic attention."
    yield note(told)


def _distance(analysis: Analysis, selection: Selection) -> Iterable[RenderableType]:
    limit = percent(selection.tolerance, 3)
    yield title(f"How far the heads are from {limit}, and what it would take")
    yield tables.distances(analysis, selection)
    yield Text()
    if nearest := tables.nearest_heads(analysis, selection):
        yield nearest
        yield Text()
    need = summary.needed(analysis, selection)
    heads = sum(need.measured.values()) + need.more
    parts = [f"order {order}: {number(count)}" for order, count in need.measured.items()]
    parts.append(f"more than {analysis.max_order}: {number(need.more)}")
    yield note(f"Order needed as measured, of {counted(heads, 'head')}, whatever it costs: {', '.join(parts)}.")
    spread = f"Were scores normally distributed, the median head (score std {need.score_std:.2g}) would need"
    if need.predicted is None or need.predicted_bytes is None:
        yield note(f"{spread} an order beyond 400.")
    else:
        state = f", a state of {size(need.predicted_bytes)} per KV head" if analysis.model.causal else ""
        yield note(f"{spread} order {need.predicted}{state}.")


def _near_field(analysis: Analysis, selection: Selection) -> Iterable[RenderableType]:
    table = tables.near_field(analysis, selection)
    if table is None or analysis.preview is None:
        return
    first, preview = analysis.model.modules[0], analysis.preview
    kept = cost.kv_bytes(first.head_dim, first.value_dim, preview.window + preview.sinks)
    yield title("What a near field changes: the median head, expansion mean")
    yield table
    yield Text()
    yield note(
        f"The last {preview.window} and the first {preview.sinks} keys keep the true exponential, which costs "
        f"{size(kept)} per KV head beside the state. Measured on sequences of "
        f"{counted(analysis.calibration.sequence_length, 'token')}: over longer ones they are a smaller share of the "
        "keys. Even orders count here whether or not a row needed the guard."
    )


def _savings(analysis: Analysis, selection: Selection) -> Iterable[RenderableType]:
    yield title(f"What this config saves at {counted(selection.context, 'token')}", "config")
    if analysis.model.causal:
        exact, adapted = savings.cache_bytes(analysis, selection)
        what, before, after = "All caches, nominal bytes", size(exact), size(adapted)
    else:
        exact, adapted = savings.attention_multiplications(analysis, selection)
        what, before, after = "Multiplications of attention", compact(exact, 3), compact(adapted, 3)
    if exact == adapted:
        yield note(f"Nothing. {what}: {before} with every head exact, and as much with this config.")
    else:
        yield note(f"{what}: {before} with every head exact, {after} with this config.")


def _verdict(
    analysis: Analysis, selection: Selection, width: int, directory: Path | None, evaluation: Evaluation | None
) -> Iterable[RenderableType]:
    yield title("Verdict", "verdict")
    yield Padding(
        Text(" ".join(verdict.sentences(analysis, selection, evaluation)), style="bold"), INDENT, expand=False
    )
    yield Text()
    if directory is not None:
        more = ", levers.csv" if selection.levers is not None else ""
        yield note(
            f"In {directory}: report.html (for a browser), orders.json, heads.csv, spectral.csv{more}, report.json."
        )
    command, reason = verdict.next_command(analysis, selection, directory)
    yield note(f"Next, {reason}:")
    yield Text()
    yield Text(_folded(command, width - 6), style="bold", no_wrap=True, overflow="ignore")


def _folded(command: str, width: int) -> str:
    """A shell command over as many lines as it takes, so that it can still be copied."""
    lines = [""]
    for word in re.split(r" (?=--)", command):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("  " + word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return " \\\n".join(f"    {line}" for line in lines)
