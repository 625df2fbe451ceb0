"""The formula of the design, written down again as slowly and plainly as possible: loops, numpy, float64, no tricks."""

from __future__ import annotations

import math

import numpy as np


def capped(score, softcap):
    return score if softcap is None else softcap * math.tanh(score / softcap)


def attention_row(
    scores, values, far, near, order, expansion, offset, guard=True, learned=None, softcap=None
):  # fmt: skip
    """One query row: scores (centred) and values of the keys it attends; ``far``, ``near`` are index lists.

    ``offset`` is what centring took from every score; the ``learned`` sink and what ``softcap`` makes of near scores
    are of scores as the model has them. Returns (output, whether the row was guarded).
    """
    shifted = scores + offset if expansion == "zero" else scores
    lost = 0.0 if expansion == "zero" else offset
    true = {j: capped(scores[j] + offset, softcap) - lost for j in near}
    point = float(np.mean([shifted[j] for j in far])) if expansion == "mean" and far else 0.0
    weights = {j: sum((shifted[j] - point) ** p / math.factorial(p) for p in range(order)) for j in far}
    guarded = bool(far) and sum(weights.values()) <= 1e-3 * len(far)
    if guard and guarded:
        weights = dict.fromkeys(far, 1.0)
    sinks = [] if learned is None else [learned - lost]
    top = max([point] * bool(far) + list(true.values()) + sinks)
    numerator, denominator = np.zeros(values.shape[1]), sum(math.exp(sink - top) for sink in sinks)
    for j in near:
        weight = math.exp(true[j] - top)
        numerator, denominator = numerator + weight * values[j], denominator + weight
    for j in far:
        weight = math.exp(point - top) * weights[j]
        numerator, denominator = numerator + weight * values[j], denominator + weight
    return numerator / denominator, guarded


def softmax_row(scores, values, keys, learned=None):
    sinks = [] if learned is None else [learned]
    top = max([scores[j] for j in keys] + sinks)
    weights = {j: math.exp(scores[j] - top) for j in keys}
    total = sum(weights.values()) + sum(math.exp(sink - top) for sink in sinks)
    return sum(weights[j] * values[j] for j in keys) / total


def head_errors(q, k, v, centre, rows, attends, scaling, order, expansion, window=0, sinks=0, first=None, **beside):
    """Error figures of one head over sequences: q, k ``[B, T, d]``, v ``[B, T, d_v]``; ``attends(b, i)`` lists keys.

    ``beside`` is the head's ``learned`` sink and its ``softcap``, where it has them.
    """
    squared = reference = largest = cosine = guarded_rows = count = 0.0
    for b, positions in enumerate(rows):
        for i in positions:
            keys = attends(b, i)
            scores = np.array([scaling * np.dot(q[b, i], key - centre) for key in k[b]])
            offset = scaling * np.dot(q[b, i], centre)
            start = 0 if first is None else first[b]
            near = [j for j in keys if (window and j > i - window) or j < start + sinks]
            far = [j for j in keys if j not in near]
            output, guarded = attention_row(scores, v[b], far, near, order, expansion, offset, **beside)
            true = np.array([capped(score + offset, beside.get("softcap")) for score in scores])
            exact = softmax_row(true, v[b], keys, beside.get("learned"))
            squared += np.sum((output - exact) ** 2)
            reference += np.sum(exact**2)
            largest = max(largest, np.max(np.abs(output - exact)))
            cosine += np.dot(output, exact) / math.sqrt(np.dot(output, output) * np.dot(exact, exact))
            guarded_rows += guarded
            count += 1
    return {
        "relative_l2": math.sqrt(squared / reference),
        "rmse": math.sqrt(squared / (count * v.shape[-1])),
        "cosine": cosine / count,
        "max_error": largest,
        "nonpositive_share": guarded_rows / count,
    }
