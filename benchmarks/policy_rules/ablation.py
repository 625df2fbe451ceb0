"""What each lever contributes: a config without it, at the same bytes.

Every KV head keeps its bytes. What it ran by the lever is replaced by what it would run otherwise: a polynomial by as
many tokens of window, fitted coefficients by ``1 / p!``, the mean as expansion point by the centre, sinks by four sinks
and a longer window; and without ``window`` all KV heads get the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from taylorder.adapt import cost
from taylorder.adapt.config import HeadOrder, LayerOrders, OrderConfig
from taylorder.kernels.spec import SINKS
from taylorder.models.description import AttentionModule, ModelDescription
from taylorder.selection.candidates import Lever


def without_lever(config: OrderConfig, model: ModelDescription, lever: Lever, context: int) -> OrderConfig:
    """Return the config without a lever; equal to the config if it does not use it.

    Args:
        config: the config.
        model: what it was made for.
        lever: what to leave out.
        context: tokens at which bytes are counted; a window of that length is all there is.

    """
    change = partial(_near, tokens=_mean_near(config, model, context)) if lever == "window" else _CHANGES[lever]
    layers = []
    for layer, module in zip(config.layers, model.modules, strict=True):
        heads: list[HeadOrder] = []
        for start in range(0, module.heads, module.group):
            own = layer.heads[start : start + module.group]
            fixed = module.sliding_window is not None or (own[0].order == "exact" and lever != "window")
            heads += own if fixed else map(_unmeasured, change(own, module), own)
        layers.append(LayerOrders(module=layer.module, heads=tuple(heads)))
    changed = config.model_copy(update={"layers": tuple(layers)})
    OrderConfig.model_validate(changed.model_dump(by_alias=True))  # a copy is not validated
    return changed


def _unmeasured(new: HeadOrder, old: HeadOrder) -> HeadOrder:
    """The head without the figures of what it was, unless it still is that."""
    if new == old:
        return old
    return new.model_copy(update={"error": None, "nominal_bytes": None, "break_even": None})


def _state_tokens(heads: Sequence[HeadOrder], module: AttentionModule) -> int:
    """Tokens of window that the state of a KV head is worth, rounded down."""
    if all(head.drops_far for head in heads):
        return 0
    deepest = max(heads, key=lambda head: head.order if head.order != "exact" else 0)
    state = cost.state_bytes(module.head_dim, module.value_dim, int(deepest.order), deepest.ranks)
    return state // cost.kv_bytes(module.head_dim, module.value_dim, 1)


def _window_only(heads: Sequence[HeadOrder], module: AttentionModule) -> list[HeadOrder]:
    first = heads[0]
    if first.drops_far:
        return list(heads)
    window = first.window + _state_tokens(heads, module)
    return [HeadOrder.near_only(window, first.sinks)] * len(heads)


def _without_ranks(heads: Sequence[HeadOrder], module: AttentionModule) -> list[HeadOrder]:
    return list(heads) if heads[0].ranks is None else _window_only(heads, module)


def _without_coefficients(heads: Sequence[HeadOrder], module: AttentionModule) -> list[HeadOrder]:
    return [head if head.drops_far else head.model_copy(update={"coefficients": None}) for head in heads]


def _without_expansion(heads: Sequence[HeadOrder], module: AttentionModule) -> list[HeadOrder]:
    """Coefficients fitted around the mean say nothing about powers of the centred score."""
    return [
        head.model_copy(update={"expansion": "centre", "coefficients": None}) if head.expansion == "mean" else head
        for head in heads
    ]


def _without_sinks(heads: Sequence[HeadOrder], module: AttentionModule) -> list[HeadOrder]:
    return [
        head.model_copy(update={"sinks": SINKS, "window": head.window + head.sinks - SINKS})
        if head.sinks > SINKS
        else head
        for head in heads
    ]


def _near(heads: Sequence[HeadOrder], module: AttentionModule, tokens: int) -> list[HeadOrder]:
    """The same KV head with that many tokens in all, those its state is worth included."""
    if heads[0].order == "exact":
        return [HeadOrder.near_only(tokens - SINKS, SINKS)] * len(heads)
    window = tokens - _state_tokens(heads, module) - heads[0].sinks
    if window < 1:
        return [HeadOrder.near_only(tokens - SINKS, SINKS)] * len(heads)
    return [head.model_copy(update={"window": window}) for head in heads]


def _mean_near(config: OrderConfig, model: ModelDescription, context: int) -> int:
    """Tokens per KV head, those that states are worth included: the mean, rounded down."""
    tokens = kv_heads = 0
    for layer, module in zip(config.layers, model.modules, strict=True):
        if module.sliding_window is None:
            for start in range(0, module.heads, module.group):
                own = layer.heads[start : start + module.group]
                exact = own[0].order == "exact"
                tokens += context if exact else min(context, own[0].window + own[0].sinks) + _state_tokens(own, module)
                kv_heads += 1
    return max(SINKS + 1, tokens // max(1, kv_heads))


_CHANGES: dict[Lever, Callable[[Sequence[HeadOrder], AttentionModule], list[HeadOrder]]] = {
    "order": _window_only,
    "expansion": _without_expansion,
    "sinks": _without_sinks,
    "ranks": _without_ranks,
    "coefficients": _without_coefficients,
}
