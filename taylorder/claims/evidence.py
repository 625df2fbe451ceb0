"""What was measured for the claims, and how verdicts on several models become one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from taylorder.claims.claim import Verdict
from taylorder.claims.layers import Floats, Layers
from taylorder.claims.measurement import Measurement, Result
from taylorder.claims.measurements.heads import HeadMeasurement
from taylorder.claims.measurements.normal_inputs import NormalHead
from taylorder.evaluation.intervals import Interval, mean_interval
from taylorder.models.description import ModelDescription


@dataclass(frozen=True)
class ModelEvidence:
    """One model: its finished analysis, and what was measured beside it, by the name of the measurement."""

    layers: Layers
    results: Mapping[str, Any]

    @property
    def model(self) -> ModelDescription:
        """The model."""
        return self.layers.analysis.model

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.layers.name

    @property
    def name_and_layers(self) -> str:
        """The name, with the number of layers that see all tokens where only those are replaced in the whole model."""
        replaced, layers = len(self.model.open_modules), len(self.model.modules)
        return self.name if replaced == layers else f"{self.name} ({replaced} of {layers} layers)"

    def result(self, measurement: type[Measurement[Result]]) -> Result | None:
        """What a measurement gave; None where the model does not allow it (an encoder has no losses and no cache)."""
        value: Result | None = self.results.get(measurement.name)
        return value

    def head_sums(self, field_name: str) -> list[Floats]:
        """One field of ``HeadSums`` of every module, as arrays that end in the head."""
        by_module = self.result(HeadMeasurement) or {}
        return [np.array(getattr(by_module[module], field_name)) for module in self.layers.modules]

    def total_sums(self, field_name: str) -> Floats:
        """The same field summed over all heads of all modules: without the head."""
        return np.asarray(sum(by_head.sum(-1) for by_head in self.head_sums(field_name)))

    def __repr__(self) -> str:
        """One line; ``results`` has the figures."""
        return f"<ModelEvidence of {self.name}: {', '.join(self.results)}>"


@dataclass(frozen=True)
class Evidence:
    """All that claims are judged on: some models, and heads of normal inputs."""

    models: Sequence[ModelEvidence]
    normal: Sequence[NormalHead] = ()


def over_layers(values: Iterable[float]) -> Interval | None:
    """Mean and interval over layers, of those that have a value; None if none has."""
    known = [float(value) for value in values if np.isfinite(value)]
    return mean_interval(known) if known else None


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict for several models: theirs if all that it applies to agree, otherwise undecided."""
    different = {verdict for verdict in verdicts if verdict != "not applicable"}
    if not different:
        return "not applicable"
    return different.pop() if len(different) == 1 else "undecided"


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
