"""What every candidate of a KV head takes and loses, a value per row of ``levers.csv``: what a report draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taylorder.kernels.spec import Dropped, Exact, HeadSpec, Near, Taylor
from taylorder.selection.candidates import Candidate


@dataclass(frozen=True, slots=True)
class LeverCost:
    """One candidate of one KV head: nominal bytes at the context, and the relative L2 error of the group's output.

    ``guarded_share`` is the share of rows that needed the guard; ``chosen`` marks what the config runs.
    """

    module: str
    kv_head: int
    candidate: Candidate
    nominal_bytes: int
    relative_l2: float
    guarded_share: float
    chosen: bool

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> LeverCost:
        """Read a record of :meth:`LeverRun.records <taylorder.selection.run_levers.LeverRun>`, or the row it became.

        Raises:
            KeyError: a column is missing.
            ValueError: a cell is no figure, or the options of a candidate do not go together.

        """
        return cls(
            module=record["module"],
            kv_head=int(record["kv_head"]),
            candidate=_candidate(record),
            nominal_bytes=int(record["nominal_bytes"]),
            relative_l2=float(record["relative_l2"]),
            guarded_share=float(record["guarded_share"]),
            chosen=bool(int(record["chosen"])),
        )


def _candidate(record: Mapping[str, Any]) -> Candidate:
    """The candidate whose columns these are."""
    near = Near(int(record["window"]), int(record["sinks"]), int(record["kept"]))
    if record["order"] == "exact":
        return Candidate(HeadSpec(Exact()))
    if record["coefficients"] == "dropped":
        return Candidate(HeadSpec(Dropped(), near))
    ranks = record["ranks"]
    ranks = tuple(map(int, ranks.split() if isinstance(ranks, str) else ranks)) if ranks else None
    far = Taylor(int(record["order"]), record["expansion"], ranks)
    return Candidate(HeadSpec(far, near), fitted=record["coefficients"] == "fitted")
