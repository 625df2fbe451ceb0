"""Where a training is, kept on disk so that an interrupted one goes on: two records in turn, one of which is whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from taylorder.storage.records import Records

_SLOTS = ("a", "b")


class Checkpoint:
    """The latest state of one training; ``number`` in its value says which of two is the later."""

    def __init__(self, records: Records, name: str) -> None:
        """Keep it under a name, in two records."""
        self._records, self._name = records, name

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """The latest whole state, None if there is none."""
        there = {slot: self._records.get(self._slot(slot)) for slot in _SLOTS}
        whole = {slot: value for slot, value in there.items() if value is not None}
        if not whole:
            return None
        slot = max(whole, key=lambda slot: int(whole[slot]["number"]))
        return whole[slot], self._records.tensors(self._slot(slot))

    def write(self, number: int, value: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Keep a state; the one before it stays until this one is whole."""
        self._records.put(self._slot(_SLOTS[number % 2]), {"number": number, **value}, tensors)

    def remove(self) -> None:
        """Keep no state any longer: the training is finished."""
        self._records.remove(map(self._slot, _SLOTS))

    def _slot(self, slot: str) -> str:
        return f"training-{self._name}-{slot}"
