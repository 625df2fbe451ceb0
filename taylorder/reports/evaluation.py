"""An evaluation as a person reads it: the report of ``eval``, and the section that ends the report of ``analyze``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from taylorder.adapt.config import ModelIdentity, OrderConfig
from taylorder.adapt.cost import config_bytes
from taylorder.analysis.losses import EXACT
from taylorder.evaluation import rivals
from taylorder.evaluation.comparison import Comparison, Standing
from taylorder.evaluation.evaluate import Evaluation, TaskResults
from taylorder.evaluation.tasks import CANNOT
from taylorder.models.description import ModelDescription
from taylorder.reports import evaluation_tables as tables
from taylorder.reports import evaluation_words as words
from taylorder.reports import near_words
from taylorder.reports.evaluation_tables import Lookup
from taylorder.reports.numbers import counted, number, percent
from taylorder.reports.reproduce import generate_command
from taylorder.reports.sections import Block, Command, Section, Table, facts, paragraph
from taylorder.storage.finite_json import stamped

SCHEMA = "taylorder/eval@1"


@dataclass(frozen=True, slots=True)
class EvalReport:
    """Everything the report of ``eval`` says."""

    model: ModelDescription
    config: OrderConfig
    config_path: str
    evaluation: Evaluation
    tasks: tuple[TaskResults, ...] = ()
    tasks_reason: str | None = None
    max_kl: float | None = None
    device: str = "cpu"
    dtype: str = "float32"


def as_document(report: EvalReport) -> dict[str, Any]:
    """Everything the report says, and the figures it rounds; infinite ones are strings, as in ``report.json``."""
    missed = None if report.max_kl is None else words.missed(report.evaluation, report.max_kl)
    continued = report.evaluation.continuations
    content = {
        "model": ModelIdentity.of(report.model).model_dump() | {"weights_note": report.model.weights_note},
        "config": {
            "path": report.config_path,
            "exact_everywhere": report.evaluation.exact_everywhere,
            "criterion": report.config.criterion,
            "calibration": report.config.calibration,
        },
        "verdict": {"text": " ".join(words.verdicts(report.evaluation))},
        "bound": None if report.max_kl is None else {"max_kl": report.max_kl, "met": missed is None, "missed": missed},
        "comparisons": [
            asdict(comparison) | {"remarks": words.sizes(comparison)} for comparison in report.evaluation.comparisons
        ],
        "generation": None if continued is None else asdict(continued) | {"text": words.continued(continued)},
        "tasks": {"reason": report.tasks_reason, "results": [asdict(result) for result in report.tasks]},
        "lookup_bytes": [asdict(lookup) for lookup in lookups(report)],
        "device": report.device,
        "dtype": report.dtype,
    }
    return stamped(SCHEMA, content)


def short_section(evaluation: Evaluation, *, held_out: bool) -> Section:
    """What ``analyze`` and ``show`` print of the short evaluation, on held-out text or on the inputs of calibration."""
    if not evaluation.comparisons:
        reason = paragraph(f"Not measured: {evaluation.reason}.")
        return Section("What the model loses", (reason,), "config", name="loss")
    comparison = evaluation.comparisons[0]
    lines = [*_columns(comparison), *words.sizes(comparison)]
    if evaluation.exact_everywhere:
        lines.insert(0, "The config keeps every head exact, so it equals exact and was not run.")
    rough = "" if comparison.standings[0].nll is None else f" {_rough(comparison)}"
    lines.append(
        f"Held-out text: {comparison.text_source}, seed {comparison.seed}.{rough} `taylorder eval` compares at equal "
        "bytes and at longer contexts."
        if held_out
        else f"On the inputs that were measured: {comparison.text_source}."
    )
    blocks = (*_tables(comparison, tables.differences), paragraph(*lines))
    return Section(f"What the model loses: {_sequences(comparison)}", blocks, "config", name="loss")


def sections(report: EvalReport) -> Iterator[Section]:
    """The report of ``eval``."""
    evaluation = report.evaluation
    blocks: list[Block] = [facts(_facts(report))]
    if evaluation.exact_everywhere:
        blocks.append(paragraph(f"{words.EQUALS_EXACT} There is nothing to compare at equal bytes."))
    yield Section(f"taylorder eval: {report.model.name}", tuple(blocks), level=1)
    for comparison in evaluation.comparisons:
        blocks = _tables(comparison, tables.differences, tables.positions)
        if comparison.standings[0].nll is not None:
            blocks.append(paragraph(*_columns(comparison), *words.sizes(comparison), _rough(comparison)))
        yield Section(_sequences(comparison), tuple(blocks))
    if evaluation.continuations is not None:
        yield Section("Greedy generation", (paragraph(words.continued(evaluation.continuations)),))
    if report.tasks:
        yield Section("Tasks: share of right answers", tuple(_tasks(report)))
    elif report.tasks_reason is not None:
        yield Section("Tasks", (paragraph(f"Not run: {report.tasks_reason}."),))
    blocks = [paragraph(*words.verdicts(evaluation), style="strong")]
    if report.max_kl is not None:
        missed = words.missed(evaluation, report.max_kl)
        verdict = f"Bound missed: {missed}." if missed else f"Bound met: mean KL at most {report.max_kl:g}."
        blocks.append(paragraph(verdict))
    if report.model.causal and not evaluation.exact_everywhere:
        blocks += [paragraph("Next, what it writes beside the exact model, going on from a text of yours in FILE:")]
        blocks += [Command(generate_command(report.config_path))]
    yield Section("Verdict", tuple(blocks))


def _facts(report: EvalReport) -> dict[str, str]:
    model, config = report.model, report.config
    heads = ", ".join(f"{kind}: {count}" for kind, count in config.counts().items())
    facts = {
        "model": f"{model.architecture}, {model.direction}",
        "config": f"{report.config_path}; heads: {heads}",
    }
    if (probe := near_words.probe_sentence(config)) is not None:
        facts["kept keys"] = probe
    if report.evaluation.comparisons:
        first = report.evaluation.comparisons[0]
        begun = "" if first.bos is None else ", each sequence begun with BOS"
        facts["text"] = f"{first.text_source}, sha256 {first.text_sha256[:12]}, seed {first.seed}{begun}"
    facts["runs on"] = f"{report.device}, {report.dtype}"
    if model.weights_note:
        facts["weights"] = model.weights_note.removeprefix("weights ")
    return facts


def _tables(comparison: Comparison, *more: Callable[[Comparison], Table | None]) -> list[Block]:
    """Figures of all contenders, ``more`` tables where there are losses, and what each contender is."""
    legend = {
        standing.name: _note(standing)
        for standing in comparison.standings
        if standing.name != EXACT and (standing.note or standing.failure)
    }
    if comparison.standings[0].nll is None:
        shown = [tables.hidden(comparison)]
    else:
        shown = [tables.figures(comparison), *(made for make in more if (made := make(comparison)) is not None)]
    return [*shown, facts(legend)] if legend else [*shown]


def _tasks(report: EvalReport) -> Iterator[Block]:
    results = report.tasks
    if any(result.rows for result in results):
        yield tables.tasks(results)
        for table in (tables.depths(results), tables.lookup_bytes(lookups(report))):
            if table is not None:
                yield table
    lines = []
    for result in results:
        if result.failure is not None:
            lines.append(f"{result.name}: not run, {result.failure}.")
        elif result.name == rivals.WINDOW:
            lines.append(f"window: {result.note} at the length of each task.")
    if any(row.exact_cannot for result in results for row in result.rows):
        lines.append(
            f"exact cannot: the exact model has less than {percent(CANNOT)} right there, so the task says nothing "
            "about a config."
        )
    yield paragraph(*lines, "Intervals are 95% over prompts; differences are in percentage points.")


def lookups(report: EvalReport) -> list[Lookup]:
    """Lookup, in pairs and in lists, against nominal bytes of all caches and states; empty without the config."""
    rows = next((result.rows for result in report.tasks if result.name == rivals.CONFIG), ())
    exact = OrderConfig.uniform(report.model, "exact")
    return [
        Lookup(
            kind=row.kind,
            length=row.length,
            exact_accuracy=row.exact_accuracy.estimate,
            config_accuracy=row.other_accuracy.estimate,
            exact_bytes=config_bytes(exact, report.model, row.length),
            config_bytes=config_bytes(report.config, report.model, row.length),
            exact_cannot=row.exact_cannot,
        )
        for row in rows
        if row.kind in {"lookup", "list"} and row.depth is None
    ]


def _note(standing: Standing) -> str:
    if standing.failure is None:
        return standing.note
    return f"{standing.note}; no figures: {standing.failure}" if standing.note else f"no figures: {standing.failure}"


def _columns(comparison: Comparison) -> list[str]:
    """What the columns mean that do not say so themselves."""
    lines = []
    if any(standing.agreement is not None for standing in comparison.standings):
        lines.append("Same top token: at how many positions the likeliest next token is that of exact attention.")
    if tables.needs_guard(comparison):
        raw = any(standing.name == rivals.PAPER_RAW for standing in comparison.standings)
        lines.append(
            "Needs guard: query rows whose polynomial weights come to nearly zero or less in sum; order 1 takes their "
            f"place{f', except in {rivals.PAPER_RAW}' if raw else ''}."
        )
    return lines


def _sequences(comparison: Comparison) -> str:
    return f"{counted(comparison.sequences, 'sequence')} of {counted(comparison.length, 'token')}"


def _rough(comparison: Comparison) -> str:
    if comparison.sequences == 1:
        return "One sequence gives no intervals."
    intervals = "Intervals are 95% over sequences"
    if comparison.sequences < words.ENOUGH:
        return f"{intervals}, and {number(comparison.sequences)} sequences make them rough."
    return f"{intervals}; differences are paired."
