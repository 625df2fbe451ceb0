"""The stages of a long command, planned before it runs: what it will say it is doing, and how much of that there is.

Work is counted in units that can be timed for a moment on the machine and model at hand; what a unit takes there is a
speed. So one plan gives both the estimates of a dry run and the "stage 3 of 6" of a real one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Unit: TypeAlias = Literal["token", "step", "pair", "loss", "spectrum", "term", "use", "near", "polynomial"]
"""What work is counted in.

``token``: a token through all layers, without its attention and without the language-model head; ``step``: a token by
itself, head included; ``pair``: a query and
a key attended to in all layers; ``loss``: a token's logits and losses; ``spectrum``: the larger side of a matrix times
the smaller one squared; ``term``: a degree of the polynomial of one score in float64; ``use``: a score of one query
head, for probes; ``near``: a score of one query head in one near field; ``polynomial``: a token of one query head in
one candidate of order 2 or more.
"""

Work: TypeAlias = Mapping[Unit, float]
Speed: TypeAlias = Mapping[Unit, float]
"""Seconds that one of every unit takes."""


def together(*parts: Work, times: float = 1.0) -> Work:
    """Several pieces of work as one, so many times."""
    units: list[Unit] = list(dict.fromkeys(unit for part in parts for unit in part))
    return {unit: times * sum(part.get(unit, 0.0) for part in parts) for unit in units}


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a command: the name that progress is told, what it is ``about`` in words, and its work.

    ``budget`` is the one it is for where there are several; ``most`` are the seconds after which it stops by itself.
    """

    name: str
    about: str
    work: Work
    budget: str = ""
    most: float | None = None

    def seconds(self, speed: Speed) -> float:
        """How long it will take."""
        seconds = sum(amount * speed[unit] for unit, amount in self.work.items())
        return seconds if self.most is None else min(self.most, seconds)


@dataclass(frozen=True, slots=True)
class StagePlan:
    """The stages of a command in the order of the run, and the bytes of memory and disk that it takes at most.

    ``memory`` is what comes on top of a process that holds the model.
    """

    stages: tuple[Stage, ...]
    memory: int
    disk: int = 0

    def seconds(self, speed: Speed) -> float:
        """How long all of it will take."""
        return sum(stage.seconds(speed) for stage in self.stages)

    def place(self, name: str, start: int = 0) -> int | None:
        """The first stage of that name from ``start`` on, None if there is none."""
        numbered = enumerate(self.stages[start:], start)
        return next((number for number, stage in numbered if stage.name == name), None)

    def start_of(self, budget: str) -> int | None:
        """The first stage that is for one of several budgets."""
        return next((number for number, stage in enumerate(self.stages) if stage.budget == budget), None)
