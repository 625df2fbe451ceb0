"""``taylorder.budget``: what ``taylorder analyze --budget`` chooses, in one call."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from taylorder.analysis.analyze import analyze
from taylorder.analysis.results import Analysis
from taylorder.analysis.text import Text
from taylorder.analysis.tokens import Tokens
from taylorder.errors import UsageError
from taylorder.models.describe import describe
from taylorder.selection.by_tolerance import Selection, select
from taylorder.selection.candidates import LEVERS, Lever
from taylorder.selection.run_levers import offer, run_levers
from taylorder.selection.settings import DEFAULTS, AnalyzeSettings, Budget
from taylorder.storage.progress import Progress


def budget(
    model: Any,
    tokenizer: Any,
    size: int | str,
    *,
    analysis: Analysis | None = None,
    context: int | None = DEFAULTS.context,
    levers: Collection[Lever] = LEVERS,
    text: Text | Tokens | str | None = None,
    max_tokens: int = DEFAULTS.max_tokens,
    sequence_length: int | None = DEFAULTS.lever_length,
    records: str | Path | None = None,
    seed: int = DEFAULTS.seed,
    progress: Progress | None = None,
) -> Selection:
    """Choose what every KV head runs, so that all of them together fit a size and the model loses least.

    Some 40 candidates per KV head (sinks, windows and kept keys, polynomials beside them) are measured, and bytes are
    moved between KV heads as long as the KL of the whole model to its exact self falls
    (docs/choosing.md#what-is-minimised). It takes minutes: the model runs forward and backward for every config
    that is tried.

    >>> import taylorder
    >>> loaded = taylorder.load()
    >>> analysis = taylorder.analyze(loaded.model, loaded.tokenizer)
    >>> selection = taylorder.budget(
    ...     loaded.model, loaded.tokenizer, "8KiB", analysis=analysis, context=512, max_tokens=1024
    ... )
    >>> selection
    <Selection for smollm2-135m by levers: ...>
    >>> selection.levers.nominal_bytes <= 8 * 1024  # per KV head on average
    True
    >>> selection.config.save("orders.json")

    Args:
        model: a causal transformers model with a language-model head.
        tokenizer: its tokenizer.
        size: nominal bytes per KV head on average at ``context``, as a number or like ``"128KiB"``: KV cache in
            bfloat16, states in float32. Or ``"25%"`` of what exact attention holds, ``"total:8GiB"`` for the whole
            cache of one sequence, or ``"tokens:512"`` of cache per KV head.
        analysis: what :func:`taylorder.analyze` measured of the model; default it is measured now, with its defaults.
        context: tokens that the bytes are for; default the model's maximum.
        levers: what may differ between KV heads; default all of docs/choosing.md#levers-and-candidates.
        text: calibration text, as a string or in tokens; default the English that Python ships (465 kB), and for levers
            and probes as much source code beside it.
        max_tokens: tokens used of the text to analyse; levers are measured on half of them, or on two sequences if
            these are more, and probes of kept keys are fitted and judged on twice as many at most.
        sequence_length: tokens per sequence; default ``context``, 4,096 at most.
        records: directory of finished pieces, from which an interrupted call goes on; default none are kept.
        seed: of whatever is drawn.
        progress: called with a stage, what is done of it, and its size.

    Returns:
        ``config`` is what to attach or save; ``levers`` what the choice came to, its bytes and the KL in nats per token
        of every config measured; ``heads`` the verdicts on the heads by themselves, at tolerance ``int4``.

    Raises:
        UnsupportedModelError: the model has no cache that could be exchanged, or no loss.
        UsageError: the size is no budget, less than the cheapest candidates take or no less than exact attention does,
            the context or a lever is none, the text is too short, or the analysis is of another model.
        NonFiniteError: the model breaks down.

    """
    if size is None or not (isinstance(size, str) or size >= 1):  # None would be no limit at all
        raise UsageError(f"the size is {size!r}, expected a number of bytes from 1 on or a text like '128KiB'")
    if context is not None and context < 1:
        raise UsageError(f"the context is {context} tokens, expected at least 1; or leave it out")
    if isinstance(levers, str) or not levers or not set(levers) <= set(LEVERS):
        raise UsageError(f"levers is {levers!r}, expected some of {', '.join(LEVERS)}; or leave it out")
    settings = AnalyzeSettings(
        max_tokens=max_tokens,
        sequence_length=min(DEFAULTS.sequence_length, max_tokens),
        seed=seed,
        context=context,
        budget=Budget.parse(size if isinstance(size, str) else f"{size}B"),
        levers=levers,
        lever_length=sequence_length,
    )
    description = describe(model)
    if analysis is not None and analysis.model.fingerprint != description.fingerprint:
        raise UsageError(
            f"the analysis is of {analysis.model.name} ({analysis.model.fingerprint}), but the model is "
            f"{description.name} ({description.fingerprint}); measure this one, or leave the analysis out"
        )
    offer(description, settings)  # refused now, not after minutes of measuring
    tokens = Tokens.of(tokenizer, text)
    if analysis is None:
        analysis = analyze(
            model, tokenizer, description=description, text=tokens, progress=progress, **settings.measured()
        )
    run = run_levers(
        model,
        tokenizer,
        analysis.model,
        settings,
        text=tokens,
        records=None if records is None else Path(records),
        progress=progress,
    )
    by_heads = select(analysis, tolerance=settings.tolerance, context=run.summary.context)
    return by_heads.with_levers(run.chosen.config, run.summary)
