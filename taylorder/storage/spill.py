"""Tensors that are too many to be held at once: on disk from when they are made until it is their turn, and no longer.

What comes back is what was put, bit for bit, and laid out in memory as it was: sums depend on the order of their terms.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from taylorder.errors import TaylorderError
from taylorder.storage.tensor_files import read_tensors, write_tensors

_Layout = dict[str, list[int]]


class Spill:
    """A folder of named sets of tensors, which is made anew and gone at the end of the block."""

    def __init__(self, directory: Path) -> None:
        """Begin with an empty folder; what a run that was killed left there is forgotten.

        Raises:
            TaylorderError: it cannot be made.

        """
        self.directory = directory
        self._layouts: dict[str, _Layout] = {}
        shutil.rmtree(directory, ignore_errors=True)
        try:
            directory.mkdir(parents=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> Self:
        """Return the folder, which is there already."""
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Remove it."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def put(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a set of tensors.

        Raises:
            TaylorderError: the disk is full or cannot be written.

        """
        layout = {key: _outermost_first(tensor) for key, tensor in tensors.items()}
        try:
            write_tensors(self._path(name), {key: tensor.permute(layout[key]).cpu() for key, tensor in tensors.items()})
        except OSError as error:
            raise self._unwritable(error) from error
        self._layouts[name] = layout

    def take(self, name: str) -> dict[str, Tensor]:
        """A set of tensors, in memory; it is on disk no more.

        Raises:
            TaylorderError: it cannot be read.

        """
        path, layout = self._path(name), self._layouts.pop(name)
        try:
            tensors = read_tensors(path)
        except (OSError, ValueError) as error:
            raise TaylorderError(f"{path} cannot be read ({error}); run the same command again") from error
        path.unlink(missing_ok=True)
        return {key: tensors[key].permute(_inverse(order)) for key, order in layout.items()}

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.safetensors"

    def _unwritable(self, error: OSError) -> TaylorderError:
        why = error.strerror or str(error)
        return TaylorderError(f"{self.directory} cannot be written ({why}); name another --out, on a disk with room")


def _outermost_first(tensor: Tensor) -> list[int]:
    """The dimensions in the order in which they lie in memory."""
    return sorted(range(tensor.ndim), key=lambda dim: -tensor.stride()[dim])


def _inverse(order: list[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)
