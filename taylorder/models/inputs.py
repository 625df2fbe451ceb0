"""What a model is run on: named tensors, be they token ids, pixels, sound, or several of these together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from taylorder.errors import UsageError, first_line

Batch: TypeAlias = Mapping[str, Tensor]
"""What one forward pass takes, by the names of its arguments; examples lie along the first dimension of each tensor."""

GivenInputs: TypeAlias = Sequence[Mapping[str, Any]] | Callable[[], Iterable[Mapping[str, Any]]]
"""Batches, such as a processor of transformers makes them, or a function that yields them."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """Batches that are alike but for the numbers in them, and where they come from, in words."""

    batches: tuple[Batch, ...]
    source: str

    @classmethod
    def of(cls, given: Inputs | GivenInputs) -> Inputs:
        """Inputs as a user gives them.

        Raises:
            UsageError: there are none, something in them is no tensor, or they differ in names, shapes or dtypes.

        """
        if isinstance(given, Inputs):
            return given
        if isinstance(given, Mapping):
            raise UsageError("inputs is one batch, expected a list of them: put it in brackets, inputs=[batch]")
        return cls._alike(list(given() if callable(given) else given), "inputs given in Python")

    @classmethod
    def of_files(cls, files: Sequence[Path]) -> Inputs:
        """Inputs as safetensors files hold them, a batch in each.

        Raises:
            UsageError: a file cannot be read, or the batches differ in names, shapes or dtypes.

        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        batches = []
        for file in files:
            try:
                batches.append(load_file(file))
            except (OSError, SafetensorError) as error:
                raise UsageError(
                    f"--inputs {file} cannot be read ({first_line(error)}): name a safetensors file of the tensors "
                    "that the model takes, by the names of its arguments"
                ) from error
        return cls._alike(batches, ", ".join(str(file) for file in files))

    @classmethod
    def of_tokens(cls, sequences: Tensor, source: str) -> Inputs:
        """Token ids ``[N, T]``, every sequence a batch of its own."""
        return cls(tuple({"input_ids": sequence[None]} for sequence in sequences), source)

    @classmethod
    def _alike(cls, given: list[Any], source: str) -> Inputs:
        if not given:
            raise UsageError(f"{source}: no batch, expected at least one")
        batches = tuple(_tensors(batch, number, source) for number, batch in enumerate(given))
        first = _shapes(batches[0])
        for number, batch in enumerate(batches[1:], start=1):
            if (found := _shapes(batch)) != first:
                raise UsageError(
                    f"{source}: batch {number} is of {_words(found)}, expected {_words(first)} as the first is: cut or "
                    "pad them to one size"
                )
        return cls(batches, source)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.batches)

    def together(self, part: range | None = None) -> dict[str, Tensor]:
        """Those batches as one, which a single forward pass takes; all of them unless a part is named."""
        chosen = self.batches if part is None else [self.batches[number] for number in part]
        return {name: torch.cat([batch[name] for batch in chosen]) for name in self.batches[0]}

    @property
    def words(self) -> str:
        """Names and shapes of a batch: ``pixel_values 8 x 3 x 224 x 224``."""
        return _words(_shapes(self.batches[0]))

    @property
    def sha256(self) -> str:
        """Hash of all names, shapes and values."""
        digest = hashlib.sha256()
        for batch in self.batches:
            for name, tensor in sorted(batch.items()):
                digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
                digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def _tensors(batch: Any, number: int, source: str) -> dict[str, Tensor]:
    if not isinstance(batch, Mapping) or not batch:
        raise UsageError(
            f"{source}: batch {number} is a {type(batch).__name__}, expected tensors by the names of the model's "
            "arguments, such as {'pixel_values': tensor}"
        )
    found = {}
    for name, value in batch.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.ndim == 0 or not len(value):
            what = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise UsageError(
                f"{source}: {name} of batch {number} is {what}, expected a tensor with examples along its first "
                "dimension (processors make them with return_tensors='pt')"
            )
        found[name] = value.detach()
    return found


def _shapes(batch: Batch) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in sorted(batch.items())}


def _words(shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> str:
    return ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, (shape, _) in shapes.items())
