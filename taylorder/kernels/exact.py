"""Exact heads: ordinary softmax attention over every token kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Optional

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .spec import Near
from .state import ExactPart
from .token_buffer import selection

_MASK_ENTRIES = 1 << 20
"""Entries of one block's mask: rows of queries are taken a few at a time where a mask has to be spelled out."""


def attend_exact_part(
    part: ExactPart,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    *,
    scaling: float,
    causal: bool,
    valid: Optional[Tensor],
) -> None:
    """Take the new tokens of a part's KV heads in and attend to all of them; arguments as in ``taylor_attention``."""
    group = q.shape[1] // k.shape[1]
    chosen = selection(part.kv_heads)
    part.recent.append(k[:, chosen], v[:, chosen], valid)
    keys, values, keep = part.recent.view()
    for first, last in _runs(part.kv_heads):
        heads = slice(first * group, (last + 1) * group)
        own = slice(part.kv_heads.index(first), part.kv_heads.index(last) + 1)
        exact_attention(
            q[:, heads], keys[:, own], values[:, own], keep, scaling=scaling, causal=causal, output=output[:, heads]
        )
        if valid is not None:
            output[:, heads].masked_fill_(~valid[:, None, :, None], 0.0)


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    start = previous = numbers[0]
    for number in numbers[1:]:
        if number != previous + 1:
            yield start, previous
            start = number
        previous = number
    yield start, previous


def exact_attention(
    q: Tensor, k: Tensor, v: Tensor, keep: Optional[Tensor], *, scaling: float, causal: bool, output: Tensor
) -> None:
    """Attend with the last T of S tokens as queries and write into ``output``.

    Args:
        q: ``[B, H, T, d]``.
        k: ``[B, G, S, d]``.
        v: ``[B, G, S, d_v]``.
        keep: bool ``[B, S]``, False for padding; None if there is none.
        scaling: factor of q.k.
        causal: False attends to all kept tokens.
        output: ``[B, H, T, d_v]``; rows of padding queries are left undefined.

    """
    T, S = q.shape[2], k.shape[2]
    grouped = q.shape[1] != k.shape[1]
    if keep is None and (not causal or T in (1, S)):
        output.copy_(
            scaled_dot_product_attention(q, k, v, is_causal=causal and T > 1, scale=scaling, enable_gqa=grouped)
        )
        return
    rows = max(1, _MASK_ENTRIES // S)
    token = torch.arange(S, device=q.device)
    for start in range(0, T, rows):
        stop = min(start + rows, T)
        seen = S - T + stop if causal else S
        own = torch.arange(S - T + start, S - T + stop, device=q.device)[:, None]
        mask = token[:seen] <= own if causal else token.new_ones(stop - start, S, dtype=torch.bool)
        if keep is not None:
            mask = mask & keep[:, None, None, :seen]
        output[:, :, start:stop] = scaled_dot_product_attention(
            q[:, :, start:stop], k[:, :, :seen], v[:, :, :seen], attn_mask=mask, scale=scaling, enable_gqa=grouped
        )


_WINDOW_ROWS = 256
"""Query rows of a block: few, so that a block sees few keys outside its rows' windows."""


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, near: Near, *, scaling: float) -> Tensor:
    """Softmax attention to the keys of a near field, causal, without padding; differentiable.

    Args:
        q: ``[B, H, T, d]``.
        k: ``[B, G, T, d]``.
        v: ``[B, G, T, d_v]``.
        near: with a window of at least 1.
        scaling: factor of q.k.

    Returns:
        Output ``[B, H, T, d_v]``.

    """
    T = q.shape[2]
    if near.tokens >= T:
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
    blocks = [
        scaled_dot_product_attention(q[:, :, rows], keys, values, attn_mask=mask, scale=scaling, enable_gqa=True)
        for rows, keys, values, mask in near_blocks(k, v, near)
    ]
    return torch.cat(blocks, 2)


def near_blocks(k: Tensor, v: Tensor, near: Near) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Blocks of query rows with the keys ``[B, G, F, d]`` and values that any of them is near to, causal.

    The mask, bool ``[R, F]``, is True where the key is near; the window is at least 1.
    """
    T = k.shape[2]
    for start in range(0, T, _WINDOW_ROWS):
        stop = min(start + _WINDOW_ROWS, T)
        first = max(0, start - near.window + 1)
        kept = min(near.sinks, first)  # sinks outside the window
        keys, values = (torch.cat([x[:, :, :kept], x[:, :, first:stop]], 2) for x in (k, v))
        position = torch.cat([torch.arange(kept), torch.arange(first, stop)]).to(k.device)
        row = torch.arange(start, stop, device=k.device)[:, None]
        yield slice(start, stop), keys, values, near.mask(row, position)


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
