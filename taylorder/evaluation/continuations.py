"""Greedy continuations of prompts of the text, by a config and by the exact model, and sequences drawn from a text."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.handle import attach
from taylorder.adapt.prepared import prepare
from taylorder.analysis.tokens import Tokens
from taylorder.errors import TaylorderError, UsageError
from taylorder.models.description import ModelDescription
from taylorder.models.running import next_logits
from taylorder.storage.progress import Progress

STAGE = "greedy continuations"

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


def continued(
    model: Any, description: ModelDescription, config: OrderConfig, tokens: Tokens, *, seed: int, progress: Progress
) -> Continuations:
    """Continue prompts drawn from ``tokens``, all at once, exactly and with a config."""
    from transformers import DynamicCache

    new_tokens = min(NEW_TOKENS, description.max_context // 2)
    length = min(PROMPT_TOKENS, description.max_context - new_tokens, len(tokens.ids))
    prompts = drawn(tokens, length, PROMPTS, seed)
    count = len(prompts)
    prepared = prepare(model, config, description)
    progress(STAGE, 0, 2)
    exact = _greedy(model, prompts, DynamicCache(config=model.config), new_tokens)
    progress(STAGE, 1, 2)
    try:
        with attach(model, prepared) as handle:
            made = _greedy(model, prompts, handle.new_cache(), new_tokens)
    except TaylorderError as error:
        return Continuations(count, length, new_tokens, failure=str(error))
    progress(STAGE, 2, 2)
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


def drawn(tokens: Tokens, length: int, count: int, seed: int) -> Tensor:
    """So many sequences, or as many as the text has."""
    available = len(tokens.ids) // length
    if not available:
        raise UsageError(
            f"{tokens.text.source} has {len(tokens.ids)} tokens, fewer than one sequence of {length}; use more text, "
            "or smaller --lengths"
        )
    return tokens.draw(length, min(count, available), seed)
