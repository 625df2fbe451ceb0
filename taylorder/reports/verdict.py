"""The verdict in plain words, and the next command to type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from taylorder.analysis.results import LEAST_FAR_SHARE, Analysis
from taylorder.analysis.tokens import MOST_UNKNOWN
from taylorder.evaluation.evaluate import Evaluation
from taylorder.kernels.spec import Exact
from taylorder.reports import levers, savings, summary
from taylorder.reports.evaluation_words import loss_of_config, untrained
from taylorder.reports.numbers import compact, counted, layer_names, number, percent, size, staying_layers
from taylorder.reports.reproduce import analyze_command, eval_command, show_command
from taylorder.runs.run_files import DEFAULT
from taylorder.selection.by_tolerance import Selection
from taylorder.selection.lever_summary import LeverSummary
from taylorder.selection.settings import DEFAULTS, TIERS, Budget

_ADVISED_BUDGET, _ADVISED_CONTEXT = "25%", 1024
"""What the next command asks for after a run by tolerance; a longer context takes hours where this takes minutes."""


def tier(tolerance: float) -> str:
    """Say which rounding a tolerance equals, or between which ones it lies."""
    for name, error in TIERS.items():
        if tolerance == error:
            return f"tier {name}"
    looser = [f"{name} ({percent(error)})" for name, error in TIERS.items() if error < tolerance]
    tighter = [f"{name} ({percent(error)})" for name, error in TIERS.items() if error > tolerance]
    if not tighter:
        return f"looser than tier {looser[-1]}"
    if not looser:
        return f"tighter than tier {tighter[0]}"
    return f"between tiers {looser[-1]} and {tighter[0]}"


def paying_orders(analysis: Analysis, selection: Selection) -> str:
    """Say which of the measured orders pay off at the context."""
    match min(selection.largest_order, analysis.max_order):
        case 0:
            return "none"
        case 1:
            return "only 1"
        case largest:
            return f"{largest} or lower"


def sentences(analysis: Analysis, selection: Selection, evaluation: Evaluation | None = None) -> tuple[str, ...]:
    """The verdict: what share of the heads meets the tolerance, how near the others come, what the config gains.

    ``evaluation`` is the short one that ends an analysis; without it the verdict says that no loss was measured.
    """
    counts = summary.head_counts(analysis, selection)
    if not counts.open:
        stay = f"all {counted(counts.heads, 'head')} stay exact, there is nothing to choose."
        return (f"{_none_open(analysis)}: {stay}",)
    gain = _gain(analysis, selection, counts, evaluation)
    if selection.levers is not None:
        lines = [_within(selection.levers), gain, *levers.sentences(selection.levers)]
    elif analysis.calibration.far_share < LEAST_FAR_SHARE:
        lines = [gain]
    elif selection.why.bounded:
        lines = [*_error(analysis, selection, counts), gain, *_near_field(analysis, selection)]
    else:
        lines = [*_unbounded(analysis, selection, counts), gain]
    if counts.closed:
        lines.append(_closed(analysis, counts))
    return (*cautions(analysis), *lines)


def why(analysis: Analysis, selection: Selection) -> str:
    """Why the config is as it is, in a sentence or two."""
    counts = summary.head_counts(analysis, selection)
    if not counts.open:
        return f"{_none_open(analysis)}, so that no cache can be replaced."
    if selection.levers is not None:
        first = _least(selection.levers)
    elif analysis.calibration.far_share < LEAST_FAR_SHARE:
        first = "Too few of the measured query rows have keys outside of the near field to choose an order by."
    else:
        first = (_error if selection.why.bounded else _unbounded)(analysis, selection, counts)[0]
    return f"{first} {_closed(analysis, counts)}" if counts.closed else first


def _least(chosen: LeverSummary) -> str:
    """What the levers were set to make least."""
    if chosen.budget is None:
        limit = percent(chosen.tolerance or 0.0, 3)
        return f"Of what is within {limit}, root mean square over KV heads, this takes the fewest bytes."
    least = "KL to exact on the calibration text" if chosen.rounds else f"{chosen.criterion} error"
    return (
        f"Of what fits the budget of {size(chosen.budget)} per KV head on average "
        f"({percent(chosen.budget / chosen.exact_bytes)} of exact attention's), this has the least {least} that was "
        "found."
    )


def _none_open(analysis: Analysis) -> str:
    why = analysis.model.why_none_open
    return f"{why[0].upper()}{why[1:]}"


def _closed(analysis: Analysis, counts: summary.HeadCounts) -> str:
    return (
        f"The {counted(counts.closed, 'head')} of {staying_layers(analysis.model.closed_modules)} "
        f"{'stays as it is' if counts.closed == 1 else 'stay as they are'} and "
        f"{'is' if counts.closed == 1 else 'are'} not counted here."
    )


def cautions(analysis: Analysis) -> list[str]:
    """What makes the figures say less than they seem to."""
    text, cautions = analysis.calibration, []
    if (caution := untrained(text.nll, text.vocabulary)) is not None:
        cautions.append(caution)
    if text.unknown_share > MOST_UNKNOWN:
        cautions.append(
            f"{percent(text.unknown_share)} of the calibration text is unknown to the tokenizer: measure on text in a "
            "language that it knows."
        )
    if text.far_share < LEAST_FAR_SHARE:
        cautions.append(
            f"Only {number(text.far_rows)} of {counted(text.rows, 'measured query row')} have keys outside of the near "
            f"field, fewer than the {percent(LEAST_FAR_SHARE)} that an order is chosen by: measure longer sequences "
            "(--sequence-length), or a smaller near field."
        )
    return cautions


def _within(chosen: LeverSummary) -> str:
    """What the KV heads run."""
    ways = f"run {len(chosen.chosen)} different ways" if len(chosen.chosen) > 1 else "all run the same way"
    return (
        f"The {counted(chosen.kv_heads, 'KV head')} {ways}, {size(chosen.nominal_bytes)} each on "
        f"average (exact: {size(chosen.exact_bytes)})."
    )


def _error(analysis: Analysis, selection: Selection, counts: summary.HeadCounts) -> list[str]:
    """Who meets the tolerance; the first sentence stands by itself."""
    limit = percent(selection.tolerance, 3)
    where = f"at {counted(selection.context, 'token')}"
    if counts.adapted:
        return [_adapted(selection, counts, limit)]
    if selection.largest_order == 0:
        return [f"No order pays off {where}, whatever its error: {_too_dear(analysis)}."]
    lines = [
        f"No head of {number(counts.open)} meets {limit} with an order that pays off {where} "
        f"({paying_orders(analysis, selection)})."
    ]
    if counts.within:
        lines = [
            f"{number(counts.within)} of {counted(counts.open, 'head')} {_verb(counts.within, 'meet')} {limit}, but in "
            "vain: the heads that share a KV cache cannot all have an order."
        ]
    else:
        lines += _nearest(analysis, selection)
    if counts.beyond:
        lines.append(
            f"{counted(counts.beyond, 'head')} would meet it at a higher order, which does not pay off {where}."
        )
    return lines


def _adapted(selection: Selection, counts: summary.HeadCounts, limit: str) -> str:
    """Say who has an order; a config edited by hand may give one to a head that does not meet the tolerance."""
    choices = [head.choice for head in selection.heads if not isinstance(head.choice.spec.far, Exact)]
    good = sum(choice.error is not None and choice.error <= selection.tolerance for choice in choices)
    rest = counts.open - counts.adapted
    others = f"; the other {number(rest)} {_verb(rest, 'stay')} exact" if rest else ""
    if good < len(choices):
        return (
            f"{number(counts.adapted)} of {counted(counts.open, 'head')} {_verb(counts.adapted, 'have')} an order "
            f"({_orders(counts)}), {number(good)} of which {_verb(good, 'meet')} {limit}{others}."
        )
    who = (
        f"{number(counts.adapted)} of {counted(counts.open, 'head')}" if rest else f"All {counted(counts.open, 'head')}"
    )
    verbs = f"{_verb(counts.adapted, 'meet')} {limit} and {_verb(counts.adapted, 'get')}"
    return f"{who} {verbs} an order ({_orders(counts)}){others}."


def _near_field(analysis: Analysis, selection: Selection) -> list[str]:
    """What the preview promises at the largest odd order that pays off; an even one may need the guard."""
    lines = [
        line
        for line in summary.near_field(analysis, selection)
        if line.order % 2 and line.order <= selection.largest_order
    ]
    if analysis.preview is None or not lines or lines[-1].within_near <= lines[-1].within_without:
        return []
    line, preview = lines[-1], analysis.preview
    return [
        f"With the last {preview.window} and the first {preview.sinks} keys kept exact, "
        f"{counted(line.within_near, 'head')} would meet {percent(selection.tolerance, 3)} at order {line.order}, each "
        f"taken by itself on sequences of {counted(analysis.calibration.sequence_length, 'token')} (without: "
        f"{number(line.within_without)})."
    ]


def _unbounded(analysis: Analysis, selection: Selection, counts: summary.HeadCounts) -> list[str]:
    """Who has an order without having to meet the tolerance; the first sentence stands by itself."""
    limit = percent(selection.tolerance, 3)
    chosen = [head.choice for head in selection.heads if not isinstance(head.choice.spec.far, Exact)]
    errors = [choice.error for choice in chosen if choice.error is not None]
    lines = [
        f"{selection.why.chooser} gave {counted(len(chosen), 'head')} an order ({_orders(counts)}), without looking at "
        "any error."
    ]
    if errors:
        good = sum(error <= selection.tolerance for error in errors)
        who = f"{number(good)} of them {_verb(good, 'meet')}" if good else "None of them meets"
        lines.append(
            f"{who} {limit}; the median error is {percent(summary.median(errors))}, the largest {percent(max(errors))}."
        )
    if unfitted := counts.exact.get("alpha", 0):
        lines.append(
            f"{counted(unfitted, 'head')} {_verb(unfitted, 'have')} no alpha and {_verb(unfitted, 'stay')} exact."
        )
    return lines


def _nearest(analysis: Analysis, selection: Selection) -> list[str]:
    nearest = summary.nearest(analysis, selection, 1)
    if not nearest:  # every error is NaN
        return []
    head, row = nearest[0]
    names = layer_names([module.name for module in analysis.model.modules])
    errors = [
        other.best.relative_l2 for other in summary.described_heads(analysis, selection) if other.best is not None
    ]
    return [
        f"The closest is {names.head(head.module, head.head)}: {percent(row.relative_l2, 3)} with order {row.order}, "
        f"expansion {row.expansion}; the median head is at {percent(summary.median(errors))}."
    ]


def _gain(analysis: Analysis, selection: Selection, counts: summary.HeadCounts, evaluation: Evaluation | None) -> str:
    if not counts.adapted:
        return "So every head stays exact: this config changes nothing and saves nothing."
    measured = loss_of_config(evaluation)
    if selection.levers is not None:
        caveat = measured or "What that does to the model's loss was not measured on other text."
    else:
        what = "loss" if analysis.model.causal else "output"
        alone = f"; what they do to the model's {what} together is not measured here."
        caveat = "These are errors of one head at a time" + (f". {measured}" if measured else alone)
    exact, adapted = savings.saved(analysis, selection)
    if analysis.model.causal:
        change = _change(exact, adapted, "as much", "more", "less")
        figures = f"the caches take {size(adapted)} instead of {size(exact)} (nominal bytes, {change})"
        if analysis.model.keeps_latents:
            exact, adapted = savings.latent_bytes(analysis, selection)
            figures += f", or {size(adapted)} instead of {size(exact)} where exact layers keep latents"
    else:
        figures = f"attention takes {_change(exact, adapted, 'as many', 'more', 'fewer')} multiplications"
    return f"At {counted(selection.context, 'token')} {figures}. {caveat}"


def _change(before: int, after: int, same: str, more: str, less: str) -> str:
    if after == before:
        return same
    if after > 10 * before:
        return f"{compact(after // before)} times {same}"
    if after > before:
        return f"{percent(after / before - 1)} {more}"
    if 20 * after < before:
        return f"{compact(before // max(after, 1))} times {less}"
    return f"{percent(1 - after / before)} {less}"


def _too_dear(analysis: Analysis) -> str:
    if analysis.model.causal:
        return "even the smallest state, with its near field, is larger than the KV cache it would replace"
    return "even order 1 takes more multiplications than quadratic attention"


def _orders(counts: summary.HeadCounts) -> str:
    return ", ".join(f"order {order}: {number(heads)}" for order, heads in counts.orders.items()) or "none"


def _verb(count: int, verb: str) -> str:
    if count != 1:
        return verb
    return "has" if verb == "have" else f"{verb}s"


def eval_measures(analysis: Analysis) -> str:
    """What ``taylorder eval`` says of a config: an encoder has no loss, and no bytes to spend otherwise."""
    if analysis.calibration.inputs is not None:
        return "this config does to outputs, on inputs of yours in FILE"
    if analysis.model.causal:
        return "this config costs in loss, beside simpler uses of the same bytes"
    return "this config does to the final hidden states"


def next_command(analysis: Analysis, selection: Selection, directory: Path | None = None) -> tuple[str, str]:
    """What to type next, and why: ``(command, reason)``."""
    counts = summary.head_counts(analysis, selection)
    evaluate = eval_command(directory, analysis.calibration), f"what {eval_measures(analysis)}"
    if not counts.open:
        return show_command(directory), "this report again, without measuring"
    if selection.levers is not None:
        return evaluate
    if not selection.why.bounded:
        return _analyze(analysis, selection, policy="error"), "what the measured errors would choose, to compare"
    if analysis.model.causal and analysis.calibration.inputs is None:
        longest = analysis.model.max_context
        context = min(_ADVISED_CONTEXT, longest) if selection.context == longest else selection.context
        budget = {"budget": _ADVISED_BUDGET, "context": context, "window": DEFAULTS.window, "sinks": DEFAULTS.sinks}
        command = _analyze(analysis, selection, **budget)
        return command, f"the least loss for {_ADVISED_BUDGET} of the cache, by whatever each KV head can run"
    if counts.adapted:
        return evaluate
    return _analyze(analysis, selection, policy="alpha"), "what the alphas alone would choose, to compare"


def _analyze(analysis: Analysis, selection: Selection, **changes: Any) -> str:
    """The command that measures the same model and text, with something changed and results of its own."""
    policy, budget = changes.get("policy", selection.policy), changes.get("budget")
    suffix = ("" if policy == DEFAULTS.policy else f"-{policy}") + (
        "" if budget is None else f"-{Budget.parse(budget).folder}"
    )
    return analyze_command(analysis, selection, out=f"{DEFAULT}{suffix}", **changes)
