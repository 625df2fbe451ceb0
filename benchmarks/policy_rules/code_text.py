"""A text of another kind than prose about code: the code itself, of the standard library."""

from __future__ import annotations

import platform
import sysconfig
from pathlib import Path

from taylorder.analysis.text import SOURCE_CODE, Text


def code_text() -> Text:
    """The source of the public modules that are single files, in the order of their names, joined by blank lines.

    Those that probes are fitted to are left out.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in folder.glob("*.py") if path.stem not in SOURCE_CODE and path.name[0] != "_")
    content = "\n\n".join(path.read_text(encoding="utf-8") for path in files)
    return Text(f"source of {len(files)} modules of Python {platform.python_version()}", content)
