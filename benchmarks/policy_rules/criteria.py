"""Criteria that give every candidate of every KV head a loss of its own, and so look at one KV head at a time.

None of these is the loss of the whole model, and all of them lose to the iterative scheme (docs/choosing.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from policy_rules.screening import screen, screening_reference
from taylorder.selection.criteria import RELATIVE_L2, Criterion, where_eligible
from taylorder.selection.lever_table import LeverTable
from taylorder.storage.progress import Progress
from taylorder.storage.records import Records

KvHead = tuple[str, int]


def gradient_errors(table: LeverTable) -> list[list[float]]:
    """The gradient-weighted errors ``[KV heads][candidates]``, as measured."""
    return where_eligible(table, [[row.gradient_error for row in rows] for rows in table.rows()])


def shared_out(table: LeverTable, kl: Mapping[KvHead, float], reference: int) -> list[list[float]]:
    """Losses ``[KV heads][candidates]`` from one measured loss of each KV head, that of its ``reference`` candidate.

    The other candidates get as much of it as their squared relative error is of the reference's.
    """
    losses = []
    for kv_head, rows in zip(table.kv_heads, table.rows(), strict=True):
        unit = rows[reference].relative_l2 ** 2
        losses.append([kl[kv_head] * row.relative_l2**2 / unit if unit else 0.0 for row in rows])
    return where_eligible(table, losses)


def criteria(model: Any, screening: Tensor, records: Records, progress: Progress) -> dict[str, Criterion | None]:
    """All criteria by name; None is the iterative scheme.

    Args:
        model: the model.
        screening: calibration sequences ``[N, T]`` on which KV heads are changed one at a time.
        records: where finished layers of that are kept.
        progress: called with a stage, what is done of it, and its size.

    """

    def screened(table: LeverTable, scale: Callable[[float], float]) -> list[list[float]]:
        kl = screen(model, table, screening, records=records, progress=progress)
        return shared_out(table, {kv_head: scale(value) for kv_head, value in kl.items()}, screening_reference(table))

    return {
        "relative-l2": RELATIVE_L2,
        "gradient": Criterion("gradient", gradient_errors),
        "kl": Criterion("kl", lambda table: screened(table, float)),
        "sqrt-kl": Criterion("sqrt-kl", lambda table: screened(table, math.sqrt)),
        "iterative": None,
    }
