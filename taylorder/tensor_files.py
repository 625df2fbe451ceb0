"""Safetensors files, read whole so that what is used is what was hashed."""

from __future__ import annotations

from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor


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
