"""What each lever contributes: a config without it, at the same bytes.

Every KV head keeps its bytes. What it ran by the lever is replaced by what it would run otherwise: a polynomial by as
many bytes of near field (window and kept keys grow alike), fitted coefficients by ``1 / p!``, the mean as expansion
point by the centre, sinks by four sinks and a longer window, kept keys by a longer window; and without ``window`` all
KV heads get the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial

from policy_rules.fields import Change, changed
from taylorder.adapt import cost
from taylorder.adapt.config import OrderConfig
from taylorder.kernels.spec import SINKS, Dropped, Exact, HeadSpec, Near, Taylor, deepest
from taylorder.models.description import AttentionModule, ModelDescription
from taylorder.selection.candidates import Lever
from taylorder.selection.near_sizes import grown, keeping, window_alone


def without_lever(config: OrderConfig, model: ModelDescription, lever: Lever, context: int) -> OrderConfig:
    """Return the config without a lever; equal to the config if it does not use it.

    Args:
        config: the config.
        model: what it was made for.
        lever: what to leave out.
        context: tokens at which bytes are counted; a window of that length is all there is.

    """
    if lever == "window":
        return changed(config, model, partial(_near, tokens=_mean_near(config, model, context)))
    return changed(config, model, _CHANGES[lever])


def _token(module: AttentionModule) -> int:
    """Nominal bytes of one token of cache."""
    return cost.kv_bytes(module.head_dim, module.value_dim, 1)


def _state_bytes(group: Sequence[HeadSpec], module: AttentionModule) -> int:
    """Nominal bytes of the state of a KV head."""
    far = deepest(group)
    return 0 if far is None else cost.state_bytes(module.head_dim, module.value_dim, far.order, far.ranks)


def _near_only(group: Sequence[HeadSpec], module: AttentionModule) -> list[HeadSpec]:
    if isinstance(group[0].far, Exact):
        return list(group)
    near = grown(group[0].near, _state_bytes(group, module), _token(module))
    return [HeadSpec(Dropped(), near)] * len(group)


def _without_ranks(group: Sequence[HeadSpec], module: AttentionModule) -> list[HeadSpec]:
    return list(group) if group[0].ranks is None else _near_only(group, module)


def _without_kept(group: Sequence[HeadSpec], module: AttentionModule) -> list[HeadSpec]:
    return [replace(spec, near=window_alone(spec.near, _token(module))) for spec in group]


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
    near = group[0].near
    if near.sinks <= SINKS:
        return list(group)
    return [replace(spec, near=Near(near.window + near.sinks - SINKS, SINKS, near.kept)) for spec in group]


def _near(group: Sequence[HeadSpec], module: AttentionModule, tokens: int) -> list[HeadSpec]:
    """The same KV head with the bytes of that many tokens in all, those its state is worth included.

    Kept keys have the share of them that they had.
    """
    near, token = group[0].near, _token(module)
    window = tokens - _state_bytes(group, module) // token - near.sinks
    if isinstance(group[0].far, Exact) or window < 1:
        return [HeadSpec(Dropped(), Near(tokens - SINKS, SINKS))] * len(group)
    share = Fraction(near.kept, max(1, near.window + near.kept))
    resized = keeping(Near(window, near.sinks), share, token) if share else Near(window, near.sinks)
    return [replace(spec, near=resized) for spec in group]


def _mean_near(config: OrderConfig, model: ModelDescription, context: int) -> int:
    """Tokens per KV head, those that states and priorities are worth included: the mean, rounded down."""
    tokens = kv_heads = 0
    for layer, module in zip(config.layers, model.modules, strict=True):
        if module.sliding_window is None:
            for group in module.groups([head.spec for head in layer.heads]):
                near = context
                if not isinstance(group[0].far, Exact):
                    near = cost.near_bytes(group[0].near, module.head_dim, module.value_dim, context) // _token(module)
                tokens += near + _state_bytes(group, module) // _token(module)
                kv_heads += 1
    return max(SINKS + 1, tokens // max(1, kv_heads))


_CHANGES: dict[Lever, Change] = {
    "order": _near_only,
    "expansion": _without_expansion,
    "sinks": _without_sinks,
    "kept": _without_kept,
    "ranks": _without_ranks,
    "coefficients": _without_coefficients,
}
