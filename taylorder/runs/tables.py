"""The tables of a run as CSV. Floats are written with ``repr``, so they come back bit for bit; an absent figure is an
empty cell.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from taylorder.analysis.results import CandidateRow, SpectralRow
from taylorder.runs.run_files import damaged, incomplete
from taylorder.selection.lever_costs import LeverCost
from taylorder.selection.probe_report import ProbeRow
from taylorder.selection.run_levers import LeverRun
from taylorder.storage.strict_json import explain

_Row = TypeVar("_Row", CandidateRow, SpectralRow, ProbeRow)


def write_rows(path: Path, row_type: type[_Row], rows: Iterable[_Row]) -> None:
    """Write rows, one column per field."""
    columns = _columns(row_type)
    _write(path, columns, ([getattr(row, column) for column in columns] for row in rows))


def write_levers(path: Path, run: LeverRun) -> None:
    """Write what every candidate of every KV head was measured to be."""
    records = list(run.records())
    _write(path, list(records[0]), (record.values() for record in records))


def read_levers(path: Path) -> tuple[LeverCost, ...]:
    """Read back what every candidate of every KV head takes and loses."""
    costs: list[LeverCost] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            costs.extend(map(LeverCost.of, csv.DictReader(file, strict=True)))
    except FileNotFoundError:
        raise incomplete(path) from None
    except KeyError as error:
        raise damaged(path, f"column {error.args[0]} is missing") from None
    except (OSError, ValueError, TypeError, csv.Error) as error:  # UnicodeDecodeError is a ValueError
        raise damaged(path, f"line {len(costs) + 2}: {error}") from None
    return tuple(costs)


def _write(path: Path, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table; several numbers in one cell, such as ranks, have blanks between them."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")  # writes floats with repr and None as an empty cell
        writer.writerow(columns)
        for row in rows:
            writer.writerow([" ".join(map(str, cell)) if isinstance(cell, tuple) else cell for cell in row])


def _columns(row_type: type[_Row]) -> list[str]:
    return [field.name for field in fields(row_type)]


def read_rows(path: Path, row_type: type[_Row]) -> tuple[_Row, ...]:
    """Read rows back."""
    adapter: TypeAdapter[_Row] = TypeAdapter(row_type)
    names = set(_columns(row_type))
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
