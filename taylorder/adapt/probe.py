"""The priority of a key, by which a KV head that keeps keys chooses among them: a linear function, the probe.

What it is a function of is known when a key is made, so a priority never changes, and no attention weights are needed.
``G`` KV heads, ``d`` the head dim, ``d_v`` the value dim, ``F = d + d_v + 5`` features.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST_NORM = 1e-6
"""Norms are not below this before the logarithm."""


def probe_width(head_dim: int, value_dim: int) -> int:
    """Number of features F."""
    return head_dim + value_dim + 5


def probe_features(k: Tensor, v: Tensor) -> Tensor:
    """``[k, v, |k|, |v|, log|k|, log|v|, 1]`` of every key, float32 ``[..., F]``.

    Args:
        k: ``[..., d]`` as they enter the cache: after RoPE, neither centred nor rotated.
        v: ``[..., d_v]``.

    """
    k, v = k.float(), v.float()
    norms = torch.stack([k.norm(dim=-1), v.norm(dim=-1)], -1)
    return torch.cat([k, v, norms, norms.clamp(min=_LEAST_NORM).log(), torch.ones_like(norms[..., :1])], -1)


def priorities(probe: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Priorities of keys, float32 ``[B, G, T]``.

    Args:
        probe: float32 ``[G, F]``.
        k: ``[B, G, T, d]``, see :func:`probe_features`.
        v: ``[B, G, T, d_v]``.

    """
    with torch.autocast(k.device.type, enabled=False):  # which would round priorities to half precision
        ranked: Tensor = torch.linalg.vecdot(probe_features(k, v), probe[:, None])
    return ranked
