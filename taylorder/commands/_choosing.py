"""From a measured model to a run directory: what is chosen under one limit, written, and what that does to the loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from taylorder.commands._shared import write_run
from taylorder.commands._stopping import kept
from taylorder.storage import processes

if TYPE_CHECKING:
    from taylorder.analysis.results import Analysis
    from taylorder.analysis.tokens import Tokens
    from taylorder.evaluation.evaluate import Evaluation
    from taylorder.models.loading import LoadedModel
    from taylorder.reports.progress import StderrProgress
    from taylorder.selection.by_tolerance import Selection
    from taylorder.selection.run_levers import LeverRun
    from taylorder.selection.settings import AnalyzeSettings


@dataclass(frozen=True)
class Measured:
    """A model and what was measured of its heads, from which one config or several are chosen."""

    loaded: LoadedModel
    tokens: Tokens
    analysis: Analysis
    progress: StderrProgress

    def choose(
        self, settings: AnalyzeSettings, out: Path, *, records: Path, fresh: bool, evaluated: bool
    ) -> tuple[Selection, Evaluation | None]:
        """Choose a config, write its run into ``out``, and measure what the model loses unless nobody asked.

        ``records`` is where levers that were measured are kept and found again, ``fresh`` forgets them. Of several
        processes the first writes, and measures what the model loses.
        """
        from taylorder.selection.by_tolerance import select

        context = settings.context or self.analysis.model.max_context
        selection = select(self.analysis, policy=settings.policy, tolerance=settings.tolerance, context=context)
        run = None
        if settings.with_levers:
            with kept(f"what was finished is kept in {records}: the same command goes on from there", errors=False):
                run = self._levers(settings, records, fresh)
                if processes.is_first():
                    run = self._with_example(run)
            selection = selection.with_levers(run.chosen.config, run.summary)
        if not processes.is_first():
            return selection, None
        write_run(out, self.analysis, selection, None, run)
        if not evaluated:
            return selection, None
        self.progress.say(f"the analysis is in {out}; measuring what the model loses (--no-eval skips this)")
        with kept(f"the analysis is kept in {out}, without losses: `taylorder show {out}` prints it"):
            evaluation = self._evaluation(selection, run, settings.seed)
            write_run(out, self.analysis, selection, evaluation, run)
        return selection, evaluation

    def _levers(self, settings: AnalyzeSettings, records: Path, fresh: bool) -> LeverRun:
        """What every KV head runs."""
        from taylorder.selection.run_levers import run_levers

        return run_levers(
            self.loaded.model,
            self.loaded.tokenizer,
            self.analysis.model,
            settings,
            text=self.tokens,
            records=records,
            fresh=fresh,
            progress=self.progress,
            say=self.progress.say,
        )

    def _with_example(self, run: LeverRun) -> LeverRun:
        """The same with what of a text is near to every KV head."""
        from taylorder.adapt.near_example import TOKENS, near_example

        length = min(TOKENS, self.analysis.model.max_context)
        example = near_example(self.loaded.model, self.loaded.tokenizer, run.chosen.config, self.tokens, length)
        return replace(run, summary=replace(run.summary, example=example))

    def _evaluation(self, selection: Selection, run: LeverRun | None, seed: int) -> Evaluation:
        from taylorder.evaluation.evaluate import LEVER_SECONDS, SHORT_LENGTH, SHORT_SECONDS, evaluate_shortly
        from taylorder.evaluation.evaluation_text import evaluation_text

        return evaluate_shortly(
            self.loaded.model,
            self.loaded.tokenizer,
            self.analysis.model,
            selection.config,
            text=evaluation_text,
            seed=seed,
            progress=self.progress,
            length=SHORT_LENGTH if run is None else run.summary.sequence_length,
            beside_window=run is not None,
            seconds=SHORT_SECONDS if run is None else LEVER_SECONDS,
        )
