"""A config made ready for one model: checked, its layers planned and its digest computed, all of it once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taylorder.adapt.config import LayerOrders, OrderConfig
from taylorder.adapt.layer_numbers import LayerNumbers
from taylorder.errors import UsageError
from taylorder.kernels.spec import Exact, HeadSpec, deepest, grouped
from taylorder.models.description import ModelDescription


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What one attention module runs.

    ``heads`` is None where every head is exact; ``numbers`` are applied to queries and keys before that.
    """

    name: str
    heads: tuple[HeadSpec, ...] | None = None
    numbers: LayerNumbers | None = None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PreparedConfig:
    """What :func:`prepare` made of a config for ``model`` and the weights it had then.

    ``digest`` is that of :func:`execution_digest`; ``plans`` has every attention module, in the order of the config.
    """

    model: Any
    config: OrderConfig
    digest: str
    plans: Mapping[nn.Module, LayerPlan]


def prepare(
    model: Any, config: OrderConfig | PreparedConfig, description: ModelDescription | None = None
) -> PreparedConfig:
    """Check a config against a model and plan its layers, to attach it and to make caches as often as wanted.

    Args:
        model: the transformers model.
        config: per-head decisions; what is prepared for this model already comes back as it is.
        description: of the model as it is now, if it was made already. Otherwise a short forward pass and all weights
            are looked at.

    Raises:
        ConfigError: the config does not belong to the model; says what differs.
        UnsupportedModelError: the model cannot be described.
        UsageError: the config is none, or was prepared for another model.

    """
    if isinstance(config, PreparedConfig):
        if config.model is not model:
            raise UsageError(
                f"the config was prepared for another {type(config.model).__name__} than the {type(model).__name__} "
                "given: prepare it for this one, or pass the OrderConfig itself"
            )
        return config
    if not isinstance(config, OrderConfig):
        raise UsageError(
            f"the config is a {type(config).__name__}, expected an OrderConfig: OrderConfig.load reads one from a file, "
            "and a selection has one as its .config"
        )
    config.check(model if description is None else description)
    modules = dict(model.named_modules())
    with torch.inference_mode(False):  # what is made in that mode takes no part where gradients are recorded
        plans = {modules[layer.module]: plan_layer(config, layer) for layer in config.layers}
    return PreparedConfig(model, config, execution_digest(config), plans)


def plan_layer(config: OrderConfig, layer: LayerOrders) -> LayerPlan:
    """Return the plan of one layer: its specs, and what is done to the keys and queries of each KV head."""
    specs = tuple(head.spec for head in layer.heads)
    if all(isinstance(spec.far, Exact) for spec in specs):
        return LayerPlan(layer.module)
    polynomials = [deepest(group) for group in grouped(specs, config.model.kv_heads)]
    centre = config.key_centres.get(layer.module)
    if centre is not None:
        plain = [far is None or far.expansion == "zero" for far in polynomials]
        centre = centre.masked_fill(torch.tensor(plain)[:, None], 0.0)
    ranked = [far is not None and far.ranks is not None for far in polynomials]
    return LayerPlan(layer.module, specs, LayerNumbers(centre, _planned_rotations(config, layer.module, ranked)))


def _planned_rotations(config: OrderConfig, module: str, ranked: list[bool]) -> tuple[Tensor, Tensor] | None:
    """``A_q`` and ``A_k`` of the KV heads that are ``ranked``, and the identity for the others."""
    if not any(ranked):
        return None
    query, key = config.rotations[module]
    chosen = torch.tensor(ranked)[:, None, None]
    identity = torch.eye(query.shape[-1])
    return torch.where(chosen, query, identity), torch.where(chosen, key, identity)


def execution_digest(config: OrderConfig) -> str:
    """``"sha256:..."`` over everything in a config that changes what the model computes, and the weights it is for.

    A state made under one digest cannot be continued under another. Errors, reasons and provenance do not count; of a
    spec every field does, because its repr names them all.
    """
    layers = [[layer.module, *(repr(head.spec) for head in layer.heads)] for layer in config.layers]
    digest = hashlib.sha256(json.dumps([config.model.fingerprint, layers]).encode())
    for name, tensors in sorted(config.tensors().items()):
        digest.update(name.encode())
        for tensor in tensors:
            digest.update(tensor.contiguous().numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"
