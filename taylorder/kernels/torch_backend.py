"""The torch backend: linear-time attention with tensor operations alone, on any device.

KV heads that drop their far keys form one part, those with polynomials one for each kind that computes alike, and a
call works on one part after another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from . import near_run
from .kept_run import KeptRun
from .near_slots import NearPart
from .request import Request
from .spec import Dropped, HeadSpec, deepest, ignores_shifts
from .state import KeptPart, Part, TaylorPart
from .taylor_run import TaylorRun


def new_parts(groups: Mapping[int, Sequence[HeadSpec]], k: Tensor, v: Tensor) -> list[Part]:
    """Return empty parts for the specs of truncated KV heads, and keys and values like these."""
    near_alone = [g for g, group in groups.items() if all(isinstance(spec.far, Dropped) for spec in group)]
    kinds: dict[object, list[int]] = {}
    for g, group in groups.items():
        longest = deepest(group)
        if longest is not None:
            mean = any(spec.around_mean for spec in group)
            kinds.setdefault((longest.order, longest.ranks, group[0].near, mean, ignores_shifts(group)), []).append(g)
    parts: list[Part] = []
    if near_alone:
        parts.append(NearPart(near_alone, [groups[g] for g in near_alone], k, v))
    for kv_heads in kinds.values():
        of_kind = KeptPart if groups[kv_heads[0]][0].near.kept else TaylorPart
        parts.append(of_kind(kv_heads, [groups[g] for g in kv_heads], k, v))
    return parts


def run(part: Part, request: Request) -> None:
    """Attend, write the rows of the part's KV heads and bring it up to date."""
    if isinstance(part, NearPart):
        near_run.run(part, request)
    elif isinstance(part, KeptPart):
        KeptRun(part, request).run()
    elif isinstance(part, TaylorPart):
        TaylorRun(part, request).run()
