"""What each further order does to the whole model: losses with every head at one order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.context import adapted
from taylorder.analysis.losses import EXACT, hidden_states, language_model_head, token_losses
from taylorder.errors import NonFiniteError
from taylorder.models import ModelDescription
from taylorder.records import Records

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
    progress: Callable[[str, int, int], None],
) -> OrderLosses:
    """Run sequences ``[N, T]`` through a causal language model at every order; ``records`` keeps finished ones."""
    head = language_model_head(model)
    states: dict[str, OrderConfig | None] = {EXACT: None}
    for order in ORDERS:
        states[f"near-{order}"] = OrderConfig.uniform(description, order, "mean", *NEAR)
        states[f"plain-{order}"] = OrderConfig.uniform(description, order, "mean")
    losses: dict[str, list[float]] = {name: [] for name in states}
    for place, sequence in enumerate(sequences):
        kept = records.get(f"losses-{place}")
        if kept is None:
            progress("losses by order", place, len(sequences))
            kept = _losses(model, head, sequence, states)
            records.put(f"losses-{place}", kept)
        for name, value in kept.items():
            losses[name].append(value)
    whole = {name: tuple(own) for name, own in losses.items() if len(own) == len(sequences)}
    by_kind = {
        kind: {order: whole[f"{kind}-{order}"] for order in ORDERS if f"{kind}-{order}" in whole}
        for kind in ("near", "plain")
    }
    return OrderLosses(sequences.shape[1], whole[EXACT], by_kind["near"], by_kind["plain"])


def _losses(model: Any, head: Any, sequence: Tensor, states: dict[str, OrderConfig | None]) -> dict[str, float]:
    """Mean loss by state of one sequence; states that break down are left out."""
    exact = hidden_states(model, sequence)
    found = {EXACT: _mean(token_losses(head, sequence, {EXACT: exact})[EXACT].nll)}
    for name, config in states.items():
        if config is None:
            continue
        try:
            with adapted(model, config):
                hidden = hidden_states(model, sequence)
        except NonFiniteError:
            continue
        if torch.isfinite(hidden).all():
            loss = _mean(token_losses(head, sequence, {EXACT: exact, name: hidden})[name].nll)
            if np.isfinite(loss):
                found[name] = loss
    return found


def _mean(nll: np.ndarray) -> float:
    return float(nll.mean(dtype=np.float64))
