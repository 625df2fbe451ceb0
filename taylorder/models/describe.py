"""Describe a model by what its attention modules do in one short forward pass; say what is unsupported."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from taylorder.errors import TaylorderError, UnsupportedModelError, first_line
from taylorder.models.adapters import refuse_adapters
from taylorder.models.attention import AttentionCall, recording
from taylorder.models.cross_attention import is_cross, noting_other_states
from taylorder.models.description import AttentionModule, ModelDescription
from taylorder.models.fingerprint import fingerprint
from taylorder.models.inputs import Batch, GivenInputs, Inputs
from taylorder.models.positions import TableRead, longest_context, lookups
from taylorder.models.probing import refuse_other_numbers
from taylorder.models.refusals import (
    dtype_name,
    refuse_class,
    refuse_config,
    refuse_projections,
    refuse_weights,
    text_part,
)
from taylorder.models.running import PROBE_TOKENS, leaving_no_trace, probe_ids, run_base, run_batch


def describe(
    model: nn.Module,
    name: str | None = None,
    *,
    weights_note: str | None = None,
    inputs: Inputs | GivenInputs | None = None,
) -> ModelDescription:
    """Describe a model's attention modules as one short forward pass calls them; the model is left as it was.

    ``model`` is a transformers model; ``name`` and ``weights_note`` go into the description, by default what ``load``
    gave them, or the name that the config has. ``inputs`` are what a model is run on that takes more than token ids, or
    something else, as :func:`taylorder.analyze` takes them; the first batch is run. Raises UnsupportedModelError,
    naming what was found and the way out, for every model that cannot be measured truthfully.

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
    batch = None if inputs is None else Inputs.of(inputs).batches[0]
    refuse_config(config, name, fed=batch is not None or _is_half(model))
    refuse_weights(model, name)
    with lookups(model) as seen:
        calls, cross, returned = _probe(model, name) if batch is None else _run(model, name, batch)
    modules = _modules(calls, name, of_text=batch is None)
    if batch is not None:
        modules = _longest(modules, batch, partial(longest_context, model, name), seen)
    for call in calls:
        refuse_projections(call.name, call.module)
    refuse_other_numbers(model, name, modules, returned, batch)
    return ModelDescription(
        name=name,
        architecture=type(model).__name__,
        modules=modules,
        max_context=max(module.tokens or longest_context(model, name, seen) for module in modules),
        fingerprint=fingerprint(model),
        weights_note=weights_note or note,
        dtype=dtype_name(model),
        origin=origin,
        unmeasured=_beside_text(model) if batch is None else (),
        cross=tuple(cross),
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


def _probe(model: nn.Module, name: str) -> tuple[list[AttentionCall], list[str], torch.Tensor]:
    """Run a few tokens; return the attention calls in order, no cross attention, and hidden states ``[2, 8, hidden]``.

    Refuses what the calls give away.
    """
    base: Any = getattr(model, "base_model", model)
    main = getattr(base, "main_input_name", "input_ids")
    if main != "input_ids" and "input_ids" not in inspect.signature(base.forward).parameters:
        raise UnsupportedModelError(
            f"{name} takes {main}, where token ids are expected: calibration text cannot be run through it. Give it "
            f"{main}: `taylorder analyze --inputs FILE.safetensors`, or taylorder.analyze(model, inputs=[...])."
        )
    calls: list[AttentionCall] = []
    with (
        _explained(base, name, f"{PROBE_TOKENS} token ids alone"),
        leaving_no_trace(model),
        recording(model, calls.append),
    ):
        hidden = run_base(model, probe_ids(model))
    _refuse_none(calls, name, f"{PROBE_TOKENS} tokens")
    for call in calls:
        if call.k.shape[2] != call.q.shape[2]:
            raise UnsupportedModelError(
                f"{call.name} attends from {call.q.shape[2]} queries to {call.k.shape[2]} keys (cross attention), "
                "where equally many are expected: choose a model with self attention only."
            )
    return calls, [], hidden


def _run(model: nn.Module, name: str, batch: Batch) -> tuple[list[AttentionCall], list[str], Any]:
    """Run a batch; return the calls of self attention in order, the modules of cross attention, and what came out."""
    calls: list[AttentionCall] = []
    with (
        _explained(model, name, "its inputs"),
        leaving_no_trace(model),
        noting_other_states(model) as given,
        recording(model, calls.append),
    ):
        returned = run_batch(model, batch)
    cross = {call.name: None for call in calls if is_cross(call, given)}
    calls = [call for call in calls if call.name not in cross]
    _refuse_none(calls, name, "its inputs")
    return calls, list(cross), returned


@contextmanager
def _explained(model: Any, name: str, on: str) -> Iterator[None]:
    """Say by name that a model did not run on something, where it fails inside the block."""
    try:
        yield
    except TaylorderError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"{name} ({type(model).__name__}) did not run on {on} ({type(error).__name__}: {first_line(error)}). "
            f"{text_part(model) or 'Give it all that it takes, with --inputs FILE.safetensors or inputs='}."
        ) from error


def _refuse_none(calls: list[AttentionCall], name: str, on: str) -> None:
    if not calls:
        raise UnsupportedModelError(
            f"{name} made no call of self attention on {on}: it has linear attention, convolution or recurrence only, "
            "or attention that bypasses transformers' AttentionInterface. Choose a model with at least one layer of "
            "softmax attention."
        )


def _modules(calls: Sequence[AttentionCall], name: str, *, of_text: bool) -> tuple[AttentionModule, ...]:
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
        module = _module(call, makers[call.k.data_ptr()] if several else None, times[call.name], of_text=of_text)
        first = modules.setdefault(call.name, module)
        if first.tokens != module.tokens:
            raise UnsupportedModelError(
                f"{name} calls {call.name} on {first.tokens} and on {module.tokens} tokens in a forward pass: give it "
                "inputs that are cut into equal parts, such as images of one size."
            )
        keys = {one.k.data_ptr() for one in calls if one.name == call.name}
        if first != module or (module.causal and len(keys) > 1):
            raise UnsupportedModelError(
                f"{name} calls {call.name} {times[call.name]} times in a forward pass, with other keys or in another "
                "way each time (loops over layers): it has no single cache. Choose a model whose modules each attend "
                "once, or an encoder, which has no cache."
            )
    return tuple(modules.values())


def _longest(
    modules: tuple[AttentionModule, ...],
    batch: Batch,
    of_text: Callable[[list[TableRead]], int],
    seen: Sequence[TableRead],
) -> tuple[AttentionModule, ...]:
    """The modules with the most tokens that they attend to: those of the batch, or of text the model's longest."""
    ids = {batch[name].shape[-1] for name in ("input_ids", "decoder_input_ids") if name in batch}

    def stated(length: int) -> int:
        try:
            return of_text([read for read in seen if len(read.rows) == length])
        except UnsupportedModelError:  # relative positions, such as T5's, have no end
            return length

    longest = {length: stated(length) for length in ids}
    return tuple(
        replace(module, tokens=longest.get(module.tokens or 0, module.tokens)) if module.causal else module
        for module in modules
    )


def _module(call: AttentionCall, keys_of: str | None, calls: int, *, of_text: bool) -> AttentionModule:
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
        tokens=None if of_text else call.q.shape[2],
        beyond_scores=call.beyond_scores,
    )


def _latent_dim(module: Any) -> int | None:
    """The latent of keys and values, and the rotary part of the keys beside it, as a module says that makes them so."""
    if not hasattr(module, "kv_b_proj"):
        return None
    parts = [getattr(module, name, None) for name in ("kv_lora_rank", "qk_rope_head_dim")]
    known = [part for part in parts if isinstance(part, int)]
    return sum(known) if len(known) == len(parts) else None
