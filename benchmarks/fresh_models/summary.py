"""What the records say: of every contender the share of right answers over its seeds, beside the bytes it holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fresh_models.contenders import BY_NAME
from fresh_models.log import Record
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
        found = mean_interval(self.shares)
        return Interval(found.estimate, max(0.0, found.low), min(1.0, found.high)) if found.bounded else found

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


def solved(steps: Sequence[int | None]) -> str:
    """Of how many runs a training was done, and with which steps, in words."""
    done = [step for step in steps if step is not None]
    words = f"{len(done)} of {len(steps)}"
    return words + (f", {' to '.join(f'{step:,}' for step in sorted({min(done), max(done)}))}" if done else "")


HEAD = ["bytes", "share right [95 %]", "seeds", "solved, steps", "learning rate", "guarded rows"]


def lines(records: Iterable[Record]) -> list[Line]:
    """A line for each contender and size, in the order of the contenders."""
    sizes: dict[RecallRun, dict[float, list[Record]]] = {}
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


def _line(by_rate: Mapping[float, Sequence[Record]]) -> Line:
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
