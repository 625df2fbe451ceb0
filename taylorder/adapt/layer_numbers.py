"""The numbers that a config has calibrated for one layer, and what they do to its queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LayerNumbers(nn.Module):
    """Key centre and rotations of one layer, float32 whatever the model runs in.

    They belong to what is attached and not to the model, whose parameters, buffers and ``state_dict`` stay what they
    are, and whose ``half()`` does not round them. They follow it all the same: the first keys that come from another
    device bring them there.

    Attributes:
        centre: what is taken from the keys of each KV head, ``[G, d]`` (zero for groups expanded around ``zero``); None
            takes nothing.
        query_rotation: what queries are multiplied by, ``A_q`` ``[G, d, d]`` (the identity for groups without ranks);
            None where no head has ranks.
        key_rotation: the same for centred keys, ``A_k``.

    """

    centre: Tensor | None
    query_rotation: Tensor | None
    key_rotation: Tensor | None

    def __init__(self, centre: Tensor | None, rotations: tuple[Tensor, Tensor] | None) -> None:
        """Hold these tensors, which nobody else changes."""
        super().__init__()
        query, key = rotations or (None, None)
        self.register_buffer("centre", centre)
        self.register_buffer("query_rotation", query)
        self.register_buffer("key_rotation", key)

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Centre and rotate: query ``[B, H, T, d]`` and key ``[B, G, T, d]``, as the kernels take them."""
        held = (self.centre, self.query_rotation, self.key_rotation)
        if any(numbers is not None and numbers.device != key.device for numbers in held):
            with torch.inference_mode(False):  # what is made in that mode takes no part where gradients are recorded
                self.to(key.device)
        if self.centre is not None:
            key = key - self.centre.to(key.dtype)[:, None]
        if self.query_rotation is not None and self.key_rotation is not None:
            query, key = _rotated(query, self.query_rotation), _rotated(key, self.key_rotation)
        return query, key


def _rotated(vectors: Tensor, rotation: Tensor) -> Tensor:
    """``x @ A.T`` of vectors ``[B, H or G, T, d]``, each head by the rotation ``[G, d, d]`` of its KV head.

    Half precisions are rotated in float32 and rounded once; on the identity that changes nothing.
    """
    B, heads, T, d = vectors.shape
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    groups = vectors.to(dtype).reshape(
        B, len(rotation), heads // len(rotation) * T, d
    )  # the heads of a group follow one another
    turned = groups @ rotation.to(dtype).mT
    return turned.view(B, heads, T, d).to(vectors.dtype)
