"""``taylorder analyze --inputs``: a model that sees or hears, or that both reads and writes, on inputs of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from taylorder.commands._shared import load_described, print_analysis, write_run
from taylorder.commands._stopping import kept
from taylorder.errors import UsageError
from taylorder.runs.subject import ToLoad
from taylorder.selection.settings import DEFAULTS, AnalyzeSettings

if TYPE_CHECKING:
    from taylorder.models.placement import Placement


def refuse_text_options(settings: AnalyzeSettings, *, text: bool, dry_run: bool) -> None:
    """Refuse options of an analysis that say something of text, or that need it."""
    refuse_beside_inputs(
        {
            "--text": text,
            "--max-tokens": settings.max_tokens != DEFAULTS.max_tokens,
            "--sequence-length": settings.sequence_length != DEFAULTS.sequence_length,
            "--budget": settings.budget is not None,
            "--levers": settings.levers is not None,
            "--dry-run": dry_run,
        }
    )


def refuse_beside_inputs(given: dict[str, bool]) -> None:
    """Refuse options about text that were given."""
    if unfit := [option for option, there in given.items() if there]:
        raise UsageError(f"{unfit[0]} is about text, and --inputs takes its place; leave out one of the two")


def analyze_on_inputs(
    model: str | None,
    files: Sequence[Path],
    settings: AnalyzeSettings,
    place: Placement,
    dtype: str,
    out: Path,
    output: str,
    *,
    evaluated: bool,
) -> None:
    """Load, measure, choose by tolerance, write and print; without losses, which such models have not."""
    from taylorder.reports.progress import StderrProgress
    from taylorder.storage import processes

    with StderrProgress() as progress:
        from taylorder.analysis.analyze import analyze as measure
        from taylorder.evaluation.evaluate import SHORT_SECONDS
        from taylorder.evaluation.on_inputs import evaluate_on_inputs
        from taylorder.models.inputs import Inputs
        from taylorder.selection.by_tolerance import select

        inputs = Inputs.of_files(files)
        loaded, description = load_described(ToLoad(model, dtype), place, progress, inputs=inputs)
        progress.say(f"measuring {description.shape} on {inputs.source} ({inputs.words})")
        measured = settings.measured()
        del measured["max_tokens"], measured["sequence_length"]
        analysis = measure(loaded.model, inputs=inputs, description=description, progress=progress, **measured)
        selection = select(analysis, policy=settings.policy, tolerance=settings.tolerance, context=settings.context)
        if not processes.is_first():
            return
        write_run(out, analysis, selection)
        evaluation = None
        if evaluated:
            progress.say(f"the analysis is in {out}; measuring how far outputs move (--no-eval skips this)")
            with kept(f"the analysis is kept in {out}, without that: `taylorder show {out}` prints it"):
                evaluation = evaluate_on_inputs(
                    loaded.model,
                    description,
                    selection.config,
                    inputs,
                    seconds=SHORT_SECONDS,
                    progress=progress,
                )
                write_run(out, analysis, selection, evaluation)
    print_analysis(analysis, selection, evaluation, out, output)
