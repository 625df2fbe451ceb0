"""What each further order does to the whole model: losses with every head at one order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.prepared import prepare
from taylorder.analysis.losses import EXACT, language_model_head
from taylorder.analysis.tokens import tokenise
from taylorder.claims.measurement import Measurement, Subject
from taylorder.evaluation.comparison import losses_of_states
from taylorder.evaluation.evaluation_text import evaluation_text
from taylorder.kernels.spec import SINKS
from taylorder.models.description import ModelDescription
from taylorder.storage.progress import Progress
from taylorder.storage.records import Records

ORDERS = (1, 2, 3, 4, 5, 7)
NEAR = (64, SINKS)
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


@dataclass(frozen=True)
class LossMeasurement(Measurement[OrderLosses]):
    """Losses on so many sequences of a text that no config was calibrated on."""

    name = "losses"
    result = OrderLosses
    length: int = 1024
    sequences: int = 8
    orders: tuple[int, ...] = ORDERS

    def key(self) -> dict[str, Any]:
        """The sizes, the text and the near field."""
        return {**asdict(self), "text": evaluation_text().sha256, "near": NEAR}

    def applies(self, subject: Subject) -> bool:
        """Only what predicts tokens has a loss."""
        return subject.predicts_tokens

    def measure(self, subject: Subject, records: Records, progress: Progress) -> OrderLosses:
        """Draw the sequences and measure them."""
        unseen = tokenise(subject.tokenizer, evaluation_text())
        drawn = unseen.draw(min(self.length, subject.description.max_context), self.sequences, 0)
        return measure_order_losses(
            subject.model, subject.description, drawn, orders=self.orders, records=records, progress=progress
        )


def measure_order_losses(
    model: Any,
    description: ModelDescription,
    sequences: Tensor,
    *,
    orders: Sequence[int] = ORDERS,
    records: Records,
    progress: Progress,
) -> OrderLosses:
    """Run sequences ``[N, T]`` through a causal language model at every order; ``records`` keeps finished ones."""
    head = language_model_head(model)
    states = {f"near-{order}": OrderConfig.uniform(description, order, "mean", *NEAR) for order in orders}
    states |= {f"plain-{order}": OrderConfig.uniform(description, order, "mean") for order in orders}
    prepared = {name: prepare(model, config, description) for name, config in states.items()}
    losses: dict[str, list[float]] = {}
    for index, sequence in enumerate(sequences):
        by_state = records.get(f"losses-{index}")
        if by_state is None:
            progress("losses by order", index, len(sequences))
            measured = losses_of_states(model, head, sequence, prepared)
            by_state = {name: float(tokens.nll.mean(dtype=np.float64)) for name, tokens in measured.items()}
            records.put(f"losses-{index}", by_state)
        for name, loss in by_state.items():
            losses.setdefault(name, []).append(loss)
    progress("losses by order", len(sequences), len(sequences))
    whole = {name: tuple(by_sequence) for name, by_sequence in losses.items() if len(by_sequence) == len(sequences)}
    near, plain = (
        {order: whole[f"{kind}-{order}"] for order in orders if f"{kind}-{order}" in whole}
        for kind in ("near", "plain")
    )
    return OrderLosses(sequences.shape[1], whole[EXACT], near, plain)
