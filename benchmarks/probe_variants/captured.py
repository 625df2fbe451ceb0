"""What all variants are fitted to and judged by, from one forward pass per sequence, kept on disk by module."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from taylorder.analysis.capture import LayerTensors, run_layers
from taylorder.analysis.future_attention import Reach, attention_blocks
from taylorder.models.description import ModelDescription
from taylorder.selection.probe_report import PARTS
from taylorder.storage.records import Records

SHARES = (2, 4, 8, 16)
TARGETS = ("attention", "root", "change", *(f"share {shares}" for shares in SHARES))
"""Means over later queries, of which probes are fitted to the log.

``attention``; its square ``root``; the ``change`` of the output, attention times the distance of the value from the
output; and how often a key gets a multiple of its fair ``share``.
"""


def capture(model: Any, description: ModelDescription, name: str, ids: Tensor, records: Records) -> None:
    """Run a sequence ``[T]``, unless ``records`` has all of it."""
    modules = [module.name for module in description.open_modules]
    if all(records.get(f"{name}-{module}") is not None for module in modules):
        return
    with hidden_states(model, modules) as hidden:

        def consume(module: str, layer: LayerTensors) -> None:
            if module in modules:
                tensors = {"k": layer.k[0], "v": layer.v[0], "hidden": hidden[module].bfloat16()} | uses(layer)
                records.put(f"{name}-{module}", len(ids), tensors)

        run_layers(model, ids[None], consume)


def uses(layer: LayerTensors) -> dict[str, Tensor]:
    """``targets`` ``[targets, G, keys]``, and by part of the sequence what keys receive, ``[parts, G, T]``.

    ``received`` is attention, ``changed`` attention times the distance of the value from the output.
    """
    q, k, v = layer.q[0], layer.k[0], layer.v[0]
    G, T, _ = k.shape
    reach, size = Reach.of(T), T // PARTS
    totals = torch.zeros(len(TARGETS), G, T)
    received, changed = torch.zeros(PARTS, G, T), torch.zeros(PARTS, G, T)
    for kv_head, queries in enumerate(q.view(G, -1, *q.shape[1:])):
        for part in range(PARTS):
            rows = range(part * size, T if part == PARTS - 1 else (part + 1) * size)
            for start, weights in attention_blocks(queries, k[kv_head], layer.scaling, rows, layer.terms):
                seen = weights.shape[-1]
                values = v[kv_head, :seen]
                change = weights * torch.cdist(weights @ values, values)
                received[part, kv_head, :seen] += weights.sum((0, 1))
                changed[part, kv_head, :seen] += change.sum((0, 1))
                fair = weights * torch.arange(start + 1, start + weights.shape[1] + 1)[:, None]
                measured = [weights, weights.sqrt(), change, *((fair / shares).clamp_(max=1) for shares in SHARES)]
                for target, use in enumerate(measured):
                    totals[target, kv_head, :seen] += use.tril(start - reach.recent - 1).sum((0, 1))
    later = torch.arange(T - 1 - reach.recent, 0, -1)[reach.keys] * (len(q) // G)
    return {"targets": totals[..., reach.keys] / later, "received": received, "changed": changed}


@contextmanager
def hidden_states(model: Any, modules: list[str]):
    """What some modules are given, ``[T, hidden]`` by name, while they run."""
    hidden: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(_module: Any, arguments: tuple, options: dict[str, Any]) -> None:
            hidden[name] = (arguments[0] if arguments else options["hidden_states"])[0]

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(keep(name), with_kwargs=True) for name in modules]
    try:
        yield hidden
    finally:
        for handle in handles:
            handle.remove()
