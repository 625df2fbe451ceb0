"""A run directory: what ``analyze`` leaves behind and ``show`` reads back, exactly.

``orders.json`` (and its tensors) holds the config, ``heads.csv`` and ``spectral.csv`` the measurements, ``report.json``
the rest. Floats are written with ``repr``, so they come back bit for bit; an absent figure is an empty cell. The files
of a run appear together or not at all; ``report.json`` goes first and comes last, so a directory that has one is
complete.
"""

from __future__ import annotations

import csv
import errno
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from taylorder.adapt.config import OrderConfig
from taylorder.analysis.results import Analysis, CandidateRow, SpectralRow
from taylorder.errors import TaylorderError
from taylorder.evaluation.evaluate import Evaluation
from taylorder.kernels.spec import EXPANSIONS
from taylorder.models.description import ModelDescription
from taylorder.reports import claims, html
from taylorder.reports.claims import ClaimsReport
from taylorder.reports.document import SCHEMA, ReportDocument, as_document, as_json, choice_record
from taylorder.runs import run_files
from taylorder.runs.run_files import CLAIMS_FILE, FILES, LEVERS_FILE
from taylorder.selection.by_tolerance import HeadVerdict, Selection
from taylorder.selection.config_of import table_bytes
from taylorder.selection.lever_errors import LeverRow
from taylorder.selection.policies import POLICIES
from taylorder.selection.run_levers import LeverRun
from taylorder.storage.files import replacing_together
from taylorder.storage.strict_json import brief, explain, read_json

_HEADS_COLUMNS = (
    "module", "head", "kv_head", "order", "expansion", "window", "sinks", "relative_l2", "rmse", "cosine", "max_error",
    "nonpositive_share", "score_mean", "score_std", "score_max",
)  # fmt: skip
_SPECTRAL_COLUMNS = ("module", "projection", "alpha", "D", "sigma", "tail", "status", "alpha_low", "alpha_high")

_Row = TypeVar("_Row", CandidateRow, SpectralRow)


class RunDirectoryError(TaylorderError):
    """A directory is not a complete run of ``taylorder analyze``."""


def write(
    directory: str | Path,
    analysis: Analysis,
    selection: Selection,
    evaluation: Evaluation | None = None,
    levers: LeverRun | None = None,
) -> None:
    """Write a run, with its short evaluation and its levers if there were any, into ``directory``.

    The directory is created if need be.

    Raises:
        RunDirectoryError: the directory cannot be written.

    """
    directory = Path(directory)
    try:
        with replacing_together(directory, run_files.ALL, beside=(FILES["page"],)) as made:
            selection.config.save(made / FILES["orders"])
            _write_rows(made / FILES["heads"], CandidateRow, _HEADS_COLUMNS, analysis.candidates)
            _write_rows(made / FILES["spectral"], SpectralRow, _SPECTRAL_COLUMNS, analysis.spectral)
            if levers is not None:
                _write_levers(made / LEVERS_FILE, levers)
            html.write(made / FILES["page"], analysis, selection, evaluation, None, directory)
            document = as_json(as_document(analysis, selection, None, evaluation))
            (made / FILES["report"]).write_text(document, encoding="utf-8")
    except OSError as error:
        raise unwritable(directory, error) from error


def read(directory: str | Path) -> tuple[Analysis, Selection]:
    """Read a run back.

    Raises:
        RunDirectoryError: the directory is missing, incomplete or damaged.
        ConfigError: its ``orders.json`` is malformed.

    """
    directory = Path(directory)
    if not directory.exists():
        raise RunDirectoryError(f"{directory} does not exist; `taylorder analyze --out {directory}` makes one")
    if not directory.is_dir():
        raise RunDirectoryError(f"{directory} is no run, nor a file in one; name what `taylorder analyze --out` wrote")
    report = _read_report(directory / FILES["report"])
    config = OrderConfig.load(directory / FILES["orders"], report.model)
    candidates = _read_rows(directory / FILES["heads"], CandidateRow)
    spectral = _read_rows(directory / FILES["spectral"], SpectralRow)
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


def read_evaluation(directory: str | Path) -> Evaluation | None:
    """Read the short evaluation of a run back; None if it was skipped.

    Raises:
        RunDirectoryError: the report is missing or damaged.

    """
    return _read_report(Path(directory) / FILES["report"]).evaluation


def replaces(directory: str | Path, *, model: ModelDescription, **settings: Any) -> str | None:
    """What a run that is about to be measured will replace: another model's, or one of other settings.

    Args:
        directory: where it will be written.
        model: what it is about.
        settings: how, by the names that report.json gives them.

    Returns:
        None where there is no run, or one that these settings would give again.

    """
    path = Path(directory) / FILES["report"]
    if not path.exists():
        return None
    replaced = f"{directory} holds another run, which this one replaces when it is finished"
    try:
        report = _read_report(path)
    except TaylorderError as error:
        return f"{replaced}: {str(error).partition(';')[0]}"
    there = {f.name: getattr(part, f.name) for part in (report.calibration, report.settings) for f in fields(part)}
    there["budget"] = None if report.levers is None else report.levers.budget
    names = {"text_sha256": "text"}
    changes = [
        f"{names.get(name, name)} {_shortly(there[name])}, now {_shortly(value)}"
        for name, value in settings.items()
        if there[name] != value
    ]
    if report.model.fingerprint != model.fingerprint:
        what = f"of {report.model.name} ({report.model.fingerprint}), not {model.name} ({model.fingerprint})"
        changes.insert(0, what)
    if not changes:
        return None
    return f"{replaced}: {'; '.join(changes)}"


def _shortly(value: Any) -> str:
    return "none" if value is None else str(value)[:12]


def write_claims(directory: str | Path, report: ClaimsReport) -> None:
    """Keep claims beside a finished run, and put it on its page.

    Raises:
        RunDirectoryError: the directory cannot be written, or holds no finished run.

    """
    directory = Path(directory)
    analysis, selection = read(directory)
    try:
        with replacing_together(directory, (FILES["page"], CLAIMS_FILE)) as made:
            html.write(made / FILES["page"], analysis, selection, read_evaluation(directory), report.claims, directory)
            (made / CLAIMS_FILE).write_text(as_json(claims.as_document(report)), encoding="utf-8")
    except OSError as error:
        raise unwritable(directory, error) from error


def unwritable(directory: Path, error: OSError) -> RunDirectoryError:
    """What to say where files of a directory could not be replaced."""
    reason = error.strerror or str(error)
    if error.errno == errno.EISDIR:
        reason += f": {error.filename}"
    return RunDirectoryError(f"{directory} cannot be written ({reason}) and keeps what it had; name another with --out")


def _columns(row_type: type[_Row], first: Sequence[str]) -> list[str]:
    names: list[str] = [each.name for each in fields(row_type)]
    return [*first, *(name for name in names if name not in first)]


def _write_rows(path: Path, row_type: type[_Row], first: Sequence[str], rows: Iterable[_Row]) -> None:
    columns = _columns(row_type, first)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")  # writes floats with repr and None as an empty cell
        writer.writerow(columns)
        writer.writerows([getattr(row, column) for column in columns] for row in rows)


def _write_levers(path: Path, run: LeverRun) -> None:
    """One row per KV head and candidate; ``chosen`` is 1 for what the config runs."""
    table = run.table
    sizes = table_bytes(table, run.chosen.limit.context)
    settings = [candidate.columns() for candidate in table.candidates]
    figures = [each.name for each in fields(LeverRow) if each.name not in ("module", "kv_head", "candidate")]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["module", "kv_head", *settings[0], "nominal_bytes", *figures, "chosen"])
        for rows, own, taken in zip(table.rows(), sizes, run.chosen.choice, strict=True):
            for row, size in zip(rows, own, strict=True):
                values = settings[row.candidate].values()
                cells = [" ".join(map(str, value)) if isinstance(value, tuple) else value for value in values]
                measured = [getattr(row, name) for name in figures]
                writer.writerow([row.module, row.kv_head, *cells, size, *measured, int(row.candidate == taken)])


def _read_rows(path: Path, row_type: type[_Row]) -> tuple[_Row, ...]:
    adapter: TypeAdapter[_Row] = TypeAdapter(row_type)
    names = set(_columns(row_type, ()))
    rows: list[_Row] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            missing = names - set(reader.fieldnames or ())
            if missing:
                raise _damaged(path, f"column {min(missing)} is missing")
            for cells in reader:
                rows.append(adapter.validate_python({name: cells[name] or None for name in names}))
    except FileNotFoundError:
        raise _incomplete(path) from None
    except ValidationError as error:
        raise _damaged(path, f"line {len(rows) + 2}: {explain(error)}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _damaged(path, str(error)) from None
    return tuple(rows)


def _read_report(path: Path) -> ReportDocument:
    try:
        document = read_json(path)
    except FileNotFoundError:
        raise _incomplete(path) from None
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    found = document.get("schema") if isinstance(document, dict) else None
    if found != SCHEMA:
        raise RunDirectoryError(
            f"{path} has schema {brief(found)}, this version reads '{SCHEMA}'; run `taylorder analyze` again"
        )
    try:
        return TypeAdapter(ReportDocument).validate_python(document)
    except ValidationError as error:
        raise _damaged(path, explain(error)) from None


def _selection(directory: Path, analysis: Analysis, config: OrderConfig, report: ReportDocument) -> Selection:
    """Put the verdicts together again: choices from the config, candidates from the table."""
    made = {(head.module, head.head): head.choice for head in report.heads}
    choices = {(layer.module, head): each for layer in config.layers for head, each in enumerate(layer.heads)}
    if {(head.module, head.head) for head in report.heads} != set(choices):
        raise _damaged(directory / FILES["report"], "its heads are not those of the model")
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
        raise _damaged(directory / FILES["heads"], f"{len(rows)} candidates, expected {expected}")
    heads = []
    for head in report.heads:
        best = None
        if head.best is not None:
            best = rows.get((head.module, head.head, head.best.order, head.best.expansion))
            if best is None:
                raise _damaged(
                    directory / FILES["heads"],
                    f"no row for {head.module} head {head.head} at order {head.best.order}, {head.best.expansion}",
                )
        heads.append(
            HeadVerdict(
                module=head.module,
                head=head.head,
                kv_head=head.kv_head,
                choice=choices[head.module, head.head],
                best=best,
                needed_order=head.needed_order,
                predicted_order=head.predicted_order,
            )
        )
    settings = report.settings
    why = report.levers or (None if settings.policy == "levers" else POLICIES[settings.policy])
    if why is None:
        raise _damaged(directory / FILES["report"], "its policy is levers, and it has none")
    return Selection(
        config=config,
        why=why,
        tolerance=settings.tolerance,
        context=settings.context,
        largest_order=settings.largest_order,
        heads=tuple(heads),
    )


def _incomplete(path: Path) -> RunDirectoryError:
    if (path.parent / "config.json").is_file():
        return RunDirectoryError(f"{path.parent} is a model, not a run; `taylorder analyze {path.parent}` makes a run")
    return RunDirectoryError(
        f"{path.parent} has no {path.name}, so no run was finished there; "
        f"`taylorder analyze --out {path.parent}` makes one"
    )


def _damaged(path: Path, what: str) -> RunDirectoryError:
    return RunDirectoryError(f"{path} is damaged ({what}); `taylorder analyze --out {path.parent}` writes it anew")
