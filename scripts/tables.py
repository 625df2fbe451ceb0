"""Write the tables of README and docs from the results in benchmarks/results.

    python scripts/tables.py [--check]

A page marks where a table goes by ``<!-- table NAME -->`` and ``<!-- end -->``; what stands between them is replaced.
``--check`` writes nothing and fails if a page has other figures than the results.
"""

from __future__ import annotations

import re
from pathlib import Path

from page_tables import TABLES
from written import write

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
MARKED = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """The page with every marked table as the results have it."""
    return MARKED.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n{found[3]}", page)


def main() -> None:
    """Fill the pages, or say which are out of date."""
    pages = {path: filled(path.read_text(encoding="utf-8")) for path in PAGES}
    write(pages, __doc__, "tables differ from benchmarks/results; run python scripts/tables.py")


if __name__ == "__main__":
    main()
