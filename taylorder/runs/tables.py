"""The tables of a run as CSV. Floats are written with ``repr``, so they come back bit for bit; an absent figure is an
empty cell.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from taylorder.analysis.results import CandidateRow, SpectralRow
from taylorder.runs.refusals import damaged, incomplete
from taylorder.selection.config_of import table_bytes
from taylorder.selection.lever_errors import LeverRow
from taylorder.selection.run_levers import LeverRun
from taylorder.storage.strict_json import explain

HEADS_COLUMNS = (
    "module", "head", "kv_head", "order", "expansion", "window", "sinks", "relative_l2", "rmse", "cosine", "max_error",
    "nonpositive_share", "score_mean", "score_std", "score_max",
)  # fmt: skip
SPECTRAL_COLUMNS = ("module", "projection", "alpha", "D", "sigma", "tail", "status", "alpha_low", "alpha_high")

_Row = TypeVar("_Row", CandidateRow, SpectralRow)


def _columns(row_type: type[_Row], first: Sequence[str]) -> list[str]:
    names: list[str] = [field.name for field in fields(row_type)]
    return [*first, *(name for name in names if name not in first)]


def write_rows(path: Path, row_type: type[_Row], first: Sequence[str], rows: Iterable[_Row]) -> None:
    """Write rows, the columns of the contract first."""
    columns = _columns(row_type, first)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")  # writes floats with repr and None as an empty cell
        writer.writerow(columns)
        writer.writerows([getattr(row, column) for column in columns] for row in rows)


def write_levers(path: Path, run: LeverRun) -> None:
    """One row per KV head and candidate; ``chosen`` is 1 for what the config runs."""
    table = run.table
    sizes = table_bytes(table, run.chosen.limit.context)
    settings = [candidate.columns() for candidate in table.candidates]
    figures = [field.name for field in fields(LeverRow) if field.name not in ("module", "kv_head", "candidate")]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["module", "kv_head", *settings[0], "nominal_bytes", *figures, "chosen"])
        for rows, row_bytes, taken in zip(table.rows(), sizes, run.chosen.choice, strict=True):
            for row, size in zip(rows, row_bytes, strict=True):
                values = settings[row.candidate].values()
                cells = [" ".join(map(str, value)) if isinstance(value, tuple) else value for value in values]
                measured = [getattr(row, name) for name in figures]
                writer.writerow([row.module, row.kv_head, *cells, size, *measured, int(row.candidate == taken)])


def read_rows(path: Path, row_type: type[_Row]) -> tuple[_Row, ...]:
    """Read rows back."""
    adapter: TypeAdapter[_Row] = TypeAdapter(row_type)
    names = set(_columns(row_type, ()))
    rows: list[_Row] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            missing = names - set(reader.fieldnames or ())
            if missing:
                raise damaged(path, f"column {min(missing)} is missing")
            for cells in reader:
                rows.append(adapter.validate_python({name: cells[name] or None for name in names}))
    except FileNotFoundError:
        raise incomplete(path) from None
    except ValidationError as error:
        raise damaged(path, f"line {len(rows) + 2}: {explain(error)}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise damaged(path, str(error)) from None
    return tuple(rows)
