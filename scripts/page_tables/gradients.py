"""Tables of ``benchmarks/results/gradients.json``: what forward and backward take, and the memory of both."""

from __future__ import annotations

from page_tables.table import markdown, results


def times() -> str:
    """Milliseconds of a call, and how many times forward its backward is."""
    rows = [
        [
            row["name"],
            f"{row['B']} x {row['T']:,}",
            str(row["d"]),
            *(f"{row[name]:.1f}" for name in ("without_gradients_ms", "forward_ms", "backward_ms")),
            f"{row['backward_per_forward']:.2f}",
        ]
        for row in results("gradients", "time")
    ]
    columns = ["heads", "tokens", "d", "no gradients, ms", "forward, ms", "backward, ms", "times forward"]
    return markdown(columns, rows)


def memory() -> str:
    """MiB beyond the inputs at their peak, by length."""
    rows = results("gradients", "memory_mib")
    lengths = [name for name in rows[0] if name != "name"]
    return markdown(
        ["heads", *(f"{int(tokens):,} tokens" for tokens in lengths)],
        [[row["name"], *(f"{row[tokens]:.0f}" for tokens in lengths)] for row in rows],
    )
