"""What healing bought, beside what else the same training buys: the same measurements for every state of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from taylorder.adapt.config import OrderConfig
from taylorder.analysis.losses import EXACT, hidden_states, token_losses
from taylorder.errors import NonFiniteError, UsageError
from taylorder.evaluation.intervals import Interval, mean_interval, paired_difference
from taylorder.evaluation.task_prompts import CASES, LENGTHS, make_tasks
from taylorder.evaluation.tasks import Outcome, Task, TaskRow, run_tasks, summarise
from taylorder.healing.student import Student
from taylorder.storage.progress import Progress, silent
from taylorder.storage.records import Records

TASKS = ("list", "needle")
"""Kinds of tasks: both ask for what stands far back."""

TASK_TOKENS = len(TASKS) * CASES * max(LENGTHS)
"""Of their prompts, at most."""

STAGE = "measuring what it bought"


@dataclass(frozen=True)
class State:
    """A state of the model that is measured.

    Attributes:
        name: what it is called.
        note: what it is, in words.
        weights: what was trained; None for the weights as they were.
        config: what it runs with; None runs exactly.
        absent: why there is no such state, empty where there is.

    """

    name: str
    note: str
    weights: Mapping[str, Tensor] | None = None
    config: OrderConfig | None = None
    absent: str = ""


@dataclass(frozen=True, slots=True)
class Losses:
    """Per sequence of one text: mean NLL, and mean KL of the next-token distributions to the exact model; nats."""

    nll: tuple[float, ...]
    kl: tuple[float, ...]


@dataclass(frozen=True)
class Sample:
    """Sequences ``[N, T]`` of an unseen text, and what they are from."""

    name: str
    source: str
    sha256: str
    sequences: Tensor


@dataclass(frozen=True, slots=True)
class Row:
    """A state with its figures: losses by the name of the text, and tasks; none where it is absent or broke down."""

    name: str
    note: str
    losses: dict[str, Losses]
    tasks: tuple[TaskRow, ...]
    absent: str = ""

    def nll(self, text: str) -> Interval:
        """Mean NLL on a text."""
        return mean_interval(self.losses[text].nll)

    def kl(self, text: str) -> Interval:
        """Mean KL on a text to the exact model as it was."""
        return mean_interval(self.losses[text].kl)

    def nll_above(self, other: Row, text: str) -> Interval:
        """Mean NLL above that of another state, paired by sequence."""
        return paired_difference(self.losses[text].nll, other.losses[text].nll)

    def kl_above(self, other: Row, text: str) -> Interval:
        """The same of the KL."""
        return paired_difference(self.losses[text].kl, other.losses[text].kl)


def table(
    student: Student,
    states: Sequence[State],
    samples: Sequence[Sample],
    tokenizer: Any,
    *,
    seed: int,
    records: Records,
    progress: Progress = silent,
) -> tuple[Row, ...]:
    """Measure every state on the same sequences and prompts; pieces that ``records`` has are not run again.

    Raises:
        NonFiniteError: the exact model breaks down.

    """
    tasks = _tasks(tokenizer, student, seed)
    there = [state for state in states if not state.absent]
    sequences = {
        f"losses-{sample.name}-{number}": (sample.name, sequence)
        for sample in samples
        for number, sequence in enumerate(sample.sequences)
    }
    asked = {f"tasks-{state.name}": state for state in there} if tasks else {}
    work: list[Callable[[], Any]] = [partial(_losses, student, there, sequence) for _, sequence in sequences.values()]
    work += [partial(_outcomes, student, state, tasks) for state in asked.values()]
    names = [*sequences, *asked]
    records.finish(names, lambda number: work[number](), records.put, partial(progress, STAGE))
    made = {
        text: [records.get(name) for name, (of, _) in sequences.items() if of == text] for text, _ in sequences.values()
    }
    outcomes = {state.name: records.get(name) for name, state in asked.items()}
    return tuple(_row(state, made, outcomes, seed) for state in states)


def _row(state: State, made: Mapping[str, list[dict[str, Any]]], outcomes: Mapping[str, Any], seed: int) -> Row:
    figures = {text: [of_sequence.get(state.name) for of_sequence in of_text] for text, of_text in made.items()}
    answers = outcomes.get(state.name, [])
    words = [value for values in (*figures.values(), [answers]) for value in values if isinstance(value, str)]
    if state.absent or words:
        return Row(state.name, state.note, {}, (), state.absent or words[0])
    exact, other = ([Outcome(**outcome) for outcome in of] for of in (outcomes.get(EXACT, []), answers))
    tasks = tuple(row for row in summarise(exact, other, seed) if row.depth is None) if answers else ()
    losses = {text: Losses(*(tuple(column) for column in zip(*pairs, strict=True))) for text, pairs in figures.items()}
    return Row(state.name, state.note, losses, tasks)


@contextmanager
def in_state(student: Student, state: State) -> Iterator[None]:
    """Run the model in a state inside the block."""
    student.use(state.config)
    if state.weights is None:
        with student.trained.off(), student.running():
            yield
        return
    student.trained.load(state.weights)
    with student.running():
        yield


def _losses(student: Student, states: Sequence[State], sequence: Tensor) -> dict[str, Any]:
    """Mean NLL and KL of one sequence in every state, or in words why there are none."""
    hidden, failed = {}, {}
    for state in states:
        try:
            with in_state(student, state):
                hidden[state.name] = hidden_states(student.model, sequence)
        except NonFiniteError as error:
            failed[state.name] = str(error)
    made: dict[str, Any] = dict(failed)
    for name, losses in token_losses(student.head, sequence, hidden).items():
        figures = [float(np.mean(values, dtype=np.float64)) for values in (losses.nll, losses.kl)]
        made[name] = figures if np.isfinite(figures).all() else "its logits overflow"
    if isinstance(made[EXACT], str):
        raise NonFiniteError(f"{student.description.name} breaks down without any config: {made[EXACT]}")
    return made


def _tasks(tokenizer: Any, student: Student, seed: int) -> tuple[Task, ...]:
    """Prompts as long as they come; none where tokenizer or context are not made for them."""
    longest = student.description.max_context
    fitting = [length for length in LENGTHS if length <= longest]
    try:
        return make_tasks(tokenizer, lengths=fitting[-1:], kinds=TASKS, seed=seed, max_context=longest)
    except UsageError:
        return ()


def _outcomes(student: Student, state: State, tasks: Sequence[Task]) -> list[dict[str, Any]] | str:
    """Outcomes of all tasks in a state, or in words why there are none."""
    try:
        with in_state(student, state):
            return [asdict(outcome) for outcome in run_tasks(student.model, tasks)]
    except NonFiniteError as error:
        return str(error)
