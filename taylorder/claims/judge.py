"""All claims, judged on the evidence of one or several models."""

from __future__ import annotations

from collections.abc import Sequence

from taylorder.claims import registry
from taylorder.claims.claim import Claim
from taylorder.claims.evidence import Evidence, ModelEvidence
from taylorder.claims.measurements.normal_inputs import NormalHead


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
    drawn = registry.NORMAL_INPUTS.measure() if normal is None else normal
    evidence = Evidence(tuple(models), tuple(drawn))
    return tuple(verdict(evidence) for verdict in registry.VERDICTS)
