"""The probes of a config while they are trained: which keys each KV head keeps, by what it costs in the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.prepared import LayerNumbers, PreparedConfig
from taylorder.adapt.probe import probe_features
from taylorder.analysis.capture import LayerTensors, run_layers
from taylorder.errors import UsageError
from taylorder.healing.trained import TrainedConfig
from taylorder.kernels.spec import Dropped, keeps_keys


@dataclass(frozen=True)
class Scales:
    """What a layer's probes are measured in: the spread of every feature ``[G, F]``, and of priorities ``[G, 1]``."""

    features: Tensor
    priorities: Tensor

    @classmethod
    def of(cls, layer: LayerTensors, probe: Tensor) -> Scales:
        """Those of the keys of one layer."""
        features = probe_features(layer.k, layer.v).transpose(0, 1).flatten(1, 2)
        priorities = torch.linalg.vecdot(features, probe[:, None])
        return cls(features.std(1), priorities.std(1)[:, None])


class TrainedProbes(TrainedConfig):
    """What is trained is how keys rank; the weights of the model and all other numbers of the config stay as they are.

    A parameter is what is added to a probe, with features and priorities in units of their spread, so that one
    learning rate does for all.
    """

    def __init__(self, config: OrderConfig, scales: Mapping[str, Scales], about: Mapping[str, Any]) -> None:
        """Begin with the probes that a config has.

        Args:
            config: keeps keys.
            scales: of every layer with a probe, by module.
            about: the text that is learnt from, as :meth:`OrderConfig.with_probes` takes it.

        """
        self._about = dict(about)
        self._probes = {module: probe.clone() for module, probe in config.probes.items()}
        self._units = {module: of.priorities / of.features.clamp(min=1e-6) for module, of in scales.items()}
        super().__init__({module: nn.Parameter(torch.zeros_like(probe)) for module, probe in self._probes.items()})

    @classmethod
    def on(cls, model: Any, config: OrderConfig, sequences: Tensor, about: Mapping[str, Any]) -> TrainedProbes:
        """Train the probes of a config; the spreads are those of the keys that a model makes of ``sequences``.

        Raises:
            UsageError: no head keeps keys, or one that does has something else beside its near field.

        """
        if not config.probes:
            raise UsageError("no head of the config keeps keys, so there is no choice to train; take --train lora")
        for layer in config.layers:
            specs = [head.spec for head in layer.heads]
            mixed = [spec for spec in specs if spec.near.kept and not isinstance(spec.far, Dropped)]
            if keeps_keys(specs) and mixed:
                raise UsageError(
                    f"{layer.module} keeps keys beside polynomials ({mixed[0].far}), where the choice has no gradient; "
                    "take --train lora or config"
                )
        scales: dict[str, Scales] = {}

        def consume(name: str, layer: LayerTensors) -> None:
            if name in config.probes:
                scales[name] = Scales.of(layer, config.probes[name])

        run_layers(model, sequences, consume)
        with torch.no_grad():  # what is made in inference mode takes no part where gradients are recorded
            scales = {name: Scales(of.features.clone(), of.priorities.clone()) for name, of in scales.items()}
        return cls(config, scales, about)

    def prepared(self, prepared: PreparedConfig) -> PreparedConfig:
        """The same plans with the probes of now."""
        if not self.is_on:
            return prepared
        plans = dict(prepared.plans)
        for module, plan in prepared.plans.items():
            if plan.name in self._probes and plan.numbers is not None:
                held = plan.numbers
                rotations = None
                if held.query_rotation is not None and held.key_rotation is not None:
                    rotations = held.query_rotation, held.key_rotation
                plans[module] = replace(plan, numbers=LayerNumbers(held.centre, rotations, self._probe(plan.name)))
        return replace(prepared, plans=plans)

    def into(self, config: OrderConfig) -> OrderConfig:
        """The config with the probes of now."""
        with torch.no_grad():
            return config.with_probes({module: self._probe(module).clone() for module in self._probes}, self._about)

    def _probe(self, module: str) -> Tensor:
        return self._probes[module] + self.parameters[module] * self._units[module]
