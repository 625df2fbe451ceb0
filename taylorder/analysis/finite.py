"""NaN and infinities, named where they are: in weights before anything is measured, in what attention is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from taylorder.errors import NonFiniteError
from taylorder.models.offloading import stored, weights
from taylorder.models.positions import token_embeddings


def refuse_broken_tensors(name: str, tensors: Mapping[str, Tensor], way_out: str) -> None:
    """Name what of the attention module ``name``, of ``tensors`` by what they are, has NaN or infinities.

    Raises:
        NonFiniteError: there are some; ``way_out`` says what to do.

    """
    for what, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise NonFiniteError(f"the {what} of {name} hold NaN or infinite values in {tensor.dtype}; {way_out}")


def refuse_broken_weights(model: Any, name: str) -> None:
    """Name the first weight that holds NaN or infinities; reads every weight once.

    Input embeddings are left out: rows of tokens that never occur may hold anything, and do no harm.

    Raises:
        NonFiniteError: there is one.

    """
    embeddings = token_embeddings(model)
    for weight_name, (module, key) in weights(model).items():
        weight = getattr(module, key)
        if weight is embeddings or not weight.is_floating_point() or (weight := stored(module, key)) is None:
            continue
        broken = weight.numel() - int(torch.isfinite(weight).sum())
        if broken:
            raise NonFiniteError(
                f"{name} has {broken:,} NaN or infinite of {weight.numel():,} values in the weight {weight_name}: the "
                "file may be damaged, or was made by a training run that diverged; fetch it again, or take another "
                "checkpoint"
            )
