"""Safetensors files, read whole so that what is used is what was hashed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Types of tensors that may be kept: those of real numbers with enough bits to compute in."""


def tensors_as_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The content of a file with these tensors."""
    return save({name: tensor.contiguous() for name, tensor in tensors.items()})


def tensors_of(content: bytes) -> dict[str, Tensor]:
    """Return the tensors in the content of a file.

    Raises:
        ValueError: it is no safetensors file, or has tensors of a type that cannot be read.

    """
    try:
        return load(content)
    except KeyError as unknown:  # safetensors knows types of which it makes no torch tensors
        raise ValueError(f"tensors of type {unknown} cannot be read") from unknown
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(str(error)) from error
