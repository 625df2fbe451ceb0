"""Which attention modules attend to what another part of a model makes: the states of an encoder, or an image."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from taylorder.models.attention import AttentionCall

_OTHER_STATES = frozenset(
    {"key_value_states", "encoder_hidden_states", "cross_attention_states", "image_hidden_states", "current_states"}
)
"""What attention modules of transformers call the states that their keys and values are made of, beside their own."""


@contextmanager
def noting_other_states(model: nn.Module) -> Iterator[set[nn.Module]]:
    """Collect the modules that are given states of another part of the model inside the block."""
    given: set[nn.Module] = set()
    with ExitStack() as stack:
        for module in model.modules():
            names = list(inspect.signature(module.forward).parameters)
            if _OTHER_STATES.isdisjoint(names):
                continue

            def note(
                module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: list[str] = names
            ) -> None:
                arguments = dict(zip(names, args, strict=False)) | kwargs
                if any(isinstance(arguments.get(name), Tensor) for name in _OTHER_STATES):
                    given.add(module)

            stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield given


def is_cross(call: AttentionCall, given_other_states: set[nn.Module]) -> bool:
    """Whether a call attends to other states than its queries are made of."""
    return call.module in given_other_states or call.k.shape[2] != call.q.shape[2]
