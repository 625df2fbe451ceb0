"""Tables of ``benchmarks/results/fresh.jsonl``: models trained from scratch with truncated attention."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Iterable, Sequence

from page_tables.table import RESULTS, markdown

sys.path.append(str(RESULTS.parent))

from fresh_models.claims import fresh_claims
from fresh_models.contenders import BY_NAME
from fresh_models.found import MAX_ORDER, RUN_AS
from fresh_models.found_summary import LEARNT, by_contender, found
from fresh_models.log import Log, Record
from fresh_models.models import LAYERS
from fresh_models.recall_run import RecallRun
from fresh_models.summary import HEAD, lines, solved
from fresh_models.text_run import LENGTH
from fresh_models.text_summary import text_lines

NOTHING = "Not run yet.\n"
TOLERANCE = 0.07
"""Error of a head's output that is still taken for the head."""


def _records() -> list[Record]:
    return Log(RESULTS / "fresh.jsonl").records()


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    made = list(rows)
    return markdown(head, made) if made else NOTHING


def recall() -> str:
    """The main line, by contender."""
    rows = [[line.contender, *line.figures] for line in lines(_records()) if line.of_main_line]
    return _table(["trained with", *HEAD], rows)


def sizes() -> str:
    """Other heads, numbers of pairs and first weights."""
    rows = [[line.words, *line.figures] for line in lines(_records()) if not line.of_main_line]
    return _table(["trained with", *HEAD], rows)


def rates() -> str:
    """The main line by learning rate: the share of right answers, and of how many seeds it is the mean."""
    shares: dict[str, dict[float, list[float]]] = {}
    for record in _records():
        if record["about"]["task"] == RecallRun.task:
            run = RecallRun.of(record["about"])
            if run.of_main_line:
                shares.setdefault(run.contender, {}).setdefault(run.rate, []).append(record["share"])
    tried = sorted({rate for found_rates in shares.values() for rate in found_rates})
    rows = []
    for name in (name for name in BY_NAME if name in shares):
        by_rate = [shares[name].get(rate, []) for rate in tried]
        rows.append([name, *(f"{statistics.fmean(seeds):.2f} ({len(seeds)})" if seeds else "" for seeds in by_rate)])
    return _table(["trained with", *(f"{rate:g}" for rate in tried)], rows)


def run_as() -> str:
    """Right answers of a model by what it is run with, beside what it was trained with."""
    rows = [
        [name, str(len(same)), *(_mean(model.run_as[kind] for model in same) for kind in RUN_AS)]
        for name, same in by_contender(_records()).items()
    ]
    return _table(["trained with", "seeds", *RUN_AS], rows)


def heads() -> str:
    """Scores, needed orders and alphas of trained models."""
    rows = [
        [
            name,
            str(len(same)),
            f"{math.exp(statistics.fmean(math.log(std) for model in same for std in model.score_std)):.1f}",
            _needed([order for model in same for order in model.needed(TOLERANCE)]),
            _mean(alpha for model in same for alpha in model.alpha),
        ]
        for name, same in by_contender(_records()).items()
    ]
    needed = f"heads by the least odd order within {TOLERANCE:.0%}".replace("%", " %")
    return _table(["trained with", "seeds", "spread of scores", f"{needed}:", "alpha of q and k"], rows)


def text() -> str:
    """Losses of language models by kind of text."""
    made = text_lines(_records())
    kinds = list(made[0].losses[0]) if made else []
    rows = [
        [
            line.run.contender, f"{line.state_bytes:,}", f"{line.run.rate:g}", str(len(line.seeds)),
            solved(line.copied), *(f"{line.loss(kind):.3f}" for kind in kinds),
        ]
        for line in made
    ]  # fmt: skip
    return _table(["trained with", f"bytes at {LENGTH}", "learning rate", "seeds", "copying, steps", *kinds], rows)


def answering() -> str:
    """How models weigh keys in the rows that answer, those that learnt the task beside those that did not."""
    models = [model for model in found(_records()) if model.largest]
    rows = []
    for name, learnt in dict.fromkeys((model.contender, model.learnt) for model in models):
        same = [model for model in models if (model.contender, model.learnt) == (name, learnt)]
        rows.append(
            [
                name,
                f"{'above' if learnt else 'below'} {LEARNT:.0%}".replace("%", " %"),
                str(len(same)),
                _range(min(model.denominator) for model in same if model.denominator),
                *(_range(weights) for weights in zip(*(model.largest for model in same), strict=True)),
            ]
        )
    layers = (f"largest weight in layer {number}" for number in range(1, LAYERS + 1))
    return _table(["trained with", "right", "models", "denominator per key, 5 % quantile", *layers], rows)


def verdicts() -> str:
    """The claims, and what decides them."""
    rows = []
    for claim in fresh_claims(_records()):
        figures = [
            f"{effect.name}: {effect.estimate:+.2f}"
            + ("" if effect.low is None or effect.high is None else f" [{effect.low:+.2f}, {effect.high:+.2f}]")
            for effect in claim.effects
        ]
        rows.append([claim.statement, f"**{claim.verdict}**", "; ".join(figures)])
    return markdown(["claim", "verdict:", "figures [95 %]:"], rows)


def _needed(orders: Sequence[int | None]) -> str:
    counts = [(f"order {order}", orders.count(order)) for order in range(1, MAX_ORDER + 1, 2)]
    counts.append((f"above {MAX_ORDER - 1}", orders.count(None)))
    return ", ".join(f"{count} {words}" for words, count in counts if count)


def _range(values: Iterable[float]) -> str:
    known = sorted(values)
    if not known:
        return ""
    ends = dict.fromkeys(f"{value:.2f}" for value in (known[0], known[-1]))
    return " to ".join(ends)


def _mean(values: Iterable[float]) -> str:
    known = list(values)
    return f"{statistics.fmean(known):.2f}" if known else ""
