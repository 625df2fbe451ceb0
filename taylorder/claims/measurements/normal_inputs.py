"""The set-up in which four terms were found to suffice (arXiv 2602.00294): normal queries, keys and values.

One long sequence of independent standard normal numbers, causal, score scaling ``1 / sqrt(d)``, and the last queries of
it. Truncation is plain: around zero, without guard. (The paper's inputs are float16; here they are float64, so that
there is something to round.)
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import torch
from pydantic import TypeAdapter
from torch import Tensor

from taylorder.claims.rounding import PRECISIONS, Precision, rounded
from taylorder.claims.weights import series
from taylorder.storage.progress import Progress
from taylorder.storage.provenance import software_versions
from taylorder.storage.records import Records

ORDERS = (3, 4, 5, 6)


@dataclass(frozen=True, slots=True)
class NormalHead:
    """One draw: errors of truncation by order, and of rounding queries, keys and values, by precision.

    ``median_error`` and ``rounding_median`` are of the elements of the outputs, absolute; ``relative_l2`` and
    ``rounding`` are relative; ``output_rms`` is the root mean square of the exact outputs' elements.
    """

    head_dim: int
    tokens: int
    queries: int
    output_rms: float
    median_error: dict[int, float]
    relative_l2: dict[int, float]
    rounding_median: dict[Precision, float]
    rounding: dict[Precision, float]


@dataclass(frozen=True)
class NormalInputs:
    """How much is drawn: heads of every head dim, each with so many tokens, of which the last ``queries`` are asked."""

    head_dims: tuple[int, ...] = (8, 16, 32, 64)
    tokens: int = 102_400
    queries: int = 32
    heads: int = 6
    seed: int = 0

    def kept(self, directory: Path, *, fresh: bool = False, progress: Progress = lambda *_: None) -> list[NormalHead]:
        """The heads kept in ``directory``, measured if they are not there yet."""
        settings = {"inputs": asdict(self), "figures": [ORDERS, PRECISIONS], "software": software_versions()}
        records = Records(directory, settings, fresh=fresh)
        draws = records.get("draws")
        if draws is None:
            draws = [asdict(head) for head in self.measure(progress)]
            records.put("draws", draws)
        return TypeAdapter(list[NormalHead]).validate_python(draws)

    def measure(self, progress: Progress = lambda *_: None) -> list[NormalHead]:
        """Draw and measure the heads."""
        generator = torch.Generator().manual_seed(self.seed)
        measured = []
        for head_dim in self.head_dims:
            shapes = ((self.queries, head_dim), (self.tokens, head_dim), (self.tokens, head_dim))
            for _ in range(self.heads):
                q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
                measured.append(_measure(q, k, v))
                progress("normal inputs", len(measured), self.heads * len(self.head_dims))
        return measured


def _measure(q: Tensor, k: Tensor, v: Tensor) -> NormalHead:
    queries, (tokens, d) = len(q), k.shape
    allowed = torch.arange(tokens) <= torch.arange(tokens - queries, tokens)[:, None]
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
        low_q, low_k, low_v = (rounded(vectors, precision) for vectors in (q, k, v))
        weights = (low_q @ low_k.T / math.sqrt(d)).masked_fill(~allowed, -math.inf).softmax(-1)
        error = weights @ low_v - exact
        rounding_median[precision] = float(error.abs().median())
        rounding[precision] = float(error.norm() / size)
    rms = float(exact.square().mean().sqrt())
    return NormalHead(d, tokens, queries, rms, median_error, relative, rounding_median, rounding)
