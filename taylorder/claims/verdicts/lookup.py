"""A fixed state cannot look up a list: tasks of recall against the bytes that are kept."""

from __future__ import annotations

from collections.abc import Sequence

from taylorder.claims.claim import Claim, Effect, Figure, FigureTable, Plot, Series, Verdict
from taylorder.claims.evidence import Evidence, ModelEvidence, above, below, overall
from taylorder.claims.measurements.task_scores import TaskMeasurement, TaskScore
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


def lookup_claim(evidence: Evidence) -> Claim:
    """Compare states of fixed size with exact attention on tasks of recall."""
    effects = []
    for model in evidence.models:
        for score in _judged(_scores(model)):
            name = f"{model.name_and_layers}: {score.name} less exact, {score.row.kind}"
            effects.append(Effect.of(name, score.row.accuracy_difference, f"below {LOST:g}"))
    tested = [model for model in evidence.models if _scores(model)]
    return Claim(
        key="lookup",
        statement="A state of fixed size cannot look up a list.",
        source="discussion of linear attention; tested with trained models in arXiv 2402.01032",
        verdict=overall([_verdict(_judged(_scores(model))) for model in tested]),
        reason=" ".join(map(_sentence, tested)) or "No causal language model was measured.",
        rule=_RULE,
        effects=tuple(effects),
        tables=tuple(map(_table, tested)),
        plots=tuple(map(_plot, tested)),
    )


def _scores(model: ModelEvidence) -> tuple[TaskScore, ...]:
    return model.result(TaskMeasurement) or ()


def _possible(scores: Sequence[TaskScore]) -> list[TaskScore]:
    """Tasks of recall that the exact model can do."""
    return [score for score in scores if score.row.kind in _KINDS and not score.row.exact_cannot]


def _judged(scores: Sequence[TaskScore]) -> list[TaskScore]:
    """Pure states on such tasks."""
    return [score for score in _possible(scores) if score.kind == "state"]


def _verdict(judged: Sequence[TaskScore]) -> Verdict:
    differences: dict[str, list[Interval]] = {}
    for score in judged:
        differences.setdefault(score.name, []).append(score.row.accuracy_difference)
    if not judged:
        return "not applicable"
    if all(below(score.row.accuracy_difference, LOST) == "supported" for score in judged):
        return "supported"
    if any(all(above(task, LOST) == "supported" for task in tasks) for tasks in differences.values()):
        return "contradicted"
    return "undecided"


def _sentence(model: ModelEvidence) -> str:
    scores = _possible(_scores(model))
    if not scores:
        return f"{model.name} itself cannot do these tasks."
    exact = _mean([score.row.exact_accuracy.estimate for score in scores])
    contenders = []
    for kind, name in (
        ("state", "states"),
        ("state and window", "states beside a window"),
        ("window", "windows alone"),
    ):
        accuracies = [score.row.other_accuracy.estimate for score in scores if score.kind == kind]
        if accuracies:
            contenders.append(f"{name} {_mean(accuracies):.0%}")
    return f"{model.name}: exact attention has {exact:.0%} right, {', '.join(contenders)}."


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _table(model: ModelEvidence) -> FigureTable:
    scores = _scores(model)
    rows: list[tuple[Figure, ...]] = []
    for score in scores:
        row, delta = score.row, score.row.accuracy_difference
        rows.append(
            (
                score.name, score.nominal_bytes / 1024, row.kind, row.chance, row.exact_accuracy.estimate,
                row.other_accuracy.estimate, delta.estimate, delta.low, delta.high, "no" if row.exact_cannot else "yes",
            )
        )  # fmt: skip
    first = scores[0]
    return FigureTable(
        f"{model.name_and_layers}: tasks of {first.row.length:,} tokens (exact: {first.exact_bytes / 1024:,.0f} KiB)",
        (
            "kept", "KiB per KV head", "task", "chance", "exact", "accuracy", "difference", "low", "high", "exact can",
        ),
        tuple(rows),
        note=f"{first.row.cases} prompts of each kind, several questions each; intervals over prompts.",
    )  # fmt: skip


def _plot(model: ModelEvidence) -> Plot:
    by_bytes = sorted(_scores(model), key=lambda score: score.nominal_bytes)
    series = []
    for kind in dict.fromkeys(score.row.kind for score in _scores(model)):
        points = [score for score in by_bytes if score.row.kind == kind]
        kilobytes = tuple(score.nominal_bytes / 1024 for score in points)
        series.append(Series(kind, kilobytes, tuple(score.row.other_accuracy.estimate for score in points)))
    return Plot(
        f"{model.name}: accuracy by bytes kept", "KiB per KV head", "accuracy", tuple(series), "points", log_x=True
    )
