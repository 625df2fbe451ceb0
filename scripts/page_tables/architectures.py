"""What ``benchmarks/results/architectures.jsonl`` says of all model types that transformers knows."""

from __future__ import annotations

import json
import sys
from collections import Counter

from page_tables.table import RESULTS, markdown

sys.path.append(str(RESULTS.parent))

from architecture_sweep.summary import by_type
from architecture_sweep.verdict import ADAPTED, GENERATED, OUTCOMES


def _outcomes() -> Counter[str]:
    lines = (RESULTS / "architectures.jsonl").read_text(encoding="utf-8").splitlines()
    return Counter(by_type(map(json.loads, lines)).values())


def outcomes() -> str:
    """How many types have which outcome, by their best variant."""
    found = _outcomes()
    rows = [[outcome, str(found[outcome])] for outcome in OUTCOMES]
    return markdown(["outcome, by the best variant of a type", "types"], [*rows, ["all", str(found.total())]])


def sentence() -> str:
    """The same in one sentence."""
    found = _outcomes()
    taken = found[GENERATED] + found[ADAPTED]
    return (
        f"Of {found.total()} model types of transformers, as tiny random models, {taken} are analysed and run with "
        f"consistent numbers, {found[GENERATED]} of them generating text.\n"
    )
