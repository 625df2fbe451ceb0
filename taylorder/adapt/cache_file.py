"""A ``TaylorCache`` as a safetensors file: the tensors of every layer, and a JSON header that says whose they are.

A checksum vouches for header and tensors together: a count or a number that was changed would give other logits, and
nothing else in the file could tell. Files of schema ``taylorder/cache@1`` have none and are not read: what a cache
holds can be computed again from the tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from taylorder.adapt.cache_layer import TaylorCacheLayer, attend_causally
from taylorder.errors import ConfigError, TaylorderError, UnsupportedModelError
from taylorder.kernels import HeadSpec, State
from taylorder.kernels.held import check_names
from taylorder.storage.files import replacing
from taylorder.storage.strict_json import brief, parse_json
from taylorder.storage.tensor_files import FLOATS

SCHEMA = "taylorder/cache@3"
_HEADER, _CHECKSUM = "taylorder", "sha256"

_AGAIN = "make it again with TaylorCache.save"
_DTYPES = {str(dtype): dtype for dtype in FLOATS}


def write(path: Path, layers: Sequence[Any], made_for: Mapping[str, str]) -> None:
    """Write the layers of a cache to ``path``, with what says whose they are; see ``TaylorCache.save``."""
    tensors: dict[str, Tensor] = {}
    described = []
    for index, layer in enumerate(layers):
        about, held = _taken_apart(layer)
        described.append(about)
        # Views are copied: safetensors refuses storage shared by two tensors, and would write what is outside of them.
        # The strides of a single element are copied as well unless they are asked to be new.
        for name, tensor in held.items():
            copied = tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
            tensors[f"layers.{index}.{name}"] = copied
    header = {"schema": SCHEMA, **made_for, "layers": described}
    header[_CHECKSUM] = checksum(header, tensors)
    with replacing(path) as temporary:  # one entry of metadata: safetensors writes several in any order
        save_file(tensors, temporary, metadata={_HEADER: json.dumps(header)})


def checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the header without its checksum, and over every tensor with its name, dtype and shape."""
    digest = hashlib.sha256(json.dumps({key: header[key] for key in header if key != _CHECKSUM}).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read(path: Path, layers: Sequence[Any], made_for: Mapping[str, str], devices: Sequence[torch.device]) -> None:
    """Fill the layers of an empty cache from ``path``, each on its device; see ``TaylorCache.load``."""
    header, tensors = _opened(path)
    for key, whose in (("fingerprint", "weights"), ("digest", "config")):
        if header.get(key) != made_for[key]:
            raise ConfigError(
                f"{path} was made with {whose} {header.get(key)}, expected {made_for[key]}: use the model and "
                f"config it was made with, or {_AGAIN}"
            )
    try:
        for index, (layer, about, device) in enumerate(zip(layers, header["layers"], devices, strict=True)):
            prefix = f"layers.{index}."
            held = {name.removeprefix(prefix): t.to(device) for name, t in tensors.items() if name.startswith(prefix)}
            _put_together(layer, about, held)
    except (LookupError, ValueError, TypeError, RuntimeError) as error:
        raise TaylorderError(
            f"{path} does not hold what a cache of this model consists of ({type(error).__name__}: {error}); {_AGAIN}"
        ) from error


def _opened(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return header and tensors, as they were written."""
    try:
        with safe_open(path, framework="pt") as file:
            header = parse_json((file.metadata() or {}).get(_HEADER, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except FileNotFoundError:
        raise TaylorderError(f"{path} does not exist; TaylorCache.save writes one") from None
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise TaylorderError(f"{path} cannot be read as a saved TaylorCache ({error}); {_AGAIN}") from error
    schema = header.get("schema") if isinstance(header, dict) else None
    if schema != SCHEMA:
        raise TaylorderError(f"{path} has schema {brief(schema)}, this version reads {SCHEMA!r}; {_AGAIN}")
    if header.get(_CHECKSUM) != checksum(header, tensors):
        raise TaylorderError(f"{path} is damaged: what it holds is not what its checksum was made of; {_AGAIN}")
    return header, tensors


def _taken_apart(layer: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Describe one layer, and name its tensors."""
    if type(layer) is TaylorCacheLayer:
        if layer.state is None:
            return {"kind": "state", "tokens": 0}, {}
        state = layer.state
        shape = state.shape
        about = {
            "kind": "state",
            "tokens": state.tokens,
            "backend": state.backend,
            "shape": [shape.batch, shape.kv_heads, shape.head_dim, shape.value_dim],
            "dtype": str(shape.dtype),
        }
        return about, _state_tensors(state)
    if type(layer).__name__ == "DummyLayer":  # of a layer that reads another one's keys, and holds nothing
        return {"kind": "DummyLayer", "tokens": 0}, {}
    if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
        raise UnsupportedModelError(
            f"the cache has a layer of type {type(layer).__name__}, which cannot be saved: only attention layers can. "
            "clone() it instead"
        )
    about = {"kind": type(layer).__name__, "tokens": layer.get_seq_length()}
    return about, {"keys": layer.keys, "values": layer.values} if layer.is_initialized else {}


def _put_together(layer: Any, about: dict[str, Any], held: dict[str, Tensor]) -> None:
    """Fill an empty layer.

    Raises:
        ValueError, KeyError, TypeError, RuntimeError: the parts do not fit it.

    """
    kind = "state" if isinstance(layer, TaylorCacheLayer) else type(layer).__name__
    if about["kind"] != kind:
        raise ValueError(f"a layer is of kind {about['kind']}, expected {kind}")
    tokens = about["tokens"]
    if type(tokens) is not int or tokens < 0:
        raise ValueError(f"a layer has {brief(tokens)} tokens, expected a count")
    if isinstance(layer, TaylorCacheLayer):
        if tokens:
            device = next(iter(held.values())).device
            layer.state = _restored(layer.heads, about, device, held)
            layer.state.tokens = layer.cumulative_length = tokens
            nothing = torch.empty(0, dtype=layer.state.shape.dtype, device=device)
            layer.lazy_initialization(nothing, nothing)
    elif held:
        layer.lazy_initialization(held["keys"], held["values"])
        layer.keys, layer.values = held["keys"], held["values"]
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length = tokens
        if layer.get_seq_length() != tokens:
            raise ValueError(f"a layer has keys of {layer.get_seq_length()} tokens, expected {tokens}")


def _state_tensors(state: State) -> dict[str, Tensor]:
    """Name everything a state holds."""
    tensors = {"guarded": state.guarded}
    for index, part in enumerate(state.parts):
        tensors |= {f"parts.{index}.{name}": tensor for name, tensor in part.held().items()}
    return tensors


def _restored(
    heads: tuple[HeadSpec, ...], about: dict[str, Any], device: torch.device, held: dict[str, Tensor]
) -> State:
    """Return the state that ``_state_tensors`` took apart; ``about`` is its entry in the header."""
    B, G, d, d_v = about["shape"]
    options: dict[str, Any] = {"dtype": _DTYPES[about["dtype"]], "device": device}
    q, k, v = (torch.empty(B, n, 0, dim, **options) for n, dim in ((len(heads), d), (G, d), (G, d_v)))
    none = torch.empty(B, G, 0, dtype=torch.float32, device=device)  # priorities of no keys
    _, state = attend_causally(q, k, v, heads, scaling=1.0, valid=None, priority=none, backend=about["backend"])
    check_names({"guarded": held["guarded"]}, {"guarded": state.guarded})
    state.guarded = held["guarded"]
    for index, part in enumerate(state.parts):
        prefix = f"parts.{index}."
        part.put({name.removeprefix(prefix): tensor for name, tensor in held.items() if name.startswith(prefix)})
    return state
