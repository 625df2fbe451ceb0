"""Tables of ``benchmarks/results/peers.json``: what is right where the cache is compressed before the question."""

from __future__ import annotations

from page_tables.table import KIB, Row, markdown, results

EXACT, OURS = "exact", "taylorder"


def needs() -> str:
    """What every method needs."""
    rows = [
        [
            row["name"],
            row["source"],
            "yes" if row["question"] else "no",
            "yes" if row["whole_context"] else "no",
            row["beforehand"],
            row["computes"],
            "by every token" if row["grows"] else "no",
        ]
        for row in results("peers", "methods")
        if row["name"] in _methods()
    ]
    head = ["", "source:", "sees the question:", "attends to the whole context:", "once per model:"]
    return markdown([*head, "beside the model's passes:", "grows afterwards:"], rows)


def right(task: str) -> str:
    """The share of right answers by method and length; exact attention once, all others by budget."""
    lengths = sorted({row["length"] for row in results("peers", task=task)})
    rows = []
    for budget in _budgets():
        for method in _methods():
            cells = [
                _cell(results("peers", task=task, length=length, method=method, budget=budget)) for length in lengths
            ]
            if any(cells) and (method != EXACT or budget == _budgets()[0]):
                rows.append([method, "" if method == EXACT else _shown(budget), *cells])
    return markdown(["", "config:", *(f"{length:,} tokens:" for length in lengths)], rows)


def held() -> str:
    """Prompts, questions and nominal bytes per KV head by task and length: before the question, and after it."""
    rows = []
    for budget in _budgets():
        for ours in sorted(results("peers", method=OURS, budget=budget), key=lambda row: (row["task"], row["length"])):
            cell = {"task": ours["task"], "length": ours["length"], "budget": budget}
            (exact,) = results("peers", method=EXACT, **cell)
            (snapkv,) = results("peers", method="SnapKV", **cell)
            rows.append([
                ours["task"], f"{ours['length']:,}", _shown(budget), str(ours["cases"]), str(ours["questions"]),
                f"{ours['context_tokens']:,.0f}", f"{exact['bytes_before'] / KIB:.0f}",
                *(f"{row[name] / KIB:.1f}" for row in (ours, snapkv) for name in ("bytes_before", "bytes_after")),
            ])  # fmt: skip
    head = ["task", "tokens", "config:", "prompts", "questions", "context", "exact"]
    return markdown([*head, f"{OURS}, before", "after", "SnapKV, before", "after"], rows)


def agreement() -> str:
    """Where both sides run the same, how many of the tokens that they chose are the same."""
    rows = [
        [row["method"], row["kvpress"], _shown(row["budget"]), f"{row['prompts']:,}", f"{row['tokens']:,}",
         f"{row['tokens'] - row['alike']:,}"]
        for row in results("peers", "checks")
    ]  # fmt: skip
    return markdown(["this side", "kvpress:", "config:", "prompts", "answers", "that differ"], rows)


def _cell(rows: list[Row]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*rows[0]["right"]) if rows else ""


def _methods() -> list[str]:
    """Those that were measured, in the order of the document."""
    measured = {row["method"] for row in results("peers")}
    return [row["name"] for row in results("peers", "methods") if row["name"] in measured]


def _budgets() -> list[str]:
    return sorted({row["budget"] for row in results("peers")}, key=lambda budget: int(budget.removesuffix("KiB")))


def _shown(budget: str) -> str:
    return budget.replace("KiB", " KiB")
