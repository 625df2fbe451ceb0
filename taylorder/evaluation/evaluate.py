"""``eval``: a config against its rivals on held-out text and on tasks; the short form that ends an analysis."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.handle import attach
from taylorder.adapt.prepared import PreparedConfig, prepare
from taylorder.analysis.text import Text
from taylorder.analysis.tokens import Tokens, tokenise
from taylorder.errors import NonFiniteError, TaylorderError, UnsupportedModelError, UsageError
from taylorder.evaluation import rivals
from taylorder.evaluation.comparison import Comparison, compare
from taylorder.evaluation.rivals import Contender
from taylorder.evaluation.task_prompts import make_tasks
from taylorder.evaluation.tasks import Outcome, Task, TaskRow, run_tasks, summarise
from taylorder.kernels.spec import SINKS
from taylorder.models.description import ModelDescription
from taylorder.models.running import next_logits
from taylorder.storage.frames import as_html, frame
from taylorder.storage.progress import Progress

if TYPE_CHECKING:
    from pandas import DataFrame

SHORT_SEQUENCES, SHORT_LENGTH, SHORT_SECONDS = 4, 1024, 110.0
"""The short evaluation that ends an analysis, and how long it may take in all."""

LEVER_SECONDS = 300.0
"""The same after levers were measured, at the length of their sequences."""

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 512, 64
"""What is continued greedily, exactly and with the config: prompts of the text, their tokens, and tokens made."""


@dataclass(frozen=True, slots=True)
class Continuations:
    """Greedy continuations of prompts of the text by a config beside those of the exact model.

    All are ``new_tokens`` long: where a model would end its text is not heeded. ``agreed`` is the median number of
    tokens before the first that differs, ``same`` how many continuations do not differ at all. Repetition is the share
    of 4-grams of tokens that occurred before in the same continuation. ``failure`` says why there are no figures.
    """

    prompts: int
    prompt_tokens: int
    new_tokens: int
    agreed: float | None = None
    same: int | None = None
    exact_repetition: float | None = None
    config_repetition: float | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What ``eval`` or the short form at the end of an analysis found; ``reason`` says why there are no comparisons.

    ``continuations`` is None where the config is exact, the model generates nothing, or time was short.
    """

    exact_everywhere: bool
    comparisons: tuple[Comparison, ...]
    reason: str | None = None
    continuations: Continuations | None = None

    def __repr__(self) -> str:
        """One line; ``comparisons`` has the figures."""
        if not self.comparisons:
            return f"<Evaluation without figures: {self.reason}>"
        lengths = ", ".join(f"{comparison.length:,}" for comparison in self.comparisons)
        names = ", ".join(standing.name for standing in self.comparisons[0].standings)
        return f"<Evaluation at {lengths} tokens: {names}>"

    def _repr_html_(self) -> str:
        return as_html(self)

    def to_frame(self) -> DataFrame:
        """One row per contender and length: the figures of :class:`~taylorder.evaluation.comparison.Standing`.

        An interval is three columns (``nll``, ``nll_low``, ``nll_high``); losses by position are left out.

        >>> evaluation.to_frame()[["length", "name", "nominal_bytes", "nll", "kl"]].name.tolist()
        ['exact', 'config', 'window', 'one order', 'alphas', 'paper', 'paper, raw']
        """
        return frame(
            {"length": comparison.length, "sequences": comparison.sequences, **standing.record()}
            for comparison in self.comparisons
            for standing in comparison.standings
        )


@dataclass(frozen=True, slots=True)
class TaskResults:
    """Tasks under exact attention and under another state of the model; ``failure`` says why there are no rows."""

    name: str
    note: str
    rows: tuple[TaskRow, ...]
    failure: str | None = None


def compare_with_rivals(
    model: Any,
    tokenizer: Any,
    description: ModelDescription,
    config: OrderConfig,
    *,
    text: Text,
    lengths: Sequence[int],
    tokens: int,
    alphas: Mapping[str, float | None],
    continue_text: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare a config with exact, with its rivals at equal bytes and with the paper, at several context lengths.

    A config that is exact everywhere is the exact model: only the paper's order 4 is run beside it. ``tokens`` are used
    of the text at every length, at least one sequence, and no more than it has. ``continue_text`` also lets the config
    and the exact model continue prompts of it.

    Raises:
        UsageError: the text does not fill a single sequence.
        ConfigError, UnsupportedModelError, NonFiniteError: as :func:`taylorder.evaluation.comparison.compare`.

    """
    config.check(description)
    exact = rivals.exact_everywhere(config)
    unseen = tokenise(tokenizer, text)
    # All drawn before anything runs: a text too short for the longest is found out at once.
    drawn = [_draw(unseen, length, max(1, tokens // length), seed) for length in lengths]
    comparisons = []
    for length, sequences in zip(lengths, drawn, strict=True):
        contenders = [] if exact else [Contender(rivals.CONFIG, config)]
        if description.causal and not exact:
            contenders += rivals.at_equal_bytes(description, config, alphas, length)
        contenders += rivals.paper(description) if description.open_modules else []
        comparisons.append(
            compare(model, description, sequences, contenders, tokens=unseen, seed=seed, progress=progress)
        )
    continuations = None
    if continue_text and description.causal and not exact and getattr(model, "can_generate", lambda: False)():
        new = min(NEW_TOKENS, description.max_context // 2)
        length = min(PROMPT_TOKENS, description.max_context - new, len(unseen.ids))
        continuations = _continuations(
            model, prepare(model, config, description), _draw(unseen, length, PROMPTS, seed), new, progress
        )
    return Evaluation(exact, tuple(comparisons), continuations=continuations)


def evaluate_shortly(
    model: Any,
    tokenizer: Any,
    description: ModelDescription,
    config: OrderConfig,
    *,
    text: Callable[[], Text],
    length: int = SHORT_LENGTH,
    beside_window: bool = False,
    seconds: float = SHORT_SECONDS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare a config on a few sequences with exact, order 3 beside a near field, and the paper's order 4.

    With ``beside_window`` it is compared with exact and with sinks and one window of the same bytes instead. No further
    sequence is begun that would end after ``seconds``. Where nothing can be compared, ``reason`` says why.

    Raises:
        NonFiniteError: the exact model breaks down.

    """
    exact = rivals.exact_everywhere(config)
    if not description.open_modules:
        return Evaluation(exact, (), "every layer has a sliding window of its own and stays exact")
    length = min(length, description.max_context)
    contenders = [] if exact else [Contender(rivals.CONFIG, config)]
    if beside_window:
        contenders += [] if exact else [rivals.window_instead(description, config, length)]
    else:
        contenders += _simple_rivals(description)
    began = time.monotonic()
    try:
        unseen = tokenise(tokenizer, text())
        sequences = _draw(unseen, length, SHORT_SEQUENCES, seed)
        left = max(0.0, seconds - (time.monotonic() - began))
        compared = compare(
            model, description, sequences, contenders, tokens=unseen, seed=seed, progress=progress, seconds=left
        )
    except (UsageError, UnsupportedModelError) as error:
        return Evaluation(exact, (), str(error))
    return Evaluation(exact, (compared,))


def _simple_rivals(description: ModelDescription) -> list[Contender]:
    """Order 3 beside a near field, and the paper's order 4."""
    window, sinks = (64, SINKS) if description.causal else (0, 0)
    near = f", {sinks} sinks and a window of {window}" if description.causal else ""
    uniform = OrderConfig.uniform(description, 3, "mean", window, sinks)
    return [
        Contender("order 3", uniform, f"order 3 for every head, expansion mean{near}"),
        *rivals.paper(description),
    ]


def evaluate_tasks(
    model: Any,
    tokenizer: Any,
    description: ModelDescription,
    config: OrderConfig,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[TaskResults, ...]:
    """Run the tasks under exact attention, under a config, and under a sliding window of the config's bytes.

    The bytes are those at the length of each task. A config that is exact everywhere is compared with nothing.

    Raises:
        UsageError: tokenizer or model do not allow such prompts.
        NonFiniteError: the exact model breaks down.

    """
    tasks = make_tasks(tokenizer, seed=seed, max_context=description.max_context)
    lengths = sorted({task.length for task in tasks})
    states: list[tuple[str, str, Mapping[int, Contender | None]]] = []
    if not rivals.exact_everywhere(config):
        windows = {
            length: rivals.sliding_window(description, rivals.bytes_per_kv_head(config, description, length), length)
            for length in lengths
        }
        states.append((rivals.CONFIG, "the config", dict.fromkeys(lengths, Contender(rivals.CONFIG, config))))
        states.append((rivals.WINDOW, f"{SINKS} sinks and a window of the config's bytes", windows))
    done, total = 0, len(tasks) * (1 + len(states))

    def report(now: int, _: int) -> None:
        if progress is not None:
            progress("tasks", done + now, total)

    exact = run_tasks(model, tasks, report)
    results = [] if states else [TaskResults("exact", "the model as it is", summarise(exact, exact, seed))]
    for name, note, by_length in states:
        done += len(tasks)
        if not all(by_length.values()):
            results.append(TaskResults(name, note, (), "the config's bytes hold no window"))
            continue
        try:
            rows = summarise(exact, _under(model, description, tasks, by_length, exact, report), seed)
        except NonFiniteError as error:
            results.append(TaskResults(name, note, (), str(error)))
        else:
            results.append(TaskResults(name, note, rows))
    return tuple(results)


def _under(
    model: Any,
    description: ModelDescription,
    tasks: Sequence[Task],
    by_length: Mapping[int, Contender | None],
    exact: Sequence[Outcome],
    progress: Callable[[int, int], None],
) -> list[Outcome]:
    """Outcomes of the tasks in a state that depends on their length, in the order of the tasks.

    Raises:
        NonFiniteError: the state breaks down.

    """
    known = {_question(outcome): outcome for outcome in exact}
    done = 0

    def report(now: int, total: int) -> None:
        progress(done + now, total)

    for length, contender in by_length.items():
        chosen = [task for task in tasks if task.length == length]
        if contender is not None and contender.config is not None:
            with attach(model, prepare(model, contender.config, description)):
                outcomes = run_tasks(model, chosen, report)
            known |= {_question(outcome): outcome for outcome in outcomes}
        done += len(chosen)
        progress(done, len(tasks))
    return [known[_question(outcome)] for outcome in exact]


def _question(outcome: Outcome) -> tuple[str, int, int, float | None]:
    return outcome.kind, outcome.length, outcome.case, outcome.depth


def _continuations(
    model: Any, prepared: PreparedConfig, prompts: Tensor, new_tokens: int, progress: Progress | None
) -> Continuations:
    """Continue prompts ``[B, T]`` exactly and with a config."""
    from transformers import DynamicCache

    count, length = prompts.shape

    def report(done: int) -> None:
        if progress is not None:
            progress("greedy continuations", done, 2)

    report(0)
    exact = _greedy(model, prompts, DynamicCache(config=model.config), new_tokens)
    report(1)
    try:
        with attach(model, prepared) as handle:
            made = _greedy(model, prompts, handle.new_cache(), new_tokens)
    except TaylorderError as error:
        return Continuations(count, length, new_tokens, failure=str(error))
    report(2)
    agreed = [_agreed(one, other) for one, other in zip(exact, made, strict=True)]
    return Continuations(
        count,
        length,
        new_tokens,
        agreed=float(statistics.median(agreed)),
        same=agreed.count(new_tokens),
        exact_repetition=statistics.fmean(map(_repetition, exact)),
        config_repetition=statistics.fmean(map(_repetition, made)),
    )


def _greedy(model: Any, ids: Tensor, cache: Any, new_tokens: int) -> list[list[int]]:
    """The likeliest tokens after ``ids`` ``[B, T]``."""
    made: list[Tensor] = []
    for _ in range(new_tokens):
        made.append(next_logits(model, made[-1] if made else ids, cache).argmax(-1, keepdim=True))
    tokens: list[list[int]] = torch.cat(made, 1).tolist()
    return tokens


def _agreed(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens before the first that differs."""
    pairs = enumerate(zip(one, other, strict=True))
    return next((token for token, (mine, theirs) in pairs if mine != theirs), len(one))


def _repetition(tokens: Sequence[int], size: int = 4) -> float:
    """Share of runs of ``size`` tokens that occurred before; 0 if there are none."""
    runs = [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _draw(tokens: Tokens, length: int, count: int, seed: int) -> Tensor:
    """So many sequences, or as many as the text has."""
    available = len(tokens.ids) // length
    if not available:
        raise UsageError(
            f"{tokens.text.source} has {len(tokens.ids)} tokens, fewer than one sequence of {length}; use more text, "
            "or smaller --lengths"
        )
    return tokens.draw(length, min(count, available), seed)
