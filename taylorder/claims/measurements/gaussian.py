"""The set-up in which four terms were found to suffice (arXiv 2602.00294): normal queries, keys and values.

One long sequence of independent standard normal numbers, causal, score scaling ``1 / sqrt(d)``, and the last queries of
it. Truncation is plain: around zero, without guard. (The paper's inputs are float16; here they are float64, so that
there is something to round.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import torch
from pydantic import TypeAdapter
from torch import Tensor

from taylorder.claims.rounding import PRECISIONS, Precision, rounded
from taylorder.claims.weights import series
from taylorder.storage.progress import Progress
from taylorder.storage.records import Records

HEAD_DIMS = (8, 16, 32, 64)
ORDERS = (3, 4, 5, 6)
TOKENS, ROWS, HEADS = 102_400, 32, 6


@dataclass(frozen=True, slots=True)
class GaussianHead:
    """One draw: errors of truncation by order, and of rounding queries, keys and values, by precision.

    ``median_error`` and ``rounding_median`` are of the elements of the outputs, absolute; ``relative_l2`` and
    ``rounding`` are relative; ``output_rms`` is the root mean square of the exact outputs' elements.
    """

    head_dim: int
    output_rms: float
    median_error: dict[int, float]
    relative_l2: dict[int, float]
    rounding_median: dict[Precision, float]
    rounding: dict[Precision, float]


def measure_gaussian(
    *,
    head_dims: Sequence[int] = HEAD_DIMS,
    tokens: int = TOKENS,
    rows: int = ROWS,
    heads: int = HEADS,
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> list[GaussianHead]:
    """Draw and measure some heads of every dimension."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for head_dim in head_dims:
        for _ in range(heads):
            shapes = ((rows, head_dim), (tokens, head_dim), (tokens, head_dim))
            q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
            found.append(_measure(q, k, v))
            progress("normal inputs", len(found), heads * len(head_dims))
    return found


def kept_draws(directory: Path, *, fresh: bool = False, progress: Progress = lambda *_: None) -> list[GaussianHead]:
    """The draws kept in ``directory``, measured if they are not there yet."""
    records = Records(directory, {"normal": [HEAD_DIMS, ORDERS, PRECISIONS, TOKENS, ROWS, HEADS]}, fresh=fresh)
    kept = records.get("draws")
    if kept is None:
        kept = [asdict(draw) for draw in measure_gaussian(progress=progress)]
        records.put("draws", kept)
    return TypeAdapter(list[GaussianHead]).validate_python(kept)


def _measure(q: Tensor, k: Tensor, v: Tensor) -> GaussianHead:
    rows, (tokens, d) = len(q), k.shape
    allowed = torch.arange(tokens) <= torch.arange(tokens - rows, tokens)[:, None]
    scores = q @ k.T / math.sqrt(d)
    exact = scores.masked_fill(~allowed, -math.inf).softmax(-1) @ v
    size = exact.norm()
    median_error, relative = {}, {}
    for order, total in enumerate(accumulate(series(scores, allowed.double(), max(ORDERS))), start=1):
        if order in ORDERS:
            error = total @ v / total.sum(-1, keepdim=True) - exact
            median_error[order] = float(error.abs().median())
            relative[order] = float(error.norm() / size)
    rounding_median: dict[Precision, float] = {}
    rounding: dict[Precision, float] = {}
    for precision in PRECISIONS:
        low_q, low_k, low_v = (rounded(each, precision) for each in (q, k, v))
        own = (low_q @ low_k.T / math.sqrt(d)).masked_fill(~allowed, -math.inf).softmax(-1) @ low_v
        rounding_median[precision] = float((own - exact).abs().median())
        rounding[precision] = float((own - exact).norm() / size)
    return GaussianHead(d, float(exact.square().mean().sqrt()), median_error, relative, rounding_median, rounding)
