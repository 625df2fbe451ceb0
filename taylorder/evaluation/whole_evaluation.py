"""``taylorder.evaluate``: everything that ``taylorder eval`` measures of a config, with its defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taylorder.adapt.config import OrderConfig
from taylorder.analysis.losses import has_language_model_head
from taylorder.analysis.text import Text
from taylorder.errors import TaylorderError, UsageError
from taylorder.evaluation.evaluate import Evaluation, TaskResults, compare_with_rivals, evaluate_tasks
from taylorder.evaluation.evaluation_text import evaluation_text
from taylorder.evaluation.rivals import exact_everywhere, fitted_alphas
from taylorder.models.describe import describe
from taylorder.models.description import ModelDescription
from taylorder.storage.progress import Progress

LENGTHS = (1024, 4096, 8192)
"""Tokens of a sequence unless asked for otherwise, those that the model allows."""


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
    tokens: int = 16384,
    alphas: Mapping[str, float | None] | None = None,
    tasks: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> WholeEvaluation:
    """Measure what a config costs, beside exact attention and simpler uses of the same bytes, as ``taylorder eval``.

    Losses are negative log-likelihoods in nats per token, with 95 % intervals over sequences; every contender reads the
    same tokens. What it is compared with: sinks and one window of the config's bytes (StreamingLLM, arXiv 2309.17453),
    one order for all heads, orders by alpha, and order 4 for all heads around zero, as arXiv 2602.00294 has it.

    >>> import taylorder
    >>> loaded = taylorder.load()
    >>> config = taylorder.OrderConfig.uniform(loaded.model, order=3, expansion="mean", window=64, sinks=4)
    >>> evaluation = taylorder.evaluate(
    ...     loaded.model, loaded.tokenizer, config, lengths=[1024], tokens=2048, tasks=False
    ... )
    >>> evaluation
    <Evaluation at 1,024 tokens: exact, config, window, one order, alphas, paper, paper, raw>
    >>> table = evaluation.to_frame()  # one row per contender and length
    >>> exact = evaluation.comparisons[0].standing("exact").nll.estimate  # nats per token

    Args:
        model: the transformers model that the config was made for.
        tokenizer: its tokenizer.
        config: what is judged.
        description: ``taylorder.describe(model)``, if it was made already.
        text: held-out text, default the docstrings of numpy and scipy; never that of the calibration.
        lengths: tokens per sequence; default 1,024, 4,096 and 8,192, those that the model and ``tokens`` allow.
        tokens: tokens used at every length, at least one sequence.
        alphas: alpha of every layer by its module's name, default fitted now; only the rival ``alphas`` reads them.
        tasks: also score lookup, copy and recall, and compare greedy continuations of prompts of the text.
        seed: of the draw of sequences, prompts and tasks.
        progress: called with a stage, what is done of it, and its size.

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
    config.check(description)
    wanted = _lengths(lengths, description.max_context, tokens)
    if alphas is None:
        needless = exact_everywhere(config) or not description.causal
        alphas = {} if needless else fitted_alphas(model, description, progress or (lambda *_: None))
    compared = compare_with_rivals(
        model,
        tokenizer,
        description,
        config,
        text=evaluation_text() if text is None else Text.of(text),
        lengths=wanted,
        tokens=tokens,
        alphas=alphas,
        continue_text=tasks,
        seed=seed,
        progress=progress,
    )
    results: tuple[TaskResults, ...] = ()
    reason = None
    if tasks and not (description.causal and has_language_model_head(model)):
        reason = "the model predicts no next token"
    elif tasks:
        try:
            results = evaluate_tasks(model, tokenizer, description, config, seed=seed, progress=progress)
        except TaylorderError as error:
            reason = str(error)
    return WholeEvaluation(
        compared.exact_everywhere, compared.comparisons, compared.reason, compared.continuations, results, reason
    )


def _lengths(asked: Sequence[int] | None, max_context: int, tokens: int) -> tuple[int, ...]:
    """The lengths asked for, or those of the default that model and tokens allow, or the longest there is."""
    if asked is None:
        longest = min(max_context, tokens)
        return tuple(length for length in LENGTHS if length <= longest) or (longest,)
    if not asked or min(asked) < 2:
        raise UsageError(f"lengths is {list(asked)}, expected numbers of tokens from 2 on; or leave it out")
    if max(asked) > max_context:
        raise UsageError(f"--lengths has {max(asked)}, but the model sees {max_context} tokens at most; lower it")
    return tuple(asked)
