"""The rules that say which keys stay, where each is from, and what it needs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from policy_rules.keeping import HeavyHitters, Keeper, Recall, keeping
from policy_rules.priorities import (
    Priority,
    at_random,
    least_like_the_mean,
    looked_up,
    prepared_by,
    received_later,
    smallest_norm,
)
from taylorder.adapt.config import OrderConfig
from taylorder.adapt.handle import attach
from taylorder.models.description import ModelDescription

Running: TypeAlias = Callable[[Any, ModelDescription, OrderConfig, Tensor], AbstractContextManager[Any]]
"""From a model, its description, a config and the sequence to come to a block in which the model runs that way."""


@dataclass(frozen=True)
class Rule:
    """Who stays of the keys that left the window.

    Attributes:
        name: what rows and records call it.
        source: where it is from.
        needs: what it has to be given beside keys and values.
        running: how a model runs with it.
        runnable: whether it could be run at all, or looks into the future.

    """

    name: str
    source: str
    needs: str
    running: Running
    runnable: bool = True


class _Oracle:
    """Looks at a sequence once, for all configs that come after one another."""

    def __init__(self) -> None:
        self.sequence: Tensor | None = None
        self.table: dict[str, Tensor] = {}

    def __call__(
        self, model: Any, description: ModelDescription, config: OrderConfig, sequence: Tensor
    ) -> AbstractContextManager[Any]:
        if self.sequence is None or not self.sequence.equal(sequence):
            self.sequence, self.table = sequence, received_later(model, description, sequence)
        return attach(model, prepared_by(model, description, config, looked_up(self.table)))


def _by(rule: Priority) -> Running:
    return lambda model, description, config, _sequence: attach(model, prepared_by(model, description, config, rule))


def _kept_by(keeper: type[Keeper]) -> Running:
    return lambda model, _description, config, _sequence: keeping(model, config, keeper)


NOTHING, WEIGHTS = "nothing", "attention weights"

PROBE = Rule("probe", "this package", "a probe, calibrated once", lambda model, _, config, __: attach(model, config))
KNORM = Rule("Knorm", "arXiv 2406.11430", NOTHING, _by(smallest_norm))
KEYDIFF = Rule("KeyDiff", "arXiv 2504.15364", NOTHING, _by(least_like_the_mean))
RANDOM = Rule("random", "", NOTHING, _by(at_random))
H2O = Rule("H2O", "arXiv 2306.14048", WEIGHTS, _kept_by(HeavyHitters))
LOLA = Rule("LoLA's rule", "arXiv 2505.23666", "a state of order 2, asked at every row", _kept_by(Recall))
ORACLE = Rule("oracle", "", "the whole text, and its exact attention weights", _Oracle(), runnable=False)
CHEAP = (PROBE, KEYDIFF, KNORM, RANDOM)
"""Those that need nothing but keys and values when a model runs."""
