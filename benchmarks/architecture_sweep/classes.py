"""Which model types the installed transformers knows, and which class of each one runs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto as auto

_WITH_A_HEAD = (
    auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)
_FIRST_SOMETHING_ELSE = (auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)


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
