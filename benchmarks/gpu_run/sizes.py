"""What is measured on which sizes: those of SmolLM2-135M on a GPU, tiny ones to try every section on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from taylorder.kernels import HeadSpec
from taylorder.kernels.spec import Dropped, Exact, Near, Taylor


@dataclass(frozen=True)
class Sizes:
    """Of everything that is timed.

    Attributes:
        device: where.
        dtype: of queries, keys, values and weights.
        heads, kv_heads, head_dim: of a layer.
        lengths: tokens, ascending.
        window: of a near field; with kept keys, half of it is kept.
        repeats: of a prefill; decoding takes eight times as many.
        warm_ups: rounds that do not count.
        layers, hidden, vocabulary: of the random model.
        new_tokens: that it generates.

    """

    device: torch.device
    dtype: torch.dtype
    heads: int
    kv_heads: int
    head_dim: int
    lengths: tuple[int, ...]
    window: int
    repeats: int
    warm_ups: int
    layers: int
    hidden: int
    vocabulary: int
    new_tokens: int

    @property
    def specs(self) -> dict[str, HeadSpec]:
        """What a head can run, by name; the first is what the others are compared with."""
        near, half = Near(self.window, 4), self.window // 2
        return {
            "exact": HeadSpec(Exact()),
            "window": HeadSpec(Dropped(), near),
            "kept keys": HeadSpec(Dropped(), Near(half, 4, half)),
            **{f"order {order}": HeadSpec(Taylor(order, "mean"), near) for order in (1, 2, 3)},
        }


def sizes(device: torch.device, quick: bool) -> Sizes:
    """Those of a run."""
    if quick:
        return Sizes(device, torch.float32, 4, 2, 16, (24, 48), 8, 1, 1, 2, 64, 128, 2)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return Sizes(device, dtype, 9, 3, 64, (1024, 4096, 16384), 256, 5, 3, 30, 576, 49152, 64)
