"""Before a model runs adapted for the first time: with every head exact it computes what it computes by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from taylorder.adapt.attention import RUNS, Counts, LayerPlan, ModuleRun
from taylorder.adapt.block import installed
from taylorder.errors import UnsupportedModelError
from taylorder.models.attention import attends_causally, selections
from taylorder.models.probing import distance, rounding, running_untouched, same_bits
from taylorder.models.running import forward, leaving_no_trace, probe_ids, probe_mask

_VERIFIED: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


def verify(model: Any, names: Sequence[str]) -> None:
    """Compare the model with itself running adapted, every head of the modules ``names`` exact.

    On a CPU a model that attends by SDPA has to agree bit for bit, otherwise within rounding. The model is
    left as it was. This is done once for a model in one dtype, on one device, with one attention.

    Raises:
        UnsupportedModelError: it computes something else.

    """
    modules = dict(model.named_modules())
    targets = {modules[name]: ModuleRun(LayerPlan(name, None, None), Counts()) for name in names}
    if any(module in RUNS for module in targets):
        return  # inside a block for the same model
    weights = next(model.parameters())
    causal = [attends_causally(module, {}) for module in targets]
    key = (weights.dtype, weights.device, [name for _, name in selections(model)], causal)
    if key == _VERIFIED.get(model):
        return
    with running_untouched(model, type(model).__name__):
        expected, cached = _runs(model, use_cache=True)
        if not cached:  # it may make a cache of its own that an adapted model does not read
            expected, _ = _runs(model, use_cache=False)
    with leaving_no_trace(model), installed(model, targets, "", guard=True, new_cache=lambda: None):
        found, _ = _runs(model, use_cache=cached)
    allowed = 0.0 if same_bits(model) else rounding(weights.dtype, len(names))
    for what, states in expected.items():
        off = distance(found[what], states)
        if off > allowed:
            raise UnsupportedModelError(
                f"{type(model).__name__} computes something else when it runs adapted with every head exact: {what}, "
                f"its hidden states differ by {off:.2g} of their norm from those of the untouched model, where "
                f"{allowed:.0e} is allowed. It cannot be adapted; analyze shows its errors without running a config"
            )
    _VERIFIED[model] = key


def _runs(model: Any, *, use_cache: bool) -> tuple[dict[str, Tensor], bool]:
    """Hidden states of real tokens: of whole rows, with padding, and of one more token, if there is a cache for it."""
    from transformers import DynamicCache, EncoderDecoderCache

    ids, mask = probe_ids(model), probe_mask()
    torch.manual_seed(0)
    states = {"on whole sequences": forward(model, ids).last_hidden_state}
    torch.manual_seed(0)
    output = forward(model, ids[:, :-1], mask[:, :-1], use_cache=use_cache)
    states["on padded sequences"] = output.last_hidden_state[mask[:, :-1].bool().to(output.last_hidden_state.device)]
    cache = getattr(output, "past_key_values", None)
    cached = use_cache and isinstance(cache, DynamicCache | EncoderDecoderCache)
    if cached:
        torch.manual_seed(0)
        states["on one more token"] = forward(model, ids[:, -1:], mask, cache=cache, use_cache=True).last_hidden_state
    return states, cached
