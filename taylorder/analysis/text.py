"""Text that ships with the stack or that a user names, and the query rows that are drawn from its sequences."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from taylorder.errors import UsageError
from taylorder.storage.files import sha256

CALIBRATION_SOURCE = "pydoc_data.topics"

SOURCE_CODE = ("argparse", "dataclasses", "inspect", "textwrap", "configparser", "json.decoder", "heapq")
"""Modules of the standard library, about as much source code as the calibration text has prose."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text and where it comes from."""

    source: str
    content: str

    @property
    def sha256(self) -> str:
        """Hash of the UTF-8 text."""
        return sha256(self.content.encode())

    @classmethod
    def of(cls, text: Text | str) -> Text:
        """A text that is given as a string, or as it is."""
        return text if isinstance(text, Text) else cls("a string given in Python", text)


def calibration_text(files: Sequence[str | Path] = ()) -> Text:
    """Return the files joined by a newline, or else the language reference that Python ships (465 kB of English).

    Raises:
        UsageError: a file cannot be read as UTF-8 text.

    """
    if files:
        return text_of_files(files)
    from pydoc_data import topics

    return Text(CALIBRATION_SOURCE, "\n".join(topics.topics.values()))


def source_code() -> Text:
    """Return the source of :data:`SOURCE_CODE`."""
    content = "\n".join(inspect.getsource(importlib.import_module(name)) for name in SOURCE_CODE)
    return Text(f"source of {', '.join(SOURCE_CODE)}", content)


def text_of_files(files: Sequence[str | Path]) -> Text:
    """Return the files joined by a newline; UsageError where one cannot be read as UTF-8 text."""
    return Text(", ".join(str(file) for file in files), "\n".join(_read(Path(file)) for file in files))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it first") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; name an existing text file") from None


def query_rows(sequences: int, length: int, rows: int | None, seed: int) -> list[torch.Tensor]:
    """Query positions to measure in each sequence, sorted, drawn without replacement; all of them for ``rows`` None.

    One generator ``numpy.random.default_rng(seed)`` serves all sequences in turn.
    """
    if rows is None or rows >= length:
        return [torch.arange(length) for _ in range(sequences)]
    generator = np.random.default_rng(seed)
    return [torch.from_numpy(np.sort(generator.choice(length, size=rows, replace=False))) for _ in range(sequences)]
