"""From a choice of one candidate for every KV head to a config, and to what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from taylorder.adapt import cost
from taylorder.adapt.config import HeadOrder, LayerOrders, ModelIdentity, OrderConfig
from taylorder.kernels.spec import Dropped, Exact, HeadSpec, Taylor
from taylorder.models.description import AttentionModule
from taylorder.selection.candidates import Candidate
from taylorder.selection.lever_errors import LayerLevers, group_specs
from taylorder.selection.lever_table import LeverTable
from taylorder.selection.near_sizes import grown
from taylorder.selection.reasons import Reason
from taylorder.storage.provenance import software_versions


def window_instead(candidate: Candidate, module: AttentionModule) -> Candidate | None:
    """The candidate that spends the bytes of the state on the near field, rounded up to keys; None if it has none."""
    far, near = candidate.spec.far, candidate.spec.near
    if not isinstance(far, Taylor):
        return None
    d, d_v = module.head_dim, module.value_dim
    token = cost.kv_bytes(d, d_v, 1)
    key = token + cost.PRIORITY_BYTES if near.kept else token
    more = cost.state_bytes(d, d_v, far.order, far.ranks) + key - 1
    return Candidate(HeadSpec(Dropped(), grown(near, more, token)))


def table_bytes(table: LeverTable, context: int) -> list[list[int]]:
    """Nominal bytes of every candidate, for every KV head in the order of ``table.kv_heads``."""
    return [
        [cost.kv_head_bytes([candidate.spec], module, context) for candidate in table.candidates]
        for module in table.modules
        for _ in range(module.kv_heads)
    ]


def config_of(
    table: LeverTable,
    choice: Sequence[int],
    *,
    context: int,
    criterion: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Any] | None = None,
    reason: Reason = "budget",
) -> OrderConfig:
    """Return the config in which every KV head runs its choice; modules not in the table stay exact.

    Args:
        table: the candidates and what belongs to them.
        choice: index of the candidate of each KV head, in the order of ``table.kv_heads``.
        context: tokens at which bytes are counted.
        criterion: provenance.
        calibration: provenance.
        reason: of KV heads whose choice is exact attention.

    """
    chosen = dict(zip(table.kv_heads, choice, strict=True))
    measured = {layer.module: layer for layer in table.layers}
    layers = []
    for module in table.model.modules:
        if module.name in measured:
            indices = [chosen[module.name, kv_head] for kv_head in range(module.kv_heads)]
            layers.append(_layer(table, measured[module.name], module, indices, context, reason))
        else:
            cached = cost.kv_head_bytes([HeadSpec(Exact())], module, context)
            layers.append(LayerOrders.of(module, table.model, [HeadOrder.staying(module, cached)] * module.heads))
    config = OrderConfig(
        model=ModelIdentity.of(table.model),
        calibration=dict(calibration or {}),
        criterion=dict(criterion or {}),
        software=software_versions(),
        layers=tuple(layers),
    )
    # A config has centres for all layers or for none; where every head is exact, nothing is centred.
    centres = {module.name: torch.zeros(module.kv_heads, module.head_dim) for module in table.model.modules}
    config = config.with_key_centres(centres | {name: layer.prepared.centres for name, layer in measured.items()})
    ranked = {
        name: measured[name].prepared.rotations
        for name in {name for (name, _), index in chosen.items() if table.candidates[index].spec.ranks is not None}
    }
    config = config.with_rotations({name: pair for name, pair in ranked.items() if pair is not None})
    keeping = {name for (name, _), index in chosen.items() if table.candidates[index].spec.near.kept}
    probes = {name: probe for name in keeping if (probe := measured[name].prepared.probe) is not None}
    return config.with_probes(probes, table.probed) if probes else config


def _layer(
    table: LeverTable,
    measured: LayerLevers,
    module: AttentionModule,
    indices: Sequence[int],
    context: int,
    reason: Reason,
) -> LayerOrders:
    """The decisions for one module, given the candidate of each of its KV heads."""
    rows = {(row.kv_head, row.candidate): row for row in measured.rows}
    heads: list[HeadOrder] = []
    for kv_head, index in enumerate(indices):
        specs = group_specs(table.candidates, measured.fitted, index, kv_head, module.group)
        far, near = specs[0].far, specs[0].near
        d, d_v = module.head_dim, module.value_dim
        size, error = cost.kv_head_bytes(specs, module, context), rows[kv_head, index].relative_l2
        if isinstance(far, Exact):
            heads += [HeadOrder(spec=specs[0], error=0.0, reason=reason, nominal_bytes=size)] * module.group
            continue
        if isinstance(far, Taylor):
            break_even = cost.break_even_tokens(d, d_v, far.order, far.ranks, near=near.tokens, kept=near.kept)
        else:
            break_even = -(-cost.near_bytes(near, d, d_v, near.tokens) // cost.kv_bytes(d, d_v, 1))
        heads += [HeadOrder(spec=spec, error=error, nominal_bytes=size, break_even=break_even) for spec in specs]
    return LayerOrders.of(module, table.model, heads)
