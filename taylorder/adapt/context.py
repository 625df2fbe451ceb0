"""``with adapted(model, config):`` makes a model run with a config, and leaves it as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from taylorder._attention import Observer, selected
from taylorder.adapt.config import OrderConfig
from taylorder.adapt.runtime import (
    ATTENTION_NAME,
    RUNS,
    Counts,
    ModuleRun,
    execution_digest,
    plan_layer,
    refuse_mask,
    refuse_packed,
    register,
)
from taylorder.errors import TaylorderError, UsageError
from taylorder.kernels import TritonUnavailableError
from taylorder.kernels.dispatch import choose_backend

_PREPARE = "_prepare_cache_for_generation"


@contextmanager
def adapted(
    model: Any,
    config: OrderConfig,
    *,
    guard: bool = True,
    backend: str | None = None,
    observe: Observer | None = None,
) -> Iterator[Counts]:
    """Run ``model`` with the order of every head as ``config`` says, inside the block.

    ``model.generate`` then keeps a :class:`~taylorder.adapt.cache.TaylorCache` unless it is given another cache.
    Reversible and exception-safe: afterwards no hook and no changed config is left. Blocks may be nested, on one model
    (the inner config holds) or on several. The model is for inference then; gradients do flow.

    Args:
        model: the transformers model the config was made for.
        config: per-head decisions.
        guard: False leaves vanishing and negative denominators as they are, to show what they do. It takes all keys to
            do that, so ``generate`` keeps an ordinary cache then.
        backend: of the kernels, ``triton`` or ``torch``; None chooses by device, see ``taylor_attention``. What no
            kernel does (gradients, both directions, ``guard=False``) is computed otherwise either way.
        observe: called by every attention module with what it was given and what it put out, see
            :data:`taylorder._attention.Observer`.

    Yields:
        :class:`~taylorder.adapt.runtime.Counts` of guarded rows, filled while the model runs.

    Raises:
        ConfigError: the config does not belong to the model; says what differs.
        UnsupportedModelError: the model cannot be adapted.
        TaylorderError: the backend is Triton, which cannot run where the model is.
        UsageError: the backend is unknown; from a forward pass that asks for what an adapted model cannot give
            (attention weights, 4-D masks, packed sequences, caches other than ``TaylorCache`` and ``DynamicCache``),
            and from ``generate`` when it is asked for such a cache, or for assisted decoding, before anything is
            generated.
        NonFiniteError: from a forward pass that overflows.

    """
    config.check(model)
    _check_backend(model, backend)
    register()
    modules = dict(model.named_modules())
    counts = Counts()
    targets = {
        modules[layer.module]: ModuleRun(
            plan_layer(config, layer, guard=guard, backend=backend), counts, observe=observe
        )
        for layer in config.layers
    }
    suspended = {module: RUNS[module] for module in targets if module in RUNS}
    check_call, note_cache = _hooks(targets, execution_digest(config), guard)
    with ExitStack() as stack:
        stack.enter_context(selected(model, ATTENTION_NAME))
        for caller in {model, model.base_model}:
            stack.callback(caller.register_forward_pre_hook(check_call, with_kwargs=True).remove)
        for module in targets:
            stack.callback(module.register_forward_pre_hook(note_cache, with_kwargs=True).remove)
        if hasattr(model, _PREPARE):
            stack.enter_context(_preparing_caches(model, config, guard))
        RUNS.update(targets)
        try:
            yield counts
        finally:
            for module in targets:
                RUNS.pop(module, None)
            RUNS.update(suspended)


def _check_backend(model: Any, backend: str | None) -> None:
    """Refuse a backend that is unknown or cannot run where the model is, before anything is computed."""
    weights = next(model.parameters())
    try:
        choose_backend(backend, None, weights.device, weights.dtype)
    except TritonUnavailableError as error:
        raise TaylorderError(str(error)) from error
    except ValueError as error:
        raise UsageError(str(error)) from error


Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]


def _hooks(targets: dict[nn.Module, ModuleRun], digest: str, guard: bool) -> tuple[Hook, Hook]:
    """Return forward pre-hooks for the model and for its attention modules, in a block for a config of that digest."""
    from transformers import DynamicCache

    from taylorder.adapt.cache import TaylorCache
    from taylorder.adapt.cache_layer import TaylorCacheLayer

    def in_force() -> bool:
        """Whether no block inside this one has taken over."""
        return all(RUNS.get(module) is run for module, run in targets.items())

    def check_call(model: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse a call as a whole before a layer has changed its part of the cache."""
        if not in_force():
            return
        if kwargs.get("output_attentions"):
            raise UsageError(
                "output_attentions=True: an adapted model has no matrix of attention weights to return; leave it out, "
                "or run the model outside the block with attn_implementation='eager'"
            )
        cache = kwargs.get("past_key_values")
        if isinstance(cache, TaylorCache):
            cache.refuse_other(digest)
            cache.refuse_torn()
            if not guard:
                raise UsageError(
                    "guard=False was asked for with a TaylorCache, whose states are always guarded: leave the cache "
                    "out, or the guard on"
                )
            if not cache.is_croppable:  # it has states
                mask = kwargs.get("attention_mask")
                refuse_mask(type(model).__name__, mask)
                refuse_packed(type(model).__name__, mask, kwargs)

    def note_cache(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Tell the attention function which cache layer it works for; transformers does not."""
        run = targets[module]
        if RUNS.get(module) is not run:
            return
        run.layer = None
        for cache in (kwargs.get("past_key_values"), *args):
            if isinstance(cache, TaylorCache):
                cache.refuse_other(digest)
                layer = cache.layers[module.layer_idx]
                if isinstance(layer, TaylorCacheLayer):
                    layer.expected = True
                    run.layer = layer
            elif hasattr(cache, "get_seq_length") and type(cache) is not DynamicCache:
                # Static and offloaded caches hand over keys that were never written; only growing ones can be read.
                raise UsageError(
                    f"the cache is a {type(cache).__name__}, and an adapted model reads a DynamicCache or a "
                    "TaylorCache: leave cache_implementation out"
                )

    return check_call, note_cache


@contextmanager
def _preparing_caches(model: Any, config: OrderConfig, guard: bool) -> Iterator[None]:
    """Have ``model.generate`` make a ``TaylorCache`` where it would make a cache of its own.

    The method replaced is private, but the only place where generate makes caches; it is shadowed on the instance.
    """
    from taylorder.adapt.cache import TaylorCache

    shadowed = vars(model).get(_PREPARE)
    original = getattr(model, _PREPARE)

    def prepare(generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        cache = model_kwargs.get("past_key_values")
        asked = generation_config.cache_implementation
        # A cache that generate makes for an assistant model is rolled back all the time: it has to keep every key.
        if cache is None and generation_config.use_cache is not False and not generation_config.is_assistant:
            if asked not in (None, "dynamic"):
                raise UsageError(
                    f"cache_implementation is {asked!r}, and an adapted model keeps its own states: leave it out, or "
                    "take 'dynamic' to keep every key"
                )
            if asked is None and guard:
                cache = model_kwargs["past_key_values"] = TaylorCache.unchecked(model, config)
        mode = args[0] if args else kwargs.get("generation_mode")
        if getattr(mode, "value", None) == "assisted_generation" and isinstance(cache, TaylorCache):
            cache.refuse_cropping()
        return original(generation_config, model_kwargs, *args, **kwargs)

    setattr(model, _PREPARE, prepare)
    try:
        yield
    finally:
        if shadowed is None:
            delattr(model, _PREPARE)
        else:
            setattr(model, _PREPARE, shadowed)
