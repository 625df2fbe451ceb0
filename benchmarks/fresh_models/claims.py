"""Three claims about models that were trained with truncated attention, judged on the records by fixed rules."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fresh_models.contenders import ORDERS
from fresh_models.found_summary import found
from fresh_models.log import Record
from fresh_models.recall_run import RecallRun
from fresh_models.summary import lines
from taylorder.claims.association import Association, Pairs, associate
from taylorder.claims.claim import Claim, Effect, Verdict
from taylorder.claims.evidence import above, below, overall
from taylorder.claims.verdicts.alpha import NEGLIGIBLE
from taylorder.evaluation.intervals import Interval, paired_difference, share_difference

LEAST_GAIN = 0.1
"""Share of right answers that a degree has to bring to be called a help."""

HIGHER, LOWER, SOFTMAX = "order 3", "order 2", "softmax"
SHOWN = (SOFTMAX, *ORDERS)

Shares = Mapping[str, Mapping[int, float]]


def fresh_claims(records: Sequence[Record]) -> tuple[Claim, ...]:
    """All of them."""
    return degree_claim(records), sharpness_claim(records), alpha_claim(records)


def degree_claim(records: Sequence[Record]) -> Claim:
    """Trained, degree helps."""
    gains, said = {}, []
    for pairs, shares in shares_by_pairs(records).items():
        gains[f"{pairs} pairs: {HIGHER} less {LOWER}"] = paired(shares, HIGHER, LOWER, share_difference)
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
            f"Share of right answers of {HIGHER} less that of {LOWER}, both around zero, in associative recall with "
            "heads of 16 numbers, trained on that number of pairs, above 8 on 8, 16 and so on before, paired by seed. "
            f"Supported if the whole 95 % interval lies above {LEAST_GAIN} with every number of pairs, contradicted "
            "if it lies below with every one, undecided otherwise, and with a single seed."
        ),
        effects=_effects(gains, f"above {LEAST_GAIN}"),
    )


def sharpness_claim(records: Sequence[Record]) -> Claim:
    """Trained with truncation, heads attend without sharp scores."""
    spreads: dict[str, dict[int, float]] = {}
    for model in found(records):
        spreads.setdefault(model.contender, {})[model.seed] = statistics.fmean(map(math.log, model.score_std))
    ratio = paired(spreads, HIGHER, SOFTMAX)
    said = [f"{name} {math.exp(statistics.fmean(by_seed.values())):.1f}" for name, by_seed in spreads.items()]
    return Claim(
        key="trained-sharpness",
        statement="Trained with truncation, heads attend without sharp scores.",
        source="the discussion around arXiv 2602.00294",
        verdict=below(ratio, 0.0),
        reason=f"Standard deviation of scores, geometric mean over heads, trained with {', '.join(said) or 'nothing'}.",
        rule=(
            "Logarithm of the standard deviation of scores around their row's mean, the mean over heads, when a model "
            f"runs with softmax: of those trained with {HIGHER} less that of those trained with {SOFTMAX}, paired by "
            "seed. Supported if the whole 95 % interval lies below 0, contradicted if it lies above, undecided "
            "otherwise, and with a single seed."
        ),
        effects=_effects({f"log spread of scores, {HIGHER} less {SOFTMAX}": ratio}, "below 0"),
    )


def alpha_claim(records: Sequence[Record]) -> Claim:
    """The prediction that this tool began with, where it is known how many terms a layer needs."""
    by_seed: dict[int, list[tuple[float, int]]] = {}
    for model in found(records):
        if model.contender in ORDERS:
            points = [(abs(alpha - 2), ORDERS[model.contender]) for alpha in model.alpha]
            by_seed.setdefault(model.seed, []).extend(points)
    tested = associate([Pairs(*np.array(points, dtype=float).T) for points in by_seed.values() if points])
    return Claim(
        key="trained-alpha",
        statement="Layers whose alpha is near 2 were trained with fewer Taylor terms.",
        source="a comment on the paper, news.ycombinator.com/item?id=46888513; alpha: arXiv 1810.01075",
        verdict=_of_correlation(tested),
        reason="There are too few layers with an alpha."
        if tested is None
        else f"Over {tested.layers} layers of {len(by_seed)} seeds the correlation is {tested.spearman.estimate:+.2f}.",
        rule=(
            "Spearman correlation of |alpha - 2| of a layer (mean of q and k) with the order that its model was "
            "trained with (1 to 5, around zero), within the models of a seed, pooled over seeds, with a 95 % interval: "
            f"supported if it lies above 0, contradicted if it lies below {NEGLIGIBLE}, undecided otherwise."
        ),
        effects=()
        if tested is None
        else _effects(
            {"Spearman of the distance of alpha from 2 and the order of training": tested.spearman}, "above 0"
        ),
    )


def _of_correlation(tested: Association | None) -> Verdict:
    if tested is None:
        return "not applicable"
    if tested.spearman.high < NEGLIGIBLE:
        return "contradicted"
    return "supported" if tested.spearman.low > 0 else "undecided"


def shares_by_pairs(records: Sequence[Record]) -> dict[int, dict[str, dict[int, float]]]:
    """Share of right answers with the usual heads and first weights, by number of pairs, contender and seed.

    Of more pairs than the main line has, those trained on fewer pairs first: without, softmax does not learn them.
    """
    shares: dict[int, dict[str, dict[int, float]]] = {}
    for line in lines(records):
        run = line.run
        first = RecallRun.pairs if run.pairs > RecallRun.pairs else None
        if run == RecallRun(run.contender, pairs=run.pairs, first=first, seed=run.seed, rate=run.rate):
            by_seed = dict(zip(line.seeds, line.shares, strict=True))
            shares.setdefault(run.pairs, {})[run.contender] = by_seed
    return shares


def paired(
    values: Shares, one: str, other: str, difference: Callable[..., Interval] = paired_difference
) -> Interval | None:
    """What one contender has more than another, on the seeds that both have; None without any."""
    both = sorted(values.get(one, {}).keys() & values.get(other, {}).keys())
    if not both:
        return None
    return difference([values[one][seed] for seed in both], [values[other][seed] for seed in both])


def _effects(intervals: Mapping[str, Interval | None], meaning: str) -> tuple[Effect, ...]:
    return tuple(
        Effect(name, found.estimate, *((found.low, found.high) if found.bounded else (None, None)), meaning)
        for name, found in intervals.items()
        if found is not None
    )
