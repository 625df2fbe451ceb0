"""What ``analyze --budget`` and ``--levers`` do: from model and text to a config, resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from taylorder.adapt.cost import kv_head_bytes
from taylorder.analysis.results import LEAST_FAR_SHARE
from taylorder.analysis.text import Text
from taylorder.analysis.tokens import Tokens
from taylorder.errors import UsageError
from taylorder.kernels.spec import SINKS, Dropped
from taylorder.models.description import ModelDescription
from taylorder.selection import lever_table
from taylorder.selection.cache_size import CacheSize
from taylorder.selection.candidates import LEVERS, Candidate, candidates
from taylorder.selection.choice_text import ChoiceText
from taylorder.selection.config_of import table_bytes, window_instead
from taylorder.selection.lever_costs import LeverCost
from taylorder.selection.lever_summary import LeverSummary, summarise
from taylorder.selection.lever_table import LeverTable
from taylorder.selection.probe_report import ProbeReport, report_probes
from taylorder.selection.probes import Probes, fit_probes, probe_sequences
from taylorder.selection.settings import AnalyzeSettings, Budget, Limit
from taylorder.selection.under_limit import Chosen, choose
from taylorder.storage.frames import frame
from taylorder.storage.progress import Progress, silent
from taylorder.storage.provenance import software_versions
from taylorder.storage.records import Records

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class LeverRun:
    """What was measured, chosen, and what a report says about it."""

    table: LeverTable
    chosen: Chosen
    summary: LeverSummary

    def __repr__(self) -> str:
        """One line; ``summary`` has the figures."""
        return f"<LeverRun: {self.table!r}, {self.chosen.nominal_bytes:,} bytes per KV head>"

    def records(self) -> Iterator[dict[str, Any]]:
        """One per KV head and candidate, as in ``levers.csv``; ``chosen`` is 1 for what the config runs."""
        sizes = table_bytes(self.table, self.chosen.limit.context)
        for rows, by_candidate, taken in zip(self.table.rows(), sizes, self.chosen.choice, strict=True):
            for row, size in zip(rows, by_candidate, strict=True):
                figures = asdict(row)
                index = figures.pop("candidate")
                yield {
                    "module": figures.pop("module"),
                    "kv_head": figures.pop("kv_head"),
                    **self.table.candidates[index].columns(),
                    "nominal_bytes": size,
                    **figures,
                    "chosen": int(index == taken),
                }

    def costs(self) -> tuple[LeverCost, ...]:
        """The same as values that a report draws."""
        return tuple(map(LeverCost.of, self.records()))

    def to_frame(self) -> DataFrame:
        """The same as a table."""
        return frame(self.records())


def run_levers(
    model: Any,
    tokenizer: Any,
    description: ModelDescription,
    settings: AnalyzeSettings,
    *,
    text: Text | Tokens | str | None = None,
    records: Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> LeverRun:
    """Measure the levers of every KV head and choose; finished pieces in ``records`` are not measured again.

    Args:
        model: a causal transformers model with a language-model head.
        tokenizer: its tokenizer.
        description: what ``describe`` says of it.
        settings: levers, limit, tokens and seed. Without a near field asked for, that of KV heads whose window is not
            to be chosen is a 64th of the sequence, and 4 sinks; sequences are as long as the context, 4,096 at most,
            and together half as long as the tokens, or two if these are more.
        text: calibration text, as a string or in tokens; default the English that Python ships (465 kB), and as much
            source code (:class:`~taylorder.selection.choice_text.ChoiceText`).
        records: directory of finished pieces; those measured under other settings are forgotten. Without one, a run
            that is interrupted has to begin anew.
        fresh: forget them in any case.
        progress: called with a stage, what is done of it, and its size.
        say: called with what was found in ``records``.

    Raises:
        UnsupportedModelError: the model has no cache that could be exchanged, or no loss.
        UsageError: the text is too short, or the limit cannot be kept.
        NonFiniteError: the model breaks down.

    """
    offered, length = offer(description, settings)
    limit, seed = settings.limit(description), settings.seed
    tokens = Tokens.of(tokenizer, text)
    report = progress or silent
    words = ChoiceText.of(tokenizer, tokens)
    sequences = words.sequences(length, sequence_count(settings, length))
    measured_under = {
        "model": description.fingerprint,
        "dtype": description.dtype,
        "text": words.joined.text.sha256,
        "sequences": list(sequences.shape),
        "bos": tokens.bos,
        "candidates": [repr(candidate) for candidate in offered],
        "seed": seed,
        "software": software_versions(),
    }
    # Without a place to keep pieces in, they go to one that is gone afterwards.
    with TemporaryDirectory(prefix="taylorder-") if records is None else nullcontext(records) as directory:
        pieces = Records(Path(directory), measured_under, fresh=fresh)
        if (sentence := _found(pieces, description, limit)) is not None:
            say(sentence)
        probes = judged = None
        if any(candidate.spec.near.kept for candidate in offered):
            probes, judged = _probes(model, description, words.joined, probe_tokens(settings), pieces, report)
        table = lever_table.measure(
            model,
            description,
            sequences,
            offered,
            window_instead,
            probes=probes,
            seed=seed,
            records=pieces,
            progress=report,
        )
        chosen = choose(
            model,
            table,
            limit,
            sequences=sequences,
            records=pieces,
            progress=report,
            calibration={
                "source": words.joined.text.source,
                "text_sha256": words.joined.text.sha256,
                "sequences": len(sequences),
                "sequence_length": length,
                "bos": tokens.bos,
                "seed": seed,
                "dtype": description.dtype,
            },
            name=f"context-{limit.context}",
        )
    used = tuple(lever for lever in LEVERS if settings.levers is None or lever in settings.levers)
    summary = summarise(table, chosen, levers=used, sequences=(len(sequences), length), probes=judged)
    return LeverRun(table, chosen, summary)


def _probes(
    model: Any, description: ModelDescription, tokens: Tokens, most: int, records: Records, progress: Progress
) -> tuple[Probes, ProbeReport | None]:
    """Probes fitted to the text, and how they do on another part of it, where it is long enough."""
    fitted_to, held_out = probe_sequences(tokens, description, most)
    probes = fit_probes(model, description, fitted_to, text=tokens.text, records=records, progress=progress)
    if held_out is None:
        return probes, None
    return probes, report_probes(model, description, probes, held_out, records=records, progress=progress)


def sequence_count(settings: AnalyzeSettings, length: int) -> int:
    """How many sequences levers are measured on: the model runs forward and backward on them for every config tried.

    They have half of the tokens, and are two at least.
    """
    return max(1, min(settings.max_tokens, max(2 * length, settings.max_tokens // 2)) // length)


def probe_tokens(settings: AnalyzeSettings) -> int:
    """The most tokens that probes may see.

    Twice as many as levers are measured on: these run forward only, which costs a third of forward and back.
    """
    return 2 * settings.max_tokens


def offer(description: ModelDescription, settings: AnalyzeSettings) -> tuple[tuple[Candidate, ...], int]:
    """What every KV head may run, and the tokens of a calibration sequence.

    Raises:
        UnsupportedModelError: the model has no cache that could be exchanged.
        UsageError: the limit cannot be kept.

    """
    lever_table.refuse_unsupported(description)
    limit, typical = settings.limit(description), description.typical
    length = settings.length_for_levers(description)
    levers = LEVERS if settings.levers is None else settings.levers
    near = settings.near or (length // 64, SINKS)
    offered = candidates(levers, typical.head_dim, length, near, typical.value_dim)
    if limit.context > length:
        # Measured on sequences that it nearly holds whole, a near field would seem to lose nothing at the context.
        offered = tuple(
            candidate for candidate in offered if candidate.spec.near.tokens <= (1 - LEAST_FAR_SHARE) * length
        )
    if not any(isinstance(candidate.spec.far, Dropped) for candidate in offered):
        raise UsageError(
            f"sequences are of {length} tokens, and no window offered is shorter: raise --lever-length or --context, "
            "or leave window out of --levers"
        )
    if settings.budget is not None:
        _refuse_unfit(settings.budget, description, limit, offered)
    return offered, length


def _refuse_unfit(budget: Budget, description: ModelDescription, limit: Limit, offered: tuple[Candidate, ...]) -> None:
    """Refuse a budget that leaves nothing to choose: the cheapest candidates take more, or exact attention no more."""
    cache, size = CacheSize.of(description, limit.context), limit.budget or 0
    cheapest = sum(
        module.kv_heads * min(kv_head_bytes([candidate.spec], module, limit.context) for candidate in offered)
        for module in description.open_modules
    )
    least = -(-cheapest // cache.kv_heads)
    named = "the budget" if budget.form == "bytes" else f"the budget {budget.given}"
    beside = (
        ""
        if budget.form != "total" or not cache.closed_bytes
        else f" beside the {cache.closed_bytes} bytes of layers that stay exact"
    )
    said = f"{named} is {size} bytes per KV head{beside}"
    if size < least:
        raise UsageError(
            f"{said}, and the cheapest way to run one takes {least} at {limit.context} tokens: raise it to at least "
            f"{budget.spelled(least, cache)}"
        )
    if size * cache.kv_heads >= cache.exact_bytes:
        raise UsageError(
            f"{said}, and exact attention takes {cache.exact_bytes // cache.kv_heads} at {limit.context} tokens, so "
            f"that there is nothing to choose: ask for less than "
            f"{budget.spelled(cache.exact_bytes // cache.kv_heads, cache)}, or raise --context"
        )


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
