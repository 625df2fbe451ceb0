"""One pass over a model's attention modules that measures what several claims need of every head.

Everything is float64, from the queries, keys and values the model computed; a sum is kept per query head, so that
intervals can be taken over heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from taylorder.analysis.analyze import HEADS
from taylorder.analysis.capture import LayerTensors, run_layers
from taylorder.analysis.text import calibration_text, query_rows
from taylorder.analysis.truncation import ScoreBlock, blocks, key_centres
from taylorder.claims.measurement import Measurement, Subject
from taylorder.claims.rounding import PRECISIONS, rounded
from taylorder.claims.weights import degrees, truncated_weights
from taylorder.kernels.spec import SINKS
from taylorder.models.description import ModelDescription
from taylorder.storage.progress import Progress
from taylorder.storage.records import Records

ORDERS = (2, 3, 4, 5, 6, 8)
MOST = max(ORDERS)

DISTANCES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Upper ends of buckets of distance, counted from 1 for the query's own key; one more is open.

The first :data:`SINKS` keys are in a last bucket of their own, whatever their distance.
"""

TIED = math.log(2)
"""A key is as good as the best if its weight is at least half of that one's."""

TIES = (1, 2, 4, 8, 16)
"""Upper ends of buckets of the number of such keys; the last bucket is open."""

LEAST_KEYS = 64
"""Rows with fewer keys than this are not asked about ties."""

Sums = list[list[float]]


@dataclass(frozen=True)
class HeadSums:
    """Sums over the sampled rows of one module; every list ends in the query head ``[H]``.

    Truncation has expansion ``mean``, no near field and the guard. "Tied" are the keys about as good as the best one.

    Attributes:
        output: squared norm of the exact outputs.
        elements: how many numbers the outputs are.
        rounding: ``[precision]``, squared error where queries, keys and values are rounded.
        truncation: ``[order]``, squared error of truncation.
        tied_rows: ``[ties]``, rows by the number of tied keys.
        tied_mass: ``[ties]``, exact weight on the tied keys.
        tied_truncated: ``[ties][order]``, truncated weight on them.
        mass: ``[distance]``, exact weight by distance.
        truncated_mass: ``[order][distance]``, truncated weight by distance.
        moved: ``[order][distance]``, squared norm of what the weight given or taken there does to the output.
        by_keys_output: ``[keys]``, ``output`` by the number of keys of the row, in the buckets of distance.
        by_keys_rounding: ``[keys]``, squared error of rounding to int4.
        by_keys_truncation: ``[keys]``, squared error of truncation at order 4.
        degrees: ``[degree]``, squared norm of what a degree adds to the numerator, over the row's largest weight.
        numerator: squared norm of the numerator with all degrees, over the row's largest weight.

    """

    output: list[float]
    elements: list[float]
    rounding: Sums
    truncation: Sums
    tied_rows: Sums
    tied_mass: Sums
    tied_truncated: list[Sums]
    mass: Sums
    truncated_mass: list[Sums]
    moved: list[Sums]
    by_keys_output: Sums
    by_keys_rounding: Sums
    by_keys_truncation: Sums
    degrees: Sums
    numerator: list[float]


@dataclass(frozen=True)
class HeadMeasurement(Measurement[dict[str, HeadSums]]):
    """Sums of every module over ``rows`` queries of each of so many sequences of the calibration text."""

    name = "heads"
    result = dict[str, HeadSums]
    length: int = 1024
    sequences: int = 4
    rows: int = 32

    def key(self) -> dict[str, Any]:
        """The sizes, the text, and what the fields of the sums stand for."""
        figures = [ORDERS, DISTANCES, SINKS, TIED, TIES, LEAST_KEYS]
        return {**asdict(self), "text": calibration_text().sha256, "figures": figures, "rounding": PRECISIONS}

    def measure(self, subject: Subject, records: Records, progress: Progress) -> dict[str, HeadSums]:
        """Measure the modules that are not yet kept."""
        length = min(self.length, subject.description.max_context)
        ids = subject.calibration.first(length, self.sequences * length)
        rows = query_rows(len(ids), length, self.rows, 0)
        return measure_heads(subject.model, subject.description, ids, rows, records=records, progress=progress)


def measure_heads(
    model: Any,
    description: ModelDescription,
    input_ids: Tensor,
    rows: Sequence[Tensor],
    *,
    records: Records,
    progress: Progress,
) -> dict[str, HeadSums]:
    """Measure every module of a model on sequences ``[B, T]``; modules that ``records`` has are not measured again."""
    names = [module.name for module in description.modules]
    by_module = {name: records.get(f"heads-{name}") for name in names}
    done = sum(value is not None for value in by_module.values())

    def consume(name: str, layer: LayerTensors) -> None:
        nonlocal done
        if by_module[name] is None:
            by_module[name] = asdict(_measure(layer, list(rows) * description.calls[name]))
            records.put(f"heads-{name}", by_module[name])
            done += 1
            progress(HEADS, done, len(names))

    if done < len(names):
        run_layers(model, input_ids, consume, calls=description.calls)
    return {name: HeadSums(**value) for name, value in by_module.items()}


def _measure(layer: LayerTensors, rows_of_sequences: Sequence[Tensor]) -> HeadSums:
    centres = key_centres(layer)
    low = {
        precision: replace(
            layer, q=rounded(layer.q, precision), k=rounded(layer.k, precision), v=rounded(layer.v, precision)
        )
        for precision in PRECISIONS
    }
    totals: dict[str, Tensor] = {}
    with torch.inference_mode():
        for sequence, rows in enumerate(rows_of_sequences):
            others = [blocks(rounded_layer, centres, sequence, rows) for rounded_layer in low.values()]
            for block, *approximate in zip(blocks(layer, centres, sequence, rows), *others, strict=True):
                for name, value in _sums(block, approximate).items():
                    totals[name] = totals[name] + value if name in totals else value
    return HeadSums(**{field.name: totals[field.name].tolist() for field in fields(HeadSums)})


def _sums(block: ScoreBlock, approximate: Sequence[ScoreBlock]) -> dict[str, Tensor]:
    """What one block of rows adds to every field of :class:`HeadSums`, the head last."""
    weights = block.exact_weights()
    exact = block.weigh(weights)[..., :-1]
    sums = {"output": exact.square().sum((-2, -1))}
    sums["elements"] = torch.full_like(sums["output"], exact[0].numel())
    reference = exact.square().sum(-1)
    keys = block.allowed.sum(-1)
    by_keys = _buckets(keys, DISTANCES)
    rounding = [(low.exact() - exact).square().sum(-1) for low in approximate]
    sums["rounding"] = torch.stack([by_row.sum(-1) for by_row in rounding])

    tied = (block.scores >= _best(block) - TIED) & block.allowed
    enough = keys >= LEAST_KEYS
    bucket = _buckets(tied.sum(-1), TIES)  # [H, R]
    member = torch.stack([(bucket == n) & enough for n in range(len(TIES) + 1)]).double()
    sums["tied_rows"] = member.sum(-1)
    sums["tied_mass"] = (member * (weights * tied).sum(-1)).sum(-1)

    row, key = block.rows[:, None], torch.arange(block.scores.shape[-1])
    distance = _buckets((row - key).abs() + 1, DISTANCES).masked_fill(key < SINKS, len(DISTANCES) + 1)
    where = torch.nn.functional.one_hot(distance, len(DISTANCES) + 2).double()  # [R, T, bucket]
    sums["mass"] = torch.einsum("hrt,rtb->bh", weights, where)

    truncated, tied_truncated, mass, moved, by_order = [], [], [], [], {}
    for order, polynomial in enumerate(truncated_weights(block, MOST), start=1):
        if order not in ORDERS:
            continue
        by_order[order] = (block.weigh(polynomial)[..., :-1] - exact).square().sum(-1)
        truncated.append(by_order[order].sum(-1))
        tied_truncated.append((member * (polynomial * tied).sum(-1)).sum(-1))
        mass.append(torch.einsum("hrt,rtb->bh", polynomial, where))
        given = polynomial - weights
        moved.append(torch.stack([block.weigh(given * at)[..., :-1].square().sum((-2, -1)) for at in where.unbind(-1)]))
    sums["truncation"] = torch.stack(truncated)
    sums["tied_truncated"] = torch.stack(tied_truncated, 1)
    sums["truncated_mass"] = torch.stack(mass)
    sums["moved"] = torch.stack(moved)
    low_precision = rounding[PRECISIONS.index("int4")]
    for name, value in (("output", reference), ("rounding", low_precision), ("truncation", by_order[4])):
        sums[f"by_keys_{name}"] = torch.stack([(value * (by_keys == n)).sum(-1) for n in range(len(DISTANCES) + 1)])

    # Relative to the largest weight, so that no row of large scores decides alone.
    mean = (block.scores * block.allowed).sum(-1) / keys
    scale = (mean - _best(block)[..., 0]).exp()[..., None]
    sums["degrees"] = torch.stack(
        [(block.weigh(term)[..., :-1] * scale).square().sum((-2, -1)) for term in degrees(block, MOST)]
    )
    sums["numerator"] = (exact / weights.amax(-1, keepdim=True)).square().sum((-2, -1))
    return sums


def _best(block: ScoreBlock) -> Tensor:
    """Largest score of each row ``[H, R, 1]``."""
    return block.scores.masked_fill(~block.allowed, -math.inf).amax(-1, keepdim=True)


def _buckets(values: Tensor, ends: Sequence[int]) -> Tensor:
    """Which bucket each value is in: place of the first end that is not below it, ``len(ends)`` beyond the last."""
    return torch.bucketize(values, torch.tensor(ends))
