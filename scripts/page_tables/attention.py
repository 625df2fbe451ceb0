"""The table of ``benchmarks/results/attention.json``: linear attention on its own, beside the bars it was built for."""

from __future__ import annotations

from page_tables.table import markdown, results


def bars() -> str:
    """What was measured, and whether that is enough."""
    rows = [
        [row["case"], row["quantity"], row["bar"], f"{row['measured']:.3g}{'' if row['met'] else ', missed'}"]
        for row in results("attention", "bars")
    ]
    return markdown(["case", "quantity:", "bar:", "measured"], rows)
