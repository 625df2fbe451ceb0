"""Tables of ``benchmarks/results/healing.json``: what training a model for its config bought."""

from __future__ import annotations

from collections.abc import Sequence

from page_tables.table import Row, interval, markdown, percent, results

KINDS = ("prose", "code")
TASKS = ("list 1024", "needle 1024")


def trainings() -> str:
    """How each piece was trained."""
    rows = []
    for piece in results("healing", "pieces"):
        settings, made = piece["settings"], piece["trainings"]["config"]
        rows.append(
            [
                f"`{piece['piece']}`",
                f"{settings['train']}, {', then '.join(settings['stages'])}",
                ", then ".join(f"{context:,}" for context in settings["contexts"]),
                f"{made['tokens']:,}",
                f"{made['steps']}, best after {made['best']}",
                f"{made['seconds'] / 60 * piece['threads']:.0f}",
            ]
        )
    head = ["piece", "trained by:", "tokens of a sequence:", "tokens read", "steps:", "minutes, without controls"]
    return markdown(head, rows)


def states() -> str:
    """Every state of every piece."""
    rows = []
    for row in results("healing"):
        if row.get("absent"):
            continue
        figures = [_kl(row[f"{kind} kl"]) for kind in KINDS] + [percent(row[task][0]) for task in TASKS if task in row]
        rows.append([f"`{row['piece']}`", row["state"], f"{row['prose nll'][0]:.3f}", *figures])
    head = ["piece", "state:", "NLL, prose", "KL to exact, prose [95 %]", "KL, code [95 %]", "lists", "needles"]
    return markdown(head, rows)


def orders() -> str:
    """Spread of scores, error by order and alpha, before and after every training."""
    rows = []
    for row in results("healing", "orders"):
        error, within = row["error"], row["within"]
        rows.append(
            [
                f"`{row['piece']}`", row["state"], f"{row['spread']:.2f}", _change(row, "log spread"),
                *(f"{error[order]:.3f}" for order in ("3", "5", "7")), _change(row, "log error 3"),
                f"{within['7']} of {row['heads']}", f"{row['alpha']:.2f}",
            ]
        )  # fmt: skip
    head = [
        "piece", "weights:", "spread of scores", "change of its log [95 %]", "error, order 3", "order 5", "order 7",
        "change of the log at order 3 [95 %]", "heads within 7 % at order 7", "alpha",
    ]  # fmt: skip
    return markdown(head, rows)


def _kl(values: Sequence[float]) -> str:
    return "{:.4f} [{:.4f}, {:.4f}]".format(*values)


def _change(row: Row, name: str) -> str:
    return interval(row["change"][name]) if "change" in row else ""
