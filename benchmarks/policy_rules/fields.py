"""Configs that the rules share: the same near field for all KV heads, or that which each KV head has in a config."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from torch import Tensor

from taylorder.adapt import cost
from taylorder.adapt.config import HeadOrder, LayerOrders, OrderConfig
from taylorder.evaluation import rivals
from taylorder.kernels.spec import SINKS, Dropped, HeadSpec, Near, Taylor
from taylorder.models.description import AttentionModule, ModelDescription
from taylorder.selection.near_sizes import keeping

Change = Callable[[Sequence[HeadSpec], AttentionModule], Sequence[HeadSpec]]


def changed(config: OrderConfig, model: ModelDescription, change: Change) -> OrderConfig:
    """The config with the specs of every KV head that sees the whole context changed.

    Heads whose specs are others lose the figures of what they were.
    """
    layers = []
    for layer, module in zip(config.layers, model.modules, strict=True):
        heads: list[HeadOrder] = []
        for group in module.groups(layer.heads):
            specs = [head.spec for head in group]
            if module.sliding_window is None:
                specs = list(change(specs, module))
            heads += [
                head if spec == head.spec else HeadOrder(spec=spec) for head, spec in zip(group, specs, strict=True)
            ]
        layers.append(LayerOrders(module=layer.module, heads=tuple(heads)))
    copy = config.model_copy(update={"layers": tuple(layers)})
    OrderConfig.model_validate(dict(copy))  # a copy is not validated
    return copy


def alike(
    model: ModelDescription, budget: int, kept: Fraction, probes: Mapping[str, Tensor], about: Mapping[str, Any]
) -> OrderConfig:
    """One near field for all, which gives a share of its tokens to kept keys and drops the rest.

    ``probes`` are of every module that sees the whole context; they say who is kept where no other rule does.
    """
    first = model.open_modules[0]
    token = cost.kv_bytes(first.head_dim, first.value_dim, 1)
    near = keeping(Near(budget // token - SINKS, SINKS), kept, token)
    head = HeadOrder(spec=HeadSpec(Dropped(), near))
    criterion = {"policy": "one near field", "window": near.window, "sinks": near.sinks, "kept": near.kept}
    config = rivals.per_layer(model, {module.name: head for module in model.modules}, criterion)
    return config.with_probes(probes, about)


def with_state(config: OrderConfig, model: ModelDescription, order: int) -> OrderConfig:
    """A polynomial of that order around the mean for every KV head that keeps keys, paid for with kept keys.

    Where they do not pay for that order, the largest that they pay for, and leave at least as many as they give.
    """

    def change(group: Sequence[HeadSpec], module: AttentionModule) -> list[HeadSpec]:
        near, d, d_v = group[0].near, module.head_dim, module.value_dim
        key = cost.kv_bytes(d, d_v, 1) + cost.PRIORITY_BYTES
        for degree in range(order, 0, -1):
            price = -(-cost.state_bytes(d, d_v, degree) // key)
            if isinstance(group[0].far, Dropped) and near.kept >= 2 * price:
                return [HeadSpec(Taylor(degree, "mean"), replace(near, kept=near.kept - price))] * len(group)
        return list(group)

    return changed(config, model, change)
