"""A ``TaylorCache`` as a safetensors file: the tensors of every layer, and a JSON header that says whose they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from taylorder.adapt.cache import TaylorCache
from taylorder.adapt.cache_layer import TaylorCacheLayer
from taylorder.adapt.runtime import attend_causally
from taylorder.errors import ConfigError, TaylorderError, UnsupportedModelError
from taylorder.files import replacing
from taylorder.kernels import HeadSpec, State
from taylorder.kernels.state import ExactPart, TaylorPart

SCHEMA = "taylorder/cache@1"
_HEADER = "taylorder"


def write(cache: TaylorCache, path: Path) -> None:
    """Write ``cache`` to ``path``; see ``TaylorCache.save``."""
    tensors: dict[str, Tensor] = {}
    layers = []
    for index, layer in enumerate(cache.layers):
        about, held = _taken_apart(layer)
        layers.append(about)
        # Views are copied: safetensors refuses storage shared by two tensors, and would write what is outside of them.
        tensors |= {f"layers.{index}.{name}": tensor.detach().to("cpu").clone() for name, tensor in held.items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    header = {"schema": SCHEMA, "fingerprint": cache.fingerprint, "digest": cache.digest, "layers": layers}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={_HEADER: json.dumps(header)})


def read(cache: TaylorCache, path: Path, device: torch.device) -> None:
    """Fill an empty ``cache`` from ``path``; see ``TaylorCache.load``."""
    header, tensors = _opened(path, device)
    for key, whose in (("fingerprint", "weights"), ("digest", "config")):
        if header.get(key) != getattr(cache, key):
            raise ConfigError(
                f"{path} was made with {whose} {header.get(key)}, expected {getattr(cache, key)}: use the model and "
                "config it was made with, or make it again with TaylorCache.save"
            )
    try:
        for index, (layer, about) in enumerate(zip(cache.layers, header["layers"], strict=True)):
            prefix = f"layers.{index}."
            held = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            _put_together(layer, about, held)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise TaylorderError(
            f"{path} does not hold what a cache of this model consists of ({type(error).__name__}: {error}); make it "
            "again with TaylorCache.save"
        ) from error


def _opened(path: Path, device: torch.device) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            header = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except FileNotFoundError:
        raise TaylorderError(f"{path} does not exist; TaylorCache.save writes one") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise TaylorderError(
            f"{path} cannot be read as a saved TaylorCache ({error}); make it again with TaylorCache.save"
        ) from error
    schema = header.get("schema") if isinstance(header, dict) else None
    if schema != SCHEMA:
        raise TaylorderError(
            f"{path} has schema {schema!r}, this version reads {SCHEMA!r}; make it again with TaylorCache.save"
        )
    return header, tensors


def _taken_apart(layer: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Describe one layer, and name its tensors."""
    if isinstance(layer, TaylorCacheLayer):
        if layer.state is None:
            return {"kind": "state", "tokens": 0}, {}
        state = layer.state
        shape = state.shape
        about = {
            "kind": "state",
            "tokens": state.tokens,
            "shape": [shape.batch, shape.kv_heads, shape.head_dim, shape.value_dim],
            "dtype": str(shape.dtype).removeprefix("torch."),
        }
        return about, _state_tensors(state)
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
    tokens = int(about["tokens"])
    if isinstance(layer, TaylorCacheLayer):
        if tokens:
            device = next(iter(held.values())).device
            layer.state = _restored(layer.heads, about["shape"], getattr(torch, about["dtype"]), device, held)
            layer.state.tokens = layer.cumulative_length = tokens
            layer.dtype, layer.device, layer.is_initialized = layer.state.shape.dtype, device, True
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
        keys, values, keep = part.recent.view()
        held = {"recent.keys": keys, "recent.values": values, "recent.keep": keep, **_own_tensors(part)}
        tensors |= {f"parts.{index}.{name}": tensor for name, tensor in held.items() if tensor is not None}
    return tensors


def _own_tensors(part: ExactPart | TaylorPart) -> dict[str, Tensor]:
    """Name what a part holds besides its recent tokens: sums, sinks, counts."""
    return {name: value for name, value in vars(part).items() if isinstance(value, Tensor)}


def _restored(
    heads: tuple[HeadSpec, ...], shape: list[int], dtype: torch.dtype, device: torch.device, held: dict[str, Tensor]
) -> State:
    """Return the state that ``_state_tensors`` took apart; ``shape`` is batch, KV heads, head dim and value dim."""
    B, G, d, d_v = shape
    options: dict[str, Any] = {"dtype": dtype, "device": device}
    q, k, v = (torch.empty(B, n, 0, dim, **options) for n, dim in ((len(heads), d), (G, d), (G, d_v)))
    _, state = attend_causally(q, k, v, heads, scaling=1.0, valid=None)
    state.guarded = _like(state.guarded, held["guarded"], "guarded")
    for index, part in enumerate(state.parts):
        own = {name.removeprefix(f"parts.{index}."): t for name, t in held.items() if f"parts.{index}." in name}
        part.recent.append(own.pop("recent.keys"), own.pop("recent.values"), own.pop("recent.keep", None))
        if isinstance(part, TaylorPart) and "features" in own:
            part.start_features(own["features"].dtype)
        expected = _own_tensors(part)
        if expected.keys() != own.keys():
            raise ValueError(f"part {index} of a state has {sorted(own)}, expected {sorted(expected)}")
        for name, tensor in own.items():
            setattr(part, name, _like(expected[name], tensor, name))
    return state


def _like(expected: Tensor, found: Tensor, name: str) -> Tensor:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        raise ValueError(
            f"{name} is {found.dtype} {tuple(found.shape)}, expected {expected.dtype} {tuple(expected.shape)}"
        )
    return found
