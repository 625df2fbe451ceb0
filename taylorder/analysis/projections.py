"""The 2-D weights of an attention module's q, k, v and o projections, whatever the architecture stores them as.

Tables say where they are: projections under names of their own, and fused matrices with the way their rows are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch import nn

from taylorder.analysis.results import Projection, Role, role_of
from taylorder.models.offloading import stored

Parts: TypeAlias = tuple[torch.Tensor, ...]

_SEPARATE: dict[Role, tuple[str, ...]] = {
    "q": ("q_proj", "query", "q_lin", "q", "Wq", "linear_q", "to_q"),
    "k": ("k_proj", "key", "k_lin", "k", "Wk", "linear_k", "to_k"),
    "v": ("v_proj", "value", "v_lin", "v", "Wv", "linear_v", "to_v"),
    "o": ("o_proj", "out_proj", "out_lin", "o", "Wo", "linear_out", "dense", "c_proj", "proj", "projection"),
}

# The query rows of these classes are, head by head, d rows of the query and d rows of an output gate.
_GATED_QUERIES = ("Qwen3NextAttention", "Qwen3_5Attention", "Qwen3_5MoeAttention", "Qwen4ExpTextAttention")


def projection_weights(model: nn.Module, module_name: str) -> dict[Projection, torch.Tensor]:
    """Find the weights of one attention module.

    They are ``[out, in]``: q ``[H d, .]``, k ``[G d, .]``, v ``[G d_v, .]``, o ``[., H d_v]``. Separate projections and
    contiguous cuts of fused ones are views of the model's parameters, detached, in their dtype and on their device;
    rows that lie interleaved head by head are copied. Latent attention has two matrices in the place of one; the second
    is there under a name of its own: q_b ``[H d, latent]``, and the head-wise parts of another, k_b
    ``[G (d - rotary), latent]`` and v_b ``[G d_v, latent]``. A projection that the module does not have as one matrix,
    or has under no known name or layout, is absent. Raises AttributeError for a module that the model does not have.
    """
    module = model.get_submodule(module_name)
    weights: dict[Projection, torch.Tensor] = {}
    for projection, names in _SEPARATE.items():
        if (matrix := _first_matrix(module, names)) is not None:
            weights[projection] = matrix
    # BERT and its kin attend in a module called "self", which stands beside their output projection.
    parent, _, own_name = module_name.rpartition(".")
    if own_name == "self" and "o" not in weights:
        output = _first_matrix(getattr(model.get_submodule(parent), "output", None), ("dense",))
        weights |= {} if output is None else {"o": output}
    if "q" in weights and type(module).__name__ in _GATED_QUERIES:
        weights["q"] = weights["q"].reshape(-1, 2, _head_dim(module), weights["q"].shape[1])[:, 0].flatten(0, 1)
    if "o" in weights and not weights.keys() & {"q", "k", "v"}:
        weights |= _fused(module, weights["o"])
    return weights | _behind_latents(module)


def projection_layers(model: nn.Module, module_name: str) -> dict[Role, str]:
    """Names, in the model, of the layers that make an attention module's q, k, v and o; a fused one is there thrice.

    What has no matrix under a known name is absent.
    """
    module = model.get_submodule(module_name)
    layers: dict[Role, str] = {}
    for role, names in (*_SEPARATE.items(), ("q", ("q_b_proj",)), ("k", ("kv_b_proj",)), ("v", ("kv_b_proj",))):
        if (name := _first_layer(module, names)) is not None:
            layers.setdefault(role, f"{module_name}.{name}")
    if "q" not in layers and (name := _first_layer(module, tuple(_FUSED))) is not None:
        layers |= dict.fromkeys(("q", "k", "v"), f"{module_name}.{name}")
    return layers


def _first_layer(module: nn.Module, names: tuple[str, ...]) -> str | None:
    """The name of the first of these children that has a 2-D weight."""
    children = dict(module.named_children())
    return next((name for name in names if getattr(getattr(children.get(name), "weight", None), "ndim", 0) == 2), None)


def head_slices(
    weight: torch.Tensor, projection: Projection, heads: int, kv_heads: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Cut a projection ``[out, in]`` into one 2-D view per query head (q: rows, o: columns) or KV head (k, v: rows)."""
    count, dim = (kv_heads if role_of(projection) in ("k", "v") else heads), (1 if projection == "o" else 0)
    if weight.shape[dim] % count:
        raise ValueError(f"projection {projection} of shape {tuple(weight.shape)} does not divide into {count} heads")
    yield from enumerate(weight.chunk(count, dim))


def _first_matrix(module: nn.Module | None, names: tuple[str, ...]) -> torch.Tensor | None:
    """Return the weight of the first of these children that has a 2-D one, as a detached view ``[out, in]``."""
    for name in names:
        child = getattr(module, name, None)
        weight = getattr(child, "weight", None)
        if not isinstance(child, nn.Module) or not isinstance(weight, torch.Tensor) or weight.ndim != 2:
            continue
        if (matrix := stored(child, "weight")) is not None:
            # GPT-2's Conv1D is a linear layer stored as [in, out].
            return matrix.T if type(child).__name__ == "Conv1D" else matrix
    return None


def _head_dim(module: nn.Module) -> int:
    """Return d as the module states it, 0 where it does not."""
    names = ("head_dim", "head_size", "attention_head_size")
    return next((int(getattr(module, name)) for name in names if hasattr(module, name)), 0)


def _fused(module: nn.Module, output: torch.Tensor) -> dict[Projection, torch.Tensor]:
    """Cut a fused matrix; ``output`` ``[., H d]`` and the head dimension say how many heads there are."""
    head_dim = _head_dim(module)
    for name, split in _FUSED.items():
        matrix = _first_matrix(module, (name,))
        if matrix is None or head_dim == 0:
            continue
        heads = output.shape[1] // head_dim
        kv_heads, rest = divmod(matrix.shape[0] - heads * head_dim, 2 * head_dim)
        # Anything else is no layout known here, such as the keys and values of cross attention.
        if kv_heads > 0 and rest == 0 and heads % kv_heads == 0:
            parts = _BY_CLASS.get(type(module).__name__, split)(matrix, heads, kv_heads)
            return dict(zip(("q", "k", "v"), parts, strict=True)) if parts else {}
    return {}


def _behind_latents(module: nn.Module) -> dict[Projection, torch.Tensor]:
    """The matrices that make queries, keys and values of latents; keys and values are rows of one, head by head."""
    weights: dict[Projection, torch.Tensor] = {}
    queries, both = _first_matrix(module, ("q_b_proj",)), _first_matrix(module, ("kv_b_proj",))
    if queries is not None:
        weights["q_b"] = queries
    parts = [int(getattr(module, name, 0)) for name in ("qk_nope_head_dim", "v_head_dim")]
    if both is not None and all(parts) and both.shape[0] % sum(parts) == 0:
        keys, values = torch.split(both.reshape(-1, sum(parts), both.shape[1]), parts, 1)
        weights |= {"k_b": keys.flatten(0, 1), "v_b": values.flatten(0, 1)}
    return weights


def _concatenated(matrix: torch.Tensor, heads: int, kv_heads: int) -> Parts:
    """Cut rows that are all queries, then all keys, then all values."""
    head_dim = matrix.shape[0] // (heads + 2 * kv_heads)
    return torch.split(matrix, [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim])


def _interleaved(matrix: torch.Tensor, heads: int, kv_heads: int) -> Parts:
    """Cut rows that are, head by head, d of the query, d of the key and d of the value; grouped heads are not known."""
    if heads != kv_heads:
        return ()
    return tuple(part.flatten(0, 1) for part in matrix.reshape(heads, 3, -1, matrix.shape[1]).unbind(1))


def _bigcode(matrix: torch.Tensor, heads: int, kv_heads: int) -> Parts:
    """Cut like GPT-BigCode: concatenated with one KV head, else interleaved."""
    return (_concatenated if kv_heads == 1 else _interleaved)(matrix, heads, kv_heads)


_FUSED: dict[str, Callable[[torch.Tensor, int, int], Parts]] = {
    "c_attn": _concatenated,
    "qkv_proj": _concatenated,
    "Wqkv": _concatenated,
    "qkv": _concatenated,
    "query_key_value": _interleaved,
}
_BY_CLASS: dict[str, Callable[[torch.Tensor, int, int], Parts]] = {"GPTBigCodeAttention": _bigcode}
