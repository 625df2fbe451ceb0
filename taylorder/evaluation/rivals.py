"""What a config has to beat: simpler ways to spend the same nominal bytes, and what the paper recommends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taylorder.adapt import cost
from taylorder.adapt.config import HeadOrder, LayerOrders, ModelIdentity, OrderConfig
from taylorder.analysis.alpha_ranks import layer_alpha, rank_by_alpha, spread
from taylorder.analysis.analyze import SPECTRA
from taylorder.analysis.projections import projection_weights
from taylorder.analysis.results import role_of
from taylorder.analysis.spectral import Matrix, fit_spectra
from taylorder.kernels.spec import MAX_ORDER, SINKS, Dropped, Exact, HeadSpec, Near, Taylor
from taylorder.models.description import AttentionModule, ModelDescription
from taylorder.storage.progress import Progress

CONFIG, WINDOW, ONE_ORDER, ALPHAS, PAPER, PAPER_RAW = "config", "window", "one order", "alphas", "paper", "unguarded"
"""Names of contenders."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One state of the model to be compared.

    ``config`` None is the exact model, ``guard`` as in ``adapted``, ``note`` says in words what it is. ``absent`` says
    why there is no such contender here; ``optional`` ones are left out where time is short.
    """

    name: str
    config: OrderConfig | None
    note: str = ""
    guard: bool = True
    absent: str = ""
    optional: bool = False


def exact_everywhere(config: OrderConfig) -> bool:
    """Whether a config leaves the model as it is."""
    return all(isinstance(head.spec.far, Exact) for layer in config.layers for head in layer.heads)


def bytes_per_kv_head(config: OrderConfig | None, model: ModelDescription, tokens: int) -> int:
    """Nominal bytes of cache and state, the mean over the KV heads that see the whole context; None is exact.

    Rounded down, so that what fits in them never takes more than the config did.
    """
    total = cost.config_bytes(config or OrderConfig.uniform(model, "exact"), model, tokens)
    heads = sum(module.kv_heads for module in model.open_modules)
    for module in model.closed_modules:
        total -= module.kv_heads * _whole(module, module.cached_tokens(tokens))
    return total // heads if heads else 0


def per_layer(model: ModelDescription, heads: Mapping[str, HeadOrder], criterion: Mapping[str, object]) -> OrderConfig:
    """One decision for all heads of a module; modules that are not named, and those that have to be, are exact."""
    layers = []
    for module in model.modules:
        head = heads.get(module.name, HeadOrder(spec=HeadSpec(Exact()), error=0.0))
        if module.stays_exact is not None:
            head = HeadOrder.staying(module)
        layers.append(LayerOrders.of(module, model, [head] * module.heads))
    return OrderConfig(model=ModelIdentity.of(model), criterion=dict(criterion), layers=tuple(layers))


def sliding_window(model: ModelDescription, budget: int, tokens: int) -> Contender | None:
    """Sinks and one sliding window for all heads, the far field dropped.

    Args:
        model: the model.
        budget: nominal bytes per KV head that sees the whole context.
        tokens: context length at which bytes are counted.

    Returns:
        None if not even sinks and one key fit; the exact model if the whole cache fits.

    """
    typical = model.typical
    if budget >= _whole(typical, tokens):
        return Contender(WINDOW, None, "a window over the whole context, which these bytes hold: exact")
    window = _window_left(typical, budget)
    if window is None:
        return None
    head = HeadOrder(spec=HeadSpec(Dropped(), Near(window, SINKS)))
    criterion = {"policy": "sliding window", "window": window, "sinks": SINKS}
    config = per_layer(model, {module.name: head for module in model.modules}, criterion)
    return Contender(WINDOW, config, f"{SINKS} sinks and the last {window:,} keys for every head, the rest dropped")


def window_instead(model: ModelDescription, config: OrderConfig, tokens: int) -> Contender:
    """Sinks and one window of the config's bytes, there as absent where they do not hold any."""
    budget = bytes_per_kv_head(config, model, tokens)
    return sliding_window(model, budget, tokens) or Contender(
        WINDOW, None, absent=f"the config's {budget:,} bytes per KV head do not hold {SINKS} sinks and one key"
    )


def uniform_order(model: ModelDescription, budget: int, tokens: int) -> Contender | None:
    """One order for all heads, the largest whose state and sinks fit, the rest of the bytes as window.

    Returns:
        None if no order fits, or if the whole cache would.

    """
    typical = model.typical
    if budget >= _whole(typical, tokens):
        return None
    for order in range(MAX_ORDER, 0, -1):
        window = _window_left(typical, budget - cost.state_bytes(typical.head_dim, typical.value_dim, order))
        if window is not None:
            config = OrderConfig.uniform(model, order, "mean", window, SINKS)
            note = f"order {order} for every head, expansion mean, {SINKS} sinks and a window of {window:,}"
            return Contender(ONE_ORDER, config, note)
    return None


def alpha_policy(
    model: ModelDescription, alphas: Mapping[str, float | None], budget: int, tokens: int
) -> Contender | None:
    """Orders by ``|alpha - 2|`` of the layer alone, 1 … the largest maximum that fits, the rest of the bytes as window.

    Layers without an alpha stay exact and are paid for.

    Returns:
        None if no alpha is known, if nothing fits, or if the whole cache would.

    """
    modules = model.open_modules
    ranks = rank_by_alpha({module.name: alphas.get(module.name) for module in modules})
    typical = model.typical
    whole = _whole(typical, tokens)
    if not ranks or budget >= whole:
        return None
    left = budget * len(modules) - whole * (len(modules) - len(ranks))
    for largest in range(MAX_ORDER, 0, -1):
        orders = {name: spread(rank, len(ranks), largest) for name, rank in ranks.items()}
        states = sum(cost.state_bytes(typical.head_dim, typical.value_dim, order) for order in orders.values())
        window = _window_left(typical, left - states, len(ranks))
        if window is not None:
            heads = {
                name: HeadOrder(spec=HeadSpec(Taylor(order, "mean"), Near(window, SINKS)))
                for name, order in orders.items()
            }
            note = (
                f"orders 1 to {largest} by |alpha - 2| of the layer alone, expansion mean, {SINKS} sinks and a window "
                f"of {window:,}"
            )
            return Contender(ALPHAS, per_layer(model, heads, {"policy": "alpha", "max_order": largest}), note)
    return None


def paper(model: ModelDescription) -> list[Contender]:
    """Order 4 for every head around zero, as arXiv 2602.00294 recommends: with the guard, and raw."""
    config = OrderConfig.uniform(model, 4)
    note = "order 4 for every head around zero, as arXiv 2602.00294 recommends"
    return [
        Contender(PAPER, config, f"{note}, guarded"),
        Contender(PAPER_RAW, config, "the paper's order 4 without the guard", guard=False, optional=True),
    ]


def at_equal_bytes(
    model: ModelDescription, config: OrderConfig, alphas: Mapping[str, float | None], tokens: int
) -> list[Contender]:
    """What the bytes of a config buy otherwise at that context length; what they do not buy is there as absent."""
    if not model.alike:
        absent = "layers have heads of several shapes, and one window for all would take other bytes in each"
        return [Contender(name, None, absent=absent) for name in (WINDOW, ONE_ORDER, ALPHAS)]
    budget = bytes_per_kv_head(config, model, tokens)
    by_name = {
        WINDOW: sliding_window(model, budget, tokens),
        ONE_ORDER: uniform_order(model, budget, tokens),
        ALPHAS: alpha_policy(model, alphas, budget, tokens),
    }
    if budget >= _whole(model.typical, tokens):
        reason = "the config's bytes hold the whole KV cache"
    else:
        reason = f"the config's {budget:,} bytes per KV head hold no such state, or not {SINKS} sinks and one key"
    missing = {ALPHAS: "no alpha could be fitted"} if not any(alphas.values()) else {}
    return [contender or Contender(name, None, absent=missing.get(name, reason)) for name, contender in by_name.items()]


def fitted_alphas(model: Any, description: ModelDescription, progress: Progress) -> dict[str, float | None]:
    """The alpha of every layer that policy ``alpha`` goes by, fitted now."""
    alphas = {}
    modules = description.open_modules
    for done, module in enumerate(modules, start=1):
        weights = projection_weights(model, module.name)
        making_scores = [(name, weight) for name, weight in weights.items() if role_of(name) in ("q", "k")]
        rows = fit_spectra([Matrix(module.name, name, weight) for name, weight in making_scores])
        alphas[module.name] = layer_alpha(rows, module.name)
        progress(SPECTRA, done, len(modules))
    return alphas


def _whole(module: AttentionModule, tokens: int) -> int:
    """Nominal bytes of the whole KV cache of one KV head."""
    return cost.kv_bytes(module.head_dim, module.value_dim, tokens)


def _window_left(module: AttentionModule, budget: int, heads: int = 1) -> int | None:
    """Window that the budget of so many KV heads pays for after the sinks; None if there is not even one key."""
    window = budget // (heads * cost.kv_bytes(module.head_dim, module.value_dim, 1)) - SINKS
    return None if window < 1 else window
