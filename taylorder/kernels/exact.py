"""Exact heads: ordinary softmax attention over every token kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

import torch
from torch import Tensor

from .kept_keys import KeptKeys, competing
from .request import Request
from .score_terms import PLAIN, ScoreTerms
from .softmax_attention import softmax_attention
from .spec import Near
from .state import ExactPart
from .token_buffer import selection

_MASK_ENTRIES = 1 << 20
"""Entries of one block's mask: rows of queries are taken a few at a time where a mask has to be spelled out."""


def attend_exact_part(part: ExactPart, request: Request) -> None:
    """Take the new tokens of a part's KV heads in, attend to all of them and write the rows."""
    heads = selection(part.kv_heads)
    part.recent.append(request.k[:, heads], request.v[:, heads], request.valid)
    q = request.by_group(request.q)[:, heads].flatten(1, 2)
    rows = exact_attention(
        q, *part.recent.view(), scaling=request.scaling, causal=request.causal,
        terms=request.terms_of(part.kv_heads),
    )  # fmt: skip
    request.write(part.kv_heads, request.by_group(rows), None, slice(None))


def exact_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Optional[Tensor],
    *,
    scaling: float,
    causal: bool,
    terms: ScoreTerms = PLAIN,
) -> Tensor:
    """Attend with the last T of S tokens as queries.

    Args:
        q: ``[B, H, T, d]``.
        k: ``[B, G, S, d]``.
        v: ``[B, G, S, d_v]``.
        keep: bool ``[B, S]``, False for padding; None if there is none.
        scaling: factor of q.k.
        causal: False attends to all kept tokens.
        terms: of the rows ``[B, H, T]``.

    Returns:
        Output ``[B, H, T, d_v]``; rows of padding queries mean nothing.

    """
    T, S = q.shape[2], k.shape[2]
    if keep is None and (not causal or T in (1, S)):
        return softmax_attention(q, k, v, scaling=scaling, causal=causal and T > 1, terms=terms)
    size = max(1, _MASK_ENTRIES // S)
    token = torch.arange(S, device=q.device)
    blocks = []
    for start in range(0, T, size):
        stop = min(start + size, T)
        seen = S - T + stop if causal else S
        row = torch.arange(S - T + start, S - T + stop, device=q.device)[:, None]
        mask = token[:seen] <= row if causal else token.new_ones(stop - start, S, dtype=torch.bool)
        if keep is not None:
            mask = mask & keep[:, None, None, :seen]
        blocks.append(
            softmax_attention(
                q[:, :, start:stop],
                k[:, :, :seen],
                v[:, :, :seen],
                scaling=scaling,
                mask=mask,
                terms=terms.at((..., slice(start, stop))),
            )
        )
    return torch.cat(blocks, 2)


_WINDOW_ROWS = 256
"""Query rows of a block: few, so that a block sees few keys outside its rows' windows."""


def windowed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    near: Near,
    *,
    scaling: float,
    priority: Optional[Tensor] = None,
    terms: ScoreTerms = PLAIN,
) -> Tensor:
    """Softmax attention to the keys of a near field, causal, without padding; differentiable.

    Args:
        q: ``[B, H, T, d]``.
        k: ``[B, G, T, d]``.
        v: ``[B, G, T, d_v]``.
        near: with a window of at least 1, or kept keys.
        scaling: factor of q.k.
        priority: ``[B, G, T]``, needed where keys are kept.
        terms: of the rows ``[B, H, T]``.

    Returns:
        Output ``[B, H, T, d_v]``.

    """
    T, group = q.shape[2], q.shape[1] // k.shape[1]
    if near.tokens >= T:
        return softmax_attention(q, k, v, scaling=scaling, causal=True, terms=terms)
    blocks = [
        softmax_attention(
            q[:, :, rows], keys, values, scaling=scaling, mask=by_query_head(mask, group), terms=terms.at((..., rows))
        )
        for rows, keys, values, mask in near_blocks(k, v, near, priority)
    ]
    return torch.cat(blocks, 2)


def near_blocks(
    k: Tensor, v: Tensor, near: Near, priority: Optional[Tensor] = None
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Blocks of query rows with the keys ``[B, G, F, d]`` and values that any of them is near to, causal.

    The mask, bool ``[R, F]``, or ``[B, G, R, F]`` where keys are kept by ``priority`` ``[B, G, T]``, is True where the
    key is near; there is a window of at least 1, or there are kept keys.
    """
    T = k.shape[2]
    if near.kept:
        if priority is None:
            raise ValueError(f"priority is None, but {near} keeps keys; expected {tuple(k.shape[:3])}")
        chosen = KeptKeys(competing(priority, None, near.sinks), near, places=near.sinks + near.kept, new=T)
        for block in chosen.blocks():
            yield block.rows, block.gather(k), block.gather(v), block.masks()[0]
        return
    for start in range(0, T, _WINDOW_ROWS):
        stop = min(start + _WINDOW_ROWS, T)
        first = max(0, start - near.window + 1)
        sinks = min(near.sinks, first)  # sinks outside the window
        keys, values = (torch.cat([x[:, :, :sinks], x[:, :, first:stop]], 2) for x in (k, v))
        position = torch.cat([torch.arange(sinks), torch.arange(first, stop)]).to(k.device)
        row = torch.arange(start, stop, device=k.device)[:, None]
        yield slice(start, stop), keys, values, near.mask(row, position)


def by_query_head(mask: Tensor, group: int) -> Tensor:
    """A mask ``[B, G, R, F]`` of KV heads for their query heads, ``[B, H, R, F]``; one of all heads as it is."""
    return mask if mask.ndim == 2 else mask.repeat_interleave(group, 1)


def far_sums(before: Tensor, row: Tensor, near: Near) -> tuple[Tensor, Tensor]:
    """Sum ``[..., R, d_v]`` and number ``[R, 1]`` of the far values: neither near by window nor among the sinks.

    Args:
        before: sums of the values before each token, ``[..., T + 1, d_v]``.
        row: positions of the queries, ``[R]``.
        near: with a window of at least 1.

    """
    end = (row + 1 - near.window).clamp(min=near.sinks)  # of the far keys, which begin after the sinks
    tokens = before.shape[-2] - 1
    values = before[..., end.clamp(max=tokens), :] - before[..., min(near.sinks, tokens), None, :]
    return values, (end - near.sinks).to(before.dtype)[:, None]
