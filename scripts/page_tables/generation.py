"""Tables of ``benchmarks/results/generation.json``: bytes and times of the cache, beside exact attention."""

from __future__ import annotations

from page_tables.table import markdown, results


def generation() -> str:
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
    ]
    head = ["context", ":", "MiB held", "MiB nominal", "prefill s", "over exact", "ms per token", "over exact"]
    return markdown(head, rows)
