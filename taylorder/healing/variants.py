"""A config with one part left out: what is lost then shows what the part does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from taylorder.adapt.config import LayerOrders, OrderConfig
from taylorder.kernels.spec import Dropped, HeadSpec, Near, Taylor


def near_off(config: OrderConfig) -> OrderConfig:
    """A config whose heads with polynomials have nothing but these; the others stay as they are."""
    return _changed(config, lambda spec: replace(spec, near=Near()))


def state_off(config: OrderConfig) -> OrderConfig:
    """A config whose heads with polynomials drop all far keys instead."""
    return _changed(config, lambda spec: HeadSpec(Dropped(), spec.near))


def has_polynomials(config: OrderConfig) -> bool:
    """Whether any head has one."""
    return any(isinstance(head.spec.far, Taylor) for layer in config.layers for head in layer.heads)


def _changed(config: OrderConfig, change: Callable[[HeadSpec], HeadSpec]) -> OrderConfig:
    def of(layer: LayerOrders) -> LayerOrders:
        heads = (
            head.model_copy(update={"spec": change(head.spec)}) if isinstance(head.spec.far, Taylor) else head
            for head in layer.heads
        )
        return layer.model_copy(update={"heads": tuple(heads)})

    return config.model_copy(update={"layers": tuple(map(of, config.layers))})
