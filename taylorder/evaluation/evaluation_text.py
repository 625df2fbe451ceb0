"""Texts a config is judged on, never calibrated on: docstrings of the installed numpy and scipy, and Python's code."""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from taylorder.analysis.docstrings import docstrings
from taylorder.analysis.text import SOURCE_CODE, Text, text_of_files

PACKAGES = {"numpy": ("lib", "linalg"), "scipy": ("cluster", "ndimage", "signal", "spatial")}
"""What is walked, in this order: with much prose and little code, because parsing all of both takes many seconds."""


def evaluation_text(files: Sequence[str | Path] = ()) -> Text:
    """Return the files joined by a newline, or else the docstrings of numpy and scipy, see :func:`docstrings`.

    Raises:
        UsageError: a file cannot be read as UTF-8 text.

    """
    return text_of_files(files) if files else docstrings(PACKAGES)


def evaluation_code() -> Text:
    """Text of another kind: source of the standard library's public modules that are single files, by their names.

    Those that probes are fitted to are left out.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in folder.glob("*.py") if path.stem not in SOURCE_CODE and path.name[0] != "_")
    content = "\n\n".join(path.read_text(encoding="utf-8") for path in files)
    return Text(f"source of {len(files)} modules of Python {platform.python_version()}", content)
