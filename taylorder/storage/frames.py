"""Values as pandas tables, and what a notebook shows of them. pandas is imported only when one is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from html import escape
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pandas import DataFrame

_ROWS, _COLUMNS = 10, 12
"""What a notebook shows of a table; the rest is an ellipsis in its middle."""


class Tabular(Protocol):
    """A value with a table."""

    def to_frame(self) -> DataFrame:
        """The value as a table."""


def frame(records: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> DataFrame:
    """One row per record; ``columns`` are their keys in order where there may be no record to take them from."""
    import pandas

    return pandas.DataFrame.from_records(list(records), columns=columns)


def frame_of(row_type: type, rows: Iterable[Any]) -> DataFrame:
    """One row per dataclass value and one column per field, in the order of the fields."""
    columns = [field.name for field in fields(row_type)]
    return frame(({name: getattr(row, name) for name in columns} for row in rows), columns)


def as_html(value: Tabular) -> str:
    """What a notebook shows of a value: the line that ``repr`` gives, and the ends of its table, no empty columns."""
    table = value.to_frame().dropna(axis="columns", how="all")
    table = table.to_html(max_rows=_ROWS, max_cols=_COLUMNS, index=False, border=0)
    return f"<p>{escape(repr(value))}</p>\n{table}"
