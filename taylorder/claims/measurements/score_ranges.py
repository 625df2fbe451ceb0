"""How large scores get, by context: one pass over one long sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from taylorder.analysis.capture import LayerTensors, run_layers
from taylorder.analysis.text import calibration_text
from taylorder.analysis.truncation import blocks, key_centres
from taylorder.claims.measurement import Measurement, Subject
from taylorder.models.description import ModelDescription
from taylorder.storage.progress import Progress
from taylorder.storage.records import Records


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


@dataclass(frozen=True)
class RangeMeasurement(Measurement[RangesByLength]):
    """Ranges of scores after contexts of these lengths, or of those among them that the model allows."""

    name = "ranges"
    result = RangesByLength
    lengths: tuple[int, ...] = (256, 512, 1024, 2048, 4096)

    def key(self) -> dict[str, Any]:
        """The lengths and the text."""
        return {**asdict(self), "text": calibration_text().sha256}

    def applies(self, subject: Subject) -> bool:
        """Encoders see their whole input at once."""
        return subject.description.causal

    def measure(self, subject: Subject, records: Records, progress: Progress) -> RangesByLength:
        """Measure the beginning of the calibration text."""
        most = subject.description.max_context
        lengths = [length for length in self.lengths if length <= most] or [most]
        (sequence,) = subject.calibration.first(lengths[-1], lengths[-1])
        return measure_ranges(subject.model, subject.description, sequence, lengths)
