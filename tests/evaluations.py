"""Made-up evaluations, and reports of all sorts of them."""

from __future__ import annotations

import math

import synthetic
from synthetic import replaced

from taylorder.adapt.config import OrderConfig
from taylorder.evaluation.comparison import Comparison, Standing
from taylorder.evaluation.evaluate import Evaluation, TaskResults
from taylorder.evaluation.intervals import Interval
from taylorder.evaluation.tasks import TaskRow
from taylorder.reports.evaluation import EvalReport

KIB = 1024
MEASURED = synthetic.analysis(layers=3)


def interval(estimate, spread=0.02):
    return Interval(estimate, estimate - spread, estimate + spread)


def standing(name, taken, nll, exact=3.5, window=None, config=None, **changes):
    buckets = ((0, 63, nll + 0.4), (64, 255, nll + 0.1), (256, 1023, nll), (1024, 4095, nll - 0.1), (4096, 8190, nll))
    made = Standing(
        name=name,
        note=f"what {name} is",
        nominal_bytes=taken,
        nll=interval(nll, 0.2),
        delta_exact=None if name == "exact" else interval(nll - exact),
        delta_window=None if window is None else interval(nll - window),
        config_less=None if config is None else interval(config - nll),
        perplexity=math.exp(nll) if nll < 700 else math.inf,
        kl=None if name == "exact" else interval(nll - exact + 0.01),
        agreement=None if name == "exact" else 0.876,
        buckets=buckets,
        guarded_share=0.0123 if name == "paper" else None,
    )
    return replaced(made, **changes)


def comparison(config=3.7, *standings, length=4096, sequences=8, window=3.75, config_bytes=100 * KIB, **changes):
    made = Comparison(
        length=length,
        sequences=sequences,
        text_source="docstrings of numpy 2.4.6 and scipy 1.17.1",
        text_sha256="ab" * 32,
        seed=0,
        standings=(
            standing("exact", 1024 * KIB, 3.5),
            standing("config", config_bytes, config, window=window),
            standing("window", min(config_bytes, 1024 * KIB), window, config=config),
            standing("paper", 12_455_300, 14.3, window=window, config=config),
            standing("unguarded", 12_455_300, 2000.0, window=window, config=config),
            Standing("alphas", "", None, failure="no alpha could be fitted"),
            *standings,
        ),
    )
    return replaced(made, **changes)


def task_row(kind, length, depth, exact, other):
    return TaskRow(
        kind=kind, length=length, depth=depth, cases=4, questions=20, chance=0.05, exact_accuracy=interval(exact, 0.05),
        other_accuracy=interval(other, 0.05), accuracy_difference=interval(other - exact, 0.1), exact_rank=1.0,
        other_rank=2.0, exact_nll=interval(0.1), other_nll=interval(0.2), nll_difference=interval(0.1),
        exact_cannot=exact < 0.6,
    )  # fmt: skip


def task_results(name, worse):
    rows = []
    for kind, length, exact in (("lookup", 256, 0.95), ("lookup", 1024, 0.4), ("copy", 256, 1.0)):
        rows.append(task_row(kind, length, None, exact, exact - worse))
        rows += [task_row(kind, length, d, exact, exact - worse) for d in (0.1, 0.3, 0.5, 0.7, 0.9) if kind == "lookup"]
    return TaskResults(name, f"what {name} is", tuple(rows))


def report(*comparisons, exact=False, tasks=(), **options):
    config = OrderConfig.uniform(MEASURED.model, "exact" if exact else 3)
    return EvalReport(
        MEASURED.model, config, "somewhere/orders.json", Evaluation(exact, comparisons), tuple(tasks), **options
    )


def hidden_comparison():
    return comparison(standings=(
        Standing("exact", "", None, hidden_relative_l2=0.0, hidden_cosine=1.0),
        Standing("config", "", None, hidden_relative_l2=0.123, hidden_cosine=0.9876, guarded_share=0.0),
        Standing("order 3", "", None, hidden_relative_l2=0.153, hidden_cosine=0.9, config_less=interval(-0.03)),
        Standing("paper", "order 4", None, failure="its final hidden states hold NaN or infinite values"),
    ))  # fmt: skip


REPORTS = {
    "whole": lambda: report(
        comparison(), comparison(length=8192, sequences=2),
        tasks=[task_results("config", 0.2), task_results("window", 0.5)], max_kl=0.05,
    ),
    "exact": lambda: report(comparison(standings=comparison().standings[:1]), exact=True, tasks_reason="--no-tasks"),
    "encoder": lambda: report(hidden_comparison()),
    "one sequence": lambda: report(comparison(sequences=1)),
    "tasks of exact": lambda: report(comparison(), tasks=[task_results("exact", 0.0)]),
    "tasks broke": lambda: report(comparison(), tasks=[TaskResults("config", "", (), "logits are not finite")]),
    "config broke": lambda: report(comparison(standings=(
        standing("exact", 1024 * KIB, 3.5), Standing("config", "", 5, failure="queries hold NaN"),
    )), max_kl=1.0),
}  # fmt: skip
