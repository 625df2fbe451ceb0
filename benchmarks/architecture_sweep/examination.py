"""One run's record, and the bookkeeping of what failed in it: the product by name, the product otherwise, the model.

The product answers for what the untouched model can do: each check first runs the model alone, and what fails there is
kept under ``untouched`` and asked no further.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import taylorder
from taylorder.errors import TaylorderError

T = TypeVar("T")

_PRODUCT = Path(taylorder.__file__).parent


class OutOfMemoryError(Exception):
    """This benchmark's limit on a child, not a fault of anyone's."""


class Examination:
    """The record of one run, filled check by check."""

    def __init__(self, record: dict[str, Any], announce: Callable[[str], None]) -> None:
        """Start; ``announce`` is told each stage as it begins, so that a run that never ends says where it was."""
        self.record = record | {"refused": [], "foreign": [], "untouched": {}}
        self._announce = announce

    def product(self, stage: str, work: Callable[[], T]) -> T | None:
        """Do work of the product's; None where it failed, which is recorded."""
        self._announce(stage)
        try:
            return work()
        except TaylorderError as error:
            self.record["refused"].append(_failure(stage, error))
        except Exception as error:
            _pass_on_memory(error)
            self.record["foreign"].append(_failure(stage, error) | {"where": _where(error)})
        return None

    def untouched(self, stage: str, work: Callable[[], T]) -> T | None:
        """Do what the product has no part in; None where it failed, which is recorded as nobody's fault."""
        self._announce(f"{stage}, untouched")
        try:
            return work()
        except Exception as error:
            _pass_on_memory(error)
            self.record["untouched"][stage] = f"{type(error).__name__}: {_short(error)}"
        return None


def _failure(stage: str, error: Exception) -> dict[str, str]:
    return {"stage": stage, "error": type(error).__name__, "message": _short(error)}


def _short(error: Exception) -> str:
    return str(error)[:600]


def _pass_on_memory(error: Exception) -> None:
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "not enough memory" in str(error):
        raise OutOfMemoryError(_short(error)) from error


def _where(error: Exception) -> str:
    """The last frame of the traceback inside the product, and the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if _PRODUCT in Path(frame.filename).parents]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in [*inside[-1:], frames[-1]])
