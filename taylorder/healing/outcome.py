"""What came of a training, and its record: the best weights, and how it came to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from taylorder.adapt.config import OrderConfig
from taylorder.storage.records import Records

_PLAIN = ("losses", "held_out", "best", "tokens", "seconds", "stopped")


@dataclass(frozen=True)
class Outcome:
    """What came of a training.

    Attributes:
        weights: the best ones, by name.
        config: the config with the probes that belong to them; None where the exact model was trained.
        losses: of every step.
        held_out: steps done and the held-out loss then.
        best: steps that the best weights have taken.
        tokens: that were read.
        seconds: that it took.
        stopped: why it ended.

    """

    weights: dict[str, Tensor]
    config: OrderConfig | None
    losses: list[float]
    held_out: list[tuple[int, float]]
    best: int
    tokens: int
    seconds: float
    stopped: str


def write(records: Records, name: str, outcome: Outcome) -> None:
    """Keep what came of a training."""
    about, probes = recorded_probes(outcome.config)
    tensors = {f"weights.{key}": tensor for key, tensor in outcome.weights.items()}
    tensors |= {f"probe.{key}": tensor for key, tensor in probes.items()}
    records.put(f"trained-{name}", {key: getattr(outcome, key) for key in _PLAIN} | {"probe": about}, tensors)


def read(records: Records, name: str, config: OrderConfig | None) -> Outcome | None:
    """What was kept of a training for a config, None if that is not finished."""
    value = records.get(f"trained-{name}")
    if value is None:
        return None
    tensors = records.tensors(f"trained-{name}")
    plain = {key: value[key] for key in _PLAIN} | {"held_out": [(done, loss) for done, loss in value["held_out"]]}
    return Outcome(part(tensors, "weights"), with_recorded(config, value["probe"], part(tensors, "probe")), **plain)


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {
        name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")
    }


def recorded_probes(config: OrderConfig | None) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """The probes of a config, as a record holds them."""
    if config is None or config.probe is None:
        return None, {}
    return config.probe.model_dump(), dict(config.probes)


def with_recorded(
    config: OrderConfig | None, about: dict[str, Any] | None, probes: Mapping[str, Tensor]
) -> OrderConfig | None:
    """The config with the probes of a record, if that has any."""
    return config if config is None or about is None else config.with_probes(probes, about)
