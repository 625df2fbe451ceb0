"""Tables of ``benchmarks/results/policies.json``: losses at equal bytes, SmolLM2-135M unless it is said."""

from __future__ import annotations

from typing import Any

from page_tables.table import KIB, Row, interval, markdown, percent, results

BUDGETS = (128 * KIB, 64 * KIB)


def policies(policy: str, budget: int, count: int, **wanted: Any) -> Row | None:
    """The row of a policy at a budget, SmolLM2-135M at 4,096 tokens."""
    wanted = {"model": "smollm2-135m", "text": "docstrings", "length": 4096} | wanted
    rows = results("policies", policy=policy, budget_bytes=budget, sequences=count, **wanted)
    return rows[0] if rows else None


def by_budget(policy: str, count: int, beside: str, shown: str | None = None, **wanted: Any) -> list[str] | None:
    """Loss and the difference to ``beside`` at every budget; None where nothing was measured."""
    found = [policies(policy, budget, count, **wanted) for budget in BUDGETS]
    if not any(found):
        return None
    cells = [shown or policy]
    for row in found:
        delta = None if row is None else row.get(f"to {beside}")
        gap = "" if row is None or row["policy"] in ("exact", "one window") else percent(row["gap_closed"])
        cells += ["", "", ""] if row is None else [f"{row['nll']:.3f}", interval(delta) if delta else "", gap]
    return cells


def with_budgets(*titles: str) -> list[str]:
    """Heads of columns that every budget has; the first one names it."""
    return [
        title if number else f"{title} {budget // KIB} KiB" for budget in BUDGETS for number, title in enumerate(titles)
    ]


def choices() -> str:
    """What ships beside what it is measured against."""
    names = ("exact", "default", "windows per KV head", "one window")
    rows = (by_budget(name, 16, "one window") for name in names)
    return markdown(["", *with_budgets("NLL at", "to one window [95 %]:", "gap closed")], filter(None, rows))


def short() -> str:
    """What ships, in one table: losses and two tasks at both budgets."""
    rows = []
    for name in ("exact", "default", "windows per KV head", "one window"):
        cells = [name]
        for budget in BUDGETS:
            row = policies(name, budget, 16)
            right = {
                row["task"]: row["accuracy"] for row in results("policies", "tasks", budget_bytes=budget, policy=name)
            }
            if row is not None and right:
                gap = "" if name in ("exact", "one window") else percent(row["gap_closed"])
                cells += [f"{row['nll']:.3f}", gap, f"{right['list']:.2f} / {right['needle']:.2f}"]
        rows.append(cells)
    return markdown(["", *with_budgets("NLL at", "gap closed", "list / needle right")], rows)


def elsewhere() -> str:
    """The same on other text, at a smaller budget and for another model: the five policies in a row."""
    names = ("exact", "default", "H2O, our bytes", "windows per KV head", "one window")
    cases: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in results("policies"):
        case = row["model"], row["text"], row["length"], row["budget_bytes"], row["sequences"]
        cases.setdefault(case, {})[row["policy"]] = row
    rows = []
    for (model, text, length, budget, count), of_case in sorted(cases.items(), reverse=True):
        known = model == "smollm2-135m" and text == "docstrings" and budget in BUDGETS
        if known or not of_case.keys() >= set(names):
            continue
        default = of_case["default"]
        rows.append([
            f"{model.removesuffix('.gguf')}, {text}, {count} sequences of {length:,}", f"{budget // KIB} KiB",
            *(f"{of_case[name]['nll']:.3f}" for name in names),
            interval(default["to windows per KV head"]), percent(default['gap_closed']),
        ])  # fmt: skip
    head = ["model, text", "budget", *(f"NLL {name}" for name in names), "default to windows per KV head [95 %]:"]
    return markdown([*head, "gap closed"], rows)


def rules() -> str:
    """Who is kept by which rule, with the bytes per KV head of what ships and with one near field for all."""
    rows = []
    for alike in (", our bytes", ", 1/4 window"):
        for rule in ("oracle", "probe", "H2O", "LoLA's rule", "KeyDiff", "Knorm", "random"):
            shown = rule == "probe" and alike == ", our bytes"
            name = "default" if shown else rule + alike
            cells = by_budget(name, 8, "default", f"{rule}{alike}")
            if cells:
                row = next(filter(None, (policies(name, budget, 8) for budget in BUDGETS)))
                needs = row["needs"] if row["runnable"] else f"cannot be run: {row['needs']}"
                rows.append([*cells, f"{needs} ({row['source']})" if row["source"] else needs])
    return markdown(["kept by, in", *with_budgets("NLL at", "to default [95 %]:", "gap closed"), "needs:"], rows)


def without() -> str:
    """What the config that ships loses with one lever left out, and with a polynomial beside every kept key."""
    names = dict.fromkeys(row["policy"] for row in results("policies", "without"))
    rows = []
    for name in names:
        cells = [name]
        for budget in BUDGETS:
            found = results("policies", "without", policy=name, budget_bytes=budget, text="docstrings")
            cells.append(interval(found[0]["to default"]) if found else "")
        rows.append(cells)
    return markdown(["", *(f"{budget // KIB} KiB:" for budget in BUDGETS)], rows)


def tasks() -> str:
    """Accuracy at the tasks of ``eval``."""
    kinds = ("lookup", "list", "copy", "needle")
    rows = []
    for budget in (None, *BUDGETS):
        names = ("exact",) if budget is None else ("default", "H2O, our bytes", "windows per KV head", "one window")
        for name in names:
            found = {
                row["task"]: row["accuracy"]
                for row in results("policies", "tasks", budget_bytes=budget or BUDGETS[0], policy=name)
            }
            shown = name if budget is None else f"{name}, {budget // KIB} KiB"
            if found:
                rows.append([shown, *(f"{found[kind]:.2f}" for kind in kinds)])
    return markdown(["", *kinds], rows)
