"""What ``compare`` prints: two configs of one model, KV head by KV head, with their bytes and losses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from taylorder.analysis.losses import EXACT
from taylorder.evaluation.comparison import Comparison
from taylorder.evaluation.intervals import Interval
from taylorder.evaluation.two_configs import A, B
from taylorder.kernels.spec import Taylor
from taylorder.reports import run_pair_grid
from taylorder.reports import run_pair_words as words
from taylorder.reports.evaluation_words import figure, with_bracket
from taylorder.reports.numbers import counted, percent, size
from taylorder.reports.sections import Block, Cell, Column, Command, Section, Table, facts, paragraph, table
from taylorder.runs.recorded_config import RecordedConfig
from taylorder.runs.run_pair import RunPair
from taylorder.selection.config_pair import Held, KvHeadPair
from taylorder.storage.finite_json import stamped

SCHEMA = "taylorder/comparison@1"
MOST = 12
"""Rows of the largest moves in a terminal."""


def sections(report: RunPair, command: str) -> Iterator[Section]:
    """The whole report, its summary first; ``command`` measures both, where that was not done."""
    configs = report.configs
    named = facts({A: words.config(report.a), B: words.config(report.b)})
    yield Section(f"taylorder compare: {configs.model.name}", (named, summary(report)), "run", level=1)
    held = paragraph(
        f"Tokens are keys with the true exponential at {counted(configs.context, 'token')}; beside the marks, what KV "
        "heads of the layer hold on average."
    )
    blocks: tuple[Block, ...] = (run_pair_grid.grid(configs), run_pair_grid.legend(configs), held)
    yield Section("Which holds more, by layer and KV head", blocks, "each head")
    if configs.differing:
        yield moves(report, MOST)
    yield from losses(report)
    if report.measured is None and configs.differing:
        about = "Both measured on the same sequences, which takes minutes; after the first it says how many:"
        yield Section("Next", (paragraph(about), Command(command)), "verdict")


def summary(report: RunPair) -> Table:
    """Five lines that say it all."""
    lines = {
        "model": words.model(report.configs),
        "KV heads": words.kv_heads(report.configs),
        "cache": words.cache(report.configs),
        "loss": words.loss(report),
    }
    return facts(lines | {"verdict": Cell(words.verdict(report), style="strong")})


def moves(report: RunPair, most: int | None = None) -> Section:
    """The KV heads that differ, largest difference in bytes first, no more than ``most``."""
    differing = report.configs.differing
    shown, labels = differing[:most], _labels(report)
    columns = [Column("KV\nhead"), Column(A, wraps=True), Column(B, wraps=True)]
    columns += [Column(title, figures=True) for title in ("tokens", "bytes")]
    rows = table(columns, [_move(pair, labels[pair.module]) for pair in shown])
    lines = [
        "layer.KV head; sinks/window/keys kept by priority of A and of B, and +P the orders of a polynomial for all "
        "other keys, which are dropped otherwise; all is exact. Differences are B less A."
    ]
    if tensors := sorted({kind for pair in differing for kind in pair.tensors}):
        lines.append(f"Where both run the same, this was calibrated otherwise: {', '.join(tensors)}.")
    blocks: list[Block] = [paragraph(*lines), rows]
    if rest := len(differing) - len(shown):
        more = f"{counted(rest, 'more KV head')} differ{'s' if rest == 1 else ''}; --format json has all of them."
        blocks.append(paragraph(more))
    title = "The largest moves" if rest else "The KV heads that differ"
    return Section(title, tuple(blocks), "each head")


def losses(report: RunPair) -> Iterator[Section]:
    """What was measured here, and what the runs recorded, each where there is any."""
    if report.measured is not None:
        measured = report.measured
        about = f"Of {measured.text_source}, seed {measured.seed}: {words.sequences(measured)}, the same for all three."
        difference = words.paired(measured)
        lines = [about]
        if difference is not None:
            lines.append(f"B less A, paired by sequence: {words.difference_words(measured, difference)}.")
        yield Section("Losses on the same sequences", (_measured(measured), paragraph(*lines)), "config")
    sides = {A: report.a, B: report.b}
    recorded = {letter: side for letter, side in sides.items() if side.standing is not None}
    kls = {letter: side.calibration_kl for letter, side in sides.items() if side.calibration_kl is not None}
    blocks: list[Block] = []
    if recorded:
        blocks.append(_recorded(recorded))
    lines = _about_records(report, bool(recorded))
    if kls:
        both = ", ".join(f"{letter} {figure(kl)}" for letter, kl in kls.items())
        lines.append(f"KL to exact on the text that each was chosen by, in nats per token: {both}.")
    if blocks or lines:
        yield Section("What their runs recorded", (*blocks, *([paragraph(*lines)] if lines else [])), "config")


def as_document(report: RunPair) -> dict[str, Any]:
    """The comparison as one JSON document, schema ``taylorder/comparison@1``."""
    configs, measured = report.configs, report.measured
    content = {
        "model": configs.model.model_dump(),
        "context": configs.context,
        "exact_bytes": configs.exact_bytes,
        "a": _side(report.a, configs.bytes_a),
        "b": _side(report.b, configs.bytes_b),
        "kv_heads": [
            {
                "module": pair.module,
                "kv_head": pair.kv_head,
                "same": pair.same,
                "mark": run_pair_grid.side(pair),
                "tokens": pair.tokens,
                "bytes": pair.nominal_bytes,
                "a": _held(pair.a),
                "b": _held(pair.b),
                "tensors": list(pair.tensors),
            }
            for pair in configs.kv_heads
        ],
        "recorded_on_the_same_sequences": report.same_sequences,
        "measured": None if measured is None else _comparison(measured),
        "b_less_a": None if measured is None else _interval(words.paired(measured)),
        "verdict": words.verdict(report),
    }
    return stamped(SCHEMA, content)


def _labels(report: RunPair) -> dict[str, str]:
    return {pairs[0].module: label.text for label, pairs in run_pair_grid.layers(report.configs)}


def _move(pair: KvHeadPair, layer: str) -> tuple[Cell | str, ...]:
    a, b = run_pair_grid.held(pair.a), run_pair_grid.held(pair.b)
    if a == b:
        b += f" (other {', '.join(pair.tensors) or 'coefficients'})"
    taken = run_pair_grid.signed(pair.nominal_bytes, size(abs(pair.nominal_bytes)))
    return f"{layer}.{pair.kv_head}", a, b, run_pair_grid.signed(pair.tokens), taken


def _measured(comparison: Comparison) -> Table:
    """Exact, A and B on the same sequences."""
    columns = [
        Column(""),
        Column("bytes per\nKV head", figures=True),
        Column("NLL [95%]", figures=True),
        Column("to exact [95%]", figures=True),
        Column("KL to\nexact", figures=True),
        Column("same top\ntoken", figures=True),
    ]
    if hidden := all(standing.nll is None for standing in comparison.standings):
        columns[2:] = [Column("hidden states moved", figures=True)]
    rows = []
    for one in comparison.standings:
        cells = [one.name, "-" if one.nominal_bytes is None else size(one.nominal_bytes)]
        if hidden:
            cells.append("-" if one.hidden_relative_l2 is None else percent(one.hidden_relative_l2))
        else:
            cells += [_bracketed(one.nll), _bracketed(one.delta_exact, signed=True)]
            cells.append("-" if one.kl is None else figure(one.kl.estimate))
            cells.append("-" if one.agreement is None else percent(one.agreement))
        rows.append(cells)
    return table(columns, rows)


def _recorded(sides: dict[str, RecordedConfig]) -> Table:
    """What each run measured for itself."""
    titles = ("exact", "NLL", "to exact [95%]", "to window [95%]")
    columns = [Column(""), Column("sequences"), *(Column(title, figures=True) for title in titles)]
    rows = []
    for letter, side in sides.items():
        comparison, config = side.comparison, side.standing
        if comparison is None or config is None:
            continue
        exact = comparison.standing(EXACT)
        means = (None if one is None else one.nll for one in (exact, config))
        plain = ["-" if mean is None else figure(mean.estimate) for mean in means]
        beside = [_bracketed(one, signed=True) for one in (config.delta_exact, config.delta_window)]
        rows.append([letter, f"{comparison.sequences} x {comparison.length:,}", *plain, *beside])
    return table(columns, rows)


def _about_records(report: RunPair, recorded: bool) -> list[str]:
    """Whether what two runs recorded may be compared, and what of them was not read."""
    lines = [
        f"{letter}: the records of its run are not read, since they are of another config ({side.unread})."
        for letter, side in ((A, report.a), (B, report.b))
        if side.unread is not None
    ]
    if report.a.standing is None or report.b.standing is None:
        return lines
    if report.recorded_difference is not None:
        lines.append(
            f"Both are of the same sequences: B less A is {figure(report.recorded_difference, signed=True)}. It has no "
            "interval, since runs keep no losses of single sequences."
        )
    elif recorded:
        lines.append("They are of different sequences, so that their difference says nothing of the configs.")
    return lines


def _side(side: RecordedConfig, taken: int) -> dict[str, Any]:
    return {
        "path": str(side.path),
        "criterion": side.config.criterion,
        "bytes": taken,
        "recorded": None if side.comparison is None else _comparison(side.comparison),
        "calibration_kl": side.calibration_kl,
        "unread": side.unread,
    }


def _held(held: Held) -> dict[str, Any]:
    spec = held.specs[0]
    polynomials = [one.far if isinstance(one.far, Taylor) else None for one in held.specs]
    return {
        "runs": "taylor" if held.order else spec.runs,
        "window": spec.near.window,
        "sinks": spec.near.sinks,
        "kept": spec.near.kept,
        "orders": [None if far is None else far.order for far in polynomials],
        "tokens": held.tokens,
        "bytes": held.nominal_bytes,
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    """A comparison without what only an evaluation has a use for."""
    return {
        "length": comparison.length,
        "sequences": comparison.sequences,
        "text_source": comparison.text_source,
        "text_sha256": comparison.text_sha256,
        "seed": comparison.seed,
        "standings": [standing.record() for standing in comparison.standings],
    }


def _interval(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


def _bracketed(interval: Interval | None, *, signed: bool = False) -> str:
    return "-" if interval is None else with_bracket(interval, signed)
