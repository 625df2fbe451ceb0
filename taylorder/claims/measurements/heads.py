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

from taylorder.analysis.capture import run_layers
from taylorder.analysis.truncation import LayerTensors, ScoreBlock, blocks, key_centres
from taylorder.claims.rounding import PRECISIONS, rounded
from taylorder.claims.weights import degrees, exact_weights, truncated_weights
from taylorder.models.description import ModelDescription
from taylorder.storage.progress import Progress
from taylorder.storage.records import Records

ORDERS = (2, 3, 4, 5, 6, 8)
MOST = max(ORDERS)

DISTANCES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Upper ends of buckets of distance, counted from 1 for the query's own key; one more is open.

The first :data:`SINKS` keys are in a last bucket of their own, whatever their distance.
"""

SINKS = 4

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

    ``output`` is the squared norm of the exact outputs, ``elements`` how many numbers they are. ``rounding``
    ``[precision]`` is the squared error when queries, keys and values are rounded, ``truncation`` ``[order]`` that of
    truncation (expansion ``mean``, no near field).
    ``tied_rows`` ``[ties]`` counts rows by the number of keys about as good as the best one; ``tied_mass`` and
    ``tied_truncated`` ``[ties][order]`` are the weight on those keys. ``mass`` ``[distance]`` and ``truncated_mass``
    ``[order][distance]`` are the weight by distance, ``moved`` ``[order][distance]`` the squared norm of what the
    weight that truncation gives or takes there does to the output. ``by_keys_*`` are ``output``, rounding to int4 and
    truncation at order 4 by the number of keys of the row (buckets as for distance). ``degrees`` ``[degree]`` is the
    squared norm of what a degree contributes to the numerator, ``numerator`` that of the numerator with all degrees,
    both relative to the largest weight of the row.
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


def measure_heads(
    model: Any,
    description: ModelDescription,
    input_ids: Tensor,
    query_rows: Sequence[Tensor],
    *,
    records: Records,
    progress: Progress,
) -> dict[str, HeadSums]:
    """Measure every module of a model on sequences ``[B, T]``; modules that ``records`` has are not measured again."""
    names = [module.name for module in description.modules]
    kept = {name: records.get(f"heads-{name}") for name in names}
    done = sum(value is not None for value in kept.values())

    def consume(name: str, layer: LayerTensors) -> None:
        nonlocal done
        if kept[name] is None:
            kept[name] = asdict(_measure(layer, query_rows))
            records.put(f"heads-{name}", kept[name])
            done += 1
            progress("heads", done, len(names))

    if done < len(names):
        run_layers(model, input_ids, consume)
    return {name: HeadSums(**value) for name, value in kept.items()}


def _measure(layer: LayerTensors, query_rows: Sequence[Tensor]) -> HeadSums:
    centres = key_centres(layer)
    low = {
        precision: replace(
            layer, q=rounded(layer.q, precision), k=rounded(layer.k, precision), v=rounded(layer.v, precision)
        )
        for precision in PRECISIONS
    }
    totals: dict[str, Tensor] = {}
    with torch.inference_mode():
        for sequence, rows in enumerate(query_rows):
            others = [blocks(each, centres, sequence, rows) for each in low.values()]
            for block, *approximate in zip(blocks(layer, centres, sequence, rows), *others, strict=True):
                for name, value in _sums(block, approximate).items():
                    totals[name] = totals[name] + value if name in totals else value
    return HeadSums(**{each.name: totals[each.name].tolist() for each in fields(HeadSums)})


def _sums(block: ScoreBlock, approximate: Sequence[ScoreBlock]) -> dict[str, Tensor]:
    """What one block of rows adds to every field of :class:`HeadSums`, the head last."""
    weights = exact_weights(block)
    exact = block.weigh(weights)[..., :-1]
    found = {"output": exact.square().sum((-2, -1))}
    found["elements"] = torch.full_like(found["output"], exact[0].numel())
    reference = exact.square().sum(-1)
    keys = block.allowed.sum(-1)
    by_keys = _buckets(keys, DISTANCES)
    rounding = [(block_.exact() - exact).square().sum(-1) for block_ in approximate]
    found["rounding"] = torch.stack([each.sum(-1) for each in rounding])

    tied = (block.scores >= _best(block) - TIED) & block.allowed
    enough = keys >= LEAST_KEYS
    bucket = _buckets(tied.sum(-1), TIES)  # [H, R]
    member = torch.stack([(bucket == place) & enough for place in range(len(TIES) + 1)]).double()
    found["tied_rows"] = member.sum(-1)
    found["tied_mass"] = (member * (weights * tied).sum(-1)).sum(-1)

    row, key = block.rows[:, None], torch.arange(block.scores.shape[-1])
    distance = _buckets((row - key).abs() + 1, DISTANCES).masked_fill(key < SINKS, len(DISTANCES) + 1)
    where = torch.nn.functional.one_hot(distance, len(DISTANCES) + 2).double()  # [R, T, bucket]
    found["mass"] = torch.einsum("hrt,rtb->bh", weights, where)

    truncated, tied_truncated, mass, moved, by_order = [], [], [], [], {}
    for order, own in enumerate(truncated_weights(block, MOST), start=1):
        if order not in ORDERS:
            continue
        by_order[order] = (block.weigh(own)[..., :-1] - exact).square().sum(-1)
        truncated.append(by_order[order].sum(-1))
        tied_truncated.append((member * (own * tied).sum(-1)).sum(-1))
        mass.append(torch.einsum("hrt,rtb->bh", own, where))
        given = own - weights
        moved.append(torch.stack([block.weigh(given * at)[..., :-1].square().sum((-2, -1)) for at in where.unbind(-1)]))
    found["truncation"] = torch.stack(truncated)
    found["tied_truncated"] = torch.stack(tied_truncated, 1)
    found["truncated_mass"] = torch.stack(mass)
    found["moved"] = torch.stack(moved)
    low_precision = rounding[PRECISIONS.index("int4")]
    for name, value in (("output", reference), ("rounding", low_precision), ("truncation", by_order[4])):
        found[f"by_keys_{name}"] = torch.stack([(value * (by_keys == n)).sum(-1) for n in range(len(DISTANCES) + 1)])

    # Relative to the largest weight, so that no row of large scores decides alone.
    mean = (block.scores * block.allowed).sum(-1) / keys
    scale = (mean - _best(block)[..., 0]).exp()[..., None]
    found["degrees"] = torch.stack(
        [(block.weigh(term)[..., :-1] * scale).square().sum((-2, -1)) for term in degrees(block, MOST)]
    )
    found["numerator"] = (exact / weights.amax(-1, keepdim=True)).square().sum((-2, -1))
    return found


def _best(block: ScoreBlock) -> Tensor:
    """Largest score of each row ``[H, R, 1]``."""
    return block.scores.masked_fill(~block.allowed, -math.inf).amax(-1, keepdim=True)


def _buckets(values: Tensor, ends: Sequence[int]) -> Tensor:
    """Which bucket each value is in: place of the first end that is not below it, ``len(ends)`` beyond the last."""
    return torch.bucketize(values, torch.tensor(ends))
