"""Write the tables of README and docs from the results in benchmarks/results.

    python scripts/tables.py [--check]

A page marks where a table goes by ``<!-- table NAME -->`` and ``<!-- end -->``; what stands between them is replaced.
``--check`` writes nothing and fails if a page has other figures than the results.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from page_tables import TABLES

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
MARKED = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """The page with every marked table as the results have it."""
    return MARKED.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n{found[3]}", page)


def main() -> None:
    """Fill the pages, or say which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for path in PAGES:
        before = path.read_text(encoding="utf-8")
        after = filled(before)
        if before != after:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_text(after, encoding="utf-8")
    if check and stale:
        sys.exit(f"{', '.join(map(str, stale))}: tables differ from benchmarks/results; run python scripts/tables.py")
    print("up to date" if not stale else f"written: {', '.join(map(str, stale))}")


if __name__ == "__main__":
    main()
