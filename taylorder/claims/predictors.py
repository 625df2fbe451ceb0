"""What could tell how large a layer's truncation error is, each by itself, judged on layers left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

from taylorder.claims.association import LEAST, Floats
from taylorder.claims.layers import Layers, complete, log10
from taylorder.kernels.spec import Expansion

PREDICTORS: Mapping[str, Callable[[Layers, int, Expansion], Floats]] = {
    "|alpha - 2|, q": lambda layers, *_: abs(layers.spectral("q", lambda row: row.alpha) - 2),
    "|alpha - 2|, k": lambda layers, *_: abs(layers.spectral("k", lambda row: row.alpha) - 2),
    "|alpha - 2|, mean": lambda layers, *_: abs(layers.both(lambda row: row.alpha) - 2),
    "alpha, q": lambda layers, *_: layers.spectral("q", lambda row: row.alpha),
    "alpha, k": lambda layers, *_: layers.spectral("k", lambda row: row.alpha),
    "alpha, mean": lambda layers, *_: layers.both(lambda row: row.alpha),
    "Hill alpha, mean": lambda layers, *_: layers.both(lambda row: row.hill_alpha),
    "spectral norm, q times k": lambda layers, *_: (
        layers.spectral("q", lambda row: row.spectral_norm) * layers.spectral("k", lambda row: row.spectral_norm)
    ),
    "depth": lambda layers, *_: layers.depth(),
    "score std": lambda layers, *which: layers.over_heads(*which, lambda row: log10(row.score_std)),
    "Gaussian prediction": lambda layers, *which: layers.over_heads(*which, lambda row: log10(row.gaussian_prediction)),
    "logit rank": lambda layers, *which: layers.over_heads(*which, lambda row: row.logit_rank),
}
"""By name, a figure for every layer."""


def left_out_errors(models: Sequence[Layers], order: int, expansion: Expansion) -> dict[str, float]:
    """How far off a straight line through the other layers of the model is on a layer left out, for every predictor.

    The line is one in the rank of the figure among the layers of the model, so that no outlier decides. Root mean
    squares over all layers, in decimal logarithms of the error (0.3 is a factor of two), the least first.
    ``nothing`` predicts the mean of the other layers. Only layers that have all figures take part, so that all are
    judged on the same; predictors that some model lacks altogether are left out.
    """
    squares: dict[str, list[float]] = {}
    for layers in models:
        error = layers.log_error(order, expansion)
        figures = {name: figure(layers, order, expansion) for name, figure in PREDICTORS.items()}
        figures = {name: each for name, each in figures.items() if np.isfinite(each).sum() >= LEAST}
        y, *rest = complete(error, *figures.values())
        if len(y) < LEAST:
            continue
        for name, x in [("nothing", np.zeros_like(y)), *zip(figures, rest, strict=True)]:
            squares.setdefault(name, []).extend(_leave_one_out(stats.rankdata(x), y) ** 2)
    most = max((len(each) for each in squares.values()), default=0)
    found = {name: math.sqrt(float(np.mean(each))) for name, each in squares.items() if len(each) == most}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _leave_one_out(x: Floats, y: Floats) -> Floats:
    """What is left of each ``y`` after the line through the others; after their mean where ``x`` does not vary."""
    found = np.empty_like(y)
    for place in range(len(y)):
        others = np.delete(x, place), np.delete(y, place)
        if np.ptp(others[0]) == 0:
            found[place] = y[place] - others[1].mean()
        else:
            line = stats.linregress(*others)
            found[place] = y[place] - (line.intercept + line.slope * x[place])
    return found
