"""The levers of ``analyze``: from model and text to a config, resumable."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from taylorder.analysis.results import LEAST_FAR_SHARE
from taylorder.analysis.text import Text
from taylorder.analysis.tokens import Tokens
from taylorder.errors import UsageError
from taylorder.kernels.spec import SINKS, Dropped
from taylorder.models.description import ModelDescription
from taylorder.selection import lever_table
from taylorder.selection.candidates import LEVERS, Candidate, Lever, candidates
from taylorder.selection.config_of import candidate_bytes, window_instead
from taylorder.selection.lever_summary import LeverSummary, summarise
from taylorder.selection.lever_table import LeverTable
from taylorder.selection.settings import DEFAULTS, LONGEST_LEVER_SEQUENCE
from taylorder.selection.under_limit import Chosen, Limit, Progress, choose
from taylorder.storage.provenance import software_versions
from taylorder.storage.records import Records


@dataclass(frozen=True)
class LeverRun:
    """What was measured, chosen, and what a report says about it."""

    table: LeverTable
    chosen: Chosen
    summary: LeverSummary

    def __repr__(self) -> str:
        """One line; ``summary`` has the figures."""
        return f"<LeverRun: {self.table!r}, {self.chosen.nominal_bytes:,} bytes per KV head>"


def run_levers(
    model: Any,
    tokenizer: Any,
    description: ModelDescription,
    *,
    limit: Limit,
    text: Text | Tokens | str | None = None,
    levers: Collection[Lever] = LEVERS,
    records: Path | None = None,
    fresh: bool = False,
    near: tuple[int, int] | None = None,
    max_tokens: int = DEFAULTS.max_tokens,
    sequence_length: int | None = DEFAULTS.lever_length,
    seed: int = DEFAULTS.seed,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> LeverRun:
    """Measure the levers of every KV head and choose; finished pieces in ``records`` are not measured again.

    Args:
        model: a causal transformers model with a language-model head.
        tokenizer: its tokenizer.
        description: what ``describe`` says of it.
        limit: bytes or error.
        text: calibration text, as a string or in tokens; default the English that Python ships (465 kB).
        levers: what may differ between KV heads; default all.
        records: directory of finished pieces; those measured under other settings are forgotten. Without one, a run
            that is interrupted has to begin anew.
        fresh: forget them in any case.
        near: window and sinks where they are not to be chosen; default a 64th of the sequence, and 4.
        max_tokens: tokens used of the text, at least one sequence.
        sequence_length: default the context of the limit, 4,096 at most.
        seed: of the rows that coefficients are fitted to.
        progress: called with a stage, what is done of it, and its size.
        say: called with what was found in ``records``.

    Raises:
        UnsupportedModelError: the model has no cache that could be exchanged, or no loss.
        UsageError: the text is too short, or the limit cannot be kept.
        NonFiniteError: the model breaks down.

    """
    offered, length = offer(description, levers, limit, near, sequence_length)
    tokens = Tokens.of(tokenizer, text)
    report = progress or (lambda stage, done, total: None)
    sequences = tokens.first(length, max(length, max_tokens))
    settings = {
        "model": description.fingerprint,
        "dtype": description.dtype,
        "text": tokens.text.sha256,
        "sequences": list(sequences.shape),
        "bos": tokens.bos,
        "candidates": [repr(candidate) for candidate in offered],
        "seed": seed,
        "software": software_versions(),
    }
    with _directory(records) as directory:
        pieces = Records(Path(directory), settings, fresh=fresh)
        if (found := _found(pieces, description, limit)) is not None:
            say(found)
        table = lever_table.measure(
            model, description, sequences, offered, window_instead, seed=seed, records=pieces, progress=report
        )
        chosen = choose(
            model,
            table,
            limit,
            sequences=sequences,
            records=pieces,
            progress=report,
            calibration=_calibration(description, tokens, sequences, seed),
            name=f"context-{limit.context}",
        )
    used = tuple(lever for lever in LEVERS if lever in levers)
    return LeverRun(table, chosen, summarise(table, chosen, levers=used, sequences=(len(sequences), length)))


def offer(
    description: ModelDescription,
    levers: Collection[Lever],
    limit: Limit,
    near: tuple[int, int] | None,
    sequence_length: int | None,
) -> tuple[tuple[Candidate, ...], int]:
    """What every KV head may run, and the tokens of a calibration sequence; arguments as in :func:`run_levers`.

    Raises:
        UnsupportedModelError: the model has no cache that could be exchanged.
        UsageError: the limit cannot be kept.

    """
    lever_table.refuse_unsupported(description)
    length = min(sequence_length or min(limit.context, LONGEST_LEVER_SEQUENCE), description.max_context)
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


def _directory(records: Path | None) -> AbstractContextManager[Path | str]:
    """Where pieces are kept: what was asked for, or a directory that is gone afterwards."""
    return TemporaryDirectory(prefix="taylorder-") if records is None else nullcontext(records)


def _found(pieces: Records, description: ModelDescription, limit: Limit) -> str | None:
    """What an earlier run left, or that it was about something else; None where there was none."""
    if pieces.replaced:
        return f"what {pieces.directory} held was measured under other settings; starting over"
    names = pieces.names()
    if not names:
        return None
    modules = description.open_modules
    layers = sum(lever_table.record_name(module.name) in names for module in modules)
    rounds = sum(name.startswith(f"context-{limit.context}-{limit.budget}-") for name in names)
    finished = f"{layers} of {len(modules)} layers{'' if limit.budget is None else f' and {rounds} rounds'}"
    return f"found {finished} in {pieces.directory}; going on from there"


def _calibration(description: ModelDescription, tokens: Tokens, sequences: Tensor, seed: int) -> dict[str, Any]:
    """What the config says of the text it was chosen by."""
    return {
        "source": tokens.text.source,
        "text_sha256": tokens.text.sha256,
        "sequences": len(sequences),
        "sequence_length": sequences.shape[1],
        "bos": tokens.bos,
        "seed": seed,
        "dtype": description.dtype,
    }
