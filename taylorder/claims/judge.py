"""All claims, judged on the evidence of one or several models."""

from __future__ import annotations

from collections.abc import Sequence

from taylorder.claims.claim import Claim
from taylorder.claims.evidence import Evidence
from taylorder.claims.measurements.gaussian import GaussianHead
from taylorder.claims.verdicts.alpha import alpha_claim
from taylorder.claims.verdicts.constant_cost import constant_cost_claim
from taylorder.claims.verdicts.degree import degree_claim
from taylorder.claims.verdicts.distance import distance_claim
from taylorder.claims.verdicts.lookup import lookup_claim
from taylorder.claims.verdicts.precision import precision_claim
from taylorder.claims.verdicts.ranges import ranges_claim
from taylorder.claims.verdicts.similar import similar_claim


def judge(models: Sequence[Evidence], draws: Sequence[GaussianHead]) -> tuple[Claim, ...]:
    """Judge every claim; ``draws`` are those of :func:`~taylorder.claims.measurements.gaussian.measure_gaussian`."""
    invariances = {each.name: each.measured.invariance for each in models if each.measured.invariance is not None}
    return (
        alpha_claim([each.layers for each in models], invariances),
        precision_claim(draws, models),
        constant_cost_claim(models),
        similar_claim(models),
        distance_claim(models),
        ranges_claim(models),
        degree_claim(models),
        lookup_claim(models),
    )
