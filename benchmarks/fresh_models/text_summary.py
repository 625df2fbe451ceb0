"""What the records say of language models: of every contender the losses by kind of text, over its seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fresh_models.contenders import BY_NAME
from fresh_models.log import About
from fresh_models.text_run import LENGTH, TextRun


@dataclass(frozen=True)
class TextLine:
    """A contender with one number of steps and one learning rate.

    Attributes:
        run: the first of its runs, which differ in their seeds.
        state_bytes: what one KV head holds after the length trained with.
        losses: nats per token by kind of text, the mean over seeds.

    """

    run: TextRun
    seeds: Sequence[int]
    state_bytes: int
    losses: Mapping[str, float]


def text_lines(records: Iterable[About]) -> list[TextLine]:
    """A line for each number of steps, contender and learning rate, in this order and that of the contenders."""
    alike: dict[TextRun, list[About]] = {}
    for record in sorted(records, key=lambda record: record["about"]["seed"]):
        if record["about"]["task"] == TextRun.task:
            run = TextRun.of(record["about"])
            alike.setdefault(run.at(run.rate, 0), []).append(record)
    order = list(BY_NAME)
    made = [_line(same) for run, same in alike.items() if run.contender in order]
    return sorted(made, key=lambda line: (-line.run.steps, order.index(line.run.contender), -line.run.rate))


def _line(records: Sequence[About]) -> TextLine:
    first = records[0]
    losses = {kind: statistics.fmean(record["loss"][kind] for record in records) for kind in first["loss"]}
    seeds = [record["about"]["seed"] for record in records]
    return TextLine(TextRun.of(first["about"]), seeds, first["state_bytes"][str(LENGTH)], losses)
