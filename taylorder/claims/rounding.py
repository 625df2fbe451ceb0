"""What rounding to a low precision does to attention: the yardstick that truncation is compared with.

Queries, keys and values are rounded; everything else is computed in float64. Integers and 8-bit floats have one scale
for each token and head, as the KV caches of serving engines have.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

Precision: TypeAlias = Literal["fp16", "bf16", "fp8", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_FP8 = torch.float8_e4m3fn
_LARGEST = {"fp8": float(torch.finfo(_FP8).max), "int8": 127.0, "int4": 7.0}


def rounded(vectors: Tensor, precision: Precision) -> Tensor:
    """Round vectors ``[..., d]`` and return them as float64."""
    x = vectors.double()
    if precision in ("fp16", "bf16"):
        return x.to(torch.float16 if precision == "fp16" else torch.bfloat16).double()
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-300) / _LARGEST[precision]
    scaled = x / scale
    whole = scaled.float().to(_FP8).double() if precision == "fp8" else scaled.round()
    return whole * scale
