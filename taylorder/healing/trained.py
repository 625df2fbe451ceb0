"""What is trained: of a model adapters of peft around its attention's projections, which can be switched off."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.prepared import PreparedConfig
from taylorder.analysis.projections import projection_layers
from taylorder.analysis.results import Role
from taylorder.errors import UnsupportedModelError, UsageError
from taylorder.healing.settings import ALPHA, RANK, Kind
from taylorder.models.description import ModelDescription
from taylorder.models.offloading import is_offloaded
from taylorder.models.quiet import quiet_transformers

_NO_LAYERS = "dummy-target-modules"
"""What peft takes for an adapter that has whole matrices alone."""


class Trained(ABC):
    """Parameters that are trained, by name; ``off`` runs the model without what was trained."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        """Take them over, and remember how they begin."""
        self.parameters = parameters
        self.first = self.state()

    @abstractmethod
    def off(self) -> AbstractContextManager[None]:
        """Run the model as it was in the block."""

    def prepared(self, prepared: PreparedConfig) -> PreparedConfig:
        """A config as it runs now, where training changes it."""
        return prepared

    def into(self, config: OrderConfig) -> OrderConfig:
        """The config with what was trained of it."""
        return config

    @abstractmethod
    def save(self, folder: Path, description: ModelDescription) -> None:
        """Write what was trained of the model."""

    def state(self) -> dict[str, Tensor]:
        """A copy of what was trained so far."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put back what ``state`` gave."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state[name])


class TrainedConfig(Trained):
    """Numbers of the config, which run as they are in it when training is ``off``; the weights of the model stay."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        """Take them over."""
        super().__init__(parameters)
        self.is_on = True

    @contextmanager
    def off(self) -> Iterator[None]:
        """Run with the numbers that the config has."""
        self.is_on = False
        try:
            yield
        finally:
            self.is_on = True

    def save(self, folder: Path, description: ModelDescription) -> None:
        """Write nothing: what was trained is in the config."""


class TrainedWeights(Trained):
    """An adapter around some layers."""

    def __init__(self, tuned: Any) -> None:
        """Take over a model of peft."""
        self._tuned = tuned
        named = tuned.base_model.model.named_parameters()
        super().__init__({name: parameter for name, parameter in named if parameter.requires_grad})

    @contextmanager
    def off(self) -> Iterator[None]:
        """Run the model with its own weights."""
        self._tuned.base_model.disable_adapter_layers()
        try:
            yield
        finally:
            self._tuned.base_model.enable_adapter_layers()

    def save(self, folder: Path, description: ModelDescription) -> None:
        """Write an adapter that peft loads, and that names the model it is for."""
        about = self._tuned.peft_config["default"]
        origin = description.origin
        about.base_model_name_or_path = description.name if origin is None else origin.path or description.name
        about.revision = None if origin is None else origin.revision
        with quiet_transformers():
            self._tuned.save_pretrained(folder)


@contextmanager
def training_weights(model: Any, description: ModelDescription, kind: Kind, seed: int) -> Iterator[TrainedWeights]:
    """Have a model be trained inside the block; afterwards it is as it was, its weights and their flags.

    Raises:
        UsageError: the weights are held elsewhere, or in too low a precision to be trained themselves.
        UnsupportedModelError: the model has no such projections.

    """
    names = trained_layers(model, description, kind)
    if is_offloaded(model):
        raise UsageError(
            f"{description.name} has weights that are brought in when a layer runs, and those cannot be trained: load "
            "it whole, without --device-map"
        )
    if kind != "lora" and description.dtype not in ("float32", "float64"):
        raise UsageError(
            f"--train {kind} changes weights by less than {description.dtype} resolves: take --dtype float32, or "
            "--train lora"
        )
    with as_they_were(model, names), quiet_transformers():
        yield TrainedWeights(_tuned(model, names, kind, seed))


def trained_layers(model: nn.Module, description: ModelDescription, kind: Kind) -> list[str]:
    """Names of the layers that are trained, each once, in the order of the model.

    Raises:
        UnsupportedModelError: there are none, or q and k are not to be had without v.

    """
    wanted: tuple[Role, ...] = ("q", "k") if kind == "qk" else ("q", "k", "v", "o")
    names: dict[str, None] = {}
    for module in description.modules:
        layers = projection_layers(model, module.name)
        if kind == "qk" and any(layers.get(role) == layers.get("v") for role in wanted):
            raise UnsupportedModelError(
                f"{module.name} has no matrices of q and k by themselves, which --train qk trains; take --train qkvo"
            )
        names |= {layers[role]: None for role in wanted if role in layers}
    if not names:
        raise UnsupportedModelError(
            f"{description.name} has its projections under names that are not known, so they cannot be trained; take "
            "--train config"
        )
    return list(names)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Have no weight of a model ask for gradients inside the block."""
    with as_they_were(model, []):
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        yield


@contextmanager
def as_they_were(model: nn.Module, names: Sequence[str], *, values: bool = False) -> Iterator[None]:
    """Put layers back when the block ends, and the flags of all parameters; with ``values`` the layers' weights too."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    layers = {name: model.get_submodule(name) for name in names}
    weights = [parameter for layer in layers.values() for parameter in layer.parameters()] if values else []
    before = [parameter.detach().clone() for parameter in weights]
    try:
        yield
    finally:
        for name, layer in layers.items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)
        for parameter, value in zip(weights, before, strict=True):
            parameter.data.copy_(value)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        vars(model).pop("peft_config", None)


def _tuned(model: Any, names: list[str], kind: Kind, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    if kind == "lora":
        about = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules=names)
    else:
        about = LoraConfig(task_type="CAUSAL_LM", target_modules=_NO_LAYERS, modules_to_save=names)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, about)
