"""Run a model without the head on top of it, on a few probe tokens or on given inputs, and leave no trace in it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from taylorder.errors import UnsupportedModelError, UsageError
from taylorder.models.inputs import Batch
from taylorder.models.offloading import place_of
from taylorder.models.positions import token_embeddings
from taylorder.models.quiet import quiet_transformers

PROBE_TOKENS = 8
_PADDING = 3


def forward(
    model: Any, input_ids: Tensor, attention_mask: Tensor | None = None, *, cache: Any = None, use_cache: bool = False
) -> Any:
    """Run a model without the head on top of it; return what its class returns, see :func:`per_token`.

    ``input_ids`` and ``attention_mask`` (0 for padding; of all tokens if there is a ``cache`` to go on from) are
    ``[B, T]``, and are moved to where the model takes them.
    """
    base, device = getattr(model, "base_model", model), input_device(model)
    options: dict[str, Any] = {"use_cache": use_cache} if hasattr(model.config.get_text_config(), "use_cache") else {}
    if attention_mask is not None:
        options["attention_mask"] = attention_mask.to(device)
    if cache is not None:
        options["past_key_values"] = cache
    return base(input_ids=input_ids.to(device), **options)


def run_batch(model: Any, batch: Batch) -> Any:
    """Run a model on named tensors, without the head on top of it where its body takes them all, and without a cache.

    The tensors are moved to where the model takes them, and to the dtype it computes in; return what its class returns.

    Raises:
        UsageError: the model has no argument of some name, or no embedding for one of the ids.

    """
    body = getattr(model, "base_model", model)
    taking = next((part for part in (body, model) if batch.keys() <= _arguments(part)), None)
    if taking is None:
        unknown = sorted(batch.keys() - _arguments(model))
        known = ", ".join(name for name in inspect.signature(model.forward).parameters if "kwargs" not in name)
        raise UsageError(f"{type(model).__name__} takes no {', '.join(unknown)}; expected some of {known}")
    if "input_ids" in batch:
        refuse_foreign_ids(model, batch["input_ids"])
    takes = _arguments(taking)
    has_cache = "use_cache" in takes or ("kwargs" in takes and hasattr(model.config.get_text_config(), "use_cache"))
    device, dtype = input_device(model), model.dtype
    tensors = {
        name: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype) for name, tensor in batch.items()
    }
    return taking(**tensors, **({"use_cache": False} if has_cache else {}))


def _arguments(model: Any) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def outputs(returned: Any) -> list[Tensor]:
    """Every tensor of real numbers in what a forward pass returned, in order: hidden states, embeddings, logits."""
    if isinstance(returned, Tensor):
        return [returned] if returned.is_floating_point() else []
    parts = returned.values() if isinstance(returned, dict) else returned if isinstance(returned, list | tuple) else ()
    return [tensor for part in parts for tensor in outputs(part)]


def per_token(output: Any, input_ids: Tensor) -> Tensor:
    """Return what a model put out for every token ``[B, T]``: its final hidden states ``[B, T, hidden]``.

    A class that does not name them, such as one whose body cannot be run without its head, is taken by the first tensor
    that has a row per token.

    Raises:
        UnsupportedModelError: there is none.

    """
    named = getattr(output, "last_hidden_state", None)
    if isinstance(named, Tensor):
        return named
    for tensor in output.values() if isinstance(output, dict) else output:
        if isinstance(tensor, Tensor) and tensor.ndim > 2 and tensor.shape[:2] == input_ids.shape:
            return tensor
    raise UnsupportedModelError(
        f"a {type(output).__name__} of {PROBE_TOKENS} tokens holds nothing per token, so that it cannot be seen what "
        "the attention of the model leads to. Choose a model, or the part of it, that puts out hidden states."
    )


@torch.no_grad()
def next_logits(model: Any, input_ids: Tensor, cache: Any) -> Tensor:
    """Run new tokens ``[B, T]`` and return the logits of the token after them, ``[B, V]``; the cache takes them in."""
    # Logits of a whole chunk would be the largest tensor by far, and only the last row is read.
    options = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
    ids = input_ids.to(input_device(model))
    logits: Tensor = model(input_ids=ids, past_key_values=cache, use_cache=True, **options).logits
    return logits[:, -1]


def input_device(model: Any) -> torch.device:
    """Where a model takes token ids: at its embeddings. Its layers may be elsewhere, on several devices."""
    table = token_embeddings(model)
    if table is None:
        return torch.device(getattr(model, "device", "cpu"))
    return place_of(model.get_input_embeddings()) or table.device


def device_of(module: nn.Module, model: Any) -> torch.device:
    """Where a module of a model computes; one without weights, where the model begins."""
    return place_of(module) or input_device(model)


def probe_ids(model: Any) -> Tensor:
    """Two rows ``[2, 8]`` that differ in their last token."""
    vocabulary = int(getattr(model.config.get_text_config(), "vocab_size", 2**15))
    # Consecutive ids, not the first ones, which are padding and other special tokens.
    rows = torch.arange(PROBE_TOKENS).repeat(2, 1) + 16
    rows[1, -1] += 1
    return rows % vocabulary


def probe_mask() -> Tensor:
    """The attention mask ``[2, 8]`` of a row without padding and one that is padded on the left."""
    mask = torch.ones(2, PROBE_TOKENS, dtype=torch.long)
    mask[1, :_PADDING] = 0
    return mask


@contextmanager
def leaving_no_trace(model: nn.Module) -> Iterator[None]:
    """Run a model in eval mode inside the block, without gradients, quietly, and always with the same random numbers.

    Afterwards its training flags, its buffers, what else its modules remember (a rotary embedding counts the positions
    it has seen) and the generators are as they were.
    """
    before = {module: (vars(module).copy(), module._buffers.copy()) for module in model.modules()}
    values = [(buffer, buffer.clone()) for buffer in model.buffers() if not buffer.is_meta]
    places = {place_of(module) for module in before}
    gpus = {place for place in places if place is not None and place.type == "cuda"}
    model.eval()
    try:
        with torch.random.fork_rng(gpus), torch.no_grad(), quiet_transformers():
            torch.manual_seed(0)
            yield
    finally:
        for module, (attributes, buffers) in before.items():
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
        with torch.no_grad():
            for buffer, value in values:
                if not torch.equal(buffer, value):  # those of a model made in inference mode cannot be written at all
                    buffer.copy_(value)


def refuse_foreign_ids(model: Any, input_ids: Tensor) -> None:
    """Refuse token ids that the model has no embedding for: the tokenizer is another model's.

    Raises:
        UsageError: an id is too large.

    """
    table = token_embeddings(model)
    if table is not None and (largest := int(input_ids.max())) >= (embeddings := int(table.shape[0])):
        raise UsageError(
            f"the text has token id {largest}, the model {embeddings} embeddings (ids 0 to {embeddings - 1}): the "
            "tokenizer is another model's; use the one that the model was trained with"
        )


def run_base(model: Any, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Run a model without the head on top of it and without a cache; return its final hidden states, see `per_token`.

    ``input_ids`` and ``attention_mask`` (0 for padding) are ``[B, T]`` and are moved to where the model takes them.

    Raises:
        UsageError: the model has no embedding for one of the ids.

    """
    refuse_foreign_ids(model, input_ids)
    return per_token(forward(model, input_ids, attention_mask), input_ids)
