"""The JSON document of a benchmark that is measured in pieces, perhaps by several processes at once."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taylorder.storage.files import replacing
from taylorder.storage.finite_json import as_json, finite

IDENTITY = ("model", "text", "length", "budget_bytes", "policy", "sequences", "task", "piece", "state")
"""Rows that agree on all of these are the same, measured again."""


def add(path: Path, sections: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
    """Put rows into sections of the document; those that are there already are replaced, and all others stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent):
        document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for section, rows in sections.items():
            known = {_identity(row): row for row in document.get(section, [])}
            document[section] = list((known | {_identity(row): dict(row) for row in rows}).values())
        with replacing(path) as temporary:
            temporary.write_text(as_json(finite(document)), encoding="utf-8")


def _identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in IDENTITY)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process writes there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def show(rows: Iterable[Mapping[str, Any]], beside: str) -> None:
    """Print rows, best first, with the difference to the row ``beside``."""
    for row in sorted(rows, key=lambda row: row["nll"]):
        delta = row.get(f"to {beside}")
        interval = "" if delta is None else f"{delta[0]:+.4f} [{delta[1]:+.4f}, {delta[2]:+.4f}]"
        needs = row.get("needs", "") if row.get("runnable", True) else "cannot be run"
        gap = f"{row['gap_closed']:5.0%}" if "gap_closed" in row else ""
        print(f"  {row['policy']:44s} nll {row['nll']:.4f}  {gap:5s} {interval:28s} kl {row['kl']:.4f}  {needs}")
