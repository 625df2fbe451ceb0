"""``taylorder.evaluate``: a config against its rivals on held-out text and on tasks; a short form ends an analysis."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.handle import attach
from taylorder.adapt.prepared import prepare
from taylorder.analysis.losses import EXACT, has_language_model_head
from taylorder.analysis.text import Text
from taylorder.analysis.tokens import tokenise
from taylorder.errors import NonFiniteError, TaylorderError, UnsupportedModelError, UsageError
from taylorder.evaluation import rivals
from taylorder.evaluation.comparison import Comparison, compare
from taylorder.evaluation.continuations import Continuations, continued, drawn
from taylorder.evaluation.evaluation_text import evaluation_text
from taylorder.evaluation.forecast import Forecast
from taylorder.evaluation.rivals import Contender
from taylorder.evaluation.task_prompts import make_tasks, prompt_tokens
from taylorder.evaluation.tasks import Outcome, Task, TaskRow, identity, run_tasks, summarise
from taylorder.kernels.spec import SINKS
from taylorder.models.describe import describe
from taylorder.models.description import ModelDescription
from taylorder.storage.frames import as_html, frame
from taylorder.storage.progress import Progress, silent

if TYPE_CHECKING:
    from pandas import DataFrame

TOKENS = 16384
"""Used at every length unless asked for otherwise."""

TASKS = "tasks"
"""A stage, as progress is told."""

LENGTHS = (1024, 4096, 8192)
"""Tokens of a sequence unless asked for otherwise, those that the model allows."""

SHORT_SEQUENCES, SHORT_LENGTH, SHORT_SECONDS = 4, 1024, 110.0
"""The short evaluation that ends an analysis, and how long it may take in all."""

LEVER_SECONDS = 300.0
"""The same after levers were measured, at the length of their sequences."""


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
        ['exact', 'config', 'window', 'one order', 'alphas']
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


@dataclass(frozen=True, slots=True, repr=False)
class WholeEvaluation(Evaluation):
    """An evaluation with its tasks; ``tasks_reason`` says why there are none, None where none were asked for."""

    tasks: tuple[TaskResults, ...] = ()
    tasks_reason: str | None = None


def evaluate(
    model: Any,
    tokenizer: Any,
    config: OrderConfig,
    *,
    description: ModelDescription | None = None,
    text: Text | str | None = None,
    lengths: Sequence[int] | None = None,
    tokens: int = TOKENS,
    alphas: Mapping[str, float | None] | None = None,
    tasks: bool = True,
    every_rival: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> WholeEvaluation:
    """Measure what a config costs, beside exact attention and simpler uses of the same bytes, as ``taylorder eval``.

    Losses are negative log-likelihoods in nats per token, with 95 % intervals over sequences; every contender reads the
    same tokens. What it is compared with: sinks and one window of the config's bytes (StreamingLLM, arXiv 2309.17453),
    one order for all heads, and orders by alpha; on request also order 4 for all heads around zero, as arXiv 2602.00294
    has it, whose state is far larger than the cache of a small model.

    >>> import taylorder
    >>> loaded = taylorder.load()
    >>> config = taylorder.OrderConfig.uniform(loaded.model, order=3, expansion="mean", window=64, sinks=4)
    >>> evaluation = taylorder.evaluate(
    ...     loaded.model, loaded.tokenizer, config, lengths=[1024], tokens=2048, tasks=False
    ... )
    >>> evaluation
    <Evaluation at 1,024 tokens: exact, config, window, one order, alphas>
    >>> table = evaluation.to_frame()  # one row per contender and length
    >>> exact = evaluation.comparisons[0].standing("exact").nll.estimate  # nats per token

    Args:
        model: the transformers model that the config was made for.
        tokenizer: its tokenizer.
        config: what is judged.
        description: ``taylorder.describe(model)``, if it was made already.
        text: held-out text, default the docstrings of numpy and scipy; never that of the calibration.
        lengths: tokens per sequence; default the context that the config was chosen for, or where it was chosen for
            none 1,024, 4,096 and 8,192, those that the model and ``tokens`` allow.
        tokens: tokens used at every length, at least one sequence.
        alphas: alpha of every layer by its module's name, default fitted now; only the rival ``alphas`` reads them.
        tasks: also score lookup, copy and recall, and compare greedy continuations of prompts of the text.
        every_rival: also compare with order 4 around zero, with the guard and raw.
        seed: of the draw of sequences, prompts and tasks.
        progress: called with a stage, what is done of it, and its size.
        say: called with what will run, and after the first sequence with how long that takes.

    Returns:
        One comparison per length; a model without a language-model head has relative L2 errors and cosines of its
        final hidden states instead of losses, and no tasks.

    Raises:
        ConfigError: the config does not belong to the model.
        UsageError: a length is below 2 or beyond the model's context, or the text does not fill a sequence.
        UnsupportedModelError: the model's losses cannot be computed.
        NonFiniteError: the exact model breaks down.

    """
    description = description or describe(model)
    if lengths is None and (own := _own_context(config, description)) is not None:
        lengths = (min(own, tokens),)
    config.check(description)
    if seed < 0:
        raise UsageError(f"seed is {seed}, expected a number from 0 on")
    wanted = _lengths(lengths, description.max_context, tokens)
    report = progress or silent
    exact = rivals.exact_everywhere(config)
    if alphas is None:
        alphas = {} if exact or not description.causal else rivals.fitted_alphas(model, description, report)
    unseen = tokenise(tokenizer, evaluation_text() if text is None else Text.of(text))
    # All drawn before anything runs: a text too short for the longest is found out at once.
    samples = [drawn(unseen, length, max(1, tokens // length), seed) for length in wanted]
    by_length = [_contenders(description, config, alphas, length, every_rival) for length in wanted]
    scored = tasks and description.causal and has_language_model_head(model)
    forecast = Forecast(
        samples,
        [EXACT, *(contender.name for contender in by_length[0])],
        task_tokens=prompt_tokens(description.max_context) if scored else 0,
        task_states=1 if exact else 3,
        progress=report,
        say=say,
    )
    comparisons = [
        compare(model, description, sequences, contenders, tokens=unseen, seed=seed, progress=forecast)
        for contenders, sequences in zip(by_length, samples, strict=True)
    ]
    continuations, reason = None, None
    results: tuple[TaskResults, ...] = ()
    if tasks and description.causal and not exact and getattr(model, "can_generate", lambda: False)():
        continuations = continued(model, description, config, unseen, seed=seed, progress=report)
    if tasks and not (description.causal and has_language_model_head(model)):
        reason = "the model predicts no next token"
    elif tasks:
        try:
            results = evaluate_tasks(model, tokenizer, description, config, seed=seed, progress=report)
        except TaylorderError as error:
            reason = str(error)
    return WholeEvaluation(exact, tuple(comparisons), None, continuations, results, reason)


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
    progress: Progress = silent,
) -> Evaluation:
    """Compare a config on a few sequences with exact, order 3 beside a near field, and the paper's order 4.

    With ``beside_window`` it is compared with exact and with sinks and one window of the same bytes instead. No further
    sequence is begun that would end after ``seconds``. Where nothing can be compared, ``reason`` says why.

    Raises:
        NonFiniteError: the exact model breaks down.

    """
    exact = rivals.exact_everywhere(config)
    if not description.open_modules:
        return Evaluation(exact, (), f"{description.why_none_open} and stays exact")
    length = min(length, description.max_context)
    contenders = [] if exact else [Contender(rivals.CONFIG, config)]
    if beside_window:
        contenders += [] if exact else [rivals.window_instead(description, config, length)]
    else:
        contenders += simple_rivals(description)
    began = time.monotonic()
    try:
        unseen = tokenise(tokenizer, text())
        sequences = drawn(unseen, length, SHORT_SEQUENCES, seed)
        left = max(0.0, seconds - (time.monotonic() - began))
        compared = compare(
            model, description, sequences, contenders, tokens=unseen, seed=seed, progress=progress, seconds=left
        )
    except (UsageError, UnsupportedModelError) as error:
        return Evaluation(exact, (), str(error))
    return Evaluation(exact, (compared,))


def _own_context(config: OrderConfig, description: ModelDescription) -> int | None:
    """The context that a config was chosen for; the model's longest is a choice only where KV heads differ."""
    own, longest = config.criterion.get("context"), description.max_context
    if isinstance(own, int) and (own < longest or config.criterion.get("policy") == "levers"):
        return min(own, longest)
    return None


def _contenders(
    description: ModelDescription,
    config: OrderConfig,
    alphas: Mapping[str, float | None],
    length: int,
    every_rival: bool,
) -> list[Contender]:
    """What runs beside the exact model at a length."""
    exact = rivals.exact_everywhere(config)
    contenders = [] if exact else [Contender(rivals.CONFIG, config)]
    if description.causal and not exact:
        contenders += rivals.at_equal_bytes(description, config, alphas, length)
    return contenders + (rivals.paper(description) if every_rival and description.open_modules else [])


def simple_rivals(description: ModelDescription) -> list[Contender]:
    """Order 3 beside a near field, and the paper's order 4."""
    window, sinks = (64, SINKS) if description.causal else (0, 0)
    near = f", {sinks} sinks and a window of {window}" if description.causal else ""
    uniform = OrderConfig.uniform(description, 3, "mean", window, sinks)
    guarded, _ = rivals.paper(description)  # unguarded it takes as long again, and is worse still
    return [Contender("order 3", uniform, f"order 3 for every head, expansion mean{near}"), guarded]


def evaluate_tasks(
    model: Any,
    tokenizer: Any,
    description: ModelDescription,
    config: OrderConfig,
    *,
    seed: int = 0,
    progress: Progress = silent,
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
        progress(TASKS, done + now, total)

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
    known = {identity(outcome): outcome for outcome in exact}
    done = 0

    def report(now: int, total: int) -> None:
        progress(done + now, total)

    for length, contender in by_length.items():
        chosen = [task for task in tasks if task.length == length]
        if contender is not None and contender.config is not None:
            with attach(model, prepare(model, contender.config, description)):
                outcomes = run_tasks(model, chosen, report)
            known |= {identity(outcome): outcome for outcome in outcomes}
        done += len(chosen)
        progress(done, len(tasks))
    return [known[identity(outcome)] for outcome in exact]


def _lengths(asked: Sequence[int] | None, max_context: int, tokens: int) -> tuple[int, ...]:
    """The lengths asked for, or those of the default that model and tokens allow, or the longest there is."""
    if asked is None:
        longest = min(max_context, tokens)
        return tuple(length for length in LENGTHS if length <= longest) or (longest,)
    if not isinstance(asked, Sequence) or not asked or any(not isinstance(n, int) or n < 2 for n in asked):
        raise UsageError(f"lengths is {asked}, expected a list of numbers of tokens from 2 on; or leave it out")
    if max(asked) > max_context:
        raise UsageError(f"--lengths has {max(asked)}, but the model sees {max_context} tokens at most; lower it")
    return tuple(asked)
