"""Everything that is measured of a model, and every claim, in the order in which they are measured and judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from taylorder.claims.claim import Claim
from taylorder.claims.evidence import Evidence, ModelEvidence
from taylorder.claims.measurement import Measurement
from taylorder.claims.measurements.heads import HeadMeasurement
from taylorder.claims.measurements.normal_inputs import NormalHead, NormalInputs
from taylorder.claims.measurements.order_losses import LossMeasurement
from taylorder.claims.measurements.score_ranges import RangeMeasurement
from taylorder.claims.measurements.state_times import TimeMeasurement
from taylorder.claims.measurements.task_scores import TaskMeasurement
from taylorder.claims.verdicts.alpha import alpha_claim
from taylorder.claims.verdicts.constant_cost import constant_cost_claim
from taylorder.claims.verdicts.degree import degree_claim
from taylorder.claims.verdicts.distance import distance_claim
from taylorder.claims.verdicts.lookup import lookup_claim
from taylorder.claims.verdicts.precision import precision_claim
from taylorder.claims.verdicts.ranges import ranges_claim
from taylorder.claims.verdicts.similar import similar_claim

MEASUREMENTS: tuple[Measurement[Any], ...] = (
    HeadMeasurement(),
    RangeMeasurement(),
    LossMeasurement(),
    TimeMeasurement(),
    TaskMeasurement(),
)

NORMAL_INPUTS = NormalInputs()
"""The measurement that needs no model."""

VERDICTS: tuple[Callable[[Evidence], Claim], ...] = (
    alpha_claim,
    precision_claim,
    constant_cost_claim,
    similar_claim,
    distance_claim,
    ranges_claim,
    degree_claim,
    lookup_claim,
)


def judge_claims(models: Sequence[ModelEvidence], normal: Sequence[NormalHead] | None = None) -> tuple[Claim, ...]:
    """Give every claim about truncated attention its verdict, with the figures it rests on.

    A verdict follows from a rule, ``claim.rule``, and from whole 95 % intervals; ``claim.source`` says who made the
    claim (docs/claims.md).

    >>> import taylorder
    >>> from taylorder.claims.measure import measure
    >>> loaded = taylorder.load()
    >>> analysis = taylorder.analyze(loaded.model, loaded.tokenizer)
    >>> evidence = measure(analysis, loaded, "records-claims")  # some minutes; what is finished is kept there
    >>> claims = taylorder.judge_claims([evidence])
    >>> claims[1]
    <Claim precision: contradicted>

    Args:
        models: what :func:`taylorder.claims.measure.measure` found; several are pooled.
        normal: heads of normal inputs; drawn and measured if left out, which takes some seconds.

    """
    drawn = NORMAL_INPUTS.measure() if normal is None else normal
    evidence = Evidence(tuple(models), tuple(drawn))
    return tuple(verdict(evidence) for verdict in VERDICTS)
