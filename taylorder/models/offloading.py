"""Weights that are not in the model: accelerate's hooks bring them in when a module runs, and know where they are.

A parameter of such a module is on the meta device in between, without data. What has to be read without running the
module is read here, a parameter at a time, so that memory stays that of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn


def is_offloaded(model: nn.Module) -> bool:
    """Whether any weight of a model is somewhere else while the model does not run."""
    return any(parameter.is_meta for parameter in model.parameters())


def is_spread(model: nn.Module) -> bool:
    """Whether a model computes on several devices."""
    return len({place_of(module) for module in model.modules()} - {None}) > 1


def stored(module: nn.Module, key: str) -> Tensor | None:
    """A parameter that a module itself has: as it is, or read from where it is kept; None where nobody knows where.

    What is read is of the dtype that the module runs in.
    """
    parameter: Tensor = getattr(module, key)
    if not parameter.is_meta:
        return parameter.detach()
    for hook in _offloading(module):
        try:
            value: Tensor = hook.weights_map[key]  # to ask first whether it is there would read it too
        except KeyError:
            continue
        return value.detach().to(parameter.dtype)
    return None


def is_kept(module: nn.Module, key: str) -> bool:
    """Whether :func:`stored` finds a value, which it does not read."""
    return not getattr(module, key).is_meta or any(
        name in list(kept) for kept, name in (_innermost(hook.weights_map, key) for hook in _offloading(module))
    )


def weights(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Every weight of a model by name: the module that has it, and how that calls it.

    A tied weight is there once, under its first name. While weights are brought in and out what is tied becomes
    parameters of its own, so it is the class that says what is one.
    """
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    found: dict[str, tuple[nn.Module, str]] = {}
    seen: set[int] = set()
    groups: set[str] = set()
    for prefix, module in model.named_modules():
        for key, parameter in module._parameters.items():
            name = f"{prefix}.{key}" if prefix else key
            group = tied.get(name, name)
            if parameter is None or id(parameter) in seen or (parameter.is_meta and group in groups):
                continue
            seen.add(id(parameter))
            groups.add(group)
            found[name] = module, key
    return found


def place_of(module: nn.Module) -> torch.device | None:
    """Where the first weight of a module is or, where that is brought in, will be when the module runs."""
    for inner in module.modules():
        for parameter in inner._parameters.values():
            if parameter is None:
                continue
            hooks = _offloading(inner) if parameter.is_meta else iter(())
            return next((torch.device(hook.execution_device) for hook in hooks), parameter.device)
    return None


def weights_bytes(model: nn.Module, *, resident: bool = False) -> int:
    """Bytes of a model's weights, or of those that are in memory all the time and not on disk."""
    held = [getattr(module, key) for module, key in weights(model).values() if not resident or _in_memory(module, key)]
    return sum(parameter.numel() * parameter.element_size() for parameter in held)


def without_gradients(model: nn.Module) -> AbstractContextManager[Any]:
    """Run without gradients in the block, in inference mode where weights stay in place.

    What is brought in and out in that mode could not be told to want gradients afterwards.
    """
    return torch.no_grad() if is_offloaded(model) else torch.inference_mode()


def _offloading(module: nn.Module) -> Iterator[Any]:
    """The hooks on a module that bring its weights in."""
    attached = getattr(module, "_hf_hook", None)
    for hook in getattr(attached, "hooks", (attached,)):
        if getattr(hook, "offload", False) and getattr(hook, "weights_map", None) is not None:
            yield hook


def _in_memory(module: nn.Module, key: str) -> bool:
    maps = [_innermost(hook.weights_map, key) for hook in _offloading(module)]
    # accelerate's loader has what is in memory in a dict beside the index of what is on disk.
    return not getattr(module, key).is_meta or any(name in getattr(kept, "state_dict", kept) for kept, name in maps)


def _innermost(kept: Any, key: str) -> tuple[Any, str]:
    """The map that accelerate's maps with prefixes lead to, and what that calls the key."""
    return _innermost(kept.dataset, f"{kept.prefix}{key}") if hasattr(kept, "prefix") else (kept, key)
