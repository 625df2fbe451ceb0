"""Why alpha cannot tell the order a layer needs: it does not see the size of the weights, which decides it.

Multiplying W_Q by a number multiplies all scores by it. The eigenvalues move together, so that the power law fitted to
them stays the same, while the scores move along the exponential.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taylorder.analysis.capture import run_layers
from taylorder.analysis.projections import projection_weights
from taylorder.analysis.spectral import Matrix, fit_spectra
from taylorder.analysis.truncation import LayerTensors, Sweep, key_centres, measure, relative
from taylorder.claims.layers import log10
from taylorder.models.description import AttentionModule, ModelDescription

FACTORS = (0.25, 0.5, 1.0, 2.0)
MAX_ORDER, ORDER, TOLERANCE = 8, 5, 0.2


@dataclass(frozen=True, slots=True)
class Scaled:
    """One layer with W_Q multiplied by ``factor``; figures of its heads, expansion ``mean``.

    ``score_std`` and ``error`` are geometric means over heads, ``needed_order`` the median smallest order within
    :data:`TOLERANCE`, one more than :data:`MAX_ORDER` where there is none.
    """

    factor: float
    alpha: float | None
    score_std: float
    error: float
    needed_order: float


@dataclass(frozen=True, slots=True)
class Invariance:
    """What scaling W_Q of one layer did."""

    module: str
    order: int
    rows: tuple[Scaled, ...]
    note: str


def scale_queries(
    model: Any, description: ModelDescription, input_ids: Tensor, rows: list[Tensor]
) -> Invariance | None:
    """Scale W_Q of the layer in the middle and measure it each time; the model is as before afterwards.

    None where W_Q is not a part of the model that could be scaled (interleaved or latent projections).

    Args:
        model: a transformers model.
        description: of it.
        input_ids: ``[B, T]``.
        rows: query positions to measure, for each sequence.

    """
    module = description.modules[len(description.modules) // 2]
    weight = projection_weights(model, module.name).get("q")
    if weight is None or not _is_part(model, weight):
        return None
    found = []
    for factor in FACTORS:
        with _multiplied(weight, factor):
            alpha = fit_spectra([Matrix(module.name, "q", weight)])[0].alpha
            found.append(_measured(model, module, input_ids, rows, factor, alpha))
    changed = max(row.score_std for row in found) / min(row.score_std for row in found) > 1.5
    note = f"Errors: expansion mean, geometric mean over heads; order needed: within {TOLERANCE:.0%}, median head."
    if not changed:
        note += " This model normalises queries after W_Q, so that its size never reaches the scores."
    return Invariance(module.name, ORDER, tuple(found), note)


def _measured(
    model: Any, module: AttentionModule, input_ids: Tensor, rows: list[Tensor], factor: float, alpha: float | None
) -> Scaled:
    found: list[Scaled] = []

    def consume(name: str, layer: LayerTensors) -> None:
        if name != module.name:
            return
        scores, (sums,) = measure(layer, key_centres(layer), rows, (Sweep(MAX_ORDER, expansions=("mean",)),))
        errors = relative(sums.squared["guarded"][0], scores.output_squared)  # [order - 1, head]
        within = errors <= TOLERANCE
        needed = torch.where(within.any(0), within.int().argmax(0) + 1, MAX_ORDER + 1)
        std = (scores.squared_deviation / scores.count).sqrt()
        found.append(
            Scaled(
                factor=factor,
                alpha=alpha,
                score_std=math.exp(float(std.log().mean())),
                error=10 ** statistics.fmean(map(log10, errors[ORDER - 1].tolist())),
                needed_order=statistics.median(needed.tolist()),
            )
        )

    run_layers(model, input_ids, consume)
    return found[0]


def _is_part(model: Any, weight: Tensor) -> bool:
    """Whether changing the tensor changes the model."""
    storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return weight.untyped_storage().data_ptr() in storages


@contextmanager
def _multiplied(weight: Tensor, factor: float) -> Iterator[None]:
    """Multiply a weight inside the block."""
    before = weight.clone()
    with torch.no_grad():
        weight.mul_(factor)
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(before)
