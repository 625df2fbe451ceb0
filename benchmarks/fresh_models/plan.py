"""Which runs there are, in the order in which their results matter, each named when those before it are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fresh_models.contenders import CONTENDERS
from fresh_models.found import FoundRun
from fresh_models.log import About, Log
from fresh_models.recall_run import RecallRun

RATES = (3e-3, 1e-3)
"""Learning rates; the seed 0 of a contender, trained with each, chooses for its other seeds."""

SEEDS, FEW_SEEDS = range(5), range(2)
FEW = ("softmax", "order 2", "order 3")
HEAD_DIMS, PAIRS = (8, 32), (4, 16, 32)


class Run(Protocol):
    """What a record is made of."""

    @property
    def about(self) -> About:
        """What distinguishes it from other runs."""

    def measure(self) -> tuple[About, bytes | None]:
        """The record, and the weights of a model that was trained, as a safetensors file."""


@dataclass(frozen=True)
class Plan:
    """What is to be run, given what is in the log already.

    ``names`` are those of contenders; ``models`` is the folder with the weights of those that were trained.
    """

    log: Log
    models: Path
    names: Sequence[str]

    @classmethod
    def of(cls, log: Log, models: Path, names: Sequence[str] = ()) -> Plan:
        """That of some contenders, in their order, or of all."""
        return cls(log, models, names or [contender.name for contender in CONTENDERS])

    def missing(self, pieces: Sequence[str]) -> Iterator[Run]:
        """Runs without a record."""
        for piece in pieces:
            for run in PIECES[piece](self):
                if self.log.find(run.about) is None:
                    yield run

    def recall(self) -> Iterator[RecallRun]:
        """All contenders at d = 16 and 8 pairs: seed 0 with both rates, and then one seed after the other."""
        for rate in RATES:
            yield from (RecallRun(name, rate=rate) for name in self.names)
        for seed in SEEDS[1:]:
            yield from self._at_chosen(RecallRun(name, seed=seed) for name in self.names)

    def sizes(self) -> Iterator[RecallRun]:
        """Other head dims and numbers of pairs, with the rates of the main line."""
        few = [name for name in self.names if name in FEW]
        for seed in FEW_SEEDS:
            for pairs in PAIRS:
                yield from self._at_chosen(RecallRun(name, pairs=pairs, seed=seed) for name in few)
            for head_dim in HEAD_DIMS:
                yield from self._at_chosen(RecallRun(name, head_dim=head_dim, seed=seed) for name in few)

    def found(self) -> Iterator[FoundRun]:
        """What the analyzer says of every model of the main line whose weights are there."""
        for record in self.log.records():
            about = record["about"]
            if about["task"] == RecallRun.task and about["contender"] in self.names:
                run = RecallRun(**{name: value for name, value in about.items() if name != "task"})
                weights = run.weights_file(self.models)
                if weights.exists() and (run.head_dim, run.pairs) == (RecallRun.head_dim, RecallRun.pairs):
                    yield FoundRun(run, weights)

    def rate_of(self, contender: str) -> float | None:
        """The better learning rate of a contender in the main line, None until both were tried."""
        found = {rate: self.log.find(RecallRun(contender, rate=rate).about) for rate in RATES}
        tried = {rate: merit(record) for rate, record in found.items() if record is not None}
        return max(tried, key=lambda rate: tried[rate]) if len(tried) == len(RATES) else None

    def _at_chosen(self, runs: Iterator[RecallRun]) -> Iterator[RecallRun]:
        for run in runs:
            rate = self.rate_of(run.contender)
            if rate is not None:
                yield run.at(rate)


PIECES: Mapping[str, Callable[[Plan], Iterator[Run]]] = {
    "recall": Plan.recall,
    "found": Plan.found,
    "sizes": Plan.sizes,
}


def merit(record: About) -> tuple[bool, int, float]:
    """What speaks for a run: that it solved the task, in the fewer steps the better, or else its share right."""
    solved = record["solved_at"]
    return solved is not None, -(solved or 0), record["share"]
