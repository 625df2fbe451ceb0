"""The stages of ``taylorder analyze`` under given settings, with their work: formulas that follow what the code does.

What they lead to, held against real runs, stands in docs/limits.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from taylorder.adapt.probe import probe_width
from taylorder.analysis import analyze
from taylorder.analysis.projections import head_slices, projection_weights
from taylorder.analysis.truncation import BLOCK_ELEMENTS, BLOCK_ROWS
from taylorder.evaluation.evaluate import (
    LEVER_SECONDS,
    SHORT_LENGTH,
    SHORT_SECONDS,
    SHORT_SEQUENCES,
)
from taylorder.evaluation.plan import adapted_run, comparison_stage, exact_run, module_bytes, query_heads
from taylorder.kernels.spec import EXPANSIONS, Dropped, Exact, Taylor
from taylorder.models.description import ModelDescription
from taylorder.selection import lever_table, probe_report, probes, refine, under_limit
from taylorder.selection.candidates import Candidate
from taylorder.selection.near_sizes import kept_share
from taylorder.selection.recomputing import goes_by_layer, remembered_bytes, widest
from taylorder.selection.run_levers import offer, probe_tokens, sequence_count
from taylorder.selection.settings import AnalyzeSettings
from taylorder.storage.stages import Stage, StagePlan, Work, together

BOTH_WAYS, TWICE = 2.0, 3.0
"""Forward and backward to the inputs alone, in forward passes; and where layers run a second time on the way back."""

LOSS_GRADIENT, KL_GRADIENT = 2.5, 3.3
"""What the gradient of a loss costs, in losses."""

IN_REACH = 0.1
"""Share of the candidates that a config tried is compared with: those in reach that no other was measured to beat."""

ADAPTED_BOTH_WAYS = 3.0
"""Attention of an adapted model, forward and backward, in passes of a near field over its scores."""

_COPIES = 24
"""Of the scores of a block, in float64, with what is made of them."""

ROW_BYTES, RUN_BYTES = 270, 2**20
"""Of a head and candidate in heads.csv, report.html and report.json together; and of everything else in a run."""


@dataclass(frozen=True, slots=True)
class ModelAndText:
    """What a plan is about: a model, and the tokens of the calibration text.

    ``kinds`` of text are there beside each other where levers are measured.
    """

    model: Any
    description: ModelDescription
    tokens: int
    kinds: int = 1


def analysis_plan(subject: ModelAndText, settings: Sequence[AnalyzeSettings], *, evaluated: bool) -> StagePlan:
    """The stages of an analysis, one after the other as they will run, for one budget or several.

    Args:
        subject: the model and its text.
        settings: of each budget, in order; they differ in it alone.
        evaluated: whether losses are measured at the end.

    Raises:
        UsageError: a limit cannot be kept.
        UnsupportedModelError: levers are asked for, and nothing could be exchanged for something else.

    """
    description, first = subject.description, settings[0]
    stages = [_spectra(subject, first), _heads(subject, first)]
    memory, spilled = _heads_memory(subject, first), 0
    if first.with_levers:
        levers = _Levers.of(subject, first)
        stages += levers.measured()
        memory, spilled = max(memory, levers.memory()), levers.spilled()
    for one in settings:
        name = one.budget.given if one.budget is not None and len(settings) > 1 else ""
        if first.with_levers and one.budget is not None:
            stages += levers.chosen(name)
        if evaluated and description.open_modules:
            length = levers.length if first.with_levers else min(SHORT_LENGTH, description.max_context)
            most = LEVER_SECONDS if first.with_levers else SHORT_SECONDS
            stages.append(comparison_stage(description, length, SHORT_SEQUENCES, 2, budget=name, most=most))
    rows = sum(module.heads for module in description.modules) * len(EXPANSIONS) * first.max_order
    disk = len(settings) * (rows * ROW_BYTES + RUN_BYTES) + _records(subject, first) + spilled
    return StagePlan(tuple(stages), memory, disk)


def _spectra(subject: ModelAndText, settings: AnalyzeSettings) -> Stage:
    modules, typical = subject.description.modules, subject.description.typical
    weights = projection_weights(subject.model, typical.name)
    matrices = list(weights.values())
    if settings.per_head_alpha:
        for name, weight in weights.items():
            parts = head_slices(weight, name, typical.heads, typical.kv_heads)
            matrices += [part for _, part in parts]
    work = sum(max(matrix.shape) * min(matrix.shape) ** 2 for matrix in matrices)
    about = f"alphas of {len(matrices)} projections in each of {len(modules)} layers"
    return Stage(analyze.SPECTRA, about, {"spectrum": float(len(modules) * work)})


def _heads(subject: ModelAndText, settings: AnalyzeSettings) -> Stage:
    description = subject.description
    length, sequences = _sequences(subject, settings)
    rows = min(settings.rows or length, length)
    seen = length / 2 if description.causal else length
    terms = len(EXPANSIONS) * settings.max_order
    if description.causal and settings.near is None:
        terms += min(settings.max_order, analyze.PREVIEW_ORDERS[-1])  # a small near field beside none
    heads = sum(module.heads * module.calls for module in description.modules)
    work = together(exact_run(sequences * length, length), {"term": sequences * rows * seen * heads * terms})
    about = f"errors of orders 1 to {settings.max_order} on {rows} rows of {sequences} sequences of {length} tokens"
    return Stage(analyze.HEADS, about, work)


def _sequences(subject: ModelAndText, settings: AnalyzeSettings) -> tuple[int, int]:
    length = min(settings.sequence_length, subject.description.max_context)
    return length, max(1, min(settings.max_tokens, subject.tokens) // length)


def _heads_memory(subject: ModelAndText, settings: AnalyzeSettings) -> int:
    """All sequences run at once: some copies of what a layer makes of a token, beside blocks of scores."""
    length, sequences = _sequences(subject, settings)
    scores = min(BLOCK_ELEMENTS, BLOCK_ROWS * subject.description.typical.heads * length)
    return sequences * length * widest(subject.model) * 4 + scores * 8 * _COPIES


def _records(subject: ModelAndText, settings: AnalyzeSettings) -> int:
    """Finished pieces: what probes are solved from, per sequence, is by far the most."""
    if not settings.with_levers:
        return 0
    keep = any(candidate.spec.near.kept for candidate in offer(subject.description, settings)[0])
    modules, sequences = subject.description.open_modules, probes.FITTED if keep else 0
    return sum(
        # Rows and rounds; two rotations in float32; the moment of the probe's features in float64.
        module.kv_heads
        * (2**14 + 8 * module.head_dim**2 + sequences * 8 * probe_width(module.head_dim, module.value_dim) ** 2)
        for module in modules
    )


@dataclass(frozen=True, slots=True)
class _Levers:
    """The part of a run that levers ask for."""

    subject: ModelAndText
    settings: AnalyzeSettings
    offered: tuple[Candidate, ...]
    length: int
    sequences: int

    @classmethod
    def of(cls, subject: ModelAndText, settings: AnalyzeSettings) -> _Levers:
        offered, length = offer(subject.description, settings)
        return cls(subject, settings, offered, length, sequence_count(settings, length))

    @property
    def tokens(self) -> int:
        return self.sequences * self.length

    @property
    def by_layer(self) -> bool:
        """Whether layers run twice on the way back."""
        return goes_by_layer(self.subject.model, self.length)

    @property
    def both_ways(self) -> float:
        return TWICE if self.by_layer else BOTH_WAYS

    @property
    def near(self) -> list[Candidate]:
        """Candidates that are near fields, with a constant for the rest or none."""
        return [one for one in self.offered if isinstance(one.spec.far, Dropped) or _order(one) == 1]

    @property
    def polynomials(self) -> list[Candidate]:
        return [one for one in self.offered if _order(one) > 1]

    def scores(self, tokens: int, length: int) -> float:
        """Scores of all query heads."""
        return float(tokens * length * query_heads(self.subject.description))

    def measured(self) -> list[Stage]:
        """What all budgets share."""
        description = self.subject.description
        stages = self._probes() if any(one.spec.near.kept for one in self.offered) else []
        both_ways = together(exact_run(self.tokens, self.length), times=self.both_ways)
        about = f"gradients of the loss on {self.sequences} sequences of {self.length} tokens"
        backward = together(both_ways, {"loss": LOSS_GRADIENT * self.tokens})
        stages.append(Stage(lever_table.BACKWARD, about, backward))
        kv_heads = sum(module.kv_heads for module in description.open_modules)
        work: Work = {
            # Beside each polynomial its bytes are given to a window.
            "near": self.scores(self.tokens, self.length) * (len(self.near) + len(self.polynomials)),
            "polynomial": self.tokens * query_heads(description) * len(self.polynomials),
        }
        about = f"errors of {len(self.offered)} candidates for each of {kv_heads} KV heads"
        return [*stages, Stage(lever_table.LEVERS, about, work)]

    def _probes(self) -> list[Stage]:
        description = self.subject.description
        available = min(self.subject.kinds * self.subject.tokens, probe_tokens(self.settings))
        length, count, judged = probes.probe_sizes(available, description)

        def stage(name: str, about: str, sequences: int) -> Stage:
            tokens = sequences * length
            work = together(exact_run(tokens, length), {"use": self.scores(tokens, length)})
            return Stage(name, f"{about} {sequences} sequences of {length} tokens", work)

        stages = [stage(probes.STAGE, "which keys are used, learnt from", count - judged)]
        return stages + [stage(probe_report.STAGE, "the same judged on", judged)] * bool(judged)

    def chosen(self, budget: str) -> list[Stage]:
        """What is done for each budget."""
        description = self.subject.description
        shares = len({kept_share(one.spec.near) for one in self.near if isinstance(one.spec.far, Dropped)})
        run, scores = adapted_run(description, self.tokens, self.length), self.scores(self.tokens, self.length)
        stages = []
        if shares > 1:
            work = together(together(run, {"loss": self.tokens}, times=shares), exact_run(self.tokens, self.length))
            stages.append(Stage(under_limit.UNIFORM, f"one near field everywhere, {shares} kinds", work, budget))
        starts = min(shares, under_limit.STARTS) if shares > 1 else 1
        rest = len(self.near) + len(self.polynomials) > self._plain
        rounds = under_limit.most_rounds(starts, more=rest)
        per_round = together(
            {
                "token": self.both_ways * self.tokens,
                "loss": KL_GRADIENT * self.tokens,
                "near": scores * (ADAPTED_BOTH_WAYS + IN_REACH * len(self.near)),
            }
        )
        reads = (refine.MORE_ROUNDS + 1) * IN_REACH * len(self.polynomials) * self.tokens * query_heads(description)
        work = together(together(per_round, times=rounds), {"polynomial": reads})
        stages.append(Stage(refine.MOVING, f"at most {rounds} configs, each measured whole", work, budget))
        return stages

    @property
    def _plain(self) -> int:
        """Candidates of the first part of the scheme, exact attention aside."""
        alone = under_limit.near_fields_alone(self.offered)
        return sum(not isinstance(self.offered[index].spec.far, Exact) for index in alone)

    def memory(self) -> int:
        """What was observed of one layer on all sequences, twice, or what is remembered of one on the way back."""
        on_the_way = remembered_bytes(self.subject.model, self.length, by_layer=self.by_layer)
        return max(2 * self.spilled() // len(self.subject.description.open_modules), on_the_way)

    def spilled(self) -> int:
        """Bytes on disk of what was observed of all layers on all sequences, until it is their turn."""
        return self.tokens * module_bytes(self.subject.description)


def _order(candidate: Candidate) -> int:
    return candidate.spec.far.order if isinstance(candidate.spec.far, Taylor) else 0
