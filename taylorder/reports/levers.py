"""What the levers led to, in words and tables: the choice of every KV head, and polynomials beside windows."""

from __future__ import annotations

import math
from itertools import accumulate, groupby

from taylorder.adapt.config import HeadOrder
from taylorder.analysis.results import Analysis
from taylorder.kernels.spec import Exact, Taylor
from taylorder.reports import grids, near_words
from taylorder.reports.claims import cell
from taylorder.reports.evaluation_words import figure
from taylorder.reports.numbers import compact, counted, layer_labels, number, percent, size
from taylorder.reports.sections import Block, Cell, Column, Section, Table, even, paragraph, table
from taylorder.selection.by_tolerance import Selection
from taylorder.selection.cache_size import CacheSize
from taylorder.selection.lever_summary import LeverSummary
from taylorder.selection.probe_report import ProbeReport


def kept_tokens(analysis: Analysis, selection: Selection) -> Table:
    """Tokens that every KV head keeps, by kind if any keeps keys by priority, and the order of its polynomial."""
    modules = analysis.model.modules
    by_module = {layer.module: layer.heads for layer in selection.config.layers}
    parts = near_words.keeps(selection.config)
    nears = [head.spec.near.tokens for heads in by_module.values() for head in heads if head.spec.runs != "exact"]
    ends = min(nears, default=1), max(nears, default=1)
    rows = [
        (
            Cell(label.text + label.mark),
            *(_kept(head, parts, *ends) for head in by_module[module.name][:: module.group]),
        )
        for module, label in layer_labels(modules)
    ]
    titles = ("layer", *(f"KV {kv_head}" for kv_head in range(max(module.kv_heads for module in modules))))
    return table([Column(title, figures=True) for title in titles], even(rows), folds=True, indented=True)


def _kept(head: HeadOrder, parts: bool, least: int, most: int) -> Cell:
    """What a KV head keeps, the darker the more of what any KV head keeps at least and at most.

    Its bar has the shares of sinks, window and kept keys in the most.
    """
    near, far = head.spec.near, head.spec.far
    if isinstance(far, Exact):
        return Cell("all")
    text = near_words.tokens(near, parts=parts)
    if isinstance(far, Taylor):
        text += f" +P{far.order}{'r' if far.ranks is not None else ''}"
    share = math.log(max(near.tokens, 1) / max(least, 1)) / math.log(most / max(least, 1)) if least < most else 0.0
    bar = tuple(tokens / max(most, 1) for tokens in (near.sinks, near.window, near.kept))
    return Cell(text, fill=grids.tint(1 - share), bar=bar)


def kinds_of_bars(selection: Selection) -> tuple[str, ...]:
    """What the bars of :func:`kept_tokens` are made of; none where a choice was not made by levers."""
    if selection.levers is None:
        return ()
    return ("sink", "window", "kept") if near_words.keeps(selection.config) else ("sink", "window")


def counts(summary: LeverSummary) -> Table:
    """How many KV heads run each candidate; with kept keys there are many, and kinds of them stand instead."""
    heads = Column("KV heads", figures=True)
    if not _offers_kept(summary):
        return table(
            (Column("chosen"), heads), [(label, Cell(number(count), count)) for label, count in summary.chosen]
        )
    return table(
        (Column("chosen"), heads, Column("bytes each", figures=True)),
        [
            (kind.label, Cell(number(kind.kv_heads), kind.kv_heads), Cell(size(kind.nominal_bytes), kind.nominal_bytes))
            for kind in summary.kinds
        ],
    )


def _offers_kept(summary: LeverSummary) -> bool:
    """Whether near fields with kept keys were among the candidates."""
    return "kept" in summary.levers


def _rival(summary: LeverSummary) -> str:
    """What the bytes of a state are given to instead."""
    return "near field" if _offers_kept(summary) else "window"


def beside_windows(summary: LeverSummary) -> Table:
    """Every candidate with a polynomial, beside the same bytes of window."""
    titles = ("bytes", "error", f"of {_rival(summary)}", "better on")
    columns = (Column("polynomial", wraps=True), *(Column(title, figures=True) for title in titles))
    return table(
        columns,
        [
            (
                beside.label,
                Cell(size(beside.nominal_bytes), beside.nominal_bytes),
                Cell(percent(beside.relative_l2), beside.relative_l2),
                Cell(percent(beside.window_relative_l2), beside.window_relative_l2),
                Cell(number(len(beside.better)), len(beside.better)),
            )
            for beside in summary.beside_window
        ],
    )


def legend(summary: LeverSummary, parts: bool) -> str:
    """What the grid says."""
    near = "sinks/window/keys kept by priority" if parts else f"window and {counted(4, 'sink')} or more"
    return (
        f"Tokens with the true exponential, the more the darker, {near}; +P1 adds a polynomial of order 1 "
        "for all others (r: with low ranks), without it they are dropped; all is exact. Measured on "
        f"{counted(summary.sequences, 'sequence')} of {counted(summary.sequence_length, 'token')}."
    )


def budget_words(cache: CacheSize, budget: int) -> str:
    """The same budget in every form that ``--budget`` takes."""
    closed = f", {size(cache.closed_bytes)} of it in layers that stay exact" if cache.closed_bytes else ""
    return (
        f"{size(budget)} per KV head on average = {percent(cache.share(budget))} of exact = "
        f"{size(cache.total(budget))} in total{closed} = {counted(cache.tokens(budget), 'token')} of cache per KV head"
    )


def program(summary: LeverSummary) -> str:
    """What was minimised, what the solver proved, and what the iterative scheme measured."""
    limit = (
        f"budget {size(summary.budget)}"
        if summary.budget is not None
        else f"tolerance {percent(summary.tolerance or 0.0, 3)}, root mean square over KV heads"
    )
    size_words = (
        f"{size(summary.nominal_bytes)} per KV head on average at {counted(summary.context, 'token')} ({limit}; exact "
        f"takes {size(summary.exact_bytes)}). "
    )
    if summary.rounds:
        stages = {
            "windows": "with plain windows ",
            "near fields": "with near fields per KV head ",
            "all": "with all candidates ",
        }
        # A step without a promise is where a stage begins, or begins again from another near field for all.
        begun = accumulate(measured.promised is None for measured in summary.rounds)
        by_stage = "; ".join(
            stages[among] + ", ".join(figure(measured.kl) for measured, _ in rounds)
            for (among, _), rounds in groupby(
                zip(summary.rounds, begun, strict=True), key=lambda pair: (pair[0].among, pair[1])
            )
        )
        starts, alike = ", ".join(f"{label} {figure(kl)}" for label, kl in summary.starts), ""
        if starts:
            alike = f"The same for all KV heads (window + sinks + kept keys): {starts}; the best of these begin. "
        return size_words + (
            f"{alike}Criterion {summary.criterion}: KL to exact on the calibration text, measured round by round: "
            f"{by_stage}. The least was taken. Gap of the integer program of its step: {summary.gap:.1e}."
        )
    if summary.budget is None:
        return size_words + (
            f"Fewest bytes: {compact(round(summary.objective), 6)} in all, none below "
            f"{compact(round(summary.bound), 6)} (gap {summary.gap:.1e})."
        )
    return size_words + (
        f"Criterion {summary.criterion}: {summary.objective:.4g} in all, no allocation below {summary.bound:.4g} "
        f"(gap {summary.gap:.1e})."
    )


def sentences(summary: LeverSummary) -> list[str]:
    """On how many KV heads Taylor terms are the better use of their bytes, and what the config makes of it."""
    better: dict[int, set[tuple[str, int]]] = {}
    for beside in summary.beside_window:
        better.setdefault(beside.order, set()).update(beside.better)
    if not better:
        return ["No polynomial was among the candidates."]
    on = [f"at order {order} on {len(heads) or 'none'}" for order, heads in sorted(better.items())]
    first = (
        f"By gradient-weighted error a polynomial is the better use of its bytes than a {_rival(summary)} of the same "
        f"size {', '.join(on)} of {counted(summary.kv_heads, 'KV head')} (levers.csv has all of them)."
    )
    chosen = len(summary.chosen_better) + len(summary.chosen_worse)
    if not chosen:
        return [first, "The config gives no KV head a polynomial."]
    return [
        first,
        f"The config gives one to {counted(chosen, 'KV head')}, of which {len(summary.chosen_better)} are among these.",
    ]


def probe_words(probes: ProbeReport) -> str:
    """How well probes tell which keys will be used."""
    h2o, oracle = percent(probes.mean("h2o_share")), percent(probes.mean("oracle_share"))
    return (
        f"On {counted(probes.rows[0].tokens, 'token')} that the probe did not see, its rank correlation with the "
        f"attention that keys will receive is {cell(probes.rank_correlation)} (median KV head). The eighth of the keys "
        f"that it ranks highest gets {percent(probes.mean('kept_share'))} of that attention; ranked by the attention "
        f"received so far (H2O) it gets {h2o}, and no ranking gets more than {oracle}."
    )


def section(analysis: Analysis, selection: Selection, summary: LeverSummary) -> Section:
    """What every KV head keeps, and what polynomials are worth beside windows."""
    judged = None if summary.probes is None else probe_words(summary.probes)
    probe = filter(None, [near_words.probe_sentence(selection.config), judged])
    blocks: list[Block] = [
        kept_tokens(analysis, selection),
        paragraph(legend(summary, near_words.keeps(selection.config)), *probe, program(summary)),
        counts(summary),
    ]
    lines = sentences(summary)
    if summary.beside_window:
        blocks.append(beside_windows(summary))
        lines.insert(
            0,
            f"Relative L2 error of the median KV head, and that of a {_rival(summary)} of the same bytes; on how many "
            f"of {summary.kv_heads} KV heads the polynomial is better by gradient-weighted error, never needing the "
            "guard.",
        )
    return Section("What every KV head keeps", (*blocks, paragraph(*lines)), "config", name="keeps")
