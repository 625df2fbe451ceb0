"""What ``generate`` and ``bench`` print: speed and bytes of a continuation, where two part, and costs by context."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from taylorder.adapt.config import ModelIdentity, OrderConfig
from taylorder.adapt.continuation import Generated
from taylorder.adapt.generate import GeneratedPair
from taylorder.adapt.left_out import LeftOut
from taylorder.evaluation.rivals import exact_everywhere
from taylorder.evaluation.timing import Bench, Row
from taylorder.models.description import ModelDescription
from taylorder.reports.numbers import counted, number, size
from taylorder.reports.render import plain_text
from taylorder.reports.sections import Column, Section, Table, facts, paragraph, table
from taylorder.storage.finite_json import stamped

SCHEMA = "taylorder/bench@1"

_SNIPPET = 40
_EVEN = 0.05  # a median of a few tokens tells no smaller difference
_LEGEND = (
    "Nominal bytes count keys and values in 16 bits, sums and priorities in 32; held is what this run keeps in memory. "
    "The prediction counts states from the first token on; a run keeps keys as they are until building a state pays."
)


def figures(name: str, made: Generated, would_hold: int | None = None) -> str:
    """Speed and cache of a continuation in one line; ``would_hold`` is what exact attention would, nominally."""
    speed = made.tokens_per_second
    parts = [
        f"{name}: {counted(len(made.tokens), 'token')}"
        + ("" if speed is None else f", {speed:.3g} tokens per second")
        + f", the first after {made.prompt_seconds:.2g} s",
        f"cache {size(made.cache_bytes)} held, {size(made.nominal_bytes)} nominal"
        + ("" if would_hold is None else f" (exact: {size(would_hold)} nominal)"),
    ]
    if made.guarded_rows:
        parts.append(f"{counted(made.guarded_rows, 'row')} fell back to order 1")
    return "; ".join(parts)


def beside(pair: GeneratedPair) -> str:
    """Speed and cache of both continuations in one table."""
    titles = (
        "tokens",
        "tokens\nper second",
        "first\nafter, s",
        "cache held",
        "cache\nnominal",
        "fell back\nto order 1",
    )
    rows = [
        (
            name,
            number(len(made.tokens)),
            "-" if made.tokens_per_second is None else f"{made.tokens_per_second:.3g}",
            f"{made.prompt_seconds:.2g}",
            size(made.cache_bytes),
            size(made.nominal_bytes),
            number(made.guarded_rows),
        )
        for name, made in (("adapted", pair.adapted), ("exact", pair.exact))
    ]
    guarded = pair.adapted.guarded_rows > 0
    columns = [Column(), *(Column(title, figures=True) for title in (titles if guarded else titles[:-1]))]
    shown = table(columns, [row if guarded else row[:-1] for row in rows])
    return plain_text([Section("", (shown,))]).strip("\n")


def what_was_left_out(left: LeftOut) -> str:
    """What the two continuations say about the config: how many KV heads had left out any token at the end."""
    where = f"after {counted(left.tokens, 'token')}, prompt included"
    if left.first is None:
        return "The config keeps every KV head exact, so that both are the same computation."
    if left.nothing:
        return (
            f"No KV head of {number(left.kv_heads)} had left out any token {where}: the config was not put to the "
            f"test, and a text of {counted(left.first, 'token')} or more does that."
        )
    ways = [f"{number(left.dropping)} had dropped some"] * bool(left.dropping)
    ways += [f"{number(left.approximating)} had a polynomial for some"] * bool(left.approximating)
    count = left.dropping + left.approximating
    return f"{number(count)} of {counted(left.kv_heads, 'KV head')} had left out tokens {where}: {', '.join(ways)}."


def parting(comparison: GeneratedPair) -> str:
    """Where two continuations part, and how each goes on."""
    exact, adapted = comparison.exact, comparison.adapted
    if not comparison.parted:
        return f"The texts are the same: {counted(len(exact.tokens), 'token')}."
    same = _common(comparison.common_text, exact.text, adapted.text)
    before = f" ...{exact.text[max(0, same - _SNIPPET) : same]!r}" if same else ""
    return (
        f"The texts part after {counted(comparison.common_tokens, 'token')}{before}: "
        f"exact goes on {_onward(exact, same)}, adapted {_onward(adapted, same)}."
    )


def _common(*texts: str) -> int:
    """Characters that all texts begin with: a token that ends inside a character counts as less than it."""
    differ = (index for index, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1)
    return next(differ, min(map(len, texts)))


def _onward(made: Generated, start: int) -> str:
    rest = made.text[start : start + _SNIPPET]
    return repr(rest) if rest else "no further"


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Everything ``bench`` says."""

    model: ModelDescription
    config: OrderConfig
    config_path: str
    bench: Bench
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"


def as_document(report: BenchReport) -> dict[str, Any]:
    """The result of ``bench`` as one JSON document, schema ``taylorder/bench@1``; bytes and seconds unrounded."""
    content = {
        "model": ModelIdentity.of(report.model).model_dump() | {"weights_note": report.model.weights_note},
        "config": {
            "path": report.config_path,
            "exact_everywhere": exact_everywhere(report.config),
            "criterion": report.config.criterion,
        },
        "rows": [asdict(row) for row in report.bench.rows],
        "break_even": {
            "predicted": report.bench.predicted,
            "measured_nominal": report.bench.smaller_nominal,
            "measured_held": report.bench.smaller_held,
        },
        "verdict": {"text": " ".join(sentences(report))},
        "new_tokens": report.bench.new_tokens,
        "threads": 1,
        "seed": report.seed,
        "device": report.device,
        "dtype": report.dtype,
    }
    return stamped(SCHEMA, content)


def sections(report: BenchReport) -> Iterator[Section]:
    """The report of ``bench``."""
    blocks = (
        facts(_facts(report)),
        _sizes(report.bench),
        _durations(report.bench),
        paragraph(*sentences(report)),
        paragraph(_LEGEND),
    )
    yield Section(f"taylorder bench: {report.model.name}", blocks, level=1)


def sentences(report: BenchReport) -> list[str]:
    """What follows from the figures, in words."""
    if exact_everywhere(report.config):
        return ["The config keeps every head exact: both columns are the same computation, and differ by chance."]
    return [
        _smaller(report.bench, report.model.max_context),
        _times("Per token", [(row, row.slowdown) for row in report.bench.rows]),
        _times("Reading the context", [(row, row.prefill_slowdown) for row in report.bench.rows]),
    ]


def _smaller(bench: Bench, max_context: int) -> str:
    if bench.predicted is None:
        predicted = "The adapted cache is never smaller than the exact one"
    else:
        beyond = f", more than the {number(max_context)} the model sees" if bench.predicted > max_context else ""
        predicted = f"Nominally the adapted cache is predicted to be smaller from {number(bench.predicted)} tokens on"
        predicted += beyond
    firsts = [
        f"{'at none' if context is None else f'first at {number(context)}'} in {kind}"
        for kind, context in (("nominal bytes", bench.smaller_nominal), ("memory held", bench.smaller_held))
    ]
    return f"{predicted}. Of the lengths measured it is smaller {' and '.join(firsts)}."


def _times(what: str, ratios: Sequence[tuple[Row, float]]) -> str:
    """Where adapted takes longer, where as long, and where it takes less."""
    groups = {
        "slower": [(row, ratio) for row, ratio in ratios if ratio > 1 + _EVEN],
        "about as fast": [(row, ratio) for row, ratio in ratios if abs(ratio - 1) <= _EVEN],
        "faster": [(row, ratio) for row, ratio in ratios if ratio < 1 - _EVEN],
    }
    filled = {word: group for word, group in groups.items() if group}
    parts = [
        f"{word} at {'every length measured' if len(filled) == 1 else _contexts(group)} ({_span(group)} the time)"
        for word, group in filled.items()
    ]
    return f"{what}, adapted is {', '.join(parts)}."


def _span(ratios: Sequence[tuple[Row, float]]) -> str:
    low, high = (f"{bound(ratio for _, ratio in ratios):.2f}" for bound in (min, max))
    return f"{low} times" if low == high else f"{low} to {high} times"


def _contexts(ratios: Sequence[tuple[Row, float]]) -> str:
    names = [number(row.context) for row, _ in ratios]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names) + " tokens"


def _facts(report: BenchReport) -> dict[str, str]:
    facts = {
        "config": report.config_path,
        "measured": f"{report.device}, {report.dtype}, one thread; median of {report.bench.new_tokens} tokens fed one "
        "by one",
    }
    if report.model.weights_note is not None:
        facts["weights"] = report.model.weights_note
    return facts


def _sizes(bench: Bench) -> Table:
    titles = ("exact\nheld", "adapted\nheld", "exact\nnominal", "adapted\nnominal")
    return _by_context(titles, bench, lambda row: (
        *(size(reading.cache_bytes) for reading in (row.exact, row.adapted)),
        *(size(reading.nominal_bytes) for reading in (row.exact, row.adapted)),
    ))  # fmt: skip


def _durations(bench: Bench) -> Table:
    titles = ("exact\nms/token", "adapted\nms/token", "adapted\n/ exact", "exact\nprefill s", "adapted\nprefill s")
    return _by_context(titles, bench, lambda row: (
        *(f"{reading.milliseconds_per_token:.3g}" for reading in (row.exact, row.adapted)),
        f"{row.slowdown:.2f}",
        *(f"{reading.prefill_seconds:.3g}" for reading in (row.exact, row.adapted)),
    ))  # fmt: skip


def _by_context(titles: Iterable[str], bench: Bench, figures: Callable[[Row], Iterable[str]]) -> Table:
    columns = [Column(title, figures=True) for title in ("context,\ntokens", *titles)]
    return table(columns, [(number(row.context), *figures(row)) for row in bench.rows])
