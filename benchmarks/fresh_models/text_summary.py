"""What the records say of language models: of every contender the losses by kind of text, over its seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fresh_models.contenders import BY_NAME
from fresh_models.log import Record
from fresh_models.text_run import LENGTH, TextRun


@dataclass(frozen=True)
class TextLine:
    """A contender with one learning rate.

    Attributes:
        run: the first of its runs, which differ in their seeds.
        state_bytes: what one KV head holds after the length trained with.
        copied: of each seed, the step with which it had learnt to copy random words; None if it had not.
        losses: of each seed, nats per token by kind of text.

    """

    run: TextRun
    seeds: Sequence[int]
    state_bytes: int
    copied: Sequence[int | None]
    losses: Sequence[Mapping[str, float]]

    def loss(self, kind: str) -> float:
        """The mean over seeds."""
        return statistics.fmean(of_seed[kind] for of_seed in self.losses)


def text_lines(records: Iterable[Record]) -> list[TextLine]:
    """A line for each contender, in their order, and each learning rate."""
    alike: dict[TextRun, list[Record]] = {}
    for record in sorted(records, key=lambda record: record["about"]["seed"]):
        if record["about"]["task"] == TextRun.task:
            run = TextRun.of(record["about"])
            alike.setdefault(run.at(run.rate, 0), []).append(record)
    order = list(BY_NAME)
    made = [_line(same) for run, same in alike.items() if run.contender in order]
    return sorted(made, key=lambda line: (order.index(line.run.contender), -line.run.rate))


def better(lines: Iterable[TextLine]) -> list[TextLine]:
    """Of every contender the line with the rate that its seed 0 chose."""
    best: dict[str, TextLine] = {}
    for line in lines:
        other = best.setdefault(line.run.contender, line)
        if TextRun.merit({"loss": line.losses[0]}) > TextRun.merit({"loss": other.losses[0]}):
            best[line.run.contender] = line
    return list(best.values())


def _line(records: Sequence[Record]) -> TextLine:
    return TextLine(
        TextRun.of(records[0]["about"]), [record["about"]["seed"] for record in records],
        records[0]["state_bytes"][str(LENGTH)], [record["copied_at"] for record in records],
        [record["loss"] for record in records],
    )  # fmt: skip
