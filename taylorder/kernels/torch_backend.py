"""The torch backend: linear-time attention with tensor operations alone, on any device.

KV heads that compute alike form a part, and a call works on one part after another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from .kept_run import KeptRun
from .request import Request
from .spec import HeadSpec, deepest, ignores_shifts
from .state import KeptPart, TaylorPart
from .taylor_run import TaylorRun


def new_parts(groups: Mapping[int, Sequence[HeadSpec]], k: Tensor, v: Tensor) -> list[TaylorPart]:
    """Return empty parts for the specs of truncated KV heads, one for each kind, and keys and values like these."""
    kinds: dict[object, list[int]] = {}
    for g, group in groups.items():
        longest = deepest(group)
        features = None if longest is None else (longest.order, longest.ranks)
        kind = features, group[0].near, any(spec.around_mean for spec in group), ignores_shifts(group)
        kinds.setdefault(kind, []).append(g)
    return [
        (KeptPart if groups[kv_heads[0]][0].near.kept else TaylorPart)(kv_heads, [groups[g] for g in kv_heads], k, v)
        for kv_heads in kinds.values()
    ]


def run(part: TaylorPart, request: Request) -> None:
    """Attend, write the rows of the part's KV heads and bring it up to date."""
    if isinstance(part, KeptPart):
        KeptRun(part, request).run()
    else:
        TaylorRun(part, request).run()
