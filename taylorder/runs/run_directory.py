"""A run directory: what ``analyze`` leaves behind and ``show`` reads back, exactly.

``orders.json`` (and its tensors) holds the config, ``heads.csv`` and ``spectral.csv`` the measurements, ``report.json``
the rest. The files of a run appear together or not at all: an old ``report.json`` is removed first and the new one
comes last, so a directory that has one is complete. Nothing is rendered here: pages and documents are
handed in.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from taylorder.adapt.config import OrderConfig
from taylorder.analysis.results import Analysis, CandidateRow, SpectralRow
from taylorder.errors import TaylorderError
from taylorder.evaluation.evaluate import Evaluation
from taylorder.kernels.spec import EXPANSIONS
from taylorder.models.description import ModelDescription
from taylorder.runs import run_files
from taylorder.runs.document import SCHEMA, ReportDocument, choice_record
from taylorder.runs.run_files import (
    FILES,
    LEVERS_FILE,
    PROBES_FILE,
    MissingRunError,
    RunDirectoryError,
    damaged,
    incomplete,
    unwritable,
)
from taylorder.runs.tables import read_levers as read_table
from taylorder.runs.tables import read_rows, write_levers, write_rows
from taylorder.selection.by_tolerance import HeadVerdict, Selection
from taylorder.selection.lever_costs import LeverCost
from taylorder.selection.policies import POLICIES
from taylorder.selection.probe_report import ProbeRow
from taylorder.selection.run_levers import LeverRun
from taylorder.storage.files import replacing_together
from taylorder.storage.finite_json import as_json
from taylorder.storage.strict_json import brief, explain, read_json

_OF_THE_CHOICE = {"budget", "tolerance", "rows_per_sequence", "max_order"}
"""Settings in which runs may differ that go on from the same measurements of levers."""


def write(
    directory: str | Path,
    analysis: Analysis,
    selection: Selection,
    levers: LeverRun | None = None,
    *,
    page: str,
    document: dict[str, Any],
) -> None:
    """Write a run, with its levers if there were any, into ``directory``, which is created if need be.

    ``page`` is the content of ``report.html``, and ``document`` that of ``report.json``.

    Raises:
        RunDirectoryError: the directory cannot be written.

    """
    directory = Path(directory)
    try:
        with replacing_together(directory, run_files.ALL, beside=(FILES["page"],)) as made:
            selection.config.save(made / FILES["orders"])
            write_rows(made / FILES["heads"], CandidateRow, analysis.candidates)
            write_rows(made / FILES["spectral"], SpectralRow, analysis.spectral)
            if levers is not None:
                write_levers(made / LEVERS_FILE, levers)
                if (probes := levers.summary.probes) is not None:
                    write_rows(made / PROBES_FILE, ProbeRow, probes.rows)
            (made / FILES["page"]).write_text(page, encoding="utf-8")
            (made / FILES["report"]).write_text(as_json(document), encoding="utf-8")
    except OSError as error:
        raise unwritable(directory, error) from error


def write_document(
    directory: str | Path, document_file: str, document: dict[str, Any], page_file: str, page: str
) -> None:
    """Write a document and its page: what was found out about one run, or about several together.

    Raises:
        RunDirectoryError: the directory cannot be written.

    """
    directory = Path(directory)
    try:
        with replacing_together(directory, (page_file, document_file)) as made:
            (made / page_file).write_text(page, encoding="utf-8")
            (made / document_file).write_text(as_json(document), encoding="utf-8")
    except OSError as error:
        raise unwritable(directory, error) from error


def read_budgets(directory: str | Path) -> list[tuple[str, str]]:
    """The budgets whose runs a directory holds, as they were asked for, each with its folder.

    Raises:
        RunDirectoryError: the document that names them is damaged.

    """
    path = Path(directory) / run_files.OF_BUDGETS[0]
    try:
        return [(str(run["budget"]), str(run["folder"])) for run in read_json(path)["runs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, str(error)) from None


def read(directory: str | Path) -> tuple[Analysis, Selection]:
    """Read a run back.

    Raises:
        RunDirectoryError: the directory is missing, incomplete or damaged.
        ConfigError: its ``orders.json`` is malformed.

    """
    directory = Path(directory)
    if not directory.exists():
        raise MissingRunError(f"{directory} does not exist; `taylorder analyze --out {directory}` makes one")
    if not directory.is_dir():
        raise MissingRunError(f"{directory} is no run, nor a file in one; name what `taylorder analyze --out` wrote")
    report = _read_report(directory / FILES["report"])
    config = OrderConfig.load(directory / FILES["orders"], report.model)
    candidates = read_rows(directory / FILES["heads"], CandidateRow)
    spectral = read_rows(directory / FILES["spectral"], SpectralRow)
    settings = report.settings
    analysis = Analysis(
        model=report.model,
        calibration=report.calibration,
        max_order=settings.max_order,
        window=settings.window,
        sinks=settings.sinks,
        candidates=candidates,
        spectral=spectral,
        preview=report.preview,
        key_centres=dict(config.key_centres),
    )
    return analysis, _selection(directory, analysis, config, report)


def read_levers(directory: str | Path) -> tuple[LeverCost, ...]:
    """What every candidate of every KV head of a run takes and loses; empty where no levers were measured.

    Raises:
        RunDirectoryError: the table is damaged.

    """
    path = Path(directory) / LEVERS_FILE
    return read_table(path) if path.exists() else ()


def read_evaluation(directory: str | Path) -> Evaluation | None:
    """Read the short evaluation of a run back; None if it was skipped.

    Raises:
        RunDirectoryError: the report is missing or damaged.

    """
    return _read_report(Path(directory) / FILES["report"]).evaluation


def read_model(directory: str | Path) -> ModelDescription | None:
    """The model that a run is about, as it was loaded; None where there is no whole run."""
    try:
        return _read_report(Path(directory) / FILES["report"]).model
    except TaylorderError:
        return None


@dataclass(frozen=True, slots=True)
class Replaced:
    """A finished run in the place of which another is to be written.

    ``lost``: it was chosen within a budget or by levers, from measurements that the other one cannot go on from.
    """

    sentence: str
    lost: bool = False


def replaces(directory: str | Path, *, model: ModelDescription, **settings: Any) -> Replaced | None:
    """What a run that is about to be measured will replace, and in what that differs; None where there is no run.

    Args:
        directory: where it will be written.
        model: what it is about.
        settings: how, by the names that report.json gives them.

    """
    path = Path(directory) / FILES["report"]
    if not path.exists():
        return None
    replaced = f"{directory} holds another run, which this one replaces when it is finished"
    try:
        report = _read_report(path)
    except TaylorderError as error:
        return Replaced(f"{replaced}: {str(error).partition(';')[0]}")
    there = {f.name: getattr(part, f.name) for part in (report.calibration, report.settings) for f in fields(part)}
    levers = report.levers
    there |= {"budget": levers and levers.budget, "levers": levers and levers.levers}
    there |= {"lever_length": levers and levers.sequence_length, "dtype": report.model.dtype}
    names = {"text_sha256": "text", "lever_length": "lever length"}
    changed = {name: value for name, value in (settings | {"dtype": model.dtype}).items() if there[name] != value}
    changes = [
        f"{names.get(name, name)} {_shortly(there[name])}, now {_shortly(value)}" for name, value in changed.items()
    ]
    other = report.model.fingerprint != model.fingerprint
    if other:
        what = f"of {report.model.name} ({report.model.fingerprint}), not {model.name} ({model.fingerprint})"
        changes.insert(0, what)
    if not changes:
        return Replaced(f"{directory} holds a run of these settings, which this one replaces when it is finished")
    lost = levers is not None and (other or not changed.keys() <= _OF_THE_CHOICE)
    return Replaced(f"{replaced}: {'; '.join(changes)}", lost)


def _shortly(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return "none" if value is None else str(value)[:12]


def _read_report(path: Path) -> ReportDocument:
    try:
        document = read_json(path)
    except FileNotFoundError:
        raise incomplete(path) from None
    except (OSError, ValueError) as error:
        raise damaged(path, str(error)) from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise RunDirectoryError(
            f"{path} has schema {brief(schema)}, this version reads '{SCHEMA}'; run `taylorder analyze` again"
        )
    try:
        return TypeAdapter(ReportDocument).validate_python(document)
    except ValidationError as error:
        raise damaged(path, explain(error)) from None


def _selection(directory: Path, analysis: Analysis, config: OrderConfig, report: ReportDocument) -> Selection:
    """Put the verdicts together again: choices from the config, candidates from the table."""
    made = {(head.module, head.head): head.choice for head in report.heads}
    choices = {(layer.module, head): choice for layer in config.layers for head, choice in enumerate(layer.heads)}
    if {(head.module, head.head) for head in report.heads} != set(choices):
        raise damaged(directory / FILES["report"], "its heads are not those of the model")
    for (module, number), choice in choices.items():
        if choice_record(choice) != made[module, number]:
            raise RunDirectoryError(
                f"{directory / FILES['orders']} is not the config that this run wrote (the first to differ is head "
                f"{number} of {module}), and the report would be about another; `taylorder eval` measures an edited "
                "config: keep it in a folder of its own"
            )
    rows = {(row.module, row.head, row.order, row.expansion): row for row in analysis.candidates}
    expected = len(choices) * len(EXPANSIONS) * analysis.max_order
    if len(rows) != expected:
        raise damaged(directory / FILES["heads"], f"{len(rows)} candidates, expected {expected}")
    heads = []
    for head in report.heads:
        best = None
        if head.best is not None:
            best = rows.get((head.module, head.head, head.best.order, head.best.expansion))
            if best is None:
                raise damaged(
                    directory / FILES["heads"],
                    f"no row for {head.module} head {head.head} at order {head.best.order}, {head.best.expansion}",
                )
        choice = choices[head.module, head.head]
        heads.append(
            HeadVerdict(head.module, head.head, head.kv_head, choice, best, head.needed_order, head.predicted_order)
        )
    settings = report.settings
    why = report.levers or (None if settings.policy == "levers" else POLICIES[settings.policy])
    if why is None:
        raise damaged(directory / FILES["report"], "its policy is levers, and it has none")
    return Selection(
        config=config,
        why=why,
        tolerance=settings.tolerance,
        context=settings.context,
        largest_order=settings.largest_order,
        heads=tuple(heads),
    )
