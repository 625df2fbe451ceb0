"""An analysis and its config as a person reads them: the sections of a report, in order."""

from __future__ import annotations

from pathlib import Path

from taylorder.adapt import cost
from taylorder.analysis.results import Analysis
from taylorder.evaluation.evaluate import Evaluation
from taylorder.reports import alphas, grids, levers, opening, savings, summary, tables, verdict
from taylorder.reports.evaluation import short_section
from taylorder.reports.numbers import compact, counted, layer_names, listed, number, percent, size
from taylorder.reports.sections import Block, Section, facts, paragraph
from taylorder.selection.by_tolerance import Selection
from taylorder.selection.cache_size import CacheSize


def sections(
    analysis: Analysis, selection: Selection, directory: Path | None = None, evaluation: Evaluation | None = None
) -> tuple[Section, ...]:
    """The report of an analysis: what it came to, the tables behind that, and again what it came to.

    Args:
        analysis: the measurements.
        selection: the choice.
        directory: where the files of this run lie, for the last lines.
        evaluation: the short evaluation, None if it was skipped.

    """
    report = [opening.opening(analysis, selection, directory, evaluation), _run(analysis, selection)]
    if selection.levers is not None:
        report.append(levers.section(analysis, selection, selection.levers))
    report.append(_orders(analysis, selection))
    if selection.levers is None:  # else no head has to meet a tolerance
        report += [_errors(analysis, selection), _by_order(analysis, selection), _distance(analysis, selection)]
        report += _near_field(analysis, selection)
    if (grid := alphas.of_heads(analysis)) is not None:
        words = "Lowest, median and highest of a layer's heads. Noisy: a head's slice has few eigenvalues to fit."
        blocks = (grid, paragraph(words, tight=True))
        report.append(Section("Alphas of single heads", blocks, "each head", name="alphas"))
    report.append(_savings(analysis, selection))
    if evaluation is not None:
        report.append(short_section(evaluation, held_out=analysis.calibration.inputs is None))
    else:
        losses = analysis.model.causal
        what = "Losses were" if losses else "How far the config moves the final hidden states was"
        measures = f"`taylorder eval` measures {'them' if losses else 'it'}"
        words = f"{what} not measured (--no-eval, or the run ended before); {measures}."
        report.append(Section("What the model loses", (paragraph(words),), "config", name="loss"))
    return (*report, opening.closing(analysis, selection, directory, evaluation))


def _run(analysis: Analysis, selection: Selection) -> Section:
    model, text = analysis.model, analysis.calibration
    typical = model.typical
    names = layer_names([module.name for module in model.modules])
    rows = (
        "all query rows"
        if text.rows_per_sequence >= text.sequence_length
        else f"{text.rows_per_sequence} query rows each"
    )
    shared = "" if typical.group == 1 else f" on {counted(typical.kv_heads, 'KV head')}"
    others = [module for module in model.closed_modules if module.head_dim != typical.head_dim]
    apart = f" ({counted(len(others), 'layer')} that stay exact: {others[0].head_dim})" if others else ""
    alone = f"; {listed(model.unmeasured)} inputs were not measured" if model.unmeasured else ""
    source = text.source if text.inputs is None else f"{text.source} ({text.inputs})"
    near = f"window {analysis.window}, sinks {analysis.sinks}" if analysis.window or analysis.sinks else "none"
    named = {
        "model": f"{model.architecture}, {model.direction}",
        "heads": (
            f"{counted(len(model.modules), 'layer')} of {counted(typical.heads, 'head')}{shared}, head dim "
            f"{typical.head_dim}{apart}; layer N is {names.pattern}"
            if model.alike
            else f"{model.shape}; layer N is {names.pattern}"
        ),
        "text" if text.inputs is None else "inputs": (
            f"{source}, {number(text.sequences)} x {counted(text.sequence_length, 'token')}"
            f"{'' if text.bos is None else ', each begun with BOS'}, {rows}, seed {text.seed}{alone}"
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
        del named["tolerance"]
        named |= {
            "policy": f"levers {', '.join(selection.levers.levers)}",
            "context": counted(selection.context, "token"),
        }
        if selection.levers.budget is not None:
            named["budget"] = levers.budget_words(CacheSize.of(model, selection.context), selection.levers.budget)
    weights = [model.weights_note.removeprefix("weights ")] if model.weights_note else []
    weights += [f"run in {model.dtype}"] if model.dtype != "float32" else []
    if weights:
        named["weights"] = "; ".join(weights)
    return Section("The run", (facts(named),), "run", name="run")


def _orders(analysis: Analysis, selection: Selection) -> Section:
    blocks = (
        grids.order_grid(analysis, selection),
        grids.order_legend(selection),
        paragraph(alphas.legend(analysis)),
    )
    return Section("Order of every head, and the alphas of its layer", blocks, "each head", name="orders")


def _errors(analysis: Analysis, selection: Selection) -> Section:
    words = (
        f"Expansion mean, one head replaced at a time; * is within {percent(selection.tolerance, 3)}. "
        f"Last column: the layer's median with expansion zero, the plain Taylor series."
    )
    title = f"Error at order {grids.grid_order(analysis)}, in percent"
    return Section(title, (grids.error_grid(analysis, selection), paragraph(words)), "each head", name="errors")


def _by_order(analysis: Analysis, selection: Selection) -> Section:
    heads = counted(len(summary.described_heads(analysis, selection)), "head")
    seeing = " that see the whole context" if summary.head_counts(analysis, selection).closed else ""
    words = (
        f"In parentheses without the guard, where that differs. Heads within {percent(selection.tolerance, 3)} at any "
        "expansion point; an even order counts only where no row needed the guard. "
    )
    if analysis.model.causal:
        typical = analysis.model.typical
        cache = size(cost.kv_bytes(typical.head_dim, typical.value_dim, selection.context))
        words += (
            f"Nominal bytes (state fp32, KV bf16); a KV head's cache takes {cache} at "
            f"{counted(selection.context, 'token')}."
        )
        if typical.latent_dim is not None:
            latents = size(cost.KV_BYTES * typical.latent_dim)
            expanded = size(typical.kv_heads * cost.kv_bytes(typical.head_dim, typical.value_dim, 1))
            words += (
                f" Keys and values of a token take {expanded} in a layer, and the latent that they are made of "
                f'{latents}, which is what a server keeps: "beside latents" is where the states of a layer take no '
                "more. Whether an order pays off is judged beside keys and values."
            )
    else:
        words += "An encoder has no cache: an order breaks even where it takes no more FLOPs than quadratic attention."
    title = f"Error by order, in percent: the median of {heads}{seeing}"
    return Section(title, (tables.error_by_order(analysis, selection), paragraph(words)), name="by-order")


def _distance(analysis: Analysis, selection: Selection) -> Section:
    blocks: list[Block] = [tables.distances(analysis, selection)]
    if (nearest := tables.nearest_heads(analysis, selection)) is not None:
        blocks.append(nearest)
    need = summary.needed(analysis, selection)
    heads = sum(need.measured.values()) + need.more
    parts = [f"order {order}: {number(count)}" for order, count in need.measured.items()]
    parts.append(f"more than {analysis.max_order}: {number(need.more)}")
    words = f"Order needed as measured, of {counted(heads, 'head')}, whatever it costs: {', '.join(parts)}."
    spread = f"Were scores normally distributed, the median head (score std {need.score_std:.2g}) would need"
    if need.predicted is None or need.predicted_bytes is None:
        predicted = f"{spread} an order beyond 400."
    else:
        state = f", a state of {size(need.predicted_bytes)} per KV head" if analysis.model.causal else ""
        predicted = f"{spread} order {need.predicted}{state}."
    title = f"How far the heads are from {percent(selection.tolerance, 3)}, and what it would take"
    return Section(title, (*blocks, paragraph(words, predicted)), name="distance")


def _near_field(analysis: Analysis, selection: Selection) -> list[Section]:
    table = tables.near_field(analysis, selection)
    if table is None or analysis.preview is None:
        return []
    typical, preview = analysis.model.typical, analysis.preview
    near_bytes = cost.kv_bytes(typical.head_dim, typical.value_dim, preview.window + preview.sinks)
    words = (
        f"The last {preview.window} and the first {preview.sinks} keys keep the true exponential, which costs "
        f"{size(near_bytes)} per KV head beside the state. Measured on sequences of "
        f"{counted(analysis.calibration.sequence_length, 'token')}: over longer ones they are a smaller share of the "
        "keys. Even orders count here whether or not a row needed the guard."
    )
    title = "What a near field changes: the median head, expansion mean"
    return [Section(title, (table, paragraph(words)), name="near-field")]


def _savings(analysis: Analysis, selection: Selection) -> Section:
    exact, adapted = savings.saved(analysis, selection)
    if analysis.model.causal:
        what, before, after = "All caches, nominal bytes", size(exact), size(adapted)
    else:
        what, before, after = "Multiplications of attention", compact(exact, 3), compact(adapted, 3)
    if exact == adapted:
        words = f"Nothing. {what}: {before} with every head exact, and as much with this config."
    else:
        words = f"{what}: {before} with every head exact, {after} with this config."
    if analysis.model.keeps_latents:
        exact, adapted = savings.latent_bytes(analysis, selection)
        words += f" Where exact layers keep latents: {size(exact)}, and {size(adapted)} with this config."
    title = f"What this config saves at {counted(selection.context, 'token')}"
    return Section(title, (paragraph(words),), "config", name="savings")
