"""Adapters (LoRA and its like): merged into the weights where they are asked for, refused by one sentence elsewhere.

They are known by their structure and their files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from torch import nn

from taylorder.errors import UnsupportedModelError, UsageError, first_line
from taylorder.models.quiet import quiet_transformers
from taylorder.storage.strict_json import read_json

ADAPTER_FILE = "adapter_config.json"
"""What peft writes beside the weights of an adapter."""

_WEIGHT = re.compile(r"(^|\.)(lora_[a-zA-Z]\w*|base_layer)(\.|$)")
"""Names of weights that only an adapter, or a layer wrapped by one, has."""


def refuse_adapters(model: nn.Module, name: str) -> None:
    """Refuse a model that runs with adapters: a peft model, or one whose layers were wrapped in place."""
    for key, module in model.named_modules():
        if isinstance(getattr(module, "base_layer", None), nn.Module):
            _refuse(name, f"{key} is a {type(module).__name__} around a base_layer")
        if key and type(module).__module__.partition(".")[0] == "peft":
            _refuse(name, f"{key} is a {type(module).__name__} of peft")
    if getattr(model, "peft_config", None):
        _refuse(name, f"it is a {type(model).__name__} with a peft_config")
    refuse_adapter_weights((key for key, _ in model.named_parameters()), name)


def refuse_adapter_weights(keys: Iterable[str], name: str) -> None:
    """Refuse weights whose names say that they belong to an adapter."""
    for key in keys:
        if _WEIGHT.search(key):
            _refuse(name, f"it has weights {key}")


def refuse_adapter_files(folder: str, name: str, *, local: bool, revision: str | None = None) -> None:
    """Refuse a folder or Hub id that holds an adapter, alone or beside the weights it is for."""
    from transformers.utils.peft_utils import find_adapter_config_file

    file = find_adapter_config_file(folder, local_files_only=local, revision=revision)
    for path in (*([Path(file)] if file else []), *sorted(Path(folder).glob("adapter_model.*"))):
        _refuse(name, f"it holds {path.name}")


def refuse_gguf_adapter(reader: Any, name: str) -> None:
    """Refuse a GGUF file that says it is an adapter."""
    kind = reader.fields.get("general.type")
    if kind is not None and kind.contents() == "adapter":
        _refuse(name, "the file's general.type is adapter")


def merge_adapter(model: nn.Module, folder: Path) -> None:
    """Merge an adapter that peft wrote into the weights of the model that it is for, and leave nothing else of it.

    Low-rank products are computed in float64 and rounded once: the weights are the same on every machine, and so is
    their fingerprint.

    Raises:
        UsageError: the adapter cannot be read, or does not fit the model.

    """
    from peft import PeftModel

    try:
        with quiet_transformers():
            tuned: Any = PeftModel.from_pretrained(model, str(folder))  # type: ignore[arg-type]
            for key, parameter in tuned.named_parameters():
                if _WEIGHT.search(key) and "base_layer" not in key:
                    parameter.data = parameter.data.double()
            tuned.merge_and_unload()
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{folder} holds an adapter that does not fit {type(model).__name__} ({first_line(error)}): take the model "
            "that its adapter_config.json names"
        ) from error
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def adapter_of(folder: Path) -> tuple[str, str | None] | None:
    """The model that an adapter in a folder is for, and its revision; None where the folder holds none.

    Raises:
        UsageError: the file that says so cannot be read, or does not say so.

    """
    path = folder / ADAPTER_FILE
    if not path.is_file():
        return None
    try:
        about = read_json(path)
        return str(about["base_model_name_or_path"]), about.get("revision")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} does not say which model the adapter is for ({first_line(error)}); `taylorder heal` writes one"
        ) from error


def _refuse(name: str, sign: str) -> NoReturn:
    raise UnsupportedModelError(
        f"{name} has an adapter that is not merged into its weights ({sign}), so alphas and errors would not be of "
        "one model: merge it first with peft (model = model.merge_and_unload(), then model.save_pretrained) and take "
        "the merged model; a prefix or soft prompt cannot be merged, there take model.get_base_model()."
    )
