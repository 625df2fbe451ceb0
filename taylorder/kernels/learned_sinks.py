"""Learned sinks: a number per head whose exponential some models add to the denominator of every row.

It is the score of a key that every row attends to and whose value is zero. It belongs to the near sum, so that the
guard, which compares far sums with the number of far keys, does not see it. A vector subtracted from all keys moves the
scores of a row and not this one: whoever subtracts takes from the row's logit what its scores lose. So logits are per
row here, ``[B, H, T]``.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

_UNIT = 64.0
"""Coordinate of the key that stands for the learned sink: queries hold so many times less, within float16's range."""


def check_sink_logits(sink_logits: Tensor, q: Tensor) -> Tensor:
    """Learned sinks ``[H]`` or ``[B, H, T]`` for queries ``[B, H, T, d]``, as ``[B, H, T]`` in the dtype of sums.

    Raises:
        TypeError: they are no tensor of floating point numbers.
        ValueError: the shape or device is another.

    """
    if not isinstance(sink_logits, Tensor) or not sink_logits.is_floating_point():
        found = getattr(sink_logits, "dtype", type(sink_logits).__name__)
        raise TypeError(f"sink_logits is {found}, expected a tensor of floating point numbers or None")
    B, H, T, _ = q.shape
    if tuple(sink_logits.shape) not in ((H,), (B, H, T)):
        raise ValueError(
            f"sink_logits has shape {tuple(sink_logits.shape)}, expected {(H,)}, one for each query head, or "
            f"{(B, H, T)}, one for each row"
        )
    if sink_logits.device != q.device:
        raise ValueError(f"sink_logits is on {sink_logits.device}, expected the device of q: {q.device}")
    logits = sink_logits.to(torch.float64 if q.dtype == torch.float64 else torch.float32)
    return logits[None, :, None].expand(B, H, T) if logits.ndim == 1 else logits


def beside_centred_keys(sink_logits: Tensor, q: Tensor, centres: Tensor, scaling: float) -> Tensor:
    """Learned sinks ``[H]`` as they stand beside keys that ``centres`` ``[G, d]`` were taken from: ``[B, H, T]``.

    ``q`` ``[B, H, T, d]`` are the queries, of the dtype of sums as everything else, and ``scaling`` the factor of q.k.
    """
    B, H, T, d = q.shape
    lost = q.reshape(B, len(centres), -1, T, d) @ centres[:, None, :, None]
    return sink_logits[:, None] - scaling * lost.view(B, H, T)


def softmax(scores: Tensor, sink_logits: Optional[Tensor] = None) -> Tensor:
    """Weights of keys by their scores ``[..., S]``, which with learned sinks ``[...]`` add up to less than 1."""
    if sink_logits is None:
        return scores.softmax(-1)
    return torch.cat([scores, sink_logits[..., None].to(scores.dtype)], -1).softmax(-1)[..., :-1]


def scaled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scaling: float,
    mask: Optional[Tensor] = None,
    causal: bool = False,
    sink_logits: Optional[Tensor] = None,
) -> Tensor:
    """Torch's ``scaled_dot_product_attention``, with learned sinks where there are any; differentiable.

    Args:
        q: ``[B, H, T, d]``.
        k: ``[B, G, S, d]``.
        v: ``[B, G, S, d_v]``.
        scaling: factor of q.k.
        mask: bool, broadcast to ``[B, H, T, S]``; None if there is none.
        causal: whether there is no mask and row i sees keys 0 … i; T is S then.
        sink_logits: ``[B, H, T]``; None if there are none.

    Returns:
        Output ``[B, H, T, d_v]``.

    """
    grouped = q.shape[1] != k.shape[1]
    if sink_logits is None:
        return scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=grouped
        )
    # One key more, in front. Only it has the two coordinates by which queries make its score: in half precision one
    # number would not hold it. Values stay as wide as keys where they were, which fast implementations ask for.
    logits = sink_logits / (_UNIT * scaling)
    high = logits.to(q.dtype)
    q = torch.cat([q, high[..., None], (logits - high)[..., None].to(q.dtype)], -1)
    k, v = pad(k, (0, 2, 1, 0)), pad(v, (0, 2, 1, 0))
    k[:, :, 0, -2:] = _UNIT
    if causal:
        q = pad(q, (0, 0, 1, 0))  # a row that sees this key alone, so that the others see it and themselves
    if mask is not None:
        mask = pad(mask, (1, 0), value=True)
    rows = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=grouped)
    return rows[:, :, 1 if causal else 0 :, :-2]
