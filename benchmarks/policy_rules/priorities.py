"""Rules whose scores are known when a key is made, or from one exact pass: they run as the product's own probe does.

A config is prepared as always, and what gives its keys their priorities is replaced in what was prepared. ``B``
sequences, ``G`` KV heads, ``T`` tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.prepared import PreparedConfig, prepare
from taylorder.analysis.capture import LayerTensors, run_layers
from taylorder.analysis.future_attention import attention_blocks
from taylorder.models.description import ModelDescription

Priority = Callable[[str, Tensor, Tensor], Tensor]
"""From a module's name, keys ``[B, G, T, d]`` as they enter the cache and values to float32 priorities."""

RECENT = 64
"""Rows so many tokens after a key do not count for the oracle: the key is in any window there."""


def smallest_norm(_module: str, key: Tensor, _value: Tensor) -> Tensor:
    """Knorm: ``-|k|``."""
    return -key.float().norm(dim=-1)


def least_like_the_mean(_module: str, key: Tensor, _value: Tensor) -> Tensor:
    """KeyDiff: minus the cosine of a key and the mean direction of the keys up to it.

    The paper takes the mean of the keys in the cache, again and again; this one is known when a key is made.
    """
    mean = normalize(key.float(), dim=-1).cumsum(2)
    return -cosine_similarity(key.float(), mean, dim=-1)


def at_random(module: str, key: Tensor, _value: Tensor) -> Tensor:
    """Uniform, the same in every run."""
    generator = torch.Generator().manual_seed(crc32(module.encode()))
    return torch.rand(key.shape[1:3], generator=generator).expand(len(key), -1, -1)


def received_later(model: Any, description: ModelDescription, sequence: Tensor) -> dict[str, Tensor]:
    """Mean attention that each key gets from later rows of the exact model, by module, float32 ``[1, G, T]``.

    The mean is over the query heads of the group and the rows more than :data:`RECENT` tokens later; 0 where there are
    none.
    """
    modules = {module.name for module in description.open_modules}
    received: dict[str, Tensor] = {}

    def consume(name: str, layer: Any) -> None:
        if name in modules:
            received[name] = torch.stack(
                [
                    _received(queries, keys, layer)
                    for queries, keys in zip(layer.q[0].unflatten(0, (layer.k.shape[1], -1)), layer.k[0], strict=True)
                ]
            )[None]

    run_layers(model, sequence[None], consume)
    return received


def _received(q: Tensor, k: Tensor, layer: LayerTensors) -> Tensor:
    T = len(k)
    total = torch.zeros(T)
    for start, weights in attention_blocks(q, k, layer.scaling, range(T), layer.terms):
        total[: weights.shape[-1]] += weights.tril_(start - RECENT - 1).sum((0, 1))
    return total / (len(q) * (T - 1 - RECENT - torch.arange(T)).clamp(min=1))


def looked_up(table: Mapping[str, Tensor]) -> Priority:
    """The priorities of a table, of the sequence that it was made for."""
    return lambda module, _key, _value: table[module]


def prepared_by(model: Any, description: ModelDescription, config: OrderConfig, rule: Priority) -> PreparedConfig:
    """What ``prepare`` makes of a config, with the rule in the place of its probes."""
    prepared = prepare(model, config, description)
    for plan in prepared.plans.values():
        if plan.numbers is not None and plan.numbers.probe is not None:
            plan.numbers.priority = lambda key, value, name=plan.name: rule(name, key, value)
    return prepared
