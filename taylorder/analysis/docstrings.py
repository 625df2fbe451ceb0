"""Docstrings of installed packages as a text: megabytes of prose that are the same wherever the versions are.

The source files are parsed with ``ast``, not imported: nothing of the packages runs, compiled functions (whose
docstrings differ between builds) play no part, and ``python -OO`` changes nothing. Tests and private names are left
out.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.resources
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from taylorder.analysis.text import Text

Packages = Mapping[str, tuple[str, ...]]
"""What is walked, in this order: distributions and their subpackages."""


def docstrings(packages: Packages) -> Text:
    """Return the docstrings of packages, joined by blank lines.

    A docstring is cleaned as by ``inspect.cleandoc`` and appears once, at its first place in the order of the POSIX
    paths of the files and of the lines within a file. The text is the same on every machine with the same versions of
    the packages, which ``source`` names.
    """
    *most, last = (f"{name} {importlib.metadata.version(name)}" for name in packages)
    versions = f"{', '.join(most)} and {last}" if most else last
    return Text(f"docstrings of {versions}", _joined(tuple(packages.items())))


@cache
def _joined(packages: tuple[tuple[str, tuple[str, ...]], ...]) -> str:
    # A dict keeps the first of equal docstrings, in order.
    parsed = (ast.parse(path.read_bytes()) for path in _source_files(packages))
    return "\n\n".join({docstring: None for module in parsed for docstring in _public(module)})


def _source_files(packages: tuple[tuple[str, tuple[str, ...]], ...]) -> Iterator[Path]:
    for distribution, subpackages in packages:
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
