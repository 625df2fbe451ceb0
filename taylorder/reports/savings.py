"""What a config saves over exact attention: nominal bytes of all caches, or multiplications where there is no cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from taylorder.adapt import cost
from taylorder.adapt.config import HeadOrder, OrderConfig
from taylorder.analysis.results import Analysis
from taylorder.kernels.spec import Taylor
from taylorder.models.description import AttentionModule
from taylorder.selection.by_tolerance import Selection


def _groups(analysis: Analysis, selection: Selection) -> Iterator[tuple[AttentionModule, Sequence[HeadOrder]]]:
    """Yield each KV head as its module and the decisions of its group."""
    for module, layer in zip(analysis.model.modules, selection.config.layers, strict=True):
        for group in module.groups(layer.heads):
            yield module, group


def cache_bytes(analysis: Analysis, selection: Selection) -> tuple[int, int]:
    """Nominal bytes of all KV heads at the context: every head exact, and as the config has it."""
    model = analysis.model
    exact = OrderConfig.uniform(model, "exact")
    return (
        cost.config_bytes(exact, model, selection.context),
        cost.config_bytes(selection.config, model, selection.context),
    )


def attention_multiplications(analysis: Analysis, selection: Selection) -> tuple[int, int]:
    """Multiply-adds of two-sided attention over ``context`` tokens: every head exact, and as the config has it.

    Taylor attention reads the state once per query head and adds to it once per KV head (``cost.break_even_flops``).
    """
    exact = adapted = 0
    n = selection.context
    for module, heads in _groups(analysis, selection):
        quadratic = n * min(n, module.sliding_window or n) * (module.head_dim + module.value_dim)
        exact += quadratic * len(heads)
        orders = [head.spec.far.order for head in heads if isinstance(head.spec.far, Taylor)]
        adapted += quadratic * (len(heads) - len(orders))
        if orders:
            touched = [*orders, max(orders)]
            adapted += n * sum(cost.features(module.head_dim, order) for order in touched) * (module.value_dim + 1)
    return exact, adapted
