"""Which pending tokens become far, on which row: by position, or by priority where a KV head keeps keys.

Behind the tokens at its front, which are far, the queue of a KV head that keeps keys has all others in the order they
were made: what left the window, kept or far by now, then the window. What became far has priority plus infinity from
then on: it stays among the kept ones and takes no place of theirs, until there is enough of it to be brought forward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import fold_rule
from ..kept_keys import KeptKeys
from ..spec import Near
from .kv_head_states import KvHeadStates
from .pending import PendingTokens


def leavers(part: KvHeadStates, n: int) -> Tensor:
    """Row in the queue of the token that becomes far on each of the last n tokens' rows: it is one, or none (-1).

    Writes down what becomes far of KV heads that keep keys.

    Returns:
        int64 ``[B, G, n]``, or ``[1, G, n]`` where only positions decide.

    """
    pending, tables, device = part.pending, part.tables, part.seen.device
    outside = [length - n - window for length, window in zip(pending.lengths, tables.windows)]
    offsets = torch.tensor(outside)[:, None] + torch.arange(n)
    rows = torch.where(offsets >= 0, offsets + torch.tensor(pending.starts)[:, None], -1)[None].to(device)
    if pending.priority is None:
        return rows
    B, capacity = pending.far_from.shape
    keeping = [g for g, kept in enumerate(tables.kept) if kept]
    lost = _losers(pending, pending.priority, keeping, outside, tables.kept, n)
    rows = rows.repeat(B, 1, 1)
    rows[:, keeping] = lost
    never = torch.iinfo(torch.int32).max
    becomes = torch.full((B, capacity + 1), never, dtype=torch.int32, device=device)  # the last is for no token
    position = torch.arange(pending.tokens - n, pending.tokens, dtype=torch.int32, device=device)
    becomes.scatter_(1, torch.where(lost < 0, capacity, lost).flatten(1), position.repeat(B, len(keeping)))
    pending.far_from = pending.far_from.minimum(becomes[:, :-1])
    pending.priority.masked_fill_(becomes[:, :-1] < never, math.inf)
    return rows


def _losers(
    pending: PendingTokens,
    priorities: Tensor,
    kv_heads: Sequence[int],
    outside: Sequence[int],
    kept: Sequence[int],
    n: int,
) -> Tensor:
    """Row in the queue of the token that loses its place on each of n rows, int64 ``[B, len(kv_heads), n]``, or -1.

    Near fields of all sizes in one batch: what leaves the window on a row is taken for that row's own key, and places
    that a KV head has less than others, or has not filled yet, begin with what always stays or never does.

    Args:
        pending: the queue.
        priorities: those in it.
        kv_heads: which ones.
        outside: tokens of each KV head outside the window of the row before the first; negative if that is not full.
        kept: tokens each KV head keeps.
        n: rows.

    """
    device = priorities.device
    behind = [outside[g] - pending.fronts[g] for g in kv_heads]
    places = [max(kept[g], after) for g, after in zip(kv_heads, behind)]  # what became far still has a place there
    most = max(places)
    firsts = _behind_fronts(pending, kv_heads)
    spares, shifts = ([most - number for number in numbers] for numbers in (places, behind))
    spare, shift, first = torch.tensor([spares, shifts, firsts], device=device)[..., None]
    column = torch.arange(most + n, device=device)
    offset = column - shift
    row = (offset + first).clamp(min=0)
    pad = torch.where(column < spare, math.inf, -math.inf)
    ranked = torch.where(offset >= 0, priorities[:, row], pad)
    loser = torch.where(offset >= 0, row, -1).expand_as(ranked)
    far_from = KeptKeys(ranked, Near(), places=most, held=most, new=n).far_from()
    return loser.new_full((*loser.shape[:2], n + 1), -1).scatter_(2, far_from, loser)[..., :n]


def bring_far_forward(part: KvHeadStates, counts: Sequence[int]) -> None:
    """Bring what is far to the front of KV heads that are to fold ``counts`` tokens, and where it has become much."""
    pending, tables = part.pending, part.tables
    if pending.priority is None:
        return
    fronts = [
        max(front, length - window - kept)
        for front, length, window, kept in zip(pending.fronts, pending.lengths, tables.windows, tables.kept)
    ]
    due = [
        g for g, (front, after) in enumerate(zip(pending.fronts, fronts))
        if tables.kept[g] and (counts[g] or after - front >= fold_rule.BLOCK)
    ]  # fmt: skip
    alike: dict[int, list[int]] = {}
    for g in due:
        alike.setdefault(pending.lengths[g] - pending.fronts[g], []).append(g)
    for count, kv_heads in alike.items():
        at_hand = pending.rows(_behind_fronts(pending, kv_heads), count).view(-1, count)
        stays = pending.priority[:, at_hand] < math.inf
        pending.reorder(at_hand, stays.to(torch.uint8).argsort(dim=-1, stable=True))
    for g in due:
        pending.fronts[g] = fronts[g]


def _behind_fronts(pending: PendingTokens, kv_heads: Sequence[int]) -> list[int]:
    """Row of the first token that is not known to be far, of each of the KV heads."""
    return [pending.starts[g] + pending.fronts[g] for g in kv_heads]
