"""What each lever contributes: a config without it, at the same bytes.

Every KV head keeps its bytes. What it ran by the lever is replaced by what it would run otherwise: a polynomial by as
many tokens of window, fitted coefficients by ``1 / p!``, the mean as expansion point by the centre, sinks by four sinks
and a longer window; and without ``window`` all KV heads get the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from taylorder.adapt import cost
from taylorder.adapt.config import HeadOrder, LayerOrders, OrderConfig
from taylorder.kernels.spec import SINKS, Dropped, Exact, HeadSpec, Near, Taylor, deepest
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
        for group in module.groups(layer.heads):
            specs = [head.spec for head in group]
            fixed = module.sliding_window is not None or (isinstance(specs[0].far, Exact) and lever != "window")
            heads += group if fixed else map(_unmeasured, group, change(specs, module))
        layers.append(LayerOrders(module=layer.module, heads=tuple(heads)))
    changed = config.model_copy(update={"layers": tuple(layers)})
    OrderConfig.model_validate(dict(changed))  # a copy is not validated
    return changed


def _unmeasured(head: HeadOrder, spec: HeadSpec) -> HeadOrder:
    """The head with another spec and without the figures of what it was, unless it still is that."""
    if spec == head.spec:
        return head
    return HeadOrder(spec=spec)


def _state_tokens(group: Sequence[HeadSpec], module: AttentionModule) -> int:
    """Tokens of window that the state of a KV head is worth, rounded down."""
    far = deepest(group)
    if far is None:
        return 0
    state = cost.state_bytes(module.head_dim, module.value_dim, far.order, far.ranks)
    return state // cost.kv_bytes(module.head_dim, module.value_dim, 1)


def _window_only(group: Sequence[HeadSpec], module: AttentionModule) -> list[HeadSpec]:
    near = group[0].near
    return [HeadSpec(Dropped(), Near(near.window + _state_tokens(group, module), near.sinks))] * len(group)


def _without_ranks(group: Sequence[HeadSpec], module: AttentionModule) -> list[HeadSpec]:
    return list(group) if group[0].ranks is None else _window_only(group, module)


def _without_coefficients(group: Sequence[HeadSpec], module: AttentionModule) -> list[HeadSpec]:
    return [
        replace(spec, far=replace(spec.far, coefficients=None)) if isinstance(spec.far, Taylor) else spec
        for spec in group
    ]


def _without_expansion(group: Sequence[HeadSpec], module: AttentionModule) -> list[HeadSpec]:
    """Coefficients fitted around the mean say nothing about powers of the centred score."""
    return [
        replace(spec, far=replace(spec.far, expansion="centre", coefficients=None))
        if isinstance(spec.far, Taylor) and spec.far.expansion == "mean"
        else spec
        for spec in group
    ]


def _without_sinks(group: Sequence[HeadSpec], module: AttentionModule) -> list[HeadSpec]:
    return [
        replace(spec, near=Near(spec.near.tokens - SINKS, SINKS)) if spec.near.sinks > SINKS else spec for spec in group
    ]


def _near(group: Sequence[HeadSpec], module: AttentionModule, tokens: int) -> list[HeadSpec]:
    """The same KV head with that many tokens in all, those its state is worth included."""
    window = tokens - _state_tokens(group, module) - group[0].near.sinks
    if isinstance(group[0].far, Exact) or window < 1:
        return [HeadSpec(Dropped(), Near(tokens - SINKS, SINKS))] * len(group)
    return [replace(spec, near=Near(window, spec.near.sinks)) for spec in group]


def _mean_near(config: OrderConfig, model: ModelDescription, context: int) -> int:
    """Tokens per KV head, those that states are worth included: the mean, rounded down."""
    tokens = kv_heads = 0
    for layer, module in zip(config.layers, model.modules, strict=True):
        if module.sliding_window is None:
            for group in module.groups([head.spec for head in layer.heads]):
                near = context if isinstance(group[0].far, Exact) else min(context, group[0].near.tokens)
                tokens += near + _state_tokens(group, module)
                kv_heads += 1
    return max(SINKS + 1, tokens // max(1, kv_heads))


_CHANGES: dict[Lever, Callable[[Sequence[HeadSpec], AttentionModule], list[HeadSpec]]] = {
    "order": _window_only,
    "expansion": _without_expansion,
    "sinks": _without_sinks,
    "ranks": _without_ranks,
    "coefficients": _without_coefficients,
}
