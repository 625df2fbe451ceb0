"""How a trained model weighs keys in the rows that answer questions: its denominators and its largest weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fresh_models.contenders import Contender
from fresh_models.models import config_of
from fresh_models.recall import Batch
from taylorder.adapt.handle import attach
from taylorder.kernels.reference import reference_sums
from taylorder.kernels.spec import Near, Taylor
from taylorder.models.attention import AttentionCall

LOW = 0.05
"""Quantile of denominators that is looked at."""


def answering_rows(model: Any, contender: Contender, batch: Batch) -> dict[tuple[str, int], dict[str, float | None]]:
    """Of each head, by module and number, in the rows in which the model answers, in float64.

    Returns:
        ``largest``: the median over rows of the largest weight's share of the denominator. ``denominator``: its 5 %
        quantile over the number of keys; None where there is a near field or softmax, whose scale is their own. A row
        that the guard took counts with the plain mean that it is.

    """
    found = {}

    def observe(call: AttentionCall, _: Tensor) -> None:
        specs = contender.specs(call.q.shape[-1], call.q.shape[1])
        every_key = torch.eye(call.k.shape[2]).expand(*call.k.shape[:3], -1)
        weights = reference_sums(call.q, call.k, every_key, specs, scaling=call.scaling)[0].numerator
        asked = batch.asked[:, None, :, None].expand(-1, weights.shape[1], -1, weights.shape[3])
        rows = weights.gather(2, asked).movedim(1, 0).flatten(1, 2)  # [H, rows, keys]
        keys = (batch.asked + 1).flatten()
        for head, (spec, of_head) in enumerate(zip(specs, rows, strict=True)):
            total = of_head.sum(-1)
            far_alone = isinstance(spec.far, Taylor) and spec.near == Near()
            found[call.name, head] = {
                "largest": float((of_head.amax(-1) / total).median()),
                "denominator": float((total / keys).quantile(LOW)) if far_alone else None,
            }

    with torch.no_grad(), attach(model, config_of(model, contender), observe=observe):
        model(input_ids=batch.words, use_cache=False)
    return found
