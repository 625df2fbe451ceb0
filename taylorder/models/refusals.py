"""What cannot be measured truthfully, said before any long work.

Taylor truncation needs every score of a head to be ``scaling * q.k`` and nothing else, over all keys that a causal,
sliding or padding mask admits; a head may have a learned sink beside these, and scores a soft cap. Each ``refuse_*``
raises :class:`UnsupportedModelError` (``refuse_block_mask``, of what the caller passed, :class:`UsageError`) naming
what was found, why it cannot be measured, and the way out; it returns None when nothing stands against the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from taylorder.errors import UnsupportedModelError, UsageError
from taylorder.models.masks import key_validity, looks_ahead
from taylorder.models.offloading import is_kept, weights

OTHER_MODEL = "Choose a model with plain scores, such as Llama, Qwen, Mistral, Gemma 3, GPT-2, Pythia or BERT"

_DEQUANTISE = "Load the model without quantisation, or dequantise it first (model.dequantize())"

_LAYER_TYPES = {
    "compressed_sparse_attention": "it attends to compressed keys picked by a learned index",
    "heavily_compressed_attention": "it attends to compressed keys, not to the keys of tokens",
}

_CALL_TERMS = {
    "sinks": "adds to the softmax denominator what it makes of each query, which is no score of a key",
    "block_indices": "picks blocks of keys for each query by a learned index, which no running sum follows",
}


def refuse_class(model: Any, *, selected: str | None = None) -> None:
    """Refuse a model, or a model class, whose attention cannot be seen.

    With ``selected``, ``model`` must in fact have that attention implementation selected.
    """
    from transformers import PreTrainedModel

    model_class = model if isinstance(model, type) else type(model)
    if isinstance(model, torch._dynamo.OptimizedModule):
        raise UnsupportedModelError(
            f"the model is what torch.compile made of a {type(model._orig_mod).__name__}: pass the model itself "
            "(model._orig_mod); what was compiled may run while that is adapted."
        )
    if not issubclass(model_class, PreTrainedModel):
        raise UnsupportedModelError(
            f"{model_class.__name__} is not a transformers PreTrainedModel, so its attention calls cannot be seen: "
            "pass a model loaded with taylorder.models.loading.load or AutoModel.from_pretrained."
        )
    # transformers' own test reads the source of the class; the check of what is selected decides.
    can_set = getattr(model_class, "_can_set_attn_implementation", lambda: True)()
    if selected is not None:
        configs = (model.config, model.config.get_text_config())
        can_set = can_set and all(config._attn_implementation == selected for config in configs)
    if not can_set:
        raise UnsupportedModelError(
            f"{model_class.__name__} computes attention in its own code, not through transformers' AttentionInterface, "
            "so its q, k and v cannot be seen or replaced (as in BLOOM, Falcon, GPT-J, MPT). "
            f"{text_part(model) or _of_its_kind(model_class)}."
        )


def text_part(model: Any) -> str | None:
    """Say how to take the part of a model that sees text alone and attends through the interface; None if none does."""
    try:
        part = None if isinstance(model, type) else model.get_decoder()
    except (AttributeError, NotImplementedError):  # some classes know of no such part
        return None
    if part is None or part is model or not getattr(part, "_can_set_attn_implementation", lambda: False)():
        return None
    return f"Take its {type(part).__name__} by itself (model.get_decoder()), which sees text alone"


def _of_its_kind(model_class: Any) -> str:
    """Which classes run their attention through the interface, among those that generate text or those that do not."""
    generates = getattr(model_class, "can_generate", lambda: False)()
    return (
        "Choose a model that does, such as Llama, Qwen, Mistral, Gemma 3, GPT-2 or Pythia, which generate text as well"
        if generates
        else "Choose a model that does, such as BERT, RoBERTa, DistilBERT or ModernBERT, which are encoders of text"
    )


def refuse_config(config: Any, name: str, *, fed: bool = False) -> None:
    """Refuse what a transformers config gives away; ``name`` is the model's, for the message.

    ``fed`` says that an encoder-decoder gets all that it takes: both kinds of inputs, or it is one half of itself.
    """
    text = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False) and not fed:
        raise UnsupportedModelError(
            f"{name} is an encoder-decoder ({config.model_type}), which takes more than plain text: give both halves "
            "their inputs, `taylorder analyze --inputs FILE.safetensors` or taylorder.analyze(model, inputs=[...]), or "
            "take one half of it (model.get_encoder() or model.get_decoder())."
        )
    for layer_type in getattr(text, "layer_types", None) or ():
        if layer_type in _LAYER_TYPES:
            raise UnsupportedModelError(
                f"{name} has layers of type {layer_type}: {_LAYER_TYPES[layer_type]}. {OTHER_MODEL}."
            )


def refuse_weights(model: nn.Module, name: str) -> None:
    """Refuse weights that are not in memory, not in a dtype that can be measured, or not to be seen at all."""
    absent = [key for key, (module, own) in weights(model).items() if not is_kept(module, own)]
    if absent:
        raise UnsupportedModelError(
            f"{name} has {len(absent)} parameters without data (on the meta device, and no hook of accelerate's says "
            f"where it is; the first is {absent[0]}), so it cannot be measured: load it whole, or with a device_map."
        )
    for key, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype.itemsize < 2:
            raise UnsupportedModelError(
                f"{name} has weights of {dtype_name(parameter)} (the first is {key}), where float32, bfloat16 or "
                f"float16 is expected: such weights are packed, mostly with scales kept beside them. {_DEQUANTISE}."
            )
    for key, module in model.named_modules():
        # Weights that are no parameters: a fingerprint does not see them, so other weights would pass for the same.
        is_table = hasattr(module, "_packed_params") or all(
            hasattr(module, size) for size in ("in_features", "out_features")
        )
        if is_table and not any(parameter.ndim > 1 for parameter in module.parameters()):
            raise UnsupportedModelError(
                f"{name} has packed weights in {key} ({type(module).__module__}), where a matrix of float32, bfloat16 "
                f"or float16 is expected: they have no spectrum and no fingerprint. {_DEQUANTISE}."
            )


def refuse_projections(name: str, module: nn.Module) -> None:
    """Refuse packed weights in the attention module ``name``: 4-bit, 8-bit and the like.

    Packed integer matrices are parameters in some libraries and buffers in others, or tensors of a class of their own,
    which claims the dtype and shape of the matrix it stands for.
    """
    packed: list[tuple[str, torch.Tensor]] = [
        (key, tensor)
        for key, tensor in module.named_parameters()
        if not tensor.is_floating_point() or type(tensor.data).__module__.partition(".")[0] != "torch"
    ]
    packed += [
        (key, tensor)
        for key, tensor in module.named_buffers()
        if tensor.ndim >= 2 and not tensor.is_floating_point() and "weight" in key
    ]
    if packed:
        key, tensor = packed[0]
        raise UnsupportedModelError(
            f"{name}.{key} is a {type(tensor.data).__name__} of {dtype_name(tensor)}, where a plain matrix of float32, "
            f"bfloat16 or float16 is expected: packed weights have no spectrum. {_DEQUANTISE}."
        )


def dtype_name(holder: Any) -> str:
    """The dtype of a tensor or model without ``torch.`` in front."""
    return str(holder.dtype).removeprefix("torch.")


def refuse_terms(name: str, module: nn.Module, kwargs: Mapping[str, Any]) -> None:
    """Refuse an attention call whose scores are more than ``scaling * q.k``; ``name`` is the module's."""
    for key, why in _CALL_TERMS.items():
        if (value := kwargs.get(key)) is not None:
            found = f"{key} = {value:g}" if isinstance(value, float | int) else key
            raise UnsupportedModelError(f"{name} ({type(module).__name__}) {why} ({found}). {OTHER_MODEL}.")


def refuse_block_mask(name: str, mask: Any) -> None:
    """Refuse a mask that is no tensor: FlexAttention's."""
    if mask is not None and not isinstance(mask, torch.Tensor):
        raise UsageError(
            f"{name} is given a {type(mask).__name__}, where a tensor or None is expected: pass the usual "
            "attention_mask of shape [batch, tokens]"
        )


def refuse_mask(
    name: str, module: nn.Module, mask: torch.Tensor | None, queries: int, *, causal: bool, local: bool
) -> None:
    """Refuse a mask that says more than direction and padding, or, where the module is local, one that looks ahead."""
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise UnsupportedModelError(
            f"{name} ({type(module).__name__}) is given an attention mask of {dtype_name(mask)}, "
            "where bool is expected: a mask that adds to the scores cannot be told from a bias. Pass no mask, or the "
            "usual 2-D one of zeros and ones."
        )
    try:
        if not local:
            key_validity(mask, queries, causal=causal)
        elif causal and looks_ahead(mask, queries):
            raise ValueError("looks ahead")
    except ValueError as error:
        raise UnsupportedModelError(
            f"{name} ({type(module).__name__}) attends {'to earlier tokens' if causal else 'in both directions'} "
            f"(is_causal = {causal}) and is given a mask that {error}, where only padding may be hidden: no sum over "
            "keys follows it. Give it text alone, one sequence a row. If it was: "
            f"{OTHER_MODEL[0].lower()}{OTHER_MODEL[1:]}."
        ) from error
