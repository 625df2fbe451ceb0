"""Answers of both sides to rows: shares right with their intervals, paired differences, and whether the sides agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from peers.methods import EXACT, METHODS, SAME, STREAMED
from peers.protocol import Prompt
from taylorder.evaluation.intervals import share_difference, share_interval

Row = dict[str, Any]
Cell = tuple[str, int, str]
"""Task, length, budget."""


def rows(prompts: Sequence[Prompt], answers: Iterable[Row]) -> list[Row]:
    """A row per task, length, budget and method, over the cases that all methods of such a cell have answered.

    ``to taylorder`` and ``to exact`` are paired by prompt. Exact attention is in the cells of all budgets.
    """
    by_prompt = {(prompt.kind, prompt.length, prompt.case): prompt for prompt in prompts}
    cells: dict[Cell, dict[str, dict[int, Row]]] = {}
    answers = list(answers)
    budgets = sorted({row["budget"] for row in answers} - {""})
    for row in answers:
        for budget in [row["budget"]] if row["budget"] else budgets:
            methods = cells.setdefault((row["kind"], row["length"], budget), {})
            methods.setdefault(row["method"], {})[row["case"]] = row
    made = []
    for (kind, length, budget), methods in cells.items():
        cases = sorted(set.intersection(*(set(by_case) for by_case in methods.values())))
        if not cases or not {EXACT, STREAMED} <= methods.keys():
            continue
        asked = [by_prompt[kind, length, case] for case in cases]
        of_method = {name: [by_case[case] for case in cases] for name, by_case in methods.items()}
        shares = {name: [_share(*pair) for pair in zip(asked, told, strict=True)] for name, told in of_method.items()}
        about = {
            "task": kind,
            "length": length,
            "budget": budget,
            "cases": len(cases),
            "questions": sum(len(prompt.positions) for prompt in asked),
            "context_tokens": float(np.mean([prompt.context for prompt in asked])),
        }
        made += [
            about | {"method": method.name} | _figures(method.name, shares, of_method[method.name], about["questions"])
            for method in METHODS
            if method.name in methods
        ]
    return made


def _figures(name: str, shares: Mapping[str, list[float]], answers: Sequence[Row], questions: int) -> Row:
    interval = share_interval(shares[name], trials=questions)
    figures = {"right": [interval.estimate, interval.low, interval.high]}
    for other in (EXACT, STREAMED):
        if name != other:
            difference = share_difference(shares[name], shares[other])
            figures[f"to {other}"] = [difference.estimate, difference.low, difference.high]
    return figures | {held: float(np.mean([row[held] for row in answers])) for held in ("bytes_before", "bytes_after")}


def _share(prompt: Prompt, row: Row) -> float:
    pairs = zip(row["chosen"], prompt.answers, strict=True)
    return sum(token == answer for token, answer in pairs) / len(prompt.answers)


def checks(answers: Iterable[Row]) -> list[Row]:
    """How many tokens both sides chose alike where they run the same, by budget; the share right does not matter."""
    by_key = {(row["method"], row["budget"], row["kind"], row["length"], row["case"]): row for row in answers}
    made: dict[tuple[str, str], Row] = {}
    for (method, budget, *prompt), row in by_key.items():
        other = by_key.get((SAME.get(method), budget, *prompt))
        if other is not None:
            names = {"method": method, "kvpress": other["method"], "budget": budget}
            check = made.setdefault((method, budget), names | {"prompts": 0, "tokens": 0, "alike": 0})
            check["prompts"] += 1
            check["tokens"] += len(row["chosen"])
            check["alike"] += sum(a == b for a, b in zip(row["chosen"], other["chosen"], strict=True))
    return list(made.values())


def needs() -> list[Row]:
    """What every method needs, as rows."""
    return [asdict(method) for method in METHODS]
