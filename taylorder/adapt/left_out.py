"""How many KV heads a config has made treat a key otherwise than exact attention does, after so many tokens."""

from __future__ import annotations

from dataclasses import dataclass

from taylorder.adapt.config import OrderConfig
from taylorder.kernels.spec import Dropped, Exact
from taylorder.models.description import ModelDescription


@dataclass(frozen=True, slots=True)
class LeftOut:
    """KV heads of a model, and how many of them have left out a token by dropping it, or by a polynomial for it.

    ``first`` is the number of tokens after which the first KV head leaves one out; None where all are exact.
    """

    tokens: int
    kv_heads: int
    dropping: int
    approximating: int
    first: int | None

    @property
    def nothing(self) -> bool:
        """Whether the config has computed what exact attention does, so far."""
        return not self.dropping + self.approximating


def left_out(config: OrderConfig, model: ModelDescription, tokens: int) -> LeftOut:
    """What the config of a causal model has left out after ``tokens`` tokens."""
    specs = [
        group[0].spec  # all heads of a group share a near field, and whether anything stands for the other keys
        for layer, module in zip(config.layers, model.modules, strict=True)
        for group in module.groups(layer.heads)
    ]
    others = [spec for spec in specs if not isinstance(spec.far, Exact)]
    beyond = [spec for spec in others if tokens > spec.near.tokens]
    dropping = sum(isinstance(spec.far, Dropped) for spec in beyond)
    first = min((spec.near.tokens + 1 for spec in others), default=None)
    return LeftOut(tokens, len(specs), dropping, len(beyond) - dropping, first)
