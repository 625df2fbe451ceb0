"""What a model carries while a handle is attached: its attention, two kinds of hooks, and a way to make caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import nn
from transformers import Cache, DynamicCache

from taylorder.adapt.attention import (
    ATTENTION_NAME,
    RUNS,
    ModuleRun,
    honoured,
    outside_error,
    refuse_packed,
    register,
)
from taylorder.adapt.cache import TaylorCache
from taylorder.adapt.cache_layer import cropping_error
from taylorder.errors import UsageError
from taylorder.models.attention import selected, selections
from taylorder.models.quiet import uncompiled
from taylorder.models.refusals import refuse_block_mask

_PREPARE = "_prepare_cache_for_generation"

NewCache = Callable[[], TaylorCache]


@contextmanager
def installed(
    model: Any, runs: dict[nn.Module, ModuleRun], digest: str, *, guard: bool, new_cache: NewCache | None
) -> Iterator[None]:
    """Have the modules of ``model`` run as ``runs`` says inside the block; afterwards the model is as it was.

    ``digest`` is of the config, see :func:`taylorder.adapt.prepared.execution_digest`, and ``new_cache`` makes what
    ``generate`` keeps where it would keep a cache of its own; None where nobody generates.
    """
    register()
    suspended = {module: RUNS[module] for module in runs if module in RUNS}
    with ExitStack() as stack:
        stack.enter_context(selected(model, ATTENTION_NAME, runs))
        hooks = Hooks(runs, digest, guard, selections(model), new_cache)
        for caller in {model, model.base_model}:
            stack.callback(caller.register_forward_pre_hook(hooks.check_call, with_kwargs=True).remove)
        for module in runs:
            stack.callback(module.register_forward_pre_hook(hooks.note_cache, with_kwargs=True).remove)
        if new_cache is not None and hasattr(model, _PREPARE):
            stack.enter_context(_preparing_caches(model, hooks, new_cache))
        RUNS.update(runs)
        try:
            yield
        finally:
            for module in runs:
                RUNS.pop(module, None)
            RUNS.update(suspended)


@dataclass(frozen=True, eq=False)
class Hooks:
    """The hooks of one attached handle. A model that has them cannot be copied or pickled.

    ``selected`` is what attention the model's configs select. ``new_cache`` is kept because its owner, the handle, has
    to live as long as the model has the hooks.
    """

    runs: dict[nn.Module, ModuleRun]
    digest: str
    guard: bool
    selected: list[tuple[Any, str | None]]
    new_cache: NewCache | None

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
        """Refuse to be copied: the copy would have hooks for another model, and no plan of its own."""
        raise UsageError(
            "the model was to be copied or pickled inside adapted, where it has hooks for this block: copy it outside"
        )

    @uncompiled
    def check_call(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse a call as a whole before a layer has changed its part of the cache."""
        if not self.in_force():
            return
        self._refuse_other_attention(model)
        if kwargs.get("output_attentions"):
            raise UsageError(
                "output_attentions=True: an adapted model has no matrix of attention weights to return; leave it out, "
                "or run the model outside the block with attn_implementation='eager'"
            )
        mask = kwargs.get("attention_mask")
        if not isinstance(mask, dict):  # of masks by the type of layer, as generate may prepare them
            refuse_block_mask(type(model).__name__, mask)
        for cache in _caches(args, kwargs):
            self._refuse_cache(model, cache, kwargs)

    @uncompiled
    def note_cache(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Tell the attention function which cache layer it works for; transformers does not."""
        run = self.runs.get(module)
        if run is None:
            raise outside_error(module)
        if RUNS.get(module) is not run:
            return
        run.layer = None
        for cache in _caches(args, kwargs):
            if isinstance(cache, TaylorCache):
                cache.refuse_other(self.digest)
                run.layer = cache.expecting(run.plan.name)
            elif not isinstance(cache, DynamicCache):
                # Static and offloaded caches hand over keys that were never written; only growing ones can be read.
                raise UsageError(
                    f"the cache is a {type(cache).__name__}, and an adapted model reads a DynamicCache or a "
                    "TaylorCache: leave cache_implementation out"
                )

    def in_force(self) -> bool:
        """Whether nothing attached later has taken over."""
        return all(RUNS.get(module) is run for module, run in self.runs.items())

    def _refuse_other_attention(self, model: nn.Module) -> None:
        for config, name in self.selected:
            now = config._attn_implementation_internal
            # Inside the block a model may be recorded, under a name that begins in the same way.
            if now != name and not str(now).startswith(ATTENTION_NAME):
                raise UsageError(
                    f"the attention of {type(model).__name__} was set to {now!r} inside adapted, where it has to be "
                    f"{name!r}: leave the block before set_attn_implementation"
                )

    def _refuse_cache(self, model: nn.Module, cache: Any, kwargs: Mapping[str, Any]) -> None:
        if not isinstance(cache, TaylorCache):
            return
        cache.refuse_other(self.digest)
        cache.refuse_torn()
        if not self.guard:
            raise unguarded_error()
        if not cache.is_croppable:  # it has states
            mask = kwargs.get("attention_mask")
            refuse_packed(type(model).__name__, mask, kwargs)
            if isinstance(mask, torch.Tensor) and mask.ndim != 2:
                honoured(type(model).__name__, mask, mask.shape[-2], causal=True)


def unguarded_error() -> UsageError:
    """Say that raw denominators and states do not go together."""
    return UsageError(
        "guard=False was asked for with a TaylorCache, whose states are always guarded: leave the cache out, or the "
        "guard on"
    )


def _caches(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """Every cache among the arguments of a module, whatever they are called; of a pair, that for self attention."""
    caches = [argument for argument in (*args, *kwargs.values()) if isinstance(argument, Cache)]
    return [getattr(cache, "self_attention_cache", cache) for cache in caches]


@contextmanager
def _preparing_caches(model: Any, hooks: Hooks, new_cache: NewCache) -> Iterator[None]:
    """Have ``model.generate`` make a new cache where it would make one of its own.

    The method replaced is private, but the only place where generate makes caches; it is shadowed on the instance.
    """
    shadowed = vars(model).get(_PREPARE)
    original = getattr(model, _PREPARE)
    # The others make caches of classes of their own, and take no other; so do models whose decoder reads an encoder.
    takes_any = getattr(model, "_supports_default_dynamic_cache", lambda: True)()
    takes_any = takes_any and not getattr(model.config, "is_encoder_decoder", False)

    def prepare(generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if not hooks.in_force():  # a shallow copy of the model has outlived it
            return original(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get("past_key_values")
        asked = generation_config.cache_implementation
        # A cache that generate makes for an assistant model is rolled back all the time: it has to keep every key.
        if cache is None and generation_config.use_cache is not False and not generation_config.is_assistant:
            if asked not in (None, "dynamic"):
                raise UsageError(
                    f"cache_implementation is {asked!r}, and an adapted model keeps its own states: leave it out, or "
                    "take 'dynamic' to keep every key"
                )
            if asked is None and takes_any and hooks.guard:
                cache = model_kwargs["past_key_values"] = new_cache()
        mode = args[0] if args else kwargs.get("generation_mode")
        assisted = getattr(mode, "value", None) == "assisted_generation"
        if assisted and isinstance(cache, TaylorCache) and not cache.is_croppable:
            raise cropping_error()
        return original(generation_config, model_kwargs, *args, **kwargs)

    setattr(model, _PREPARE, prepare)
    try:
        yield
    finally:
        if shadowed is None:
            delattr(model, _PREPARE)
        else:
            setattr(model, _PREPARE, shadowed)
