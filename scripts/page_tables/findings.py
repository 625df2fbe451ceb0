"""Tables of ``benchmarks/results/findings.json``: what the commands of the README find on the built-in model."""

from __future__ import annotations

from page_tables.table import Row, interval, markdown, percent, results
from taylorder.reports.numbers import compact, size


def orders() -> str:
    """Error, cost and heads within the tolerance, by order."""
    rows = [
        [
            str(row["order"]),
            *(percent(row[point]) for point in ("zero", "centre", "mean")),
            f"{row['heads_within']} of {row['heads']}",
            size(row["state_bytes"]),
            compact(row["break_even_tokens"]),
        ]
        for row in results("findings", "by_order")
    ]
    head = ["order:", "at zero (paper)", "centred", "at the query's mean", "heads within 7 %", "state per KV head"]
    return markdown([*head, "breaks even at, tokens"], rows)


def losses(step: str) -> str:
    """Losses of what a step compared, at equal bytes where it says so."""
    rows = [
        [
            (row["note"] if row["note"] and row["policy"] != "exact" else row["policy"]).replace("|", "\\|"),
            size(row["nominal_bytes"]),
            _plain(row["nll"]),
            _signed(row, "delta_exact"),
            _signed(row, "delta_window"),
        ]
        for row in results("findings", "losses", text=step)
    ]
    return markdown(["", "bytes per KV head", "NLL [95 %]:", "to exact:", "to the window:"], rows)


LAYER_WISE = {"exact": "exact", "A": "each KV head its own", "B": "layer-wise"}


def layer_wise() -> str:
    """A config and its layer-wise form on the same sequences."""
    rows = [
        [
            LAYER_WISE[row["policy"]],
            size(row["nominal_bytes"]),
            _plain(row["nll"]),
            _signed(row, "delta_exact"),
            "" if row["kl"] is None else f"{row['kl']['estimate']:.3f}",
        ]
        for row in results("findings", "losses", text="layer-wise, judged")
    ]
    return markdown(["", "bytes per KV head", "NLL [95 %]:", "to exact:", "KL to exact"], rows)


SHOWN = {
    "budget": ("taylorder analyze --budget 64KiB --context 1024 --out small", "who should hold what"),
    "budget, judged": ("taylorder eval --config small", "is that better than one window of the same bytes?"),
    "generate": (
        "taylorder generate --prompt-file prompt.txt --config small --compare",
        "read what it writes after a page of text of yours, with and without",
    ),
}
"""The three commands a newcomer types, by the steps of ``benchmarks/findings.py``, and what they tell."""


def commands() -> str:
    """These, with the minutes they took on two cores where that was measured."""
    took = {row["task"]: row["minutes"] for row in results("findings", "commands")}
    width = max(len(command) for command, _ in SHOWN.values())
    return "".join(
        f"    {command:{width}}   # {f'{took[task]:.0f} min: ' if task in took else ''}{said}\n"
        for task, (command, said) in SHOWN.items()
    )


def minutes() -> str:
    """How long the commands took."""
    rows = [
        [f"`{row['command']}`", f"{row['minutes']:.1f}", f"{row['cpu_minutes']:.1f}"]
        for row in results("findings", "commands")
    ]
    return markdown(["command", "minutes", "CPU minutes"], rows)


def _plain(estimate: Row) -> str:
    return "{estimate:.3f} [{low:.3f}, {high:.3f}]".format(**estimate)


def _signed(row: Row, name: str) -> str:
    found = row[name]
    return "" if found is None else interval([found["estimate"], found["low"], found["high"]])
