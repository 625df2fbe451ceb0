"""Which class of every model type runs, and its tiny random model, by the first recipe that gives one that works."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto as auto

from .inputs import token_ids
from .own_inputs import own_inputs
from .recipes import RECIPES, SPECIAL_CASES

_WITH_A_HEAD = (
    auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)
_FIRST_SOMETHING_ELSE = (auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
MOST_PARAMETERS = 450_000_000


@dataclass(frozen=True)
class Run:
    """One class of one model type.

    ``variant`` is ``head`` for a class that makes text and ``base`` for one that ends at hidden states. Types that are
    encoders or encoder-decoders in the first place run in both variants: ``optional_head``.
    """

    model_type: str
    variant: str
    class_name: str
    optional_head: bool

    @property
    def config_class(self) -> Any:
        return CONFIG_MAPPING[self.model_type]

    @property
    def model_class(self) -> Any:
        """The class, from the top of transformers or from the module beside that of its config."""
        module = self.config_class.__module__.replace("configuration_", "modeling_")
        return getattr(transformers, self.class_name, None) or getattr(import_module(module), self.class_name)


def all_runs() -> list[Run]:
    """Every type that has a base class or makes text, by name: with its head where it has one."""
    found = []
    for model_type in sorted(set(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) | set(auto.MODEL_MAPPING_NAMES)):
        head = next((_first(names[model_type]) for names in _WITH_A_HEAD if model_type in names), None)
        base = _first(auto.MODEL_MAPPING_NAMES.get(model_type))
        optional = any(model_type in names for names in _FIRST_SOMETHING_ELSE)
        if base and (optional or not head):
            found.append(Run(model_type, "base", base, optional))
        if head:
            found.append(Run(model_type, "head", head, optional and base is not None))
    return found


def _first(names: Any) -> Any:
    return names[0] if isinstance(names, list | tuple) else names


class NotBuiltError(Exception):
    """No recipe gave a model: this benchmark's limit, not the product's."""


def build(run: Run, facts: dict[str, Any]) -> Any:
    """Return the model of the first recipe by which it is built and runs, else of the first by which it is built.

    ``facts`` is told the recipe, the number of parameters, whether the model ran, and why recipes failed.
    """
    errors: list[str] = []
    first_built: tuple[Any, dict[str, Any]] | None = None
    for name, recipe in RECIPES.items():
        try:
            config = _config(run, recipe)
            parameters = _parameters(run.model_class, config)
            if parameters > MOST_PARAMETERS:
                raise NotBuiltError(f"{parameters / 1e6:.0f} million parameters")
            torch.manual_seed(0)
            model = run.model_class(config).eval()
            built = {"recipe": name, "parameters": parameters, "special_case": run.model_type in SPECIAL_CASES}
            first_built = first_built or (model, built)
            _run(model)
        except MemoryError:
            raise
        except Exception as error:
            errors.append(f"{name}: {type(error).__name__}: {str(error)[:240]}")
        else:
            facts |= built | {"ran": True}
            return model
    facts["errors"] = errors
    if first_built is None:
        raise NotBuiltError("no recipe gives a model")
    model, built = first_built
    facts |= built | {"ran": False}
    return model


def _config(run: Run, recipe: Any) -> Any:
    config = copy.deepcopy(run.config_class())
    recipe(config)
    SPECIAL_CASES.get(run.model_type, lambda config: None)(config)
    wanted = run.model_class.config_class
    if type(config) is not wanted:  # the class is that of a part of the model, as auto classes take it
        config = next((part for part in vars(config).values() if type(part) is wanted), config)
    if run.variant == "head" and run.optional_head and hasattr(config, "is_decoder"):
        config.is_decoder = True
    return config


def _parameters(model_class: Any, config: Any) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in model_class(copy.deepcopy(config)).parameters())


def _run(model: Any) -> None:
    """Raise unless the model runs, on token ids or on inputs of its own: a shrunk config may contradict itself."""
    with torch.no_grad():
        try:
            model(input_ids=token_ids(length=24))
        except Exception as alone:
            try:
                model(**own_inputs(model))
            except Exception as own:
                raise NotBuiltError(f"on token ids: {alone!r:.110}; on its own inputs: {own!r:.110}") from own
