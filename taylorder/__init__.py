"""Measure how many Taylor terms of the softmax exponential each attention head of a model needs, choose, and run it.

Symbols used throughout: ``B`` batch, ``H`` query heads, ``G`` KV heads, ``T`` tokens, ``d`` head dim, ``d_v`` value
dim, ``P`` order (terms of degree 0 … P-1), ``D`` features. Tensors are ``[B, H, T, d]``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taylorder.adapt.cache import TaylorCache
    from taylorder.adapt.choosing import Limit
    from taylorder.adapt.config import OrderConfig
    from taylorder.adapt.context import adapted
    from taylorder.adapt.lever_run import run_levers
    from taylorder.adapt.select import select
    from taylorder.analysis.run import analyze
    from taylorder.models import describe, load

__version__ = "0.1.0"

# Imported on first use: torch, transformers and WeightWatcher take seconds, `taylorder --help` must not.
_HOMES = {
    "Limit": "taylorder.adapt.choosing",
    "OrderConfig": "taylorder.adapt.config",
    "TaylorCache": "taylorder.adapt.cache",
    "adapted": "taylorder.adapt.context",
    "analyze": "taylorder.analysis.run",
    "describe": "taylorder.models",
    "load": "taylorder.models",
    "run_levers": "taylorder.adapt.lever_run",
    "select": "taylorder.adapt.select",
}

__all__ = [
    "Limit",
    "OrderConfig",
    "TaylorCache",
    "__version__",
    "adapted",
    "analyze",
    "describe",
    "load",
    "run_levers",
    "select",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'taylorder' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
