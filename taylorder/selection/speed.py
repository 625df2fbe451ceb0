"""How fast this machine does what a plan counts, from a few seconds with the model at hand.

The model runs a few tokens; the rest is done once, on random numbers, for one KV head of its shape, by the functions
that a run calls. Timed twice, of which the faster counts: the first also loads code.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from taylorder.adapt.probe import probe_width
from taylorder.analysis.capture import LayerTensors
from taylorder.analysis.future_attention import Reach, log_use
from taylorder.analysis.losses import EXACT, has_language_model_head, language_model_head, token_losses
from taylorder.analysis.truncation import Sweep, key_centres, measure
from taylorder.errors import UnsupportedModelError
from taylorder.kernels.spec import EXPANSIONS, MAX_ORDER, SINKS
from taylorder.models.description import AttentionModule, ModelDescription
from taylorder.models.running import input_device, leaving_no_trace, run_base
from taylorder.selection.candidates import LEVERS, Candidate, candidates
from taylorder.selection.gradients import Observed
from taylorder.selection.lever_errors import measure_levers
from taylorder.storage.stages import Speed, Unit

TOKENS = 128
"""That the model itself runs."""

LENGTH = 512
"""Tokens of the sequences of random numbers."""

_ROWS, _MATRIX = 16, 256


def speed(model: Any, description: ModelDescription, clock: Callable[[], float] = time.perf_counter) -> Speed:
    """Seconds that one of every unit takes with this model on this machine.

    Args:
        model: the model.
        description: what ``describe`` says of it.
        clock: seconds, from whatever beginning.

    """
    device = input_device(model)

    def timed(work: Callable[[], object]) -> float:
        taken = []
        for _ in range(2):
            began = clock()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(clock() - began)
        return min(taken)

    module = description.typical
    attending = replace(module, kv_heads=1, heads=module.group)
    with leaving_no_trace(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # With a KV head for every query head, as where a model repeats its KV heads.
        layer = _layer(replace(module, kv_heads=module.heads), device)
        pair = timed(lambda: _attend(layer)) * len(description.modules) / LENGTH**2
        ids = torch.randint(16, 16 + TOKENS, (1, TOKENS)) % int(model.config.get_text_config().vocab_size)
        whole = timed(lambda: run_base(model, ids))
        token = max(whole - pair * TOKENS**2, whole / 2) / TOKENS
        found: dict[Unit, float] = {
            "pair": pair,
            "token": token,
            "step": timed(lambda: run_base(model, ids[:, :1])),
            "loss": _loss(model, ids, timed),
            "spectrum": _spectrum(timed),
            "term": _term(module, timed),
            "use": 0.0,
            "near": 0.0,
            "polynomial": 0.0,
        }
        if description.causal:
            found |= _near(attending, device, timed)
    return found


_Timed = Callable[[Callable[[], object]], float]


def _loss(model: Any, ids: torch.Tensor, timed: _Timed) -> float:
    if not has_language_model_head(model):
        return 0.0
    try:
        head = language_model_head(model)
    except UnsupportedModelError:  # no losses are measured there
        return 0.0
    ids = ids.repeat(1, LENGTH // TOKENS)[0]
    hidden = run_base(model, ids[None, :TOKENS])[0].repeat(LENGTH // TOKENS, 1)
    return timed(lambda: token_losses(head, ids, {EXACT: hidden})) / LENGTH


def _attend(layer: LayerTensors) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        layer.q, layer.k, layer.v, is_causal=layer.causal, scale=layer.scaling
    )


def _spectrum(timed: _Timed) -> float:
    matrix = np.random.default_rng(0).standard_normal((_MATRIX, _MATRIX)).astype(np.float32)
    return timed(lambda: np.linalg.svd(matrix, compute_uv=False)) / _MATRIX**3


def _term(module: AttentionModule, timed: _Timed) -> float:
    layer = _layer(module)
    rows = torch.arange(LENGTH // _ROWS - 1, LENGTH, LENGTH // _ROWS)
    seen = int((rows + 1).sum()) if module.causal else len(rows) * LENGTH
    seconds = timed(lambda: measure(layer, key_centres(layer), [rows], (Sweep(MAX_ORDER),)))
    return seconds / (seen * module.heads * len(EXPANSIONS) * MAX_ORDER)


def _near(module: AttentionModule, device: torch.device, timed: _Timed) -> dict[Unit, float]:
    layer, scores = _layer(module, device), module.heads * LENGTH**2
    gradient = torch.randn(module.heads, LENGTH, module.value_dim).to(device)
    observed = Observed(layer.q[0], layer.k[0], layer.v[0], torch.randn_like(gradient), gradient, module.scaling)
    probe = torch.randn(1, probe_width(module.head_dim, module.value_dim))
    offered = candidates(LEVERS, module.head_dim, LENGTH, (LENGTH // 64, SINKS), module.value_dim)
    near = [one for one in offered if one.spec.near.kept and not one.truncates]
    polynomials = [one for one in offered if one.truncates and getattr(one.spec.far, "order", 1) > 1]

    def run(chosen: list[Candidate]) -> float:
        without: list[Candidate | None] = [None] * len(chosen)
        seconds = timed(lambda: measure_levers("timed", [observed], chosen, without, probe=probe, seed=0))
        return seconds / len(chosen)

    return {
        "near": run(near) / scores,
        "use": timed(lambda: log_use(layer.q[0], layer.k[0], module.scaling, Reach.of(LENGTH))) / scores,
        "polynomial": run(polynomials) / (LENGTH * module.heads),
    }


def _layer(module: AttentionModule, device: torch.device | str = "cpu") -> LayerTensors:
    """One sequence of random numbers whose scores spread about as those of trained heads."""
    q = torch.randn(1, module.heads, LENGTH, module.head_dim) * 2 / (module.scaling * module.head_dim**0.5)
    k = torch.randn(1, module.kv_heads, LENGTH, module.head_dim)
    v = torch.randn(1, module.kv_heads, LENGTH, module.value_dim)
    q, k, v = (tensor.to(device) for tensor in (q, k, v))
    return LayerTensors(q, k, v, None, module.scaling, module.causal)
