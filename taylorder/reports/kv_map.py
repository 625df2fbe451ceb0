"""What the map of a budget run shows of every KV head: what it keeps, takes, runs and loses, by view."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from taylorder.adapt.config import HeadOrder
from taylorder.analysis.results import Analysis
from taylorder.kernels.spec import Exact, Near, Taylor
from taylorder.models.description import AttentionModule
from taylorder.reports import heat_map, near_words
from taylorder.reports.numbers import counted, number, percent, percent_cell, size
from taylorder.reports.scales import Figure, Scale, even_bounds
from taylorder.selection.by_tolerance import Selection
from taylorder.selection.reasons import explained


@dataclass(frozen=True, slots=True)
class KvHead:
    """A KV head: what its query heads run, the first one's decision for all, and the share of attention it leaves out.

    ``rest`` is the mean over its query heads, None where nobody looked or nothing is left out.
    """

    module: AttentionModule
    number: int
    choice: HeadOrder
    rest: float | None

    @property
    def heads(self) -> range:
        """Numbers of its query heads."""
        return range(self.number * self.module.group, (self.number + 1) * self.module.group)

    @property
    def near(self) -> Near | None:
        """Its near field; None where everything is near."""
        return None if isinstance(self.choice.spec.far, Exact) else self.choice.spec.near


@dataclass(frozen=True, slots=True)
class View:
    """One thing that the map shows: how a reader calls it, what it is, its scale, and a figure of every KV head."""

    name: str
    explanation: str
    figures: Sequence[Figure]
    where: str = ""
    ticks: Sequence[str] = ()
    bounds: Sequence[tuple[float, str]] = ()
    legend: Sequence[str] = ()

    def as_data(self) -> dict[str, Any]:
        """All of it but the figures, for the script."""
        names = ("name", "explanation", "where", "ticks", "bounds", "legend")
        return {name: getattr(self, name) for name in names}


def kv_heads(analysis: Analysis, selection: Selection) -> list[KvHead]:
    """All KV heads in the order of the model."""
    example = None if selection.levers is None else selection.levers.example
    rests = {(one.module, one.head): one.rest for one in (() if example is None else example.shares)}
    made = []
    for module, layer in zip(analysis.model.modules, selection.config.layers, strict=True):
        for kv_head, choices in enumerate(module.groups(layer.heads)):
            here = [rests.get((module.name, kv_head * module.group + at)) for at in range(module.group)]
            known = [rest for rest in here if rest is not None]
            rest = statistics.fmean(known) if known and len(known) == len(here) else None
            made.append(KvHead(module, kv_head, choices[0], rest))
    return made


def views(analysis: Analysis, selection: Selection) -> dict[str, View]:
    """Every view by its key, the one that a page opens with first."""
    heads = kv_heads(analysis, selection)
    made = {"tokens": _tokens(heads), "bytes": _bytes(heads, selection.context), "runs": _runs(heads)}
    made["lost"] = _lost(heads)
    if any(head.rest is not None for head in heads):
        made["rest"] = _rest(heads)
    if analysis.spectral:
        made["alpha"] = _alpha(analysis, heads)
    made["std"] = _deviation(analysis, heads)
    return made


def _tokens(heads: Sequence[KvHead]) -> View:
    kept = [head.near.tokens for head in heads if head.near is not None]
    scale = Scale(min(kept), max(kept), log=True) if kept and min(kept) > 0 else Scale.over(kept)
    figures = []
    for head in heads:
        if head.near is None:
            figures.append(_exact(head, "all tokens"))
            continue
        tokens, far = head.near.tokens, head.choice.spec.far
        words = f"{counted(tokens, 'token')}: {near_words.words(head.near)}"
        words += f", order {far.order} for the rest" if isinstance(far, Taylor) else ""
        figures.append(Figure(tokens, f"{tokens}{'+' if isinstance(far, Taylor) else ''}", words, scale.step(tokens)))
    legend = ["+: a polynomial stands for all other tokens; without it they are dropped"]
    return View(
        "tokens kept",
        "Most tokens that each KV head keeps at once: the first ones (sinks), the last ones (window), and those kept "
        "by priority. Attention to them is exact. Few are bright, many are dark.",
        figures,
        where=" tokens",
        ticks=scale.ticks(lambda tokens: number(round(tokens))),
        bounds=[(tokens, number(tokens)) for tokens in sorted(set(kept))],
        legend=[*(legend if any(isinstance(head.choice.spec.far, Taylor) for head in heads) else []), *_reasons(heads)],
    )


def _bytes(heads: Sequence[KvHead], context: int) -> View:
    taken = [head.choice.nominal_bytes or 0 for head in heads]
    scale = Scale(min(taken), max(taken), log=min(taken) > 0)
    figures = [
        Figure(count, _short_size(count), f"{size(count)} at {counted(context, 'token')}", scale.step(count))
        for count in taken
    ]
    return View(
        "bytes",
        f"Nominal bytes that each KV head takes at {counted(context, 'token')}, in KiB: keys and values in 16 bits, "
        "the state of a polynomial in 32.",
        figures,
        ticks=scale.ticks(lambda count: size(round(count))),
        bounds=[(count, size(count)) for count in sorted(set(taken))],
    )


def _runs(heads: Sequence[KvHead]) -> View:
    marks = [_mark(head) for head in heads]
    counts = Counter(mark for mark, _, _ in marks)
    meanings = {mark: meaning for mark, meaning, _ in marks}
    return View(
        "what runs",
        "What each KV head runs in place of exact attention. Hatched: it stays exact.",
        [Figure(None, mark, meaning, step) for mark, meaning, step in marks],
        legend=[f"{mark}: {meanings[mark]} ({counted(count, 'KV head')})" for mark, count in counts.most_common()],
    )


def _mark(head: KvHead) -> tuple[str, str, int | None]:
    """How what a KV head runs is marked, what it means, and its colour."""
    far = head.choice.spec.far
    if isinstance(far, Exact):
        return (*explained(head.choice.reason), None)
    if isinstance(far, Taylor):
        return f"P{far.order}", f"a window and a polynomial of order {far.order} for all other keys", 50
    mark = near_words.mark(head.choice.spec.near)
    return mark, near_words.MEANINGS[mark], 10 if mark == near_words.WINDOW_MARK else 30


def _lost(heads: Sequence[KvHead]) -> View:
    errors = [None if head.near is None else head.choice.error for head in heads]
    scale = Scale.over(errors)
    figures = [
        _exact(head, "no error")
        if error is None
        else Figure(error, percent_cell(error), percent(error, 3), scale.step(error))
        for head, error in zip(heads, errors, strict=True)
    ]
    return View(
        "error of what runs",
        "Relative L2 error of each KV head's output with what was chosen for it, in percent, on the calibration text, "
        "one KV head replaced at a time.",
        figures,
        ticks=scale.ticks(percent),
        bounds=[(bound, percent(bound)) for bound, _ in even_bounds(errors)],
        legend=_reasons(heads),
    )


def _rest(heads: Sequence[KvHead]) -> View:
    scale = Scale.over([head.rest for head in heads])
    figures = [
        _exact(head, "nothing left out")
        if head.rest is None
        else Figure(head.rest, percent_cell(head.rest), f"{percent(head.rest)} left out", scale.step(head.rest))
        for head in heads
    ]
    return View(
        "attention left out",
        "Share of exact attention that would go to tokens which the KV head does not keep, in percent, the mean over "
        "the rows of the example text and over its query heads. Where it is small, few tokens suffice.",
        figures,
        ticks=scale.ticks(percent),
        bounds=[(bound, percent(bound)) for bound, _ in even_bounds([head.rest for head in heads])],
        legend=_reasons(heads),
    )


def _alpha(analysis: Analysis, heads: Sequence[KvHead]) -> View:
    of_layers = heat_map.of_alphas(analysis)
    figures = [of_layers[head.module.name]["qk"] for head in heads]
    return View(
        "alpha of the layer",
        "Power-law exponent of the weights that make queries and keys, the mean of both. It belongs to the layer: all "
        "KV heads of a row show the same figure. It played no part in the choice.",
        figures,
        where=" in alpha",
        ticks=Scale.over([figure.value for figure in figures]).ticks(lambda value: f"{value:.2f}"),
        bounds=even_bounds([figure.value for figure in figures]),
    )


def _deviation(analysis: Analysis, heads: Sequence[KvHead]) -> View:
    deviations = {(row.module, row.head): row.score_std for row in analysis.candidates}
    largest = [max(deviations[head.module.name, query] for query in head.heads) for head in heads]
    scale = Scale.over(largest)
    return View(
        "spread of scores",
        "Standard deviation of scores around their row's mean, the largest of the query heads: where it is large, few "
        "tokens get most of the attention.",
        [Figure(value, f"{value:.1f}", f"standard deviation {value:.2f}", scale.step(value)) for value in largest],
        ticks=scale.ticks(lambda value: f"{value:.1f}"),
        bounds=even_bounds(largest),
    )


def _exact(head: KvHead, what: str) -> Figure:
    mark, words = explained(head.choice.reason)
    return Figure(None, mark, f"{what}, {words}", None)


def _reasons(heads: Sequence[KvHead]) -> list[str]:
    """Why KV heads are exact, by their marks."""
    reasons = Counter(explained(head.choice.reason) for head in heads if head.near is None)
    return [f"{mark}: {meaning} ({counted(count, 'KV head')})" for (mark, meaning), count in reasons.most_common()]


def _short_size(count: int) -> str:
    """Kibibytes in few characters."""
    return f"{count / 1024:.1f}" if count < 10 * 1024 else f"{count / 1024:.0f}"
