"""Walk back through a model a layer at a time: what a layer remembers is made again when its turn comes.

A forward pass that is to be walked back remembers some twenty numbers per token, layer and hidden dimension, and the
weights it ran with. Where that is too much, only the input of every layer is kept, and the layer runs a second time
just before its gradients are computed. The numbers are the same; it takes half as long again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from taylorder.errors import UnsupportedModelError
from taylorder.models.offloading import is_offloaded
from taylorder.models.positions import token_embeddings
from taylorder.models.running import input_device
from taylorder.storage import processes
from taylorder.storage.machine import Machine

SHARE = 0.5
"""Of the memory that is available, what a whole model may remember of a sequence before layers run twice."""


def remembered_bytes(model: Any, tokens: int, *, by_layer: bool = False) -> int:
    """Bytes that a forward pass over so many tokens remembers for the way back, in float32."""
    layers = int(getattr(model.config.get_text_config(), "num_hidden_layers", 1))
    if by_layer:
        return tokens * (layers * hidden_size(model) + widest(model)) * 4
    return tokens * layers * widest(model) * 4


def widest(model: Any) -> int:
    """Numbers that a layer makes of one token at its widest place."""
    hidden = hidden_size(model)
    inner = getattr(model.config.get_text_config(), "intermediate_size", None)
    return 8 * hidden + 3 * (inner if isinstance(inner, int) else 4 * hidden)


def hidden_size(model: Any) -> int:
    """Numbers that a token is between two layers."""
    table = token_embeddings(model)
    return 1024 if table is None else int(table.shape[-1])


def goes_by_layer(model: Any, tokens: int) -> bool:
    """Whether layers are to run twice: where weights are not in place, or what is remembered takes too much memory.

    Raises:
        UnsupportedModelError: weights are not in place, and the class has no layers that can run by themselves.

    """
    if is_offloaded(model):
        if not _layers(model):
            raise UnsupportedModelError(
                f"{type(model).__name__} has weights that are brought in when a layer runs, and no layer that "
                "transformers can run again on the way back: levers need gradients; load it whole, without "
                "--device-map, or leave out --budget and --levers"
            )
        return True
    available = _available(model)
    return bool(_layers(model)) and available is not None and remembered_bytes(model, tokens) > SHARE * available


def by_layer(model: nn.Module, wanted: bool) -> AbstractContextManager[None]:
    """Have the layers run twice inside the block if that is wanted; afterwards they are as they were."""
    return _running_twice(_layers(model)) if wanted else nullcontext()


@contextmanager
def _running_twice(layers: list[nn.Module]) -> Iterator[None]:
    # accelerate's hooks lie in an attribute of the same name, which what is put here calls.
    before = [(layer, vars(layer).get("forward")) for layer in layers]
    try:
        for layer in layers:
            layer.forward = partial(_checkpointed, layer.forward)  # type: ignore[method-assign]
        yield
    finally:
        for layer, forward in before:
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def _checkpointed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # To its end, since what attends may come after the last number that the way back needs.
    with set_checkpoint_early_stop(False):
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def _layers(model: nn.Module) -> list[nn.Module]:
    """The layers that transformers itself would run twice, none inside another."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module not in inside:
            found.append(module)
            inside.update(module.modules())
    return found


def _available(model: Any) -> int | None:
    """Bytes that are free where the model runs, for each process."""
    device = input_device(model)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = Machine.here().available
    return None if available is None else available // processes.world()
