"""Which runs there are, in the order in which their results matter, each named when those before it are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fresh_models.contenders import BY_NAME, TEXT
from fresh_models.found import FoundRun
from fresh_models.log import About, Log, Record, weights_file
from fresh_models.recall_run import RecallRun
from fresh_models.text_run import TextRun

RATES = (3e-3, 1e-2)
"""Learning rates; the seed 0 of a contender, trained with each, chooses for its other seeds."""

SEEDS, FEW_SEEDS = range(5), range(2)
FEW = ("softmax", "order 2", "order 3")
CLOSE = "order 2"
SMALL = 0.02
"""Standard deviation of first weights that is usual in transformers' classes."""

STARTS = (*FEW, "order 4", "order 3 mean", "order 2 mean")
SIZES: Sequence[tuple[Mapping[str, Any], Sequence[str]]] = (
    ({"pairs": 16, "first": RecallRun.pairs}, FEW),
    ({"pairs": 32, "first": RecallRun.pairs}, FEW),
    ({"pairs": 4}, FEW),
    ({"head_dim": 8}, FEW),
    ({"head_dim": 32}, FEW),
    ({"initial": SMALL}, STARTS),
    ({"pairs": 16}, FEW),
)
"""What differs from the main line, and for whom."""


class Run(Protocol):
    """What a record is made of."""

    @property
    def about(self) -> About:
        """What distinguishes it from other runs."""

    def measure(self) -> tuple[Record, bytes | None]:
        """The record, and the weights of a model that was trained, as a safetensors file."""


R = TypeVar("R", RecallRun, TextRun)


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
        return cls(log, models, names or list(BY_NAME))

    def missing(self, pieces: Sequence[str]) -> Iterator[Run]:
        """Runs without a record."""
        for piece in pieces:
            for run in PIECES[piece](self):
                if self.log.find(run.about) is None:
                    yield run

    def recall(self) -> Iterator[Run]:
        """All contenders at d = 16 and 8 pairs: the seed 0 with both rates, the others with the better."""
        firsts = [RecallRun(name) for name in self.names]
        yield from self._with_both_rates(firsts)
        yield from self._with_the_better(firsts, SEEDS[1:])

    def rates(self) -> Iterator[Run]:
        """The main line's closest contender with either rate on all seeds: its first seed fares alike with both."""
        for seed in SEEDS:
            yield from (RecallRun(CLOSE).at(rate, seed) for rate in RATES if CLOSE in self.names)

    def text(self) -> Iterator[Run]:
        """Language models, one contender after the other: the seed 0 with both rates, the other with the better."""
        for first in (TextRun(name) for name in TEXT if name in self.names):
            yield from self._with_both_rates([first])
            yield from self._with_the_better([first], FEW_SEEDS[1:])

    def sizes(self) -> Iterator[Run]:
        """Other head dims, numbers of pairs and first weights, with the rates of the main line."""
        for seed in FEW_SEEDS:
            for size, names in SIZES:
                for name in names:
                    rate = self._rate(RecallRun(name)) if name in self.names else None
                    if rate is not None:
                        yield RecallRun(name, **size).at(rate, seed)

    def found(self) -> Iterator[Run]:
        """What the analyzer says of the main line's models whose weights are there, of those with the better rate."""
        for record in self.log.records():
            about = record["about"]
            if about["task"] == RecallRun.task and about["contender"] in self.names:
                run = RecallRun.of(about)
                weights = weights_file(self.models, about)
                better = self._rate(RecallRun(run.contender)) in (None, run.rate)
                if run.of_main_line and better and weights.exists():
                    yield FoundRun(run, weights)

    def _with_both_rates(self, firsts: Sequence[R]) -> Iterator[R]:
        for rate in RATES:
            yield from (first.at(rate, SEEDS[0]) for first in firsts)

    def _with_the_better(self, firsts: Sequence[R], seeds: Sequence[int]) -> Iterator[R]:
        """One seed after the other, of those whose rate is known."""
        for seed in seeds:
            for first in firsts:
                rate = self._rate(first)
                if rate is not None:
                    yield first.at(rate, seed)

    def _rate(self, first: RecallRun | TextRun) -> float | None:
        """The better learning rate of a contender, None until both were tried."""
        found = {rate: self.log.find(first.at(rate, SEEDS[0]).about) for rate in RATES}
        merits = {rate: first.merit(record) for rate, record in found.items() if record is not None}
        return max(merits, key=lambda rate: merits[rate]) if len(merits) == len(RATES) else None


PIECES: Mapping[str, Callable[[Plan], Iterator[Run]]] = {
    "recall": Plan.recall,
    "rates": Plan.rates,
    "found": Plan.found,
    "text": Plan.text,
    "sizes": Plan.sizes,
}
