"""Tables of ``benchmarks/results/generation.json``: bytes and times of the cache, beside exact attention."""

from __future__ import annotations

from collections.abc import Callable

from page_tables.table import Row, markdown, results


def generation(chosen: Callable[[Row], bool] = lambda row: True) -> str:
    """Bytes and time by context, exact beside configs."""
    rows = [
        [
            f"{row['length']:,}",
            row["policy"],
            *(f"{row[name] / 2**20:.1f}" for name in ("cache_bytes", "nominal_bytes")),
            f"{row['prefill_seconds']:.1f}",
            f"{row['prefill_seconds_over_exact']:.2f}",
            f"{row['milliseconds_per_token']:.0f}",
            f"{row['milliseconds_per_token_over_exact']:.2f}",
        ]
        for row in sorted(results("generation"), key=lambda row: row["length"])
        if chosen(row)
    ]
    head = ["context", ":", "MiB held", "MiB nominal", "prefill s", "over exact", "ms per token", "over exact"]
    return markdown(head, rows)
