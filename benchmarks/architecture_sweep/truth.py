"""What a model should compute with one order for all heads: by the product's float64 reference, nothing else of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from taylorder.kernels import HeadSpec, reference_attention

from .attention import Call, attending
from .running import CannotTellError, run


def reference_output(model: Any, open_modules: Collection[str], spec: HeadSpec, batch: Mapping[str, Tensor]) -> Tensor:
    """Run ``model`` with ``spec`` for every head of ``open_modules`` and its own attention in all others.

    Raises CannotTellError where the model's mask is more than its direction and padding: the reference has no place
    for it.
    """
    padding = batch.get("attention_mask")
    valid = None if padding is None else padding.bool()

    def attend(call: Call) -> Tensor | None:
        if call.name not in open_modules:
            return None
        _refuse_other_masks(call, valid)
        specs = [spec] * call.q.shape[1]
        output, _ = reference_attention(
            call.q, call.k, call.v, specs, scaling=call.scaling, causal=call.causal, valid=valid
        )
        return output

    with attending(model, attend):
        return run(model, **batch)


def _refuse_other_masks(call: Call, valid: Tensor | None) -> None:
    admitted = torch.ones(1, 1, call.q.shape[2], call.k.shape[2], dtype=torch.bool)
    admitted = admitted.tril() if call.causal else admitted
    mask = admitted if call.mask is None else call.mask
    real = torch.ones(1, 1, dtype=torch.bool) if valid is None else valid
    if valid is not None:
        admitted = admitted & valid[:, None, None, :]
    if ((mask != admitted) & real[:, None, :, None]).any():
        raise CannotTellError(f"the mask of {call.name} is more than its direction and padding")
