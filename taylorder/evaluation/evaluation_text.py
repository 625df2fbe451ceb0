"""Text a config is judged on, never calibrated on: the docstrings of the installed numpy and scipy.

The source files are parsed with ``ast``, not imported: nothing of numpy or scipy runs, compiled functions (whose
docstrings differ between builds) play no part, and ``python -OO`` changes nothing. A few packages with much prose and
little code are walked, because parsing all of both takes many seconds; tests and private names are left out.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.resources
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from taylorder.analysis.text import Text, text_of_files

PACKAGES = {"numpy": ("lib", "linalg"), "scipy": ("cluster", "ndimage", "signal", "spatial")}
"""What is walked, in this order: distributions and their subpackages."""


def evaluation_text(files: Sequence[str | Path] = ()) -> Text:
    """Return the files joined by a newline, or else the docstrings of numpy and scipy, joined by blank lines.

    A docstring is cleaned as by ``inspect.cleandoc`` and appears once, at its first place in the order of the POSIX
    paths of the files and of the lines within a file. The text is the same on every machine with the same versions of
    numpy and scipy, which ``source`` names.

    Raises:
        UsageError: a file cannot be read as UTF-8 text.

    """
    if files:
        return text_of_files(files)
    versions = " and ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return Text(f"docstrings of {versions}", _docstrings())


@cache
def _docstrings() -> str:
    # A dict keeps the first of equal docstrings, in order.
    docstrings = {docstring: None for path in _source_files() for docstring in _public(ast.parse(path.read_bytes()))}
    return "\n\n".join(docstrings)


def _source_files() -> Iterator[Path]:
    for distribution, subpackages in PACKAGES.items():
        root = Path(str(importlib.resources.files(distribution)))
        files = {path.relative_to(root): path for name in subpackages for path in (root / name).rglob("*.py")}
        for relative in sorted(files, key=Path.as_posix):
            if "tests" not in relative.parts:
                yield files[relative]


def _public(node: ast.Module | ast.ClassDef) -> Iterator[str]:
    """Docstrings of public classes, their public methods, and public functions, in the order of the source."""
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
            docstring = ast.get_docstring(child)
            if docstring:
                yield docstring
            if isinstance(child, ast.ClassDef):
                yield from _public(child)
