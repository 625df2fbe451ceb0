"""The levers of ``analyze``: from model and text to a config, resumable."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taylorder.analysis.results import LEAST_FAR_SHARE
from taylorder.analysis.text import Text
from taylorder.analysis.tokens import tokenise
from taylorder.errors import UsageError
from taylorder.kernels.spec import SINKS, Dropped
from taylorder.models.description import ModelDescription
from taylorder.selection import lever_table as measuring
from taylorder.selection.candidates import LEVERS, Candidate, Lever, candidates
from taylorder.selection.config_of import candidate_bytes, window_instead
from taylorder.selection.criteria import Criterion
from taylorder.selection.lever_summary import LeverSummary, summarise
from taylorder.selection.lever_table import LeverTable
from taylorder.selection.screening import SCREENING_TOKENS
from taylorder.selection.under_limit import Chosen, Limit, choose
from taylorder.storage.progress import Progress
from taylorder.storage.provenance import software_versions
from taylorder.storage.records import Records

LONGEST = 4096
"""Tokens of a calibration sequence unless asked for otherwise: a backward pass at the longest context takes long."""


@dataclass(frozen=True)
class LeverRun:
    """What was measured, chosen, and what a report says about it."""

    table: LeverTable
    chosen: Chosen
    summary: LeverSummary


def run_levers(
    model: Any,
    tokenizer: Any,
    description: ModelDescription,
    *,
    text: Text,
    levers: Collection[Lever],
    limit: Limit,
    criterion: Criterion,
    records: Path,
    fresh: bool = False,
    near: tuple[int, int] | None = None,
    max_tokens: int = 8192,
    sequence_length: int | None = None,
    seed: int = 0,
    progress: Progress,
    say: Callable[[str], None] = lambda _: None,
) -> LeverRun:
    """Measure the levers of every KV head and choose; finished pieces in ``records`` are not measured again.

    Args:
        model: a causal transformers model with a language-model head.
        tokenizer: its tokenizer.
        description: what ``describe`` says of it.
        text: calibration text.
        levers: what may differ between KV heads.
        limit: bytes or error.
        criterion: what is minimised within a budget.
        records: directory of finished pieces; those measured under other settings are forgotten.
        fresh: forget them in any case.
        near: window and sinks where they are not to be chosen; default a 64th of the sequence, and 4.
        max_tokens: tokens used of the text, at least one sequence.
        sequence_length: default the context of the limit, :data:`LONGEST` at most.
        seed: of the rows that coefficients are fitted to.
        progress: called with a stage, what is done of it, and its size.
        say: called with what was found in ``records``.

    Raises:
        UnsupportedModelError: the model has no cache that could be exchanged, or no loss.
        UsageError: the text is too short, or the limit cannot be kept.
        NonFiniteError: the model breaks down.

    """
    offered, length = offer(description, levers, limit, near, sequence_length)
    tokens = tokenise(tokenizer, text)
    ids = tokens.first(length, max(length, max_tokens))
    screening = tokens.first(min(SCREENING_TOKENS, length), min(SCREENING_TOKENS, length))
    settings = {
        "model": description.fingerprint,
        "dtype": description.dtype,
        "text": text.sha256,
        "sequences": list(ids.shape),
        "bos": tokens.bos,
        "candidates": [repr(each) for each in offered],
        "seed": seed,
        "software": software_versions(),
    }
    before = not fresh and any(records.glob("levers-*.json"))
    kept = Records(records, settings, fresh=fresh)
    if before:
        say(_resumed(kept, records, description, limit))
    table = measuring.measure(
        model, description, ids, offered, window_instead, seed=seed, records=kept, progress=progress
    )
    chosen = choose(
        model,
        table,
        limit,
        criterion,
        sequences=ids,
        screening=screening,
        records=kept,
        progress=progress,
        calibration={
            "source": text.source,
            "text_sha256": text.sha256,
            "sequences": len(ids),
            "sequence_length": length,
            "bos": tokens.bos,
            "seed": seed,
            "dtype": description.dtype,
        },
        name=f"context-{limit.context}",
    )
    used = tuple(lever for lever in LEVERS if lever in levers)
    return LeverRun(table, chosen, summarise(table, chosen, levers=used, sequences=(len(ids), length)))


def offer(
    description: ModelDescription,
    levers: Collection[Lever],
    limit: Limit,
    near: tuple[int, int] | None,
    sequence_length: int | None,
) -> tuple[tuple[Candidate, ...], int]:
    """What every KV head may run, and the tokens of a calibration sequence; arguments as in :func:`run_levers`.

    Raises:
        UsageError: the limit cannot be kept.

    """
    length = min(sequence_length or min(limit.context, LONGEST), description.max_context)
    first = description.modules[0]
    offered = candidates(levers, first.head_dim, length, near or (length // 64, SINKS))
    if limit.context > length:
        # Measured on sequences that it nearly holds whole, a near field would seem to lose nothing at the context.
        offered = tuple(each for each in offered if each.spec.near.tokens <= (1 - LEAST_FAR_SHARE) * length)
    if not any(isinstance(each.spec.far, Dropped) for each in offered):
        raise UsageError(
            f"sequences are of {length} tokens, and no window offered is shorter: raise --lever-length or --context, "
            "or leave window out of --levers"
        )
    least = min(candidate_bytes(each, first, limit.context) for each in offered)
    if limit.budget is not None and limit.budget < least:
        raise UsageError(
            f"the budget is {limit.budget} bytes per KV head, and the cheapest way to run one takes {least} at "
            f"{limit.context} tokens: raise --budget to at least that"
        )
    return offered, length


def _resumed(kept: Records, records: Path, description: ModelDescription, limit: Limit) -> str:
    """What an earlier run left, or that it was about something else."""
    modules = description.open_modules
    layers = sum(kept.get(f"levers-{module.name}") is not None for module in modules)
    if not layers:
        return f"what {records} held was measured under other settings; starting over"
    rounds = len(list(records.glob(f"context-{limit.context}-{limit.budget}-*-[0-9].json")))
    finished = f"{layers} of {len(modules)} layers{'' if limit.budget is None else f' and {rounds} rounds'}"
    return f"found {finished} in {records}; going on from there"
