"""What a claim came to: plain frozen values that reports render and files keep."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from taylorder.evaluation.intervals import Interval

Verdict: TypeAlias = Literal["supported", "contradicted", "undecided", "not applicable"]
Figure: TypeAlias = str | float | int | None


@dataclass(frozen=True, slots=True)
class Effect:
    """One figure a verdict rests on, with its interval.

    ``low`` and ``high`` are None where the figure is exact, that is, follows from a formula; ``meaning`` says what the
    claim expects of it.
    """

    name: str
    estimate: float
    low: float | None
    high: float | None
    meaning: str

    @classmethod
    def of(cls, name: str, interval: Interval, meaning: str) -> Effect:
        """The effect whose estimate and ends are those of an interval."""
        return cls(name, interval.estimate, interval.low, interval.high, meaning)


@dataclass(frozen=True, slots=True)
class FigureTable:
    """Figures behind the effects; a cell is None where there is none. ``note`` says what a reader has to know."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Figure, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Points of a plot, with intervals where there are any."""

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Plot:
    """What a report draws: lines through the points of each series, or the points alone."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    kind: Literal["lines", "points"] = "lines"
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim and what measuring said.

    ``key`` names it in files and on the command line, ``statement`` is the claim in a sentence, ``source`` who made it,
    ``reason`` says in a sentence or two why the verdict is what it is, ``rule`` how it was arrived at.
    """

    key: str
    statement: str
    source: str
    verdict: Verdict
    reason: str
    rule: str
    effects: tuple[Effect, ...] = ()
    tables: tuple[FigureTable, ...] = ()
    plots: tuple[Plot, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __repr__(self) -> str:
        """One line; ``reason`` and ``effects`` say why."""
        return f"<Claim {self.key}: {self.verdict}>"
