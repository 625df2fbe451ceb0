"""Write files that are made from others, or say which are out of date."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path


def write(files: Mapping[Path, str], description: str | None, out_of_date: str) -> None:
    """Write the files whose text is another by now; with ``--check`` write none, and exit with ``out_of_date``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    names = ", ".join(path.name for path in stale)
    if check and stale:
        sys.exit(f"{names}: {out_of_date}")
    for path in stale:
        path.write_text(files[path], encoding="utf-8")
    print(f"written: {names}" if stale else "up to date")
