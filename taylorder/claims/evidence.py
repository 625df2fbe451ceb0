"""What was measured of one model for the claims, and how verdicts on several models become one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from taylorder.claims.association import Floats
from taylorder.claims.claim import Verdict
from taylorder.claims.layers import Layers
from taylorder.claims.measurements.heads import HeadSums
from taylorder.claims.measurements.invariance import Invariance
from taylorder.claims.measurements.order_losses import OrderLosses
from taylorder.claims.measurements.score_ranges import RangesByLength
from taylorder.claims.measurements.state_times import StateTimes
from taylorder.claims.measurements.task_scores import TaskScore
from taylorder.evaluation.intervals import Interval, mean_interval
from taylorder.models.description import ModelDescription


@dataclass(frozen=True)
class Measured:
    """What running a model again for the claims gave.

    Parts that the model does not allow (an encoder has no losses and no cache) are None or empty.
    """

    heads: dict[str, HeadSums]
    ranges: RangesByLength | None = None
    losses: OrderLosses | None = None
    times: StateTimes | None = None
    scores: tuple[TaskScore, ...] = ()
    invariance: Invariance | None = None


@dataclass(frozen=True)
class Evidence:
    """One model: its finished analysis, and what was measured beside it."""

    layers: Layers
    measured: Measured

    @property
    def model(self) -> ModelDescription:
        """The model."""
        return self.layers.analysis.model

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.layers.name

    @property
    def replaced(self) -> str:
        """What the model is called where only the layers that see all tokens were replaced."""
        some, every = len(self.model.open_modules), len(self.model.modules)
        return self.name if some == every else f"{self.name} ({some} of {every} layers)"

    def head_sums(self, field_name: str) -> list[Floats]:
        """One field of :class:`HeadSums` of every module, as arrays that end in the head."""
        return [np.array(getattr(self.measured.heads[module], field_name)) for module in self.layers.modules]


def over_layers(values: Iterable[float]) -> Interval | None:
    """Mean and interval over layers, of those that have a value; None if none has."""
    known = [float(value) for value in values if np.isfinite(value)]
    return mean_interval(known) if known else None


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict for several models: theirs if all that it applies to agree, otherwise undecided."""
    told = {verdict for verdict in verdicts if verdict != "not applicable"}
    if not told:
        return "not applicable"
    return told.pop() if len(told) == 1 else "undecided"


def above(interval: Interval | None, bound: float) -> Verdict:
    """Supported where the whole interval lies above a bound, contradicted where it lies below."""
    if interval is None:
        return "not applicable"
    if interval.low > bound:
        return "supported"
    return "contradicted" if interval.high < bound else "undecided"


def below(interval: Interval | None, bound: float) -> Verdict:
    """Supported where the whole interval lies below a bound, contradicted where it lies above."""
    return above(None if interval is None else Interval(-interval.estimate, -interval.high, -interval.low), -bound)
