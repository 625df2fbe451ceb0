"""Describe a model by what its attention modules do in one short forward pass; say what is unsupported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from taylorder.errors import TaylorderError, UnsupportedModelError, first_line
from taylorder.models.adapters import refuse_adapters
from taylorder.models.attention import AttentionCall, recording
from taylorder.models.description import AttentionModule, ModelDescription
from taylorder.models.fingerprint import fingerprint
from taylorder.models.positions import longest_context, lookups
from taylorder.models.probing import refuse_other_numbers
from taylorder.models.refusals import (
    dtype_name,
    refuse_class,
    refuse_config,
    refuse_projections,
    refuse_weights,
    text_part,
)
from taylorder.models.running import PROBE_TOKENS, leaving_no_trace, probe_ids, run_base


def describe(model: nn.Module, name: str | None = None, *, weights_note: str | None = None) -> ModelDescription:
    """Describe a model's attention modules as one short forward pass calls them; the model is left as it was.

    ``model`` is a transformers model; ``name`` and ``weights_note`` go into the description, by default what ``load``
    gave them, or the name that the config has. Raises UnsupportedModelError, naming what was found and the way out,
    for every model that cannot be measured truthfully.

    >>> import taylorder
    >>> loaded = taylorder.load()
    >>> description = taylorder.describe(loaded.model)
    >>> description
    <ModelDescription of smollm2-135m: LlamaForCausalLM, ... layers x ... heads over ... KV heads ...>
    >>> first = description.modules[0]
    >>> first.name, first.causal, first.sliding_window
    ('model.layers.0.self_attn', True, None)
    """
    refuse_adapters(model, name or type(model).__name__)
    refuse_class(model)
    config: Any = model.config
    loaded_as, note, origin = getattr(model, "loaded_as", ("", None, None))
    name = name or loaded_as or getattr(config, "name_or_path", "") or type(model).__name__
    refuse_config(config, name, half=_is_half(model))
    refuse_weights(model, name)
    with lookups(model) as seen:
        calls, hidden = _probe(model, name)
    max_context = longest_context(model, name, seen)
    modules = _modules(calls, name)
    for call in calls:
        refuse_projections(call.name, call.module)
    _refuse_mixture(modules, name)
    refuse_other_numbers(model, name, modules, hidden)
    return ModelDescription(
        name=name,
        architecture=type(model).__name__,
        modules=modules,
        max_context=max_context,
        fingerprint=fingerprint(model),
        weights_note=weights_note or note,
        dtype=dtype_name(model),
        origin=origin,
        unmeasured=_beside_text(model),
    )


def _beside_text(model: Any) -> tuple[str, ...]:
    """What else a model takes, as its class says; text models inherit that from classes that see, and have no part."""
    alone = model.config.get_text_config() is model.config
    modalities = "text" if alone else getattr(model, "input_modalities", "text")
    return tuple(kind for kind in ([modalities] if isinstance(modalities, str) else modalities) if kind != "text")


def _is_half(model: Any) -> bool:
    """Whether a model holds no encoder beside its decoder, whatever its config says of the model that it is part of."""
    base = getattr(model, "base_model", model)
    return base.get_encoder() is base or base.get_decoder() is base


def _probe(model: nn.Module, name: str) -> tuple[list[AttentionCall], torch.Tensor]:
    """Run a few tokens; return the attention calls in order, and the hidden states ``[2, 8, hidden]``.

    Refuses what the calls give away.
    """
    base: Any = getattr(model, "base_model", model)
    if getattr(base, "main_input_name", "input_ids") != "input_ids":
        raise UnsupportedModelError(
            f"{name} takes {base.main_input_name}, where token ids are expected: calibration text cannot be run "
            "through it. Choose a language model or a text encoder."
        )
    calls: list[AttentionCall] = []
    try:
        with leaving_no_trace(model), recording(model, calls.append):
            hidden = run_base(model, probe_ids(model))
    except TaylorderError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"{name} ({type(model).__name__}) did not run on {PROBE_TOKENS} token ids alone "
            f"({type(error).__name__}: {first_line(error)}). "
            f"{text_part(base) or 'Choose a model that takes nothing else'}."
        ) from error
    _refuse_calls(calls, name)
    return calls, hidden


def _refuse_calls(calls: list[AttentionCall], name: str) -> None:
    if not calls:
        raise UnsupportedModelError(
            f"{name} made no attention call on {PROBE_TOKENS} tokens: it has linear attention, convolution or "
            "recurrence only, or attention that bypasses transformers' AttentionInterface. Choose a model with "
            "at least one layer of softmax attention."
        )
    for call in calls:
        if call.k.shape[2] != call.q.shape[2]:
            raise UnsupportedModelError(
                f"{call.name} attends from {call.q.shape[2]} queries to {call.k.shape[2]} keys (cross attention), "
                "where equally many are expected: choose a model with self attention only."
            )


def _modules(calls: Sequence[AttentionCall], name: str) -> tuple[AttentionModule, ...]:
    """The modules in the order in which they first attend."""
    # All calls are alive, so equal addresses are one tensor.
    readers: dict[int, set[str]] = {}
    makers: dict[int, str] = {}
    for call in calls:
        readers.setdefault(call.k.data_ptr(), set()).add(call.name)
        makers.setdefault(call.k.data_ptr(), call.name)
    times = Counter(call.name for call in calls)
    modules: dict[str, AttentionModule] = {}
    for call in calls:
        several = len(readers[call.k.data_ptr()]) > 1
        module = _module(call, makers[call.k.data_ptr()] if several else None, times[call.name])
        if modules.setdefault(call.name, module) != module or (module.calls > 1 and module.causal):
            raise UnsupportedModelError(
                f"{name} calls {call.name} {times[call.name]} times in a forward pass (differential attention, loops "
                "over layers): it has no single cache for a state to replace. Choose a model whose modules each attend "
                "once, or an encoder, which has no cache."
            )
    return tuple(modules.values())


def _module(call: AttentionCall, keys_of: str | None, calls: int) -> AttentionModule:
    return AttentionModule(
        name=call.name,
        heads=call.q.shape[1],
        kv_heads=call.k.shape[1],
        head_dim=call.q.shape[3],
        value_dim=call.v.shape[3],
        scaling=call.scaling,
        causal=call.is_causal,
        sliding_window=call.sliding_window,
        chunk=call.chunk,
        keys_of=keys_of,
        latent_dim=_latent_dim(call.module),
        calls=calls,
    )


def _latent_dim(module: Any) -> int | None:
    """The latent of keys and values, and the rotary part of the keys beside it, as a module says that makes them so."""
    if not hasattr(module, "kv_b_proj"):
        return None
    parts = [getattr(module, name, None) for name in ("kv_lora_rank", "qk_rope_head_dim")]
    known = [part for part in parts if isinstance(part, int)]
    return sum(known) if len(known) == len(parts) else None


def _refuse_mixture(modules: tuple[AttentionModule, ...], name: str) -> None:
    """What may be run is offered to all heads alike, so that those that may be truncated have to be of one kind.

    Modules that stay exact may have other shapes, but attend in the same direction.
    """
    directions = {module.causal for module in modules}
    alike = [module for module in modules if module.stays_exact is None] if len(directions) == 1 else modules
    kinds = {
        (module.heads, module.kv_heads, module.head_dim, module.value_dim, module.causal): module for module in alike
    }
    if len(kinds) > 1:
        named = ", ".join(
            f"{module.name} has {module.heads} heads on {module.kv_heads} KV heads of dimension {module.head_dim} "
            f"(values {module.value_dim}, {'causal' if module.causal else 'bidirectional'})"
            for module in kinds.values()
        )
        raise UnsupportedModelError(
            f"{name} has attention modules of {len(kinds)} kinds, where one is expected: {named}. Choose a model whose "
            "layers all have the same heads, those aside that stay exact (sliding windows, chunks, shared keys)."
        )
