"""Made-up evidence for the claims, and measurements at sizes of a tiny model."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import synthetic

from taylorder.claims.evidence import Evidence, ModelEvidence
from taylorder.claims.layers import Layers
from taylorder.claims.measurements.heads import DISTANCES, MOST, ORDERS, TIES, HeadMeasurement, HeadSums
from taylorder.claims.measurements.normal_inputs import NormalHead, NormalInputs
from taylorder.claims.measurements.order_losses import LossMeasurement, OrderLosses
from taylorder.claims.measurements.score_ranges import RangeMeasurement
from taylorder.claims.measurements.state_times import TimeMeasurement
from taylorder.claims.measurements.task_scores import TaskMeasurement, TaskScore
from taylorder.claims.rounding import PRECISIONS
from taylorder.evaluation.intervals import Interval
from taylorder.evaluation.tasks import TaskRow

SMALL = (
    HeadMeasurement(length=32, sequences=2, rows=4),
    RangeMeasurement(lengths=(16, 48)),
    LossMeasurement(length=32, sequences=2, orders=(1, 3)),
    TimeMeasurement(lengths=(8, 24), rounds=2),
    TaskMeasurement(),
)
SMALL_NORMAL = NormalInputs(tokens=300, queries=4, heads=2)

HEADS = 2


def sums(layer=0, *, truncation=0.04, fp16=1e-7, kept=0.3, alone=0.2, past=2.0, sinks=0.5):
    """Sums of one module; a little different from layer to layer."""
    draw = random.Random(layer)

    def near(value):
        return [value * draw.uniform(0.9, 1.1) for _ in range(HEADS)]

    ends = np.array([*DISTANCES, 2 * DISTANCES[-1], 0])
    mass = np.where(ends > 0, 1.0, 5.0)
    ratio = np.where(ends > 64, past, 1.0) * np.where(ends > 0, 1.0, sinks)
    buckets = len(DISTANCES) + 1
    return HeadSums(
        output=[1.0] * HEADS,
        elements=[100.0] * HEADS,
        rounding=[near(fp16 * 10**place) for place in range(len(PRECISIONS))],
        truncation=[near(truncation) for _ in ORDERS],
        tied_rows=[[10.0] * HEADS for _ in range(len(TIES) + 1)],
        tied_mass=[[5.0] * HEADS for _ in range(len(TIES) + 1)],
        tied_truncated=[[near(5 * (kept if ties else alone)) for _ in ORDERS] for ties in range(len(TIES) + 1)],
        mass=[[each] * HEADS for each in mass],
        truncated_mass=[[near(each) for each in mass * ratio] for _ in ORDERS],
        moved=[[near(0.01) for _ in mass] for _ in ORDERS],
        by_keys_output=[[1.0] * HEADS] * buckets,
        by_keys_rounding=[[0.01] * HEADS] * buckets,
        by_keys_truncation=[[0.1] * HEADS] * buckets,
        degrees=[near(0.1) for _ in range(MOST)],
        numerator=[1.0] * HEADS,
    )


def model(name="model", layers=8, *, causal=True, std=None, measured=None, **figures):
    made = synthetic.analysis(layers, HEADS, 1, name=name, causal=causal)
    if std is not None:
        made = dataclasses.replace(
            made, candidates=tuple(dataclasses.replace(row, score_std=std) for row in made.candidates)
        )
    heads = {module.name: sums(layer, **figures) for layer, module in enumerate(made.model.modules)}
    return ModelEvidence(Layers(made), {"heads": heads, **(measured or {})})


def evidence(*models, normal=None):
    return Evidence(models, normal_heads() if normal is None else normal)


def normal_heads(relative=0.25, fp16=5e-4):
    orders = (3, 4, 5, 6)
    return [
        NormalHead(
            d, 8192, 16, 0.005, dict.fromkeys(orders, 7e-4), dict.fromkeys(orders, relative * (1 + 0.1 * turn)),
            {precision: 1e-6 * 5**place for place, precision in enumerate(PRECISIONS)},
            {precision: fp16 * 5**place for place, precision in enumerate(PRECISIONS)},
        )
        for d in (8, 64) for turn in range(4)
    ]  # fmt: skip


def losses(step):
    """Losses that change by ``step`` from one odd order to the next, on sequences of different difficulty."""
    exact = (1.0, 2.0, 3.0, 4.0)
    noise = random.Random(0)
    by_order = {
        order: tuple(each + 1 + step * order / 2 + noise.uniform(-0.01, 0.01) for each in exact)
        for order in (1, 2, 3, 5, 7)
    }
    return OrderLosses(1024, exact, by_order, by_order)


def score(name, kind, task, difference, *, can=True):
    own = Interval(0.9 + difference, 0.8 + difference, 1.0)
    delta = Interval(difference, difference - 0.02, difference + 0.02)
    row = TaskRow(
        task, 1024, None, 4, 20, 0.1, Interval(0.9, 0.8, 1.0), own, delta, 1.0, 2.0, Interval(0, 0, 0),
        Interval(0, 0, 0), Interval(0, 0, 0), not can,
    )  # fmt: skip
    return TaskScore(name, kind, 1024, 4096, row)


def layers(count, error, alpha, name="model", **options):
    """A model whose heads of a layer all have the same error, and whose q and k have the same alpha."""
    made = synthetic.analysis(
        count, 2, 1, error=lambda layer, head, order, expansion: error(layer) ** order, name=name, **options
    )
    spectral = tuple(
        dataclasses.replace(
            row, alpha=alpha(int(row.module.split(".")[2])), status="success", spectral_norm=2.0, hill_alpha=2.5
        )
        for row in made.spectral
    )
    return Layers(dataclasses.replace(made, spectral=spectral))


def spread(layer):
    return 0.1 + 0.8 * random.Random(layer).random()


def follows(layer):
    """The farther alpha is from 2, the larger the error."""
    return 2 + 3 * spread(layer)


def unrelated(layer):
    return 2 + 3 * random.Random(1000 + layer).random()
