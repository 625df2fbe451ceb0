"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with a stage, what is done of it, and its size."""


def silent(_stage: str, _done: int, _size: int) -> None:
    """Tell nobody."""
