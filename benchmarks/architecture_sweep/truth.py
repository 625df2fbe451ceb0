"""What a model should compute with one order for all heads: by the product's float64 reference, nothing else of it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from taylorder.kernels import HeadSpec, reference_attention

from .attention import Call, attending
from .running import CannotTellError, run


def reference_output(model: Any, open_modules: Collection[str], spec: HeadSpec, **batch: Tensor) -> Tensor:
    """Run ``model`` with ``spec`` for every head of ``open_modules`` and its own attention in all others.

    Raises CannotTellError where the model's mask is more than causal or none: the reference has no place for it.
    """

    def attend(call: Call) -> Tensor | None:
        if call.name not in open_modules:
            return None
        admitted = torch.ones(call.q.shape[2], call.k.shape[2], dtype=torch.bool)
        admitted = admitted.tril() if call.causal else admitted
        if call.mask is not None and not (call.mask == admitted).all():
            raise CannotTellError(f"the mask of {call.name} is more than its direction")
        specs = [spec] * call.q.shape[1]
        output, _ = reference_attention(call.q, call.k, call.v, specs, scaling=call.scaling, causal=call.causal)
        return output

    with attending(model, attend):
        return run(model, **batch)
