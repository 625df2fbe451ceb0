"""How well alpha tells the truncation error of a layer that was left out, beside knowing nothing and the score std."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from taylorder.claims.association import LEAST
from taylorder.claims.layers import Floats, Layers, complete
from taylorder.kernels.spec import Expansion

ALPHA, SCORE_STD, NOTHING = "|alpha - 2|, mean", "score std", "nothing"


def left_out_errors(models: Sequence[Layers], order: int, expansion: Expansion) -> dict[str, float]:
    """How far off a straight line through the other layers of the model is on a layer left out.

    The line is one in the rank of the figure among the layers of the model, so that no outlier decides.
    :data:`NOTHING` predicts the mean of the other layers.

    Returns:
        Root mean squares over all layers with an alpha, in decimal logarithms of the error (0.3 is a factor of two), by
        what the line is drawn in, the least first; empty where no model has enough such layers.

    """
    squares: dict[str, list[float]] = {}
    for layers in models:
        error, alpha, std = complete(
            layers.log_error(order, expansion),
            layers.distance_of_alpha_from_2(),
            layers.log_score_std(order, expansion),
        )
        if len(error) >= LEAST:
            for name, figure in ((NOTHING, np.zeros_like(error)), (ALPHA, alpha), (SCORE_STD, std)):
                squares.setdefault(name, []).extend(_leave_one_out(stats.rankdata(figure), error) ** 2)
    errors = {name: math.sqrt(float(np.mean(values))) for name, values in squares.items()}
    return dict(sorted(errors.items(), key=lambda item: item[1]))


def _leave_one_out(x: Floats, y: Floats) -> Floats:
    """What is left of each ``y`` after the line through the others; after their mean where ``x`` does not vary."""
    residuals = np.empty_like(y)
    for layer in range(len(y)):
        other_x, other_y = np.delete(x, layer), np.delete(y, layer)
        if np.ptp(other_x) == 0:
            residuals[layer] = y[layer] - other_y.mean()
        else:
            line = stats.linregress(other_x, other_y)
            residuals[layer] = y[layer] - (line.intercept + line.slope * x[layer])
    return residuals
