"""The records of a sweep, one JSON line each, so that an interrupted sweep goes on where it was."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from taylorder.storage.files import replacing

Key = tuple[str, str]


class Log:
    """A file to which records are added; of two records of one run the later holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.versions = {name: version(name) for name in ("taylorder", "torch", "transformers")}

    def records(self) -> dict[Key, dict[str, Any]]:
        """What is there, by model type and variant; a line that was cut off counts as absent."""
        found: dict[Key, dict[str, Any]] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            found[record["type"], record["variant"]] = record
        return found

    def done(self) -> set[Key]:
        """The runs of which there is a record by the versions installed."""
        return {key for key, record in self.records().items() if record.get("versions") == self.versions}

    def add(self, record: dict[str, Any]) -> None:
        """Add a line, on a line of its own even after one that was cut off."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        cut_off = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * cut_off + _line(record | {"versions": self.versions}))

    def tidy(self) -> dict[Key, dict[str, Any]]:
        """Sort the file by run and keep one line of each; return the records."""
        records = dict(sorted(self.records().items()))
        with replacing(self.path) as temporary:
            temporary.write_text("".join(map(_line, records.values())), encoding="utf-8")
        return records


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
