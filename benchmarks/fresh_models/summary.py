"""What the records say: of every contender the share of right answers over its seeds, beside the bytes it holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fresh_models.contenders import BY_NAME
from fresh_models.found import MAX_ORDER, FoundRun
from fresh_models.log import About
from fresh_models.models import INITIAL
from fresh_models.plan import RATES
from fresh_models.recall_run import RecallRun
from taylorder.evaluation.intervals import Interval, mean_interval


@dataclass(frozen=True)
class Line:
    """A contender at one size.

    Attributes:
        run: the first of its runs, which differ in their seeds.
        tried: with how many of the two learning rates the first seed was trained; with two, ``run`` has the better.
        shares: right answers by seed.
        solved: after how many steps, by seed; None where it was not.
        broke_off: trainings that ended at a gradient that was no number.

    """

    run: RecallRun
    tried: int
    state_bytes: int
    seeds: Sequence[int]
    shares: Sequence[float]
    solved: Sequence[int | None]
    broke_off: int
    guarded: float

    @property
    def of_main_line(self) -> bool:
        """Whether it has the usual heads, pairs and first weights."""
        return self.run.of_main_line

    @property
    def contender(self) -> str:
        """What its models were trained with."""
        return self.run.contender

    @property
    def words(self) -> str:
        """Contender and size."""
        run = self.run
        before = f" after {' and '.join(map(str, run.before))}" if run.before else ""
        small = "" if run.initial == INITIAL else f", first weights {run.initial:g}"
        return f"{run.contender}, d {run.head_dim}, {run.pairs} pairs{before}{small}"

    @property
    def share(self) -> Interval:
        """The mean over seeds, whose ends are infinite where there is one seed."""
        return within(mean_interval(self.shares), 0.0, 1.0)

    @property
    def figures(self) -> list[str]:
        """Cells of a table."""
        ends = f" [{self.share.low:.2f}, {self.share.high:.2f}]" if self.share.bounded else ""
        steps = solved(self.solved)
        if self.broke_off:
            steps += f", {self.broke_off} broke off"
        alone = " (alone)" if self.of_main_line and self.tried < len(RATES) else ""
        return [
            f"{self.state_bytes:,}", f"{self.share.estimate:.2f}{ends}", str(len(self.shares)), steps,
            f"{self.run.rate:g}{alone}", f"{100 * self.guarded:.1f} %",
        ]  # fmt: skip


def within(interval: Interval, least: float, most: float) -> Interval:
    """An interval without what cannot be; one of a single seed stays without ends."""
    if not interval.bounded:
        return interval
    return Interval(interval.estimate, max(least, interval.low), min(most, interval.high))


def solved(steps: Sequence[int | None]) -> str:
    """Of how many runs a training was done, and with which steps, in words."""
    done = [step for step in steps if step is not None]
    words = f"{len(done)} of {len(steps)}"
    return words + (f", {' to '.join(f'{step:,}' for step in sorted({min(done), max(done)}))}" if done else "")


LEARNT = 0.9
"""Share of right answers above which a model is said to have learnt the task."""

HEAD = ["bytes", "share right [95 %]", "seeds", "solved, steps", "learning rate", "guarded rows"]


def lines(records: Iterable[About]) -> list[Line]:
    """A line for each contender and size, in the order of the contenders."""
    sizes: dict[RecallRun, dict[float, list[About]]] = {}
    for record in sorted(records, key=lambda record: record["about"]["seed"]):
        if record["about"]["task"] == RecallRun.task:
            run = RecallRun.of(record["about"])
            sizes.setdefault(run.at(RATES[0], 0), {}).setdefault(run.rate, []).append(record)
    order = list(BY_NAME)
    made = [_line(by_rate) for run, by_rate in sizes.items() if run.contender in order]

    def place(line: Line) -> tuple[float, ...]:
        run = line.run
        return run.head_dim, run.pairs, run.first or 0, -run.initial, order.index(run.contender)

    return sorted(made, key=place)


def _line(by_rate: Mapping[float, Sequence[About]]) -> Line:
    # What has more seeds was chosen for them; until then, what did better.
    rate = max(by_rate, key=lambda rate: (len(by_rate[rate]), RecallRun.merit(by_rate[rate][0])))
    chosen = by_rate[rate]
    return Line(
        RecallRun.of(chosen[0]["about"]), sum(rate in by_rate for rate in RATES), chosen[0]["state_bytes"],
        [record["about"]["seed"] for record in chosen],
        [record["share"] for record in chosen], [record["solved_at"] for record in chosen],
        sum(record.get("broke_off") is not None for record in chosen),
        math.fsum(record.get("guarded", 0.0) for record in chosen) / len(chosen),
    )  # fmt: skip


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


def found(records: Sequence[About]) -> list[Found]:
    """Of the models that the main line's lines are about, in their order."""
    made = []
    analysed = [record for record in records if record["about"]["task"] == FoundRun.task]
    for line in lines(records):
        if line.of_main_line:
            for record in analysed:
                about = record["about"]
                if (about["contender"], about["rate"]) == (line.contender, line.run.rate):
                    made.append(_found(record, line.shares[line.seeds.index(about["seed"])]))
    return made


def by_contender(records: Sequence[About]) -> dict[str, list[Found]]:
    """The same by what the models were trained with, one for each seed."""
    models: dict[str, list[Found]] = {}
    for model in found(records):
        models.setdefault(model.contender, []).append(model)
    return models


def _found(record: About, share: float) -> Found:
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


def _by_layer(heads: Sequence[About]) -> list[float]:
    """Of every layer the largest of its heads' values, if there are any."""
    layers: dict[str, list[float]] = {}
    for head in heads:
        if "largest" in head:
            layers.setdefault(head["module"], []).append(head["largest"])
    return [max(of_layer) for of_layer in layers.values()]


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
