"""How large scores get, by context: one pass over one long sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taylorder.analysis.capture import run_layers
from taylorder.analysis.truncation import LayerTensors, blocks, key_centres
from taylorder.models.description import ModelDescription


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
        rows = torch.arange(layer.q.shape[2])
        by_row = [(block.scores * block.allowed).abs().amax(-1) for block in blocks(layer, key_centres(layer), 0, rows)]
        largest[name] = [torch.cat(by_row, -1)[:, :length].amax(-1).tolist() for length in lengths]

    with torch.inference_mode():
        run_layers(model, input_ids[None], consume)
    return RangesByLength(tuple(lengths), {module.name: largest[module.name] for module in description.modules})
