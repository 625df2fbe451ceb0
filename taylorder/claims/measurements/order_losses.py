"""What each further order does to the whole model: losses with every head at one order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from taylorder.adapt.config import OrderConfig
from taylorder.analysis.losses import EXACT, language_model_head
from taylorder.evaluation.comparison import losses_of_states
from taylorder.models.description import ModelDescription
from taylorder.storage.progress import Progress
from taylorder.storage.records import Records

ORDERS = (1, 2, 3, 4, 5, 7)
NEAR = (64, 4)
"""Window and sinks of the runs with a near field."""


@dataclass(frozen=True)
class OrderLosses:
    """Mean negative log-likelihood per token of every sequence ``[N]``, exact and with every head at one order.

    ``near`` has a window and sinks, ``plain`` has not; expansion ``mean``, guarded. Orders that overflow are missing.
    """

    length: int
    exact: tuple[float, ...]
    near: dict[int, tuple[float, ...]]
    plain: dict[int, tuple[float, ...]]


def measure_order_losses(
    model: Any,
    description: ModelDescription,
    sequences: Tensor,
    *,
    records: Records,
    progress: Progress,
) -> OrderLosses:
    """Run sequences ``[N, T]`` through a causal language model at every order; ``records`` keeps finished ones."""
    head = language_model_head(model)
    states = {f"near-{order}": OrderConfig.uniform(description, order, "mean", *NEAR) for order in ORDERS}
    states |= {f"plain-{order}": OrderConfig.uniform(description, order, "mean") for order in ORDERS}
    losses: dict[str, list[float]] = {}
    for place, sequence in enumerate(sequences):
        kept = records.get(f"losses-{place}")
        if kept is None:
            progress("losses by order", place, len(sequences))
            found = losses_of_states(model, head, sequence, states)
            kept = {name: float(own.nll.mean(dtype=np.float64)) for name, own in found.items()}
            records.put(f"losses-{place}", kept)
        for name, value in kept.items():
            losses.setdefault(name, []).append(value)
    progress("losses by order", len(sequences), len(sequences))
    whole = {name: tuple(own) for name, own in losses.items() if len(own) == len(sequences)}
    near, plain = (
        {order: whole[f"{kind}-{order}"] for order in ORDERS if f"{kind}-{order}" in whole}
        for kind in ("near", "plain")
    )
    return OrderLosses(sequences.shape[1], whole[EXACT], near, plain)
