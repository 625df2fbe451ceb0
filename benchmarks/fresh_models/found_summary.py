"""What the records say of trained models: what the analyzer found in them, and how they run with other orders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fresh_models.found import MAX_ORDER, FoundRun
from fresh_models.log import Record
from fresh_models.recall_run import RecallRun
from fresh_models.summary import lines

LEARNT = 0.9
"""Share of right answers above which a model is said to have learnt the task."""


@dataclass(frozen=True)
class Found:
    """What the analyzer says of one model, and the share of right answers by the order that it is run with.

    Attributes:
        share: right answers with what it was trained with.
        largest: by layer, the largest weight's share in rows that answer, their median, of the head where it is the
            largest; empty where not looked at.
        denominator: of each head without near field, the 5 % quantile of these rows' denominators per key.

    """

    contender: str
    seed: int
    share: float
    run_as: Mapping[str, float]
    score_std: Sequence[float]
    errors: Sequence[Mapping[str, Sequence[float]]]
    alpha: Sequence[float]
    largest: Sequence[float]
    denominator: Sequence[float]

    @property
    def learnt(self) -> bool:
        """Whether it does the task."""
        return self.share > LEARNT

    def needed(self, tolerance: float) -> list[int | None]:
        """The least odd order of every head whose error around its row's mean is within a tolerance."""
        odd = range(1, MAX_ORDER + 1, 2)
        return [
            next((order for order in odd if errors["mean"][order - 1] <= tolerance), None) for errors in self.errors
        ]


def found(records: Sequence[Record]) -> list[Found]:
    """Of the models that the main line's lines are about, in their order."""
    made = []
    analysed = [record for record in records if record["about"]["task"] == FoundRun.task]
    for line in lines(records):
        if line.of_main_line:
            for record in analysed:
                run = RecallRun.of(record["about"])
                if run.at(run.rate, 0) == line.run.at(line.run.rate, 0):
                    made.append(_found(record, line.shares[line.seeds.index(run.seed)]))
    return made


def by_contender(records: Sequence[Record]) -> dict[str, list[Found]]:
    """The same by what the models were trained with, one for each seed."""
    models: dict[str, list[Found]] = {}
    for model in found(records):
        models.setdefault(model.contender, []).append(model)
    return models


def _found(record: Record, share: float) -> Found:
    return Found(
        record["about"]["contender"],
        record["about"]["seed"],
        share,
        record["run_as"],
        [head["score_std"] for head in record["heads"]],
        [head["errors"] for head in record["heads"]],
        _known(record["alpha"].values()),
        _by_layer(record["heads"]),
        _known(head.get("denominator") for head in record["heads"]),
    )


def _by_layer(heads: Sequence[Record]) -> list[float]:
    """Of every layer the largest of its heads' values, if there are any."""
    layers: dict[str, list[float]] = {}
    for head in heads:
        if "largest" in head:
            layers.setdefault(head["module"], []).append(head["largest"])
    return [max(of_layer) for of_layer in layers.values()]


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
