"""An evaluation as a person reads it: the report of ``eval``, and the section that ends the report of ``analyze``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.cost import config_bytes
from taylorder.analysis.losses import EXACT
from taylorder.evaluation import rivals
from taylorder.evaluation.comparison import Comparison
from taylorder.evaluation.evaluate import Evaluation, TaskResults
from taylorder.evaluation.tasks import CANNOT
from taylorder.kernels.spec import Dropped, Exact, Taylor
from taylorder.models.description import ModelDescription
from taylorder.reports import evaluation_tables as tables
from taylorder.reports import evaluation_words as words
from taylorder.reports.evaluation_tables import Lookup
from taylorder.reports.numbers import counted, number, percent
from taylorder.reports.parts import INDENT, note, title
from taylorder.reports.plain import plain_text


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


def render(report: EvalReport, console: Console) -> None:
    """Print the report of ``eval``."""
    for part in _parts(report):
        console.print(part)


def as_text(report: EvalReport, width: int = 80) -> str:
    """The report as plain text: no colour, no trailing blanks."""
    return plain_text(lambda console: render(report, console), width)


def short_section(evaluation: Evaluation) -> Iterable[RenderableType]:
    """What ``analyze`` and ``show`` print of the short evaluation, under a heading of its own."""
    if not evaluation.comparisons:
        yield title("What the model loses", "config")
        yield note(f"Not measured: {evaluation.reason}.")
        return
    comparison = evaluation.comparisons[0]
    yield title(f"What the model loses: {_sequences(comparison)}", "config")
    if comparison.standings[0].nll is None:
        yield tables.hidden(comparison)
    else:
        yield tables.figures(comparison)
        if (table := tables.differences(comparison)) is not None:
            yield Text()
            yield table
    yield Text()
    yield _legend(comparison)
    yield Text()
    if evaluation.exact_everywhere:
        yield note("The config keeps every head exact, so it equals exact and was not run.")
    for line in words.sizes(comparison):
        yield note(line)
    rough = "" if comparison.standings[0].nll is None else f" {_rough(comparison)}"
    yield note(
        f"Held-out text: {comparison.text_source}, seed {comparison.seed}.{rough} `taylorder eval` compares at equal "
        "bytes and at longer contexts."
    )


def _parts(report: EvalReport) -> Iterable[RenderableType]:
    evaluation = report.evaluation
    yield Text(f"taylorder eval: {report.model.name}", style="bold")
    facts = _facts(report)
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, fact in facts.items():
        table.add_row(Text(name), Text(fact))
    yield Padding(table, INDENT, expand=False)
    if evaluation.exact_everywhere:
        yield Text()
        yield note(
            f"{words.EQUALS_EXACT} There is nothing to compare at equal bytes; the paper's order 4 is shown beside it."
        )
    for comparison in evaluation.comparisons:
        yield from _comparison(comparison)
    if evaluation.continuations is not None:
        yield title("Greedy generation")
        yield note(words.continued(evaluation.continuations))
    if report.tasks:
        yield from _tasks(report)
    elif report.tasks_reason is not None:
        yield title("Tasks")
        yield note(f"Not run: {report.tasks_reason}.")
    yield title("Verdict")
    for line in words.verdicts(evaluation):
        yield Padding(Text(line, style="bold"), INDENT, expand=False)
    if report.max_kl is not None:
        yield Text()
        missed = words.missed(evaluation, report.max_kl)
        yield note(f"Bound missed: {missed}." if missed else f"Bound met: mean KL at most {report.max_kl:g}.")


def _facts(report: EvalReport) -> dict[str, str]:
    model, config = report.model, report.config
    counts: dict[str, int] = {}
    for layer in config.layers:
        for head in layer.heads:
            match head.spec.far:
                case Exact():
                    kind = "exact"
                case Dropped():
                    kind = "window only"
                case Taylor(order=order):
                    kind = f"order {order}"
            counts[kind] = counts.get(kind, 0) + 1
    facts = {
        "model": f"{model.architecture}, {'causal' if model.causal else 'bidirectional (no cache)'}",
        "config": f"{report.config_path}; heads: {', '.join(f'{kind}: {counts[kind]}' for kind in sorted(counts))}",
    }
    if report.evaluation.comparisons:
        first = report.evaluation.comparisons[0]
        begun = "" if first.bos is None else ", each sequence begun with BOS"
        facts["text"] = f"{first.text_source}, sha256 {first.text_sha256[:12]}, seed {first.seed}{begun}"
    facts["runs on"] = f"{report.device}, {report.dtype}"
    if model.weights_note:
        facts["weights"] = model.weights_note.removeprefix("weights ")
    return facts


def _comparison(comparison: Comparison) -> Iterable[RenderableType]:
    yield title(_sequences(comparison))
    if comparison.standings[0].nll is None:
        yield tables.hidden(comparison)
    else:
        yield tables.figures(comparison)
        for table in (tables.differences(comparison), tables.positions(comparison)):
            if table is not None:
                yield Text()
                yield table
    yield Text()
    yield _legend(comparison)
    if comparison.standings[0].nll is not None:
        yield Text()
        for line in (*words.sizes(comparison), _rough(comparison)):
            yield note(line)


def _tasks(report: EvalReport) -> Iterable[RenderableType]:
    results = report.tasks
    yield title("Tasks: share of right answers")
    if any(each.rows for each in results):
        yield tables.tasks(results)
        if (table := tables.depths(results)) is not None:
            yield Text()
            yield table
        if (table := tables.lookup_bytes(lookups(report))) is not None:
            yield Text()
            yield table
        yield Text()
    for each in results:
        if each.failure is not None:
            yield note(f"{each.name}: not run, {each.failure}.")
        elif each.name == rivals.WINDOW:
            yield note(f"window: {each.note} at the length of each task.")
    if any(row.exact_cannot for each in results for row in each.rows):
        yield note(
            f"exact cannot: the exact model has less than {percent(CANNOT)} right there, so the task says nothing "
            "about a config."
        )
    yield note("Intervals are 95% over prompts; differences are in percentage points.")


def lookups(report: EvalReport) -> list[Lookup]:
    """Lookup, in pairs and in lists, against nominal bytes of all caches and states; empty without the config."""
    rows = next((each.rows for each in report.tasks if each.name == rivals.CONFIG), ())
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


def _legend(comparison: Comparison) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0))
    for each in comparison.standings:
        if each.name == EXACT or not (each.note or each.failure):
            continue
        if each.failure is None:
            fact = each.note
        elif each.note:
            fact = f"{each.note}; no figures: {each.failure}"
        else:
            fact = f"no figures: {each.failure}"
        table.add_row(Text(each.name), Text(fact))
    return Padding(table, INDENT, expand=False)


def _sequences(comparison: Comparison) -> str:
    return f"{counted(comparison.sequences, 'sequence')} of {counted(comparison.length, 'token')}"


def _rough(comparison: Comparison) -> str:
    if comparison.sequences == 1:
        return "One sequence gives no intervals."
    told = "Intervals are 95% over sequences"
    if comparison.sequences < words.ENOUGH:
        return f"{told}, and {number(comparison.sequences)} sequences make them rough."
    return f"{told}; differences are paired."
