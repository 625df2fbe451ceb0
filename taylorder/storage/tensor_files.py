"""Safetensors files, read whole: what is used is what was hashed, and lies in memory of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
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


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file with these tensors, without a second copy of all of them in memory.

    Raises:
        OSError: it cannot be written.

    """
    try:
        save_file({name: _alone(tensor) for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, each in memory of its own.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no safetensors file.

    """
    try:
        with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # no mapping
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _alone(tensor: Tensor) -> Tensor:
    """A tensor that shares memory with no other, as files have them."""
    shares = tensor.untyped_storage().nbytes() != tensor.nbytes
    return tensor.clone(memory_format=torch.contiguous_format) if shares else tensor.contiguous()
