"""Before a model runs adapted for the first time: with every head exact it computes what it computes by itself."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from taylorder.adapt.attention import RUNS, Counts, ModuleRun
from taylorder.adapt.hooks import installed
from taylorder.adapt.prepared import LayerPlan
from taylorder.errors import UnsupportedModelError
from taylorder.models.attention import attends_causally
from taylorder.models.inputs import Batch, Inputs
from taylorder.models.probing import distance, farthest, once, rounding, running_untouched, same_bits
from taylorder.models.running import forward, leaving_no_trace, outputs, per_token, probe_ids, probe_mask, run_batch


def verify(model: Any, plans: Mapping[nn.Module, LayerPlan], inputs: Inputs | None = None) -> None:
    """Compare the model with itself running adapted, every head of the modules in ``plans`` exact.

    It runs a few token ids, or the first batch of its own ``inputs``. On a CPU a model that attends by SDPA has to
    agree bit for bit, otherwise within rounding. The model is left as it was. This is done once for a model in one
    dtype, on one device, with one attention.

    Raises:
        UnsupportedModelError: it computes something else.

    """
    if any(module in RUNS for module in plans):
        return  # another handle is attached to the same model
    exact = {module: ModuleRun(LayerPlan(plan.name), Counts()) for module, plan in plans.items()}
    about = tuple((plan.name, attends_causally(module, {})) for module, plan in plans.items())
    if inputs is None:
        once(model, about, partial(_compare_exact, model, exact, any(causal for _, causal in about)))
    else:
        batch = inputs.batches[0]
        once(model, (about, tuple(batch)), partial(_compare_outputs, model, exact, batch))


def _compare_outputs(model: Any, exact: dict[nn.Module, ModuleRun], batch: Batch) -> None:
    with running_untouched(model, type(model).__name__, "its inputs"):
        expected = outputs(run_batch(model, batch))
    with leaving_no_trace(model), installed(model, exact, "", guard=True, new_cache=None):
        found = outputs(run_batch(model, batch))
    _refuse_difference(model, exact, "on its inputs", farthest(found, expected))


def _compare_exact(model: Any, exact: dict[nn.Module, ModuleRun], use_cache: bool) -> None:
    with running_untouched(model, type(model).__name__):
        expected, cached = _runs(model, use_cache=use_cache)
        if use_cache and not cached:  # it may make a cache of its own that an adapted model does not read
            expected, _ = _runs(model, use_cache=False)
    with leaving_no_trace(model), installed(model, exact, "", guard=True, new_cache=None):
        states, _ = _runs(model, use_cache=cached)
    for what, untouched in expected.items():
        _refuse_difference(model, exact, what, distance(states[what], untouched))


def _refuse_difference(model: Any, exact: dict[nn.Module, ModuleRun], what: str, off: float) -> None:
    allowed = 0.0 if same_bits(model) else rounding(model.dtype, len(exact))
    if off > allowed:
        raise UnsupportedModelError(
            f"{type(model).__name__} computes something else when it runs adapted with every head exact: {what}, "
            f"its hidden states differ by {off:.2g} of their norm from those of the untouched model, where "
            f"{allowed:.0e} is allowed. It cannot be adapted; analyze shows its errors without running a config"
        )


def _runs(model: Any, *, use_cache: bool) -> tuple[dict[str, Tensor], bool]:
    """Hidden states of real tokens: of whole rows, with padding, and of one more token, if there is a cache for it."""
    from transformers import DynamicCache, EncoderDecoderCache

    ids, mask = probe_ids(model), probe_mask()
    torch.manual_seed(0)
    states = {"on whole sequences": per_token(forward(model, ids), ids)}
    torch.manual_seed(0)
    output = forward(model, ids[:, :-1], mask[:, :-1], use_cache=use_cache)
    padded = per_token(output, ids[:, :-1])
    states["on padded sequences"] = padded[mask[:, :-1].bool().to(padded.device)]
    cache = getattr(output, "past_key_values", None)
    cached = use_cache and isinstance(cache, DynamicCache | EncoderDecoderCache)
    if cached:
        torch.manual_seed(0)
        output = forward(model, ids[:, -1:], mask, cache=cache, use_cache=True)
        states["on one more token"] = per_token(output, ids[:, -1:])
    return states, cached
