"""A fixed state cannot look up a list: tasks of recall against the bytes that are kept."""

from __future__ import annotations

from collections.abc import Sequence

from taylorder.claims.claim import Cell, Claim, Effect, Plot, Series, Table, Verdict
from taylorder.claims.evidence import Evidence, above, below, overall
from taylorder.claims.measurements.task_scores import TaskScore
from taylorder.evaluation.intervals import Interval

LOST = -0.1
"""A difference in accuracy below this counts as not being able to."""

_KINDS = ("lookup", "list", "copy")
_RULE = (
    "Accuracy of states without a near field less that of exact attention, on looking up, reciting and copying, "
    f"where exact attention can. Supported if all of them lie below {LOST:g} by their 95 % intervals over prompts, "
    "in every model; contradicted if for some order all of them lie above; undecided otherwise. Layers with a sliding "
    "window stay as they are; texts are four times as long as that, so that it holds no answer for long."
)


def lookup_claim(models: Sequence[Evidence]) -> Claim:
    """Compare states of fixed size with exact attention on tasks of recall."""
    verdicts = [_verdict(model.measured.scores) for model in models]
    effects = []
    for model in models:
        for score in _judged(model.measured.scores):
            each = score.row.accuracy_difference
            name = f"{model.replaced}: {score.name} less exact, {score.row.kind}"
            effects.append(Effect.of(name, each, f"below {LOST:g}"))
    return Claim(
        key="lookup",
        statement="A state of fixed size cannot look up a list.",
        source="discussion of linear attention; tested with trained models in arXiv 2402.01032",
        verdict=overall(verdicts),
        reason=" ".join(_told(model) for model in models if model.measured.scores)
        or "No causal language model was measured.",
        rule=_RULE,
        effects=tuple(effects),
        tables=tuple(_table(model) for model in models if model.measured.scores),
        plots=tuple(_plot(model) for model in models if model.measured.scores),
    )


def _judged(scores: Sequence[TaskScore]) -> list[TaskScore]:
    """Pure states on the tasks of recall that the exact model can do."""
    return [
        score for score in scores if score.kind == "state" and score.row.kind in _KINDS and not score.row.exact_cannot
    ]


def _verdict(scores: Sequence[TaskScore]) -> Verdict:
    judged = _judged(scores)
    differences: dict[str, list[Interval]] = {}
    for score in judged:
        differences.setdefault(score.name, []).append(score.row.accuracy_difference)
    if not judged:
        return "not applicable"
    if all(below(each, LOST) == "supported" for own in differences.values() for each in own):
        return "supported"
    if any(all(above(each, LOST) == "supported" for each in own) for own in differences.values()):
        return "contradicted"
    return "undecided"


def _told(model: Evidence) -> str:
    rows = [score for score in model.measured.scores if score.row.kind in _KINDS and not score.row.exact_cannot]
    if not rows:
        return f"{model.name} itself cannot do these tasks."
    exact = _mean([score.row.exact_accuracy.estimate for score in rows])
    told = []
    for kind, name in (
        ("state", "states"),
        ("state and window", "states beside a window"),
        ("window", "windows alone"),
    ):
        own = [score.row.other_accuracy.estimate for score in rows if score.kind == kind]
        if own:
            told.append(f"{name} {_mean(own):.0%}")
    return f"{model.name}: exact attention has {exact:.0%} right, {', '.join(told)}."


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _table(model: Evidence) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for score in model.measured.scores:
        row, own, delta = score.row, score.row.other_accuracy, score.row.accuracy_difference
        rows.append(
            (
                score.name, score.nominal_bytes / 1024, row.kind, row.chance, row.exact_accuracy.estimate, own.estimate,
                delta.estimate, delta.low, delta.high, "yes" if not row.exact_cannot else "no",
            )
        )  # fmt: skip
    first = model.measured.scores[0]
    return Table(
        f"{model.replaced}: tasks of {first.row.length:,} tokens (exact: {first.exact_bytes / 1024:,.0f} KiB)",
        (
            "kept", "KiB per KV head", "task", "chance", "exact", "accuracy", "difference", "low", "high", "exact can",
        ),
        tuple(rows),
        note=f"{first.row.cases} prompts of each kind, several questions each; intervals over prompts.",
    )  # fmt: skip


def _plot(model: Evidence) -> Plot:
    series = []
    for kind in dict.fromkeys(score.row.kind for score in model.measured.scores):
        own = sorted(
            (score for score in model.measured.scores if score.row.kind == kind), key=lambda score: score.nominal_bytes
        )
        series.append(
            Series(
                kind,
                tuple(score.nominal_bytes / 1024 for score in own),
                tuple(score.row.other_accuracy.estimate for score in own),
            )
        )
    return Plot(
        f"{model.name}: accuracy by bytes kept", "KiB per KV head", "accuracy", tuple(series), "points", log_x=True
    )
