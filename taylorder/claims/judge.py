"""All claims, judged on the evidence of one or several models."""

from __future__ import annotations

from collections.abc import Sequence

from taylorder.claims import registry
from taylorder.claims.claim import Claim
from taylorder.claims.evidence import Evidence, ModelEvidence
from taylorder.claims.measurements.normal_inputs import NormalHead


def judge_claims(models: Sequence[ModelEvidence], normal: Sequence[NormalHead] | None = None) -> tuple[Claim, ...]:
    """Give every claim about truncated attention its verdict, with the figures it rests on.

    ::

        loaded = taylorder.load()
        analysis = taylorder.analyze(loaded.model, loaded.tokenizer, name=loaded.name)
        evidence = taylorder.claims.measure.measure(analysis, loaded, "records-claims")
        for claim in taylorder.judge_claims([evidence]):
            print(claim.verdict, claim.statement)

    Args:
        models: what :func:`taylorder.claims.measure.measure` found; several are pooled.
        normal: heads of normal inputs; drawn and measured if left out, which takes some seconds.

    """
    drawn = registry.NORMAL_INPUTS.measure() if normal is None else normal
    evidence = Evidence(tuple(models), tuple(drawn))
    return tuple(verdict(evidence) for verdict in registry.VERDICTS)
