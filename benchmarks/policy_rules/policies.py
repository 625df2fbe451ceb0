"""Rules that share a budget out without measuring any head: what an allocation by measurement has to beat.

All keep sinks and a sliding window and drop the far field; they differ in the window of each KV head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from taylorder.adapt import cost
from taylorder.adapt.config import HeadOrder, LayerOrders, ModelIdentity, OrderConfig
from taylorder.evaluation.rivals import Contender, uniform_order
from taylorder.kernels.spec import SINKS, Dropped, Exact, HeadSpec, Near
from taylorder.models.description import ModelDescription

DEPTH, ALPHA, ALPHA_MINUS_2 = "depth", "alpha", "|alpha - 2|"
ORDER_WINDOW = "one order and window"
_SPREAD = 0.5
"""Layers get between 1 - this and 1 + this times the mean, before what they get is made to fit the budget."""

_RANDOM_RATIO = 4.0
"""Random windows lie between the mean over this and the mean times this, uniformly in the logarithm."""


def shared_windows(weights: Sequence[float], mean: int, most: int) -> list[int]:
    """Windows proportional to ``weights``, at least 1 and at most ``most`` tokens, whose mean is at most ``mean``."""
    share = np.asarray(weights, dtype=np.float64)
    low, high = 0.0, most / share.min()
    for _ in range(100):  # bisection: the sum grows with the factor
        middle = (low + high) / 2
        if np.floor(np.clip(share * middle, 1, most)).sum() > mean * len(share):
            high = middle
        else:
            low = middle
    return [int(window) for window in np.floor(np.clip(share * low, 1, most))]


def windows_config(
    model: ModelDescription, windows: Mapping[tuple[str, int], int], criterion: Mapping[str, object]
) -> OrderConfig:
    """Sinks and a window for every KV head named, the far field dropped; the others are exact."""
    layers = []
    for module in model.modules:
        heads: list[HeadOrder] = []
        for head in range(module.heads):
            window = windows.get((module.name, head // module.group))
            if window is None:
                heads.append(HeadOrder(spec=HeadSpec(Exact()), error=0.0))
            else:
                heads.append(HeadOrder(spec=HeadSpec(Dropped(), Near(window, SINKS))))
        layers.append(LayerOrders(module=module.name, heads=tuple(heads)))
    return OrderConfig(model=ModelIdentity.of(model), criterion=dict(criterion), layers=tuple(layers))


def weighted_windows(
    name: str, note: str, model: ModelDescription, weights: Mapping[tuple[str, int], float], budget: int, context: int
) -> Contender:
    """Windows in proportion to a weight of each KV head, at ``budget`` nominal bytes per KV head on average.

    The weights of all KV heads that see the whole context have to be there.
    """
    first = model.modules[0]
    mean = budget // cost.kv_bytes(first.head_dim, first.value_dim, 1) - SINKS
    if mean < 1:
        return Contender(name, None, absent=f"{budget:,} bytes per KV head do not hold {SINKS} sinks and one key")
    windows = shared_windows(list(weights.values()), mean, context - SINKS)
    config = windows_config(model, dict(zip(weights, windows, strict=True)), {"policy": name})
    return Contender(name, config, f"{SINKS} sinks and {note}, the rest dropped")


def depth_progression(model: ModelDescription, budget: int, context: int) -> Contender:
    """Windows that shrink evenly with depth, as PyramidKV's do (arXiv 2406.02069)."""
    modules = model.open_modules
    shares = np.linspace(1 + _SPREAD, 1 - _SPREAD, len(modules)) if len(modules) > 1 else np.ones(1)
    weights = {
        (module.name, kv_head): float(share)
        for module, share in zip(modules, shares, strict=True)
        for kv_head in range(module.kv_heads)
    }
    return weighted_windows(DEPTH, "windows that shrink evenly with depth", model, weights, budget, context)


def alpha_windows(
    model: ModelDescription, alphas: Mapping[str, float | None], budget: int, context: int
) -> list[Contender]:
    """Windows by the layer's alpha, scaled between its least and its largest value as AlphaPruning scales sparsities.

    By ``alpha`` (arXiv 2410.10912): the smaller, the better trained, the more bytes. By ``|alpha - 2|``, the hypothesis
    that layers near 2 need fewer terms: the nearer, the fewer bytes. Layers without an alpha get the mean.
    """
    contenders = []
    for name, note in ((ALPHA, "larger windows for smaller alpha"), (ALPHA_MINUS_2, "larger windows far from alpha 2")):
        known = {
            layer: alpha if name == ALPHA else abs(alpha - 2) for layer, alpha in alphas.items() if alpha is not None
        }
        if not known:
            contenders.append(Contender(name, None, absent="no alpha could be fitted"))
            continue
        low, high = min(known.values()), max(known.values())
        sign = -1 if name == ALPHA else 1
        weights = {}
        for module in model.open_modules:
            position = (known[module.name] - low) / (high - low) if module.name in known and high > low else 0.5
            for kv_head in range(module.kv_heads):
                weights[module.name, kv_head] = 1 + sign * _SPREAD * (2 * position - 1)
        contenders.append(weighted_windows(name, note, model, weights, budget, context))
    return contenders


def random_windows(model: ModelDescription, budget: int, context: int, seed: int) -> Contender:
    """Windows drawn at random, uniformly in the logarithm: what unevenness alone does."""
    generator = np.random.default_rng(seed)
    weights = {
        (module.name, kv_head): float(_RANDOM_RATIO ** generator.uniform(-1, 1))
        for module in model.open_modules
        for kv_head in range(module.kv_heads)
    }
    return weighted_windows(
        f"random windows {seed}", f"windows drawn at random, seed {seed}", model, weights, budget, context
    )


def simple_rules(
    model: ModelDescription, alphas: Mapping[str, float | None], budget: int, context: int
) -> list[Contender]:
    """All of these, and one order and window for all; two draws of random windows."""
    order = uniform_order(model, budget, context)
    contenders = [] if order is None else [Contender(ORDER_WINDOW, order.config, order.note)]
    contenders += [depth_progression(model, budget, context), *alpha_windows(model, alphas, budget, context)]
    return contenders + [random_windows(model, budget, context, seed) for seed in (0, 1)]
