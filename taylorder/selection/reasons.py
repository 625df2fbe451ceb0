"""Why a head is exact: what ``reason`` in a config may say, with the mark and the meaning that reports give it."""

from __future__ import annotations

from typing import Literal, NamedTuple

from taylorder.models.description import WhyExact

Reason = Literal["tolerance", "cost", "group", "alpha", "near", WhyExact, "budget", "levers", "layer"]
"""What the choices set; a config edited by hand may say something else."""


class Explained(NamedTuple):
    """How a report shows a reason."""

    mark: str
    meaning: str


REASONS: dict[str, Explained] = {
    "tolerance": Explained("\u00b7", "exact: no measured order is good enough"),
    "cost": Explained("c", "exact: an order that is good enough does not pay off"),
    "group": Explained("g", "exact: not all heads sharing its KV cache can have an order"),
    "alpha": Explained("a", "exact: no alpha could be fitted"),
    "near": Explained("n", "exact: too few of the measured rows have keys outside of the near field to choose by"),
    "sliding": Explained("s", "exact: sliding-window layer (~), its cache is constant already"),
    "chunked": Explained("h", "exact: layer that attends within chunks (~), its cache is constant already"),
    "shared": Explained("r", "exact: its keys are read by several layers (~), so that they have to be kept"),
    "repeated": Explained("m", "exact: layer that attends several times to the same keys (~), which have to be kept"),
    "indexed": Explained("i", "exact: layer whose keys a learned index picks (~), so that they have to be kept"),
    "biased": Explained("p", "exact: layer that adds a bias to its scores (~), which no running sum follows"),
    "budget": Explained("b", "exact: the budget pays for its whole KV cache"),
    "layer": Explained("l", "exact: another KV head of its layer needs the whole context"),
    "levers": Explained("e", "exact: the error allowed in all is spent better on other KV heads"),
}


def explained(reason: str | None) -> Explained:
    """Mark and meaning of the reason of an exact head, also where no choice of this program set it."""
    unknown = Explained("x", f"exact, as the config has it{f' ({reason})' if reason else ''}")
    return REASONS.get(reason or "", unknown)
