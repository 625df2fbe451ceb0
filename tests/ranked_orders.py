"""A config with ranks for a tiny model."""

from __future__ import annotations

from tiny import tokens

from taylorder.adapt.config import HeadOrder, LayerOrders, ModelIdentity, OrderConfig
from taylorder.analysis.capture import run_layers
from taylorder.analysis.truncation import key_centres
from taylorder.kernels import HeadSpec
from taylorder.kernels.spec import Exact, Near, Taylor
from taylorder.models.describe import describe
from taylorder.selection.rotations import balanced_rotations

HALF, FULL, NONE = 0.5, 1.0, 0.0


def group(module, kind, share):
    """Decisions for one group: two orders and two expansions on shared ranks, plain Taylor, or exact."""
    if kind == "exact" or module.sliding_window is not None:
        return (HeadOrder(spec=HeadSpec(Exact()), error=0.0),) * module.group
    near = Near(5, 2) if module.causal else Near()
    if kind == "plain":
        return (HeadOrder(spec=HeadSpec(Taylor(3), near)),) * module.group
    d, few = module.head_dim, int(module.head_dim * share)
    ranks = (0, d, few, few if share == FULL else 2)
    pairs = [(4, "mean"), (3, "centre")] * module.group
    return tuple(
        HeadOrder(spec=HeadSpec(Taylor(order, expansion, ranks[:order] if share else None), near))
        for order, expansion in pairs[: module.group]
    )


def ranked_config(model, share=HALF):
    """Ranked KV heads beside plain and exact ones; centres and rotations measured on random tokens.

    ``share`` is that of the coordinates that degree 2 uses; ``NONE`` leaves ranks and rotations out.
    """
    description = describe(model, "tiny")
    kinds = [["ranked", "plain"], ["exact", "ranked"], ["ranked", "ranked"], ["exact", "ranked"]]
    layers = []
    for module, row in zip(description.modules, kinds, strict=False):
        chosen = [group(module, row[kv_head % 2], share) for kv_head in range(module.kv_heads)]
        layers.append(LayerOrders(module=module.name, heads=tuple(head for heads in chosen for head in heads)))
    config = OrderConfig(model=ModelIdentity.of(description), layers=tuple(layers))
    centres, rotations = {}, {}

    def consume(name, layer):
        centres[name] = key_centres(layer)
        pair = balanced_rotations(layer, centres[name])
        rotations[name] = (pair.query, pair.key)

    run_layers(model, tokens(4, 48, seed=9), consume)
    config = config.with_key_centres(centres)
    return config.with_rotations(rotations) if share else config
