"""How large scores get, by context: one pass over one long sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taylorder.analysis.capture import run_layers
from taylorder.analysis.truncation import LayerTensors, key_centres
from taylorder.models import ModelDescription

_ROWS = 256


@dataclass(frozen=True, slots=True)
class RangesByLength:
    """Largest distance of a score from zero, keys centred, among the first ``lengths[i]`` tokens of one sequence.

    ``largest[module]`` is ``[length][head]``.
    """

    lengths: tuple[int, ...]
    largest: dict[str, list[list[float]]]


def measure_ranges(
    model: Any, description: ModelDescription, input_ids: Tensor, lengths: Sequence[int]
) -> RangesByLength:
    """Measure one sequence ``[T]`` of a causal model; every length counts its first tokens only."""
    largest: dict[str, list[list[float]]] = {}

    def consume(name: str, layer: LayerTensors) -> None:
        k = (layer.k.double() - key_centres(layer)[:, None])[0].float()
        q = layer.q[0].float() * layer.scaling
        group = len(q) // len(k)
        rows = []
        for start in range(0, q.shape[1], _ROWS):
            stop = min(start + _ROWS, q.shape[1])
            queries = q[:, start:stop].reshape(len(k), group * (stop - start), -1)
            scores = (queries @ k[:, :stop].mT).view(len(q), stop - start, stop)
            if layer.mask is not None:
                allowed = layer.mask[0, 0, start:stop, :stop]
            else:
                allowed = torch.arange(stop) <= torch.arange(start, stop)[:, None]
            rows.append(scores.abs_().masked_fill_(~allowed, 0.0).amax(-1))
        by_row = torch.cat(rows, -1)
        largest[name] = [by_row[:, :length].amax(-1).tolist() for length in lengths]

    with torch.inference_mode():
        run_layers(model, input_ids[None], consume)
    return RangesByLength(tuple(lengths), {module.name: largest[module.name] for module in description.modules})
