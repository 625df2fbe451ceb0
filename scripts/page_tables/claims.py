"""The table of ``benchmarks/results/claims.json``: each claim's verdict, and the figure that decides, by model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from page_tables.table import Row, markdown, percent, results

MODELS = {"smollm2-135m": "SmolLM2-135M", "gemma-3-270m": "Gemma 3 270M", "minilm-l6": "all-MiniLM-L6-v2"}


@dataclass(frozen=True)
class Figure:
    """What decides a claim.

    Attributes:
        words: what the figure is.
        effect: how its names end in the file, behind the model's; of several that contain it, the one that supports
            the claim least counts: the largest.
        shown: how a value is written.

    """

    words: str
    effect: str
    shown: Callable[[float], str]


def _times(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


FIGURES = {
    "alpha": Figure("Spearman of \\|alpha - 2\\| and log error around the mean", "expansion mean", "{:.2f}".format),
    "precision": Figure("error of order 4 over that of rounding to float16", "relative error over that", _times),
    "cost": Figure("time per token after 4,096 tokens over that after 256, order 2", "order 2, from 256", _times),
    "similar": Figure("share of their weight that order 4 leaves", "weight kept on two or more", percent),
    "distance": Figure(
        "weight given to keys 64 or more tokens back, over that given to near ones (order 5, exact: 1)",
        "log ratio",
        lambda log: _times(math.exp(log)),
    ),
    "ranges": Figure("heads mild enough for order 4 at 7 %", "share of heads mild enough", percent),
    "degree": Figure(
        "change of the loss by two terms more, nats, the least gain of three", "less at", "{:+.3f}".format
    ),
    "lookup": Figure(
        "change of the right answers in lookup, list and copy, the least of all", "less exact", "{:+.2f}".format
    ),
}


def claims() -> str:
    """One row for each claim; a model's cell is empty where the claim does not apply to it."""
    rows = []
    for number, claim in enumerate(results("claims", "claims"), 1):
        figure = FIGURES[claim["key"]]
        together = _cell([row for row in claim["effects"] if ": " not in row["name"]], figure)
        cells = [_cell([row for row in claim["effects"] if row["name"].startswith(model)], figure) for model in MODELS]
        statement = f"**{number}. {claim['statement'].rstrip('.')}**: {figure.words}"
        rows.append([statement, f"**{claim['verdict']}**", together if claim["key"] == "alpha" else "", *cells])
    return markdown(
        ["claim, and the figure that decides", "verdict:", "pooled:", *(f"{name}:" for name in MODELS.values())], rows
    )


def _cell(effects: Sequence[Row], figure: Figure) -> str:
    """The deciding estimate and its interval."""
    found = [row for row in effects if figure.effect in row["name"]]
    if not found:
        return ""
    row = max(found, key=lambda row: row["estimate"])
    return f"{figure.shown(row['estimate'])} [{figure.shown(row['low'])}, {figure.shown(row['high'])}]"
