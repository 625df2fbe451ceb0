"""Two claims about models that were trained with truncated attention, judged on the records by fixed rules."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fresh_models.log import About
from fresh_models.recall_run import RecallRun
from fresh_models.summary import found, lines
from taylorder.claims.claim import Claim, Effect
from taylorder.claims.evidence import above, below, overall
from taylorder.evaluation.intervals import Interval, paired_difference

LEAST_GAIN = 0.1
"""Share of right answers that a degree has to bring to be called a help."""

TRAINED, LOWER, SOFTMAX = "order 3", "order 2", "softmax"
SHOWN = (SOFTMAX, "order 1", LOWER, TRAINED, "order 4", "order 5")

Shares = Mapping[str, Mapping[int, float]]


def fresh_claims(records: Sequence[About]) -> tuple[Claim, Claim]:
    """Both claims."""
    return degree_claim(records), sharpness_claim(records)


def degree_claim(records: Sequence[About]) -> Claim:
    """Trained, degree helps."""
    gains, said = {}, []
    for pairs, shares in shares_by_pairs(records).items():
        gains[f"{pairs} pairs: {TRAINED} less {LOWER}"] = paired(shares, TRAINED, LOWER)
        named = [name for name in SHOWN if name in shares]
        words = [f"{name} {statistics.fmean(shares[name].values()):.2f} ({len(shares[name])})" for name in named]
        said.append(f"{pairs} pairs: {', '.join(words)}")
    return Claim(
        key="trained-degree",
        statement="Trained with it, degree helps: order 3 recalls what order 2 does not.",
        source="the discussion around arXiv 2602.00294: models get better with every degree",
        verdict=overall([above(gain, LEAST_GAIN) for gain in gains.values()]),
        reason=f"Share of right answers, and of how many seeds. {'; '.join(said) or 'Nothing yet'}.",
        rule=(
            f"Share of right answers of {TRAINED} less that of {LOWER}, both around zero, in associative recall with "
            f"heads of 16 numbers, paired by seed. Supported if the whole 95 % interval lies above {LEAST_GAIN} with "
            "every number of pairs, contradicted if it lies below with every one, undecided otherwise, and with a "
            "single seed."
        ),
        effects=_effects(gains, f"above {LEAST_GAIN}"),
    )


def sharpness_claim(records: Sequence[About]) -> Claim:
    """Trained with truncation, heads attend without sharp scores."""
    spreads: dict[str, dict[int, float]] = {}
    for model in found(records):
        spreads.setdefault(model.contender, {})[model.seed] = statistics.fmean(map(math.log, model.score_std))
    ratio = paired(spreads, TRAINED, SOFTMAX)
    said = [f"{name} {math.exp(statistics.fmean(by_seed.values())):.1f}" for name, by_seed in spreads.items()]
    return Claim(
        key="trained-sharpness",
        statement="Trained with truncation, heads attend without sharp scores.",
        source="the discussion around arXiv 2602.00294",
        verdict=below(ratio, 0.0),
        reason=f"Standard deviation of scores, geometric mean over heads, trained with {', '.join(said) or 'nothing'}.",
        rule=(
            "Logarithm of the standard deviation of scores around their row's mean, the mean over heads, of models "
            f"trained with {TRAINED} less that of models trained with {SOFTMAX}, paired by seed. Supported if the "
            "whole 95 % interval lies below 0, contradicted if it lies above, undecided otherwise, and with a single "
            "seed."
        ),
        effects=_effects({f"log spread of scores, {TRAINED} less {SOFTMAX}": ratio}, "below 0"),
    )


def shares_by_pairs(records: Sequence[About]) -> dict[int, dict[str, dict[int, float]]]:
    """Share of right answers with the usual heads and first weights, by number of pairs, contender and seed."""
    shares: dict[int, dict[str, dict[int, float]]] = {}
    for line in lines(records):
        if replace(line, pairs=RecallRun.pairs).of_main_line:
            by_seed = dict(zip(line.seeds, line.shares, strict=True))
            shares.setdefault(line.pairs, {})[line.contender] = by_seed
    return shares


def paired(values: Shares, one: str, other: str) -> Interval | None:
    """What one contender has more than another, on the seeds that both have; None without any."""
    both = sorted(values.get(one, {}).keys() & values.get(other, {}).keys())
    if not both:
        return None
    return paired_difference([values[one][seed] for seed in both], [values[other][seed] for seed in both])


def _effects(intervals: Mapping[str, Interval | None], meaning: str) -> tuple[Effect, ...]:
    return tuple(
        Effect(name, found.estimate, *((found.low, found.high) if found.bounded else (None, None)), meaning)
        for name, found in intervals.items()
        if found is not None
    )
