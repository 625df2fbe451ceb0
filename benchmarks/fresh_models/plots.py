"""Plots of the records, as values that a script draws."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from fresh_models.contenders import ORDERS
from fresh_models.found import RUN_AS
from fresh_models.found_summary import by_contender
from fresh_models.log import Record
from fresh_models.recall_run import EVERY, STEPS, RecallRun
from fresh_models.summary import lines
from fresh_models.text_run import LENGTH
from fresh_models.text_summary import better, text_lines
from taylorder.claims.claim import Plot, Series
from taylorder.evaluation.intervals import Interval

FAMILIES = {
    "softmax": ("softmax",),
    "orders 1 to 5": tuple(ORDERS),
    "around the mean": tuple(f"{name} mean" for name in ORDERS),
    "window": ("window",),
    "order 2, learnt": ("order 2 learnt",),
    "order 3, ranks": ("order 3 rank 4", "order 3 rank 8"),
    "order 4, ranks": ("order 4 rank 4", "order 4 rank 8"),
    "orders 3 and 2": ("orders 3 and 2",),
}
COURSES = ("softmax", *ORDERS, "order 2 mean")


def by_bytes(records: Sequence[Record]) -> Plot:
    """Right answers against what a KV head holds, the main line: a series for contenders that differ in one number."""
    main = {line.contender: line for line in lines(records) if line.of_main_line}
    series = []
    for family, names in FAMILIES.items():
        members = [main[name] for name in names if name in main]
        shares = [line.share if line.share.bounded else Interval(*[line.share.estimate] * 3) for line in members]
        if members:
            held = tuple(float(line.state_bytes) for line in members)
            columns = [tuple(getattr(share, end) for share in shares) for end in ("estimate", "low", "high")]
            series.append(Series(family, held, *columns))
    title, across = "Share of right answers by what a KV head holds", "nominal bytes per KV head after 64 words"
    return Plot(title, across, "share right", tuple(series), log_x=True)


def courses(records: Sequence[Record]) -> Plot:
    """Right answers while training, the mean over seeds; a model that is done stays as it was."""
    rates = {line.contender: line.run.rate for line in lines(records) if line.of_main_line}
    series = []
    for name in COURSES:
        seeds = [
            _whole(record["curve"])
            for record in records
            if record["about"]["task"] == RecallRun.task
            and record["about"]["contender"] == name
            and RecallRun.of(record["about"]).of_main_line
            and record["about"]["rate"] == rates[name]
        ]
        if seeds:
            steps = sorted(seeds[0])
            shares = tuple(statistics.fmean(curve[step] for curve in seeds) for step in steps)
            series.append(Series(name, tuple(map(float, steps)), shares))
    return Plot("Share of right answers while training", "steps", "share right", tuple(series))


def run_as(records: Sequence[Record]) -> Plot:
    """Right answers of trained models by the order that they are run with, the mean over seeds; last is softmax."""
    series = []
    models = by_contender(records)
    for name in COURSES:
        if same := models.get(name):
            kinds = [kind for kind in RUN_AS if kind != "softmax"] + ["softmax"]
            shares = tuple(statistics.fmean(model.run_as[kind] for model in same) for kind in kinds)
            series.append(Series(name, tuple(map(float, range(1, len(kinds) + 1))), shares))
    title, across = "Trained with one kind (colours), run with another", "order of the run around zero (6: softmax)"
    return Plot(title, across, "share right", tuple(series))


def by_text(records: Sequence[Record]) -> Plot:
    """Of language models, what copies cost against what unseen text does: a point for each seed."""
    series = []
    for line in better(text_lines(records)):
        unseen, copies = (tuple(of_seed[kind] for of_seed in line.losses) for kind in (f"{LENGTH} tokens", "copies"))
        series.append(Series(line.run.contender, unseen, copies))
    title, across = "Language models: what copies cost, and what unseen text costs", "nats per token of unseen text"
    return Plot(title, across, "nats per token of copies", tuple(series), kind="points")


PLOTS: Mapping[str, Callable[[Sequence[Record]], Plot]] = {
    "fresh-bytes": by_bytes,
    "fresh-courses": courses,
    "fresh-run-as": run_as,
    "fresh-text": by_text,
}
"""By the names of their files."""


def _whole(curve: Sequence[tuple[int, float]]) -> dict[int, float]:
    """Step to share up to the last step that a run may have."""
    found_at = dict(curve)
    last = curve[-1][1]
    return {step: found_at.get(step, last) for step in range(EVERY, STEPS + 1, EVERY)}
