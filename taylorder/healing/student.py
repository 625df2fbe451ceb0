"""A model that is trained to run with a config, and the exact model beside it: the same weights, training off."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.handle import attach
from taylorder.adapt.prepared import PreparedConfig, prepare
from taylorder.analysis.losses import hidden_states, language_model_head
from taylorder.healing.trained import Trained
from taylorder.healing.variants import near_off
from taylorder.kernels.spec import Taylor
from taylorder.models.description import ModelDescription


class Student:
    """A model, what of it is trained, and the config that it is to run with; without one the exact model is trained.

    The config goes by the weights that the model has when training is off, whatever was trained.
    """

    def __init__(
        self, model: Any, description: ModelDescription, trained: Trained, config: OrderConfig | None = None
    ) -> None:
        """Prepare the config."""
        self.model, self.description, self.trained = model, description, trained
        self.head = language_model_head(model)
        self.config = config
        self._prepared = None if config is None else prepare(model, config, description)
        self._far_only = None if config is None else prepare(model, near_off(config), description)

    def use(self, config: OrderConfig | None) -> None:
        """Go on with another config of the same heads, such as one with other probes."""
        self.config = config
        self._prepared = None if config is None else prepare(self.model, config, self.description)

    def exact(self, sequence: Tensor) -> Tensor:
        """Final hidden states ``[T, hidden]`` of the exact model as it was before any training."""
        with self.trained.off():
            return hidden_states(self.model, sequence)

    def hidden(self, sequence: Tensor) -> Tensor:
        """Those of the model in training, without gradients."""
        with self.running():
            return hidden_states(self.model, sequence)

    @contextmanager
    def running(self, far_only: Collection[str] = ()) -> Iterator[None]:
        """Run the model with its config in the block, some modules without their near fields."""
        if self._prepared is None:
            yield
            return
        with attach(self.model, self.trained.prepared(self._without(self._prepared, far_only))):
            yield

    @property
    def truncated(self) -> dict[str, nn.Module]:
        """The modules that do not run exactly, by name."""
        if self._prepared is None:
            return {}
        return {plan.name: module for module, plan in self._prepared.plans.items() if plan.heads is not None}

    @property
    def with_polynomials(self) -> list[str]:
        """Names of the modules in which a near field can be left out."""
        layers = () if self.config is None else self.config.layers
        return [layer.module for layer in layers if any(isinstance(head.spec.far, Taylor) for head in layer.heads)]

    def _without(self, prepared: PreparedConfig, far_only: Collection[str]) -> PreparedConfig:
        if not far_only or self._far_only is None:
            return prepared
        other = self._far_only.plans
        plans = {module: other[module] if plan.name in far_only else plan for module, plan in prepared.plans.items()}
        return replace(prepared, plans=plans)
