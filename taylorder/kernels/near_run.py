"""One call of the torch backend on KV heads without a far field: ordinary attention to the keys in their slots.

A token by itself goes into the spare slots, and one product serves all KV heads. Several at once are taken near field
by near field, a block of query rows at a time, and what is near to the last row goes back into the slots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .exact import by_query_head, windowed_attention
from .kept_keys import BLOCK_ROWS, KeptKeys
from .near_slots import NearPart, RankedTokens, is_padding
from .request import Request
from .softmax_attention import softmax_attention
from .spec import Near
from .token_buffer import of_heads, selection

_ENTRIES = 1 << 24
"""Most scores of one block, of all sequences and query heads."""


def run(part: NearPart, request: Request) -> None:
    """Attend, write the rows of the part's KV heads and take the new tokens in."""
    T = request.q.shape[2]
    k, v = (of_heads(tensor, part.kv_heads) for tensor in (request.k, request.v))
    priority = None if request.priority is None else of_heads(request.priority, part.kv_heads)
    if request.valid is not None:  # a weight of zero does not silence an infinity: padding must be zero itself
        k, v = (tensor.masked_fill(~request.valid[:, None, :, None], 0.0) for tensor in (k, v))
    part.reserve(part.tokens + T)
    new = RankedTokens(k, v, part.rank(priority, request.valid, T))
    if T == 1:
        part.add(new, padded=request.valid is not None)
        _attend(part, request)
        return
    for near in dict.fromkeys(part.nears):
        chosen = [g for g, other in enumerate(part.nears) if other == near]
        tokens = part.ordered(chosen, part.tokens - T).followed_by(new.of(chosen))
        kv_heads = [part.kv_heads[g] for g in chosen]
        plain = near.window > 0 and near.kept == 0 and part.tokens == T
        if plain and request.valid is None and request.q.dtype == part.dtype:
            index = _attend_window(request, kv_heads, near, tokens)
        else:
            index = _attend_blocks(request, kv_heads, near, tokens, part.dtype, part.tokens - T)
        part.refill(chosen, tokens.at(index))
    part.start_over()


def _attend(part: NearPart, request: Request) -> None:
    """Attend with one token to all slots."""
    q = request.by_group(request.q)[:, selection(part.kv_heads)].flatten(1, 3).to(part.dtype)
    keys, terms = part.keys.to(part.dtype), request.terms_of(part.kv_heads, slice(0, 1)).at((..., 0))
    if terms.softcap is None:
        scores = torch.baddbmm(part.hidden[:, None], q, keys.mT, alpha=request.scaling)
    else:
        scores = terms.capped(request.scaling * q @ keys.mT).add_(part.hidden[:, None])
    scores.view(len(q), len(part.nears), request.group, -1).masked_fill_(part.layout.others, -math.inf)
    rows = torch.bmm(terms.softmax(scores), part.values.to(part.dtype))
    rows = rows.view(len(q), len(part.nears), request.group, 1, -1)
    for g in part.blind:
        rows[:, g] = 0.0
    request.write(part.kv_heads, rows, None, slice(None))


def _attend_window(request: Request, kv_heads: Sequence[int], near: Near, tokens: RankedTokens) -> Tensor:
    """Attend with whole sequences to a window and sinks; return which tokens are near to the last, ``[B, n, N]``."""
    q = request.by_group(request.q)[:, selection(kv_heads)].flatten(1, 2)
    rows = windowed_attention(
        q, tokens.keys, tokens.values, near, scaling=request.scaling, terms=request.terms_of(kv_heads)
    )
    request.write(kv_heads, request.by_group(rows), None, slice(None))
    B, n, T = tokens.ranks.shape
    position = torch.arange(T, device=rows.device)
    return position[(position < near.sinks) | (position >= T - near.window)].expand(B, n, -1)


def _attend_blocks(
    request: Request, kv_heads: Sequence[int], near: Near, tokens: RankedTokens, dtype: torch.dtype, earlier: int
) -> Tensor:
    """Attend with one block of rows after another; return which tokens are near to the last, ``[B, n, N]``.

    Sums are taken in ``dtype``; ``earlier`` is how many tokens there were before these rows.
    """
    B, n, total = tokens.ranks.shape
    q = request.by_group(request.q)[:, selection(kv_heads)].to(dtype)
    T = q.shape[3]
    held = total - T - min(near.window, earlier)
    near_keys = KeptKeys(tokens.ranks, near, places=near.sinks + near.kept, held=held, new=T)
    entries = B * n * request.group * (min(near.tokens, total) + BLOCK_ROWS)
    for block in near_keys.blocks(min(BLOCK_ROWS, max(16, _ENTRIES // entries))):
        mask = block.masks()[0] & ~is_padding(block.gather(tokens.ranks))[:, :, None]
        rows = softmax_attention(
            q[:, :, :, block.rows].flatten(1, 2),
            block.gather(tokens.keys).to(dtype),
            block.gather(tokens.values).to(dtype),
            scaling=request.scaling,
            mask=by_query_head(mask, request.group),
            terms=request.terms_of(kv_heads, block.rows),
        )
        request.write(kv_heads, request.by_group(rows), None, block.rows)
    window = torch.arange(max(held, total - near.window), total, device=q.device)
    return torch.cat([near_keys.kept, window.expand(B, n, -1)], -1)
