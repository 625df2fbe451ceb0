"""What holds tensors of whose rows each belongs to one sequence: copied, counted, named for a file and filled again."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Callable, TypeVar

from torch import Tensor

Change = Callable[[Tensor], Tensor]

_Self = TypeVar("_Self", bound="Holder")


class Holder:
    """A class whose attributes are tensors, first dimension the batch, or holders, or say what these are."""

    def map(self: _Self, change: Change) -> _Self:
        """Return a copy with ``change``, which keeps the order of dimensions, applied to every tensor."""
        copy = type(self).__new__(type(self))
        for name, value in vars(self).items():
            if not isinstance(getattr(type(self), name, None), cached_property):  # the copy may be on another device
                vars(copy)[name] = _changed(value, change)
        return copy

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held, spare capacity included."""
        values = vars(self).values()
        direct = sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))
        return direct + sum(value.nbytes for value in values if isinstance(value, Holder))

    def held(self) -> dict[str, Tensor]:
        """Return everything held, by name, to be written to a file."""
        held = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        for name, value in vars(self).items():
            if isinstance(value, Holder):
                held |= {f"{name}.{inner}": tensor for inner, tensor in value.held().items()}
        return held

    def put(self, held: dict[str, Tensor]) -> None:
        """Fill an empty holder with what ``held`` returned.

        Raises:
            ValueError: names, shapes or dtypes are not those of such a holder.

        """
        self.make_room(held)
        check_names(held, self.held())
        self.take(held)

    def make_room(self, held: dict[str, Tensor]) -> None:
        """Come to hold tensors of the shapes of ``held``, as far as shapes may differ."""
        for name, value in vars(self).items():
            if isinstance(value, Holder):
                value.make_room(_inside(name, held))

    def take(self, held: dict[str, Tensor]) -> None:
        """Replace every tensor by the one of its name."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, held[name])
            elif isinstance(value, Holder):
                value.take(_inside(name, held))


def check_names(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Refuse tensors that differ from the expected ones in name, shape or dtype.

    Raises:
        ValueError: they do.

    """
    if expected.keys() != found.keys():
        raise ValueError(f"a part of a state has {sorted(found)}, expected {sorted(expected)}")
    for name, tensor in found.items():
        like = expected[name]
        if like.shape != tensor.shape or like.dtype != tensor.dtype:
            raise ValueError(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {like.dtype} {tuple(like.shape)}"
            )


def _changed(value: Any, change: Change) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Holder):
        return value.map(change)
    return list(value) if isinstance(value, list) else value


def _inside(name: str, held: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {key[len(prefix) :]: tensor for key, tensor in held.items() if key.startswith(prefix)}
