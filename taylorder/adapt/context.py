"""``with adapted(model, config):`` makes a model run with a config, and leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from taylorder._attention import selected
from taylorder.adapt.config import OrderConfig
from taylorder.adapt.runtime import ATTENTION_NAME, PLANS, Counts, plan_layer, register
from taylorder.errors import UsageError
from taylorder.models import describe


@contextmanager
def adapted(model: Any, config: OrderConfig, *, guard: bool = True) -> Iterator[Counts]:
    """Run ``model`` with the order of every head as ``config`` says, inside the block.

    Reversible and exception-safe: afterwards no hook and no changed config is left. Blocks may be nested, on one model
    (the inner config holds) or on several. The model is for inference then; gradients do flow.

    Args:
        model: the transformers model the config was made for.
        config: per-head decisions.
        guard: False leaves vanishing and negative denominators as they are, to show what they do.

    Yields:
        :class:`~taylorder.adapt.runtime.Counts` of guarded rows, filled while the model runs.

    Raises:
        ConfigError: the config does not belong to the model; says what differs.
        UnsupportedModelError: the model cannot be adapted.
        UsageError: from a forward pass that asks for what an adapted model cannot give (attention weights, 4-D masks,
            packed sequences, caches other than ``DynamicCache``).
        NonFiniteError: from a forward pass that overflows.

    """
    config.check(describe(model, config.model.name))
    register()
    modules = dict(model.named_modules())
    counts = Counts()
    targets = {modules[layer.module]: (plan_layer(config, layer, guard=guard), counts) for layer in config.layers}
    suspended = {module: PLANS[module] for module in targets if module in PLANS}
    with ExitStack() as stack:
        stack.enter_context(selected(model, ATTENTION_NAME))
        for caller in {model, model.base_model}:
            stack.callback(caller.register_forward_pre_hook(_refuse_attention_weights, with_kwargs=True).remove)
        for module in targets:
            stack.callback(module.register_forward_pre_hook(_refuse_cache, with_kwargs=True).remove)
        PLANS.update(targets)
        try:
            yield counts
        finally:
            for module in targets:
                PLANS.pop(module, None)
            PLANS.update(suspended)


def _refuse_attention_weights(model: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if kwargs.get("output_attentions"):
        raise UsageError(
            "output_attentions=True: an adapted model has no matrix of attention weights to return; leave it out, or "
            "run the model outside the block with attn_implementation='eager'"
        )


def _refuse_cache(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Static and offloaded caches hand over keys that were never written; only growing ones can be read."""
    from transformers import DynamicCache

    for cache in (kwargs.get("past_key_values"), *args):
        if hasattr(cache, "get_seq_length") and type(cache) is not DynamicCache:
            raise UsageError(
                f"the cache is a {type(cache).__name__}, and an adapted model reads a DynamicCache: leave "
                "cache_implementation out"
            )
