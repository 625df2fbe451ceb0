"""Run a model, untouched, adapted or by the product's float64 reference, and say how far two outputs lie apart."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from taylorder.kernels import HeadSpec, reference_attention

from .attention import HIDDEN, Call, attending


class CannotTellError(Exception):
    """The untouched model, or the formula at hand, does not say what is right here."""


def run(model: Any, **batch: Tensor) -> Tensor:
    """The first output of real numbers that are not all zero, without a cache: logits, or hidden states."""
    with torch.no_grad():
        returned = model(**batch, **without_cache(model))
    outputs = (
        [returned]
        if isinstance(returned, Tensor)
        else list(returned.values() if isinstance(returned, dict) else returned)
    )
    real = (one for one in outputs if isinstance(one, Tensor) and one.is_floating_point())
    return next((one for one in real if one.any()), outputs[0])


def right_output(model: Any, **batch: Tensor) -> Tensor:
    """What the untouched model puts out; CannotTellError unless that is finite and the same twice."""
    output = run(model, **batch)
    if not isinstance(output, Tensor) or not output.is_floating_point() or not output.isfinite().all():
        raise CannotTellError(f"the first output is a {type(output).__name__} of no real numbers, or not finite")
    if not torch.equal(output, run(model, **batch)):
        raise CannotTellError("the first output is another one each time")
    return output


def without_cache(model: Any) -> dict[str, bool]:
    takes = inspect.signature(model.forward).parameters
    known = "use_cache" in takes or ("kwargs" in takes and hasattr(model.config.get_text_config(), "use_cache"))
    return {"use_cache": False} if known else {}


def distance(found: Tensor, expected: Tensor) -> float | None:
    """Relative L2 to three digits, or None where it is not a finite number."""
    value = float((found.double() - expected.double()).norm() / expected.double().norm())
    return float(f"{value:.3g}") if math.isfinite(value) else None


def reference_output(model: Any, open_modules: Collection[str], spec: HeadSpec, batch: Mapping[str, Tensor]) -> Tensor:
    """Run ``model`` with ``spec`` for every head of ``open_modules`` and its own attention in all others.

    Raises CannotTellError where the model's mask is more than its direction and padding: the reference has no place
    for it.
    """
    padding = batch.get("attention_mask")
    of_text = None if padding is None else padding.bool()

    def attend(call: Call) -> Tensor | None:
        if call.name not in open_modules:
            return None
        # Inputs of a model's own are not of as many tokens as it attends to: only its mask tells which are real.
        valid = of_text if "input_ids" in batch and len(batch) < 3 else _shown(call)
        _refuse_other_masks(call, valid)
        specs = [spec] * call.q.shape[1]
        output, _ = reference_attention(
            call.q, call.k, call.v, specs, scaling=call.scaling, causal=call.causal, valid=valid, **call.terms
        )
        return output

    with attending(model, attend):
        return run(model, **batch)


def _shown(call: Call) -> Tensor | None:
    """Keys that some query sees, bool ``[B, S]``; None where no mask is given."""
    if call.mask is None:
        return None
    shown = call.mask if call.mask.dtype == torch.bool else call.mask > HIDDEN
    return shown.any(-2)[:, 0].expand(len(call.q), -1)


def _refuse_other_masks(call: Call, valid: Tensor | None) -> None:
    admitted = torch.ones(1, 1, call.q.shape[2], call.k.shape[2], dtype=torch.bool)
    admitted = admitted.tril() if call.causal else admitted
    mask = admitted if call.mask is None else call.mask
    if mask.is_floating_point():
        if not ((mask == 0) | (mask <= HIDDEN)).all():
            raise CannotTellError(f"the mask of {call.name} adds to its scores")
        mask = mask == 0
    real = torch.ones(1, 1, dtype=torch.bool) if valid is None else valid
    if valid is not None:
        admitted = admitted & valid[:, None, None, :]
    if ((mask != admitted) & real[:, None, :, None]).any():
        raise CannotTellError(f"the mask of {call.name} is more than its direction and padding")
