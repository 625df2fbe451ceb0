"""Whether training makes heads need fewer terms: spread of scores, error by order, and alpha, before and after it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from fresh_models.found import alphas, heads

import taylorder
from taylorder.analysis.losses import EXACT
from taylorder.evaluation.intervals import mean_interval
from taylorder.healing.heal import Healing
from taylorder.healing.trained import training_weights
from taylorder.models.adapters import merge_adapter
from taylorder.models.loading import LoadedModel, load
from taylorder.selection.settings import DEFAULT_TIER, TIERS

ORDERS = (1, 2, 3, 5, 7)
"""That the errors are told of."""

WITHIN = TIERS[DEFAULT_TIER]
"""Error of a head's output within which an order is enough."""

Found = dict[str, Any]


def orders(about: dict[str, Any], loaded: LoadedModel, healing: Healing) -> Iterator[Found]:
    """A row for the weights as they were, and one for those of every training, beside the first head by head."""
    before = _found(loaded)
    yield about | {"state": EXACT} | _figures(before)
    settings = healing.settings
    if not settings.changes_weights:
        return
    for name, outcome in healing.outcomes.items():
        with TemporaryDirectory() as folder:
            with training_weights(loaded.model, healing.model, settings.train, settings.seed) as trained:
                trained.load(outcome.weights)
                trained.save(Path(folder), healing.model)
            other = load(loaded.name)
            merge_adapter(other.model, folder)
        after = _found(other)
        yield about | {"state": f"trained for {name}"} | _figures(after) | _beside(before, after)


def _found(loaded: LoadedModel) -> Found:
    """Numbers of every head, and the alphas of the modules; the default analysis, which runs exactly."""
    analysis = taylorder.analyze(loaded.model, loaded.tokenizer, name=loaded.name)
    of_heads = heads(analysis)
    return {
        "spread": np.array([head["score_std"] for head in of_heads]),
        "errors": np.array([head["errors"]["mean"] for head in of_heads]),
        "alpha": np.array(list(alphas(analysis).values()), dtype=float),
    }


def _figures(found: Found) -> Found:
    """Over heads: the geometric mean of the spread, the median error by order, and how many an order is enough for."""
    errors = {str(order): found["errors"][:, order - 1] for order in ORDERS}
    return {
        "heads": len(found["spread"]),
        "spread": float(np.exp(np.log(found["spread"]).mean())),
        "error": {order: float(np.median(of_order)) for order, of_order in errors.items()},
        "within": {order: int((of_order <= WITHIN).sum()) for order, of_order in errors.items()},
        "alpha": float(np.nanmean(found["alpha"])),
    }


def _beside(before: Found, after: Found) -> Found:
    """Mean and interval over layers of what changed: logarithms of ratios, which heads of a layer share, and alpha."""

    def change(values: np.ndarray) -> list[float]:
        found = mean_interval(np.nanmean(values.reshape(len(before["alpha"]), -1), axis=1).tolist())
        return [found.estimate, found.low, found.high]

    ratios = {"spread": after["spread"] / before["spread"]}
    for order in ORDERS[1:]:
        ratios[f"error {order}"] = after["errors"][:, order - 1] / before["errors"][:, order - 1]
    logs = {f"log {name}": change(np.log(ratio)) for name, ratio in ratios.items()}
    return {"change": logs | {"alpha": change(after["alpha"] - before["alpha"])}}
