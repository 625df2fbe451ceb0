"""A config made ready for one model: checked, its layers planned and its digest computed, all of it once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taylorder.adapt.config import LayerOrders, OrderConfig, described
from taylorder.adapt.decisions import shape_of
from taylorder.adapt.probe import priorities
from taylorder.errors import UsageError
from taylorder.kernels.score_terms import shift_of
from taylorder.kernels.spec import Exact, HeadSpec, deepest, grouped, keeps_keys
from taylorder.models.description import ModelDescription
from taylorder.models.inputs import GivenInputs, Inputs


class LayerNumbers(nn.Module):
    """Key centre, rotations and probe of one layer, float32 whatever the model runs in.

    Gradients flow to them where they ask for it; to train one, put an ``nn.Parameter`` in its place.

    They belong to what is attached and not to the model, whose parameters, buffers and ``state_dict`` stay what they
    are, and whose ``half()`` does not round them. They follow it all the same: the first keys that come from another
    device bring them there.

    Attributes:
        centre: what is taken from the keys of each KV head, ``[G, d]`` (zero for groups expanded around ``zero``); None
            takes nothing.
        query_rotation: what queries are multiplied by, ``A_q`` ``[G, d, d]`` (the identity for groups without ranks);
            None where no head has ranks.
        key_rotation: the same for centred keys, ``A_k``.
        probe: what gives keys their priorities, ``[G, F]``; None where no head keeps keys. Its gradient is that of
            :mod:`~taylorder.kernels.choosing`.
        coefficients: of the polynomials of the query heads, ``[H, P]`` up to the largest order P, in place of those of
            the config, while they are trained; None takes those.

    """

    centre: Tensor | None
    query_rotation: Tensor | None
    key_rotation: Tensor | None
    probe: Tensor | None
    coefficients: Tensor | None

    def __init__(
        self, centre: Tensor | None, rotations: tuple[Tensor, Tensor] | None, probe: Tensor | None = None
    ) -> None:
        """Hold these tensors, which nobody else changes."""
        super().__init__()
        query, key = rotations or (None, None)
        self.register_buffer("centre", centre)
        self.register_buffer("query_rotation", query)
        self.register_buffer("key_rotation", key)
        self.register_buffer("probe", probe)
        self.register_buffer("coefficients", None)

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Centre and rotate: query ``[B, H, T, d]`` and key ``[B, G, T, d]``, as the kernels take them."""
        self._follow(key.device)
        if self.centre is not None:
            key = key - self.centre.to(key.dtype)[:, None]
        if self.query_rotation is not None and self.key_rotation is not None:
            query, key = _rotated(query, self.query_rotation), _rotated(key, self.key_rotation)
        return query, key

    def shift(self, query: Tensor, scaling: float) -> Tensor | None:
        """By how much scores are less than the model's because keys are centred, ``[B, H, T]``; None if they are not.

        Args:
            query: ``[B, H, T, d]``, not rotated.
            scaling: factor of q.k.

        """
        self._follow(query.device)
        if self.centre is None:
            return None
        dtype = torch.promote_types(query.dtype, torch.float32)
        centre = self.centre.to(query.dtype).to(dtype)  # what keys lose, which are of that dtype
        return shift_of(query.to(dtype), centre, scaling)

    def priority(self, key: Tensor, value: Tensor) -> Tensor | None:
        """Priorities of keys as the model made them, float32 ``[B, G, T]``; None where no head keeps keys.

        Args:
            key: ``[B, G, T, d]``, neither centred nor rotated.
            value: ``[B, G, T, d_v]``.

        """
        self._follow(key.device)
        if self.probe is None:
            return None
        return priorities(self.probe, key.detach(), value.detach())  # gradients by the choice are the probe's alone

    def _follow(self, device: torch.device) -> None:
        # Not buffers(), which takes longer than the attention of a short window does.
        held = (*self._buffers.values(), *self._parameters.values())
        if any(numbers is not None and numbers.device != device for numbers in held):
            with torch.inference_mode(False):  # what is made in that mode takes no part where gradients are recorded
                self.to(device)


def _rotated(vectors: Tensor, rotation: Tensor) -> Tensor:
    """``x @ A.T`` of vectors ``[B, H or G, T, d]``, each head by the rotation ``[G, d, d]`` of its KV head.

    Half precisions are rotated in float32 and rounded once; on the identity that changes nothing.
    """
    B, heads, T, d = vectors.shape
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    groups = vectors.to(dtype).reshape(
        B, len(rotation), heads // len(rotation) * T, d
    )  # the heads of a group follow one another
    turned = groups @ rotation.to(dtype).mT
    return turned.view(B, heads, T, d).to(vectors.dtype)


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

    ``digest`` is that of :func:`execution_digest`; ``plans`` has every attention module, in the order of the config and
    then those of cross attention, which are exact. ``inputs`` are what the model can be run on, None for token ids.
    """

    model: Any
    config: OrderConfig
    digest: str
    plans: Mapping[nn.Module, LayerPlan]
    inputs: Inputs | None = None


def prepare(
    model: Any,
    config: OrderConfig | PreparedConfig,
    description: ModelDescription | None = None,
    inputs: Inputs | GivenInputs | None = None,
) -> PreparedConfig:
    """Check a config against a model and plan its layers, to attach it and to make caches as often as wanted.

    Args:
        model: the transformers model.
        config: per-head decisions; what is prepared for this model already comes back as it is.
        description: of the model as it is now, if it was made already. Otherwise a short forward pass and all weights
            are looked at.
        inputs: what the model is run on if it takes more than token ids or something else, as for
            :func:`taylorder.analyze`.

    Raises:
        ConfigError: the config does not belong to the model; says what differs.
        UnsupportedModelError: the model cannot be described.
        UsageError: the config is none, or was prepared for another model; or the inputs are none.

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
            f"the config is a {type(config).__name__}, expected an OrderConfig: OrderConfig.load reads one from "
            "a file, and a selection has one as its .config"
        )
    given = None if inputs is None else Inputs.of(inputs)
    description = description or described(model, given)
    config.check(description)
    modules = dict(model.named_modules())
    with torch.inference_mode(False):  # what is made in that mode takes no part where gradients are recorded
        plans = {modules[layer.module]: plan_layer(config, layer) for layer in config.layers}
    plans |= {modules[name]: LayerPlan(name) for name in description.cross}
    return PreparedConfig(model, config, execution_digest(config), plans, given)


def plan_layer(config: OrderConfig, layer: LayerOrders) -> LayerPlan:
    """Return the plan of one layer: its specs, and what is done to the keys and queries of each KV head."""
    specs = tuple(head.spec for head in layer.heads)
    if all(isinstance(spec.far, Exact) for spec in specs):
        return LayerPlan(layer.module)
    polynomials = [deepest(group) for group in grouped(specs, shape_of(layer, config.model).kv_heads)]
    centre = config.key_centres.get(layer.module)
    if centre is not None:
        plain = [far is None or far.expansion == "zero" for far in polynomials]
        centre = None if all(plain) else centre.masked_fill(torch.tensor(plain)[:, None], 0.0)
    ranked = [far is not None and far.ranks is not None for far in polynomials]
    probe = config.probes[layer.module] if keeps_keys(specs) else None
    numbers = LayerNumbers(centre, _planned_rotations(config, layer.module, ranked), probe)
    return LayerPlan(layer.module, specs, numbers)


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
