"""Measure how many Taylor terms of the softmax exponential each attention head of a model needs, choose, and run it.

Symbols used throughout: ``B`` batch, ``H`` query heads, ``G`` KV heads, ``T`` tokens, ``d`` head dim, ``d_v`` value
dim, ``P`` order (terms of degree 0 … P-1), ``D`` features. Tensors are ``[B, H, T, d]``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taylorder.adapt.cache import TaylorCache
    from taylorder.adapt.config import OrderConfig
    from taylorder.adapt.handle import adapted, attach
    from taylorder.analysis.analyze import analyze
    from taylorder.claims.registry import judge_claims
    from taylorder.evaluation.evaluate import evaluate
    from taylorder.models.describe import describe
    from taylorder.models.loading import load
    from taylorder.reports.report import report
    from taylorder.selection.budget import budget
    from taylorder.selection.by_tolerance import select

__version__ = "0.1.0"

# Imported on first use: torch, transformers and WeightWatcher take seconds, `taylorder --help` must not.
_HOMES = {
    "OrderConfig": "taylorder.adapt.config",
    "TaylorCache": "taylorder.adapt.cache",
    "adapted": "taylorder.adapt.handle",
    "analyze": "taylorder.analysis.analyze",
    "attach": "taylorder.adapt.handle",
    "budget": "taylorder.selection.budget",
    "describe": "taylorder.models.describe",
    "evaluate": "taylorder.evaluation.evaluate",
    "judge_claims": "taylorder.claims.registry",
    "load": "taylorder.models.loading",
    "report": "taylorder.reports.report",
    "select": "taylorder.selection.by_tolerance",
}

__all__ = [
    "OrderConfig",
    "TaylorCache",
    "__version__",
    "adapted",
    "analyze",
    "attach",
    "budget",
    "describe",
    "evaluate",
    "judge_claims",
    "load",
    "report",
    "select",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'taylorder' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
