"""What a run came to at a glance: what runs, the cache, the loss, and that loss beside one window of the same bytes.

The terminal opens with these four facts and the page with four tiles of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from taylorder.adapt.config import HeadOrder
from taylorder.analysis.losses import EXACT
from taylorder.analysis.results import Analysis
from taylorder.evaluation import rivals
from taylorder.evaluation.comparison import Comparison, Standing
from taylorder.evaluation.evaluate import Evaluation
from taylorder.reports import savings
from taylorder.reports.evaluation_words import (
    BETTER,
    WORSE,
    Judgement,
    bracket,
    by_chance,
    figure,
    judged,
    with_bracket,
)
from taylorder.reports.numbers import compact, counted, number, percent, size
from taylorder.selection.by_tolerance import Selection

WINDOW, KEEPING, POLYNOMIAL = "a window", "a window and kept keys", "a polynomial"
"""What KV heads run that are not exact."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One of the four: its name, the figure to look at first, what that means, and what its interval says, if any."""

    name: str
    value: str
    meaning: str
    judgement: Judgement | None = None

    @property
    def sentence(self) -> str:
        """What it means, with what the interval says."""
        return ", ".join(filter(None, (self.meaning, self.judgement)))

    @property
    def line(self) -> str:
        """All but the name."""
        return f"{self.value}{' ' if self.meaning.startswith('[') else ': '}{self.sentence}"

    @property
    def short(self) -> str:
        """The figure, and what its interval says."""
        return ", ".join(filter(None, (self.value, self.judgement)))


@dataclass(frozen=True, slots=True)
class Headline:
    """The figures behind the four facts.

    ``kv_heads`` may be truncated, and where there are none ``why_none`` says why; ``runs`` counts those that are not
    exact by what they run instead. ``exact_cost`` and ``cost`` are nominal bytes of all caches at ``context`` tokens,
    or multiplications of an encoder.
    ``comparison`` has the losses on other text, None where none were measured; ``kl`` is that to exact on the
    calibration text, None where it was not what the config was chosen by.
    """

    kv_heads: int
    runs: tuple[tuple[str, int], ...]
    context: int
    causal: bool
    exact_cost: int
    cost: int
    comparison: Comparison | None
    kl: float | None
    why_none: str

    @property
    def replaced(self) -> int:
        """KV heads that do not run exact attention."""
        return sum(count for _, count in self.runs)

    def standing(self, name: str) -> Standing | None:
        """How a contender did on other text."""
        return None if self.comparison is None else self.comparison.standing(name)

    @property
    def facts(self) -> tuple[Fact, Fact, Fact, Fact]:
        """What runs, what it takes, what that does to the loss, and whether one window would have done as well."""
        return self._what_runs(), self._cache(), self._loss(), self._beside_window()

    @property
    def caution(self) -> str | None:
        """How often so few sequences agree by chance, where they decided something."""
        if self.comparison is None or not any(fact.judgement in {BETTER, WORSE} for fact in self.facts):
            return None
        return by_chance(self.comparison)

    def _what_runs(self) -> Fact:
        if not self.kv_heads:
            return Fact("what runs", "exact everywhere", self.why_none)
        if not self.replaced:
            return Fact("what runs", "exact everywhere", f"all {counted(self.kv_heads, 'KV head')} stay as they are")
        kinds = ", ".join(f"{number(count)} {kind}" for kind, count in self.runs)
        exact = self.kv_heads - self.replaced
        rest = f", {number(exact)} exact attention" if exact else ""
        value = f"{number(self.replaced)} of {counted(self.kv_heads, 'KV head')} replaced"
        return Fact("what runs", value, f"{kinds}{rest}")

    def _cache(self) -> Fact:
        written = size if self.causal else compact
        name = "KV cache" if self.causal else "multiplications"
        unit = "nominal bytes of all KV heads" if self.causal else "multiplications of attention"
        meaning = f"{unit} at {counted(self.context, 'token')}"
        if self.cost == self.exact_cost:
            return Fact(name, written(self.cost), f"as much as exact attention, {meaning}")
        change = self.cost / max(self.exact_cost, 1) - 1
        more = f"{percent(abs(change))} {'less' if change < 0 else 'more'}"
        return Fact(name, f"{written(self.cost)} instead of {written(self.exact_cost)}", f"{more}, {meaning}")

    def _loss(self) -> Fact:
        name = "loss" if self.causal else "final hidden states"
        if not self.replaced:
            return Fact(name, "unchanged", "it is the exact model")
        config, exact = self.standing(rivals.CONFIG), self.standing(EXACT)
        if self.comparison is None or config is None or exact is None:
            meaning = "`taylorder eval` measures it, on other text"
            if self.kl is not None:
                meaning += f"; on the calibration text the KL to exact is {figure(self.kl)} nats per token"
            return Fact(name, "not measured", meaning)
        where = f"on {counted(self.comparison.sequences, 'sequence')} of {counted(self.comparison.length, 'token')}"
        if config.failure is not None:
            return Fact(name, "breaks down", f"{config.failure}, {where}")
        if config.nll is None or exact.nll is None or config.delta_exact is None:
            moved = percent(config.hidden_relative_l2 or 0.0)
            return Fact("final hidden states", f"moved by {moved}", f"relative L2 {where}")
        change = config.delta_exact
        meaning = f"{with_bracket(change, signed=True)} nats per token {where} of other text"
        value = f"{figure(config.nll.estimate)} instead of {figure(exact.nll.estimate)}"
        return Fact("loss", value, meaning, judged(change))

    def _beside_window(self) -> Fact:
        name, config, window = "against one window", self.standing(rivals.CONFIG), self.standing(rivals.WINDOW)
        if not self.replaced:
            return Fact(name, "nothing to compare", "exact attention runs everywhere")
        if not self.causal:
            return Fact(name, "nothing to compare", "an encoder has no cache whose bytes a window could take")
        if config is None or window is None:
            return Fact(name, "not measured", "`taylorder eval` measures a window of the same bytes for all KV heads")
        exact = self.standing(EXACT)
        if exact is not None and window.nominal_bytes == exact.nominal_bytes:
            return Fact(name, "exact fits", "these bytes hold the whole KV cache: exact attention is the better use")
        if config.delta_window is None:
            return Fact(name, "no figure", window.failure or config.failure or "one of the two has no loss")
        interval = bracket(config.delta_window, signed=True)
        meaning = f"{interval} nats per token beside sinks and one window of the same bytes for all KV heads".lstrip()
        return Fact(name, figure(config.delta_window.estimate, signed=True), meaning, judged(config.delta_window))


def headline(analysis: Analysis, selection: Selection, evaluation: Evaluation | None = None) -> Headline:
    """The figures of a run; ``evaluation`` is the short one that ended it, None if it was skipped."""
    modules = {module.name: module for module in analysis.model.open_modules}
    layers = {layer.module: layer.heads for layer in selection.config.layers}
    runs = Counter(_kind(group) for name, module in modules.items() for group in module.groups(layers[name]))
    exact, cost = savings.saved(analysis, selection)
    rounds = () if selection.levers is None else selection.levers.rounds
    compared = () if evaluation is None else evaluation.comparisons
    return Headline(
        kv_heads=sum(module.kv_heads for module in modules.values()),
        runs=tuple((kind, runs[kind]) for kind in (WINDOW, KEEPING, POLYNOMIAL) if runs[kind]),
        context=selection.context,
        causal=analysis.model.causal,
        exact_cost=exact,
        cost=cost,
        comparison=compared[0] if compared else None,
        kl=min((measured.kl for measured in rounds), default=None),
        why_none=analysis.model.why_none_open,
    )


def _kind(group: Sequence[HeadOrder]) -> str | None:
    """What the heads of a KV head run; None for exact."""
    runs = {head.spec.runs for head in group}
    if "exact" in runs:
        return None
    return POLYNOMIAL if "taylor" in runs else KEEPING if group[0].spec.near.kept else WINDOW
