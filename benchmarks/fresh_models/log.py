"""The records of finished runs, one JSON line each, so that a benchmark goes on where it was."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

About = dict[str, Any]
"""What distinguishes a run from others."""

Record = dict[str, Any]
"""What came of a run; ``about`` in it says of which."""


class Log:
    """A file to which records are added, each under what its run is about."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def records(self) -> list[Record]:
        """What is there; a line that was cut off counts as absent, and of two of one run the later holds."""
        found: dict[str, Record] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            found[_key(record["about"])] = record
        return list(found.values())

    def find(self, about: About) -> Record | None:
        """The record of a run; None if it was not finished."""
        return next((record for record in self.records() if record["about"] == about), None)

    def add(self, about: About, record: Record) -> None:
        """Add a line, on a line of its own even after one that was cut off."""
        versions = {name: version(name) for name in ("taylorder", "torch", "transformers")}
        whole = {"about": about, **record, "versions": versions}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        cut_off = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * cut_off + json.dumps(whole, allow_nan=False) + "\n")


def weights_file(directory: Path, about: About) -> Path:
    """Where the weights of a run are kept."""
    words = "-".join(f"{name}-{value}" for name, value in about.items())
    return directory / f"{words.replace(' ', '-')}.safetensors"


def _key(about: About) -> str:
    return json.dumps(about, sort_keys=True)
