"""Tasks a small model can do: what a config still lets it look up, copy and recall, against what exact attention does.

Every task is one forward pass over one prompt that asks several questions. In a forced choice the right string competes
with the other strings of the prompt, each by its first token (all different); copies are scored as the top token of the
whole vocabulary. The prompts come from :mod:`taylorder.evaluation.task_prompts`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taylorder.errors import NonFiniteError
from taylorder.evaluation.intervals import (
    Interval,
    mean_interval,
    paired_difference,
    share_difference,
    share_interval,
)
from taylorder.models.offloading import is_spread, without_gradients
from taylorder.models.running import input_device

CANNOT = 0.6
"""A length at which the exact model has less than this share right says nothing about a config."""


@dataclass(frozen=True, slots=True)
class Question:
    """One answer to predict: from the logits after ``position`` in the prompt, the token ``answer``.

    ``candidates`` are the first tokens of the strings to choose among, ``answer`` one of them; empty means the whole
    vocabulary. ``depth`` is the middle of the stretch of the context (0 its start, 1 its end) the answer was put in, or
    None where all answers are equally far away.
    """

    position: int
    answer: int
    candidates: tuple[int, ...] = ()
    depth: float | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt of at most ``length`` tokens and its questions; ``case`` numbers the prompts of a kind and length.

    The prompt holds the right answers (teacher forcing): each question sees those before it answered rightly. Its first
    ``context`` tokens are what the questions are about, and the others ask.
    """

    kind: str
    length: int
    case: int
    input_ids: tuple[int, ...]
    questions: tuple[Question, ...]
    context: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a model made of the questions of one task at one depth, as means over them.

    ``accuracy`` is the share of answers ranked first and ``rank`` the rank of the right one from 1, a tie counting as
    if broken at random; ``nll`` is in nats, normalised over the candidates; ``chance`` is the accuracy of guessing.
    """

    kind: str
    length: int
    depth: float | None
    case: int
    questions: int
    accuracy: float
    rank: float
    nll: float
    chance: float


@dataclass(frozen=True, slots=True)
class TaskRow:
    """Exact attention and another state of the model on the same prompts; ``depth`` None is all depths together.

    Intervals are over prompts (where all have the same share right, over their questions taken as independent);
    differences are other minus exact, paired by prompt. With a single prompt the intervals of the differences and the
    NLLs are infinite. ``exact_cannot``: at this kind and length the exact model has less than :data:`CANNOT` right.
    """

    kind: str
    length: int
    depth: float | None
    cases: int
    questions: int
    chance: float
    exact_accuracy: Interval
    other_accuracy: Interval
    accuracy_difference: Interval
    exact_rank: float
    other_rank: float
    exact_nll: Interval
    other_nll: Interval
    nll_difference: Interval
    exact_cannot: bool


def run_tasks(
    model: Any, tasks: Sequence[Task], progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Outcome, ...]:
    """Score the tasks one after the other, in the state the model is in; see :func:`score`."""
    outcomes: list[Outcome] = []
    for done, task in enumerate(tasks, start=1):
        outcomes.extend(score(model, task))
        progress(done, len(tasks))
    return tuple(outcomes)


def score(model: Any, task: Task) -> tuple[Outcome, ...]:
    """Run one prompt through a causal model: one outcome per depth of its questions, in order of depth.

    Raises:
        NonFiniteError: the model's logits are not finite.

    """
    logits = answer_logits(model, task.input_ids, [question.position for question in task.questions])
    if not torch.isfinite(logits).all():
        raise NonFiniteError(
            f"the logits of task {task.kind}, case {task.case} at {task.length} tokens are not finite: the model broke "
            "down in the state it is in; try smaller orders or more exact heads"
        )
    results = [_judge(row, question) for row, question in zip(logits, task.questions, strict=True)]
    by_depth: dict[float | None, list[tuple[float, float, float, float]]] = {}
    for question, result in zip(task.questions, results, strict=True):
        by_depth.setdefault(question.depth, []).append(result)
    return tuple(
        Outcome(task.kind, task.length, depth, task.case, len(group), *np.mean(group, axis=0).tolist())
        for depth, group in sorted(by_depth.items(), key=lambda item: item[0] or 0.0)
    )


def answer_logits(model: Any, input_ids: Sequence[int], positions: Sequence[int]) -> Tensor:
    """Logits ``[len(positions), vocabulary]``, float32, after the given positions of one prompt, without a cache."""
    device = input_device(model)
    ids = torch.tensor([input_ids], dtype=torch.int64, device=device)
    rows = torch.tensor(positions, dtype=torch.int64, device=device)
    keep = inspect.signature(model.forward).parameters.get("logits_to_keep")
    with without_gradients(model):
        # Nearly all models take the positions themselves, where they compute; the others compute all logits.
        if keep is not None and "Tensor" in str(keep.annotation) and not is_spread(model):
            logits: Tensor = model(input_ids=ids, use_cache=False, logits_to_keep=rows).logits[0]
        else:
            logits = model(input_ids=ids, use_cache=False).logits[0]
            logits = logits[rows.to(logits.device)]
    return logits.float()


def _judge(logits: Tensor, question: Question) -> tuple[float, float, float, float]:
    """Accuracy, rank, nll and chance of one answer from its logits ``[vocabulary]``."""
    if question.candidates:
        choices = logits[torch.tensor(question.candidates, device=logits.device)]
        right = question.candidates.index(question.answer)
    else:
        choices, right = logits, question.answer
    better = int((choices > choices[right]).sum())
    equal = int((choices == choices[right]).sum())
    accuracy = 0.0 if better else 1 / equal
    nll = float(choices.logsumexp(0) - choices[right])
    return accuracy, 1 + better + (equal - 1) / 2, nll, 1 / len(choices)


def summarise(exact: Sequence[Outcome], other: Sequence[Outcome], seed: int = 0) -> tuple[TaskRow, ...]:
    """Compare two runs of the same tasks: rows by kind and length, first all depths together, then each depth.

    ``seed`` is of the intervals.

    Raises:
        ValueError: the outcomes are not of the same tasks in the same order.

    """
    if [identity(outcome) for outcome in exact] != [identity(outcome) for outcome in other]:
        raise ValueError(
            f"the outcomes to compare ({len(exact)} and {len(other)}) are of different tasks: run both on the same"
        )
    pairs = list(zip(exact, other, strict=True))
    rows: list[TaskRow] = []
    for (kind, length), group in _grouped(pairs, lambda outcome: (outcome.kind, outcome.length)):
        whole = _row(kind, length, None, group, None, seed)
        rows.append(whole)
        depths = sorted({outcome.depth for outcome, _ in group if outcome.depth is not None})
        for depth in depths:
            chosen = [pair for pair in group if pair[0].depth == depth]
            rows.append(_row(kind, length, depth, chosen, whole.exact_cannot, seed))
    return tuple(rows)


_Pair = tuple[Outcome, Outcome]


def identity(outcome: Outcome) -> tuple[Any, ...]:
    """Of which questions an outcome is."""
    return outcome.kind, outcome.length, outcome.depth, outcome.case, outcome.questions


def _grouped(pairs: Iterable[_Pair], key: Callable[[Outcome], Any]) -> list[tuple[Any, list[_Pair]]]:
    """Pairs with equal keys of their first outcome, in the order in which the keys appear."""
    groups: dict[Any, list[_Pair]] = {}
    for pair in pairs:
        groups.setdefault(key(pair[0]), []).append(pair)
    return list(groups.items())


def _row(
    kind: str, length: int, depth: float | None, pairs: list[_Pair], exact_cannot: bool | None, seed: int
) -> TaskRow:
    # The prompt is the unit of the intervals: its questions share their context.
    cases = [group for _, group in _grouped(pairs, lambda outcome: outcome.case)]

    def per_case(field: str, which: int) -> NDArray[np.float64]:
        outcomes = [[pair[which] for pair in case] for case in cases]
        return np.array(
            [
                np.average(
                    [getattr(outcome, field) for outcome in case], weights=[outcome.questions for outcome in case]
                )
                for case in outcomes
            ]
        )

    questions = sum(outcome.questions for outcome, _ in pairs)
    accuracy, nll = [[per_case(field, which) for which in (0, 1)] for field in ("accuracy", "nll")]
    return TaskRow(
        kind=kind,
        length=length,
        depth=depth,
        cases=len(cases),
        questions=questions,
        chance=float(per_case("chance", 0).mean()),
        exact_accuracy=share_interval(accuracy[0], trials=questions, seed=seed),
        other_accuracy=share_interval(accuracy[1], trials=questions, seed=seed),
        accuracy_difference=share_difference(accuracy[1], accuracy[0], seed=seed),
        exact_rank=float(per_case("rank", 0).mean()),
        other_rank=float(per_case("rank", 1).mean()),
        exact_nll=mean_interval(nll[0], seed=seed),
        other_nll=mean_interval(nll[1], seed=seed),
        nll_difference=paired_difference(nll[1], nll[0], seed=seed),
        exact_cannot=bool(accuracy[0].mean() < CANNOT) if exact_cannot is None else exact_cannot,
    )
