"""``taylorder.report``: a run as a person reads it, in a notebook, in a script and as a page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from taylorder.analysis.results import Analysis
from taylorder.errors import UsageError
from taylorder.evaluation.evaluate import Evaluation
from taylorder.reports import analysis, html
from taylorder.reports.fragment import fragment
from taylorder.reports.render import plain_text
from taylorder.reports.sections import Section
from taylorder.runs import run_directory
from taylorder.selection.by_tolerance import Selection, select
from taylorder.storage.files import replacing


@dataclass(frozen=True, repr=False)
class Report:
    """A report: ``print`` writes it out, a notebook shows the summary and the map of the heads, ``save`` a page."""

    analysis: Analysis
    selection: Selection
    evaluation: Evaluation | None = None
    directory: Path | None = None

    @property
    def sections(self) -> tuple[Section, ...]:
        """What it says, as values."""
        return analysis.sections(self.analysis, self.selection, self.directory, self.evaluation)

    def __str__(self) -> str:
        return plain_text(self.sections)

    def __repr__(self) -> str:
        """One line."""
        names = ", ".join(section.name for section in self.sections)
        return f"<Report on {self.analysis.model.name}: {names}>"

    def _repr_html_(self) -> str:
        by_name = {section.name: section for section in self.sections}
        shown = by_name[self._map]
        return fragment([by_name["summary"], replace(shown, blocks=shown.blocks[:2])])  # the map, and what it means

    @property
    def _map(self) -> str:
        """The section with the decision for every head, or where all stay exact, with how far they are."""
        if self.selection.levers is not None:
            return "keeps"
        exact = all(head.choice.spec.runs == "exact" for head in self.selection.heads)
        return "errors" if exact else "orders"

    def save(self, path: str | Path) -> None:
        """Write the page, as ``report.html`` of a run directory."""
        page = html.render(self.analysis, self.selection, self.evaluation, None, self.directory)
        with replacing(Path(path)) as temporary:
            temporary.write_text(page, encoding="utf-8")


def report(
    run: Analysis | str | Path, selection: Selection | None = None, evaluation: Evaluation | None = None
) -> Report:
    """Make the report of an analysis, as ``taylorder analyze`` prints it, or of a run directory.

    >>> import taylorder
    >>> loaded = taylorder.load()
    >>> analysis = taylorder.analyze(loaded.model, loaded.tokenizer)
    >>> made = taylorder.report(analysis)  # at the end of a cell: a notebook shows the summary and a map of the heads
    >>> print(made)
    taylorder: smollm2-135m
    ...
    >>> made.save("report.html")

    Args:
        run: what :func:`taylorder.analyze` measured, or the directory that ``taylorder analyze --out`` wrote.
        selection: what was chosen, by :func:`taylorder.select` or :func:`taylorder.budget`; default what the first
            chooses with its defaults.
        evaluation: what the config costs in loss, by :func:`taylorder.evaluate`; default the report says that this was
            not measured.

    Returns:
        ``print`` it, let a notebook show it, or ``save`` it as a page.

    Raises:
        RunDirectoryError: the directory is missing, incomplete or damaged.
        UsageError: a directory was given and a selection or an evaluation too, of which it has its own.

    """
    if isinstance(run, Analysis):
        return Report(run, select(run) if selection is None else selection, evaluation)
    if selection is not None or evaluation is not None:
        raise UsageError(f"{run} is a run, which has a selection of its own; leave out selection and evaluation")
    measured, chosen = run_directory.read(run)
    return Report(measured, chosen, run_directory.read_evaluation(run), Path(run))
