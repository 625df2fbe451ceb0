"""Run a model, untouched or adapted, and say how far two outputs lie apart."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class CannotTellError(Exception):
    """The untouched model, or the formula at hand, does not say what is right here."""


def run(model: Any, **batch: Tensor) -> Tensor:
    """The first output of the model without a cache: logits, or hidden states ``[B, T, .]``."""
    with torch.no_grad():
        return model(**batch, **without_cache(model))[0]


def right_output(model: Any, **batch: Tensor) -> Tensor:
    """What the untouched model puts out; CannotTellError unless that is finite and the same twice."""
    output = run(model, **batch)
    if not isinstance(output, Tensor) or not output.isfinite().all():
        raise CannotTellError(f"the first output is a {type(output).__name__}, or not finite")
    if not torch.equal(output, run(model, **batch)):
        raise CannotTellError("the first output is another one each time")
    return output


def without_cache(model: Any) -> dict[str, bool]:
    return {"use_cache": False} if hasattr(model.config.get_text_config(), "use_cache") else {}


def distance(found: Tensor, expected: Tensor) -> float | None:
    """Relative L2 to three digits, or None where it is not a finite number."""
    value = float((found.double() - expected.double()).norm() / expected.double().norm())
    return float(f"{value:.3g}") if math.isfinite(value) else None
