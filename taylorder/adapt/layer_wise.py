"""A config in which all KV heads of a layer hold the same, for engines that page the cache layer by layer."""

from __future__ import annotations

from typing import Any

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.decisions import HeadOrder, LayerOrders, ModelIdentity
from taylorder.kernels.spec import Dropped, Exact, HeadSpec, Near
from taylorder.models.description import ModelDescription

POLICY = "layer-wise"


def layer_wise(config: OrderConfig, model: ModelDescription) -> OrderConfig:
    """Give every KV head of a layer a window as long as the most that one of them holds.

    Keys kept by priority count as tokens of the window, since a page knows of no priority. A layer of which a KV head
    sees the whole context, exactly or through a polynomial, is exact. No KV head holds fewer tokens than before, but
    a window of the most recent ones in the place of kept keys may be worse all the same.
    """
    modules = {module.name: module for module in model.modules}
    layers = [
        layer
        if modules[layer.module].sliding_window is not None
        else LayerOrders(module=layer.module, heads=(_longest(layer.heads),) * len(layer.heads))
        for layer in config.layers
    ]
    criterion: dict[str, Any] = {"policy": POLICY, "of": config.criterion}
    if config.context is not None:
        criterion["context"] = config.context
    return OrderConfig(
        model=ModelIdentity.of(model), criterion=criterion, calibration=config.calibration, layers=tuple(layers)
    )


def _longest(heads: tuple[HeadOrder, ...]) -> HeadOrder:
    specs = [head.spec for head in heads]
    if not all(isinstance(spec.far, Dropped) for spec in specs):
        return HeadOrder(spec=HeadSpec(Exact()), error=0.0, reason="layer")
    sinks = max(spec.near.sinks for spec in specs)
    held = max(spec.near.sinks + spec.near.window + spec.near.kept for spec in specs)
    return HeadOrder(spec=HeadSpec(Dropped(), Near(held - sinks, sinks)))
