"""What a config saves over exact attention: nominal bytes of all caches, or multiplications where there is no cache."""

from __future__ import annotations

from taylorder.adapt import cost
from taylorder.adapt.config import OrderConfig
from taylorder.analysis.results import Analysis
from taylorder.kernels.spec import Taylor
from taylorder.selection.by_tolerance import Selection


def saved(analysis: Analysis, selection: Selection) -> tuple[int, int]:
    """Nominal bytes of all caches, or multiplications of an encoder: every head exact, and as the config has it."""
    take = cache_bytes if analysis.model.causal else attention_multiplications
    return take(analysis, selection)


def cache_bytes(analysis: Analysis, selection: Selection) -> tuple[int, int]:
    """Nominal bytes of all KV heads at the context: every head exact, and as the config has it."""
    configs = OrderConfig.uniform(analysis.model, "exact"), selection.config
    exact, adapted = (cost.config_bytes(config, analysis.model, selection.context) for config in configs)
    return exact, adapted


def latent_bytes(analysis: Analysis, selection: Selection) -> tuple[int, int]:
    """The same where layers whose heads are all exact keep latents in place of keys and values."""
    configs = OrderConfig.uniform(analysis.model, "exact"), selection.config
    exact, adapted = (cost.latent_bytes(config, analysis.model, selection.context) for config in configs)
    return exact, adapted


def attention_multiplications(analysis: Analysis, selection: Selection) -> tuple[int, int]:
    """Multiply-adds of two-sided attention over ``context`` tokens, or over as many as a module attends to at most.

    The first is with every head exact, the second as the config has it.

    Taylor attention reads the state once per query head and adds to it once per KV head (``cost.break_even_flops``).
    """
    exact = adapted = 0
    for module, layer in zip(analysis.model.modules, selection.config.layers, strict=True):
        n = min(selection.context, module.tokens or selection.context)
        quadratic = module.calls * n * module.seen_tokens(n) * (module.head_dim + module.value_dim)
        for heads in module.groups(layer.heads):
            exact += quadratic * len(heads)
            orders = [head.spec.far.order for head in heads if isinstance(head.spec.far, Taylor)]
            adapted += quadratic * (len(heads) - len(orders))
            if orders:
                touched = [*orders, max(orders)]
                features = sum(cost.features(module.head_dim, order) for order in touched)
                adapted += module.calls * n * features * (module.value_dim + 1)
    return exact, adapted
