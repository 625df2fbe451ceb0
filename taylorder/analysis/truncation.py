"""Error of truncating the softmax exponential, for every head, order and expansion point, in one pass over the scores.

With scores ``s`` of a query against the keys it may attend, a near field (true exponential) and a far field
(polynomial), order P gives (arXiv 2602.00294, with the expansion point and near field of docs/math.md)::

    out = (e^-M sum_near e^s v + e^(mu-M) sum_far w v) / (the same with v = 1),   w = sum_{p<P} (s - mu)^p / p!

A learned sink is one more near key, of value zero; a soft cap is one of near scores. Everything here is float64 and
lives in score space. The terms of degree 0 … P-1 are formed once and read by all orders.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from taylorder.analysis.capture import LayerTensors
from taylorder.analysis.threads import each_on_one_thread
from taylorder.kernels.score_terms import PLAIN, ScoreTerms
from taylorder.kernels.spec import EXPANSIONS, GUARD, Expansion, Near
from taylorder.storage.processes import gathered, total

BLOCK_ROWS = 32
"""Query rows of a block: few, so that causal blocks skip most of the keys they may not attend."""

BLOCK_ELEMENTS = 1 << 21
"""Most scores of a block, over all heads: bounds memory when sequences are long or heads many."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """A near field and the orders and expansion points to measure with it."""

    max_order: int
    window: int = 0
    sinks: int = 0
    expansions: tuple[Expansion, ...] = EXPANSIONS


class ErrorSums:
    """Running sums of one layer's errors under one sweep, float64, indexed ``[expansion, order - 1, head]``."""

    def __init__(self, sweep: Sweep, heads: int) -> None:
        shape = (len(sweep.expansions), sweep.max_order, heads)
        self.sweep = sweep
        self.squared = {kind: torch.zeros(shape, dtype=torch.float64) for kind in ("guarded", "raw")}
        self.cosine = {kind: torch.zeros(shape, dtype=torch.float64) for kind in ("guarded", "raw")}
        self.largest = {kind: torch.zeros(shape, dtype=torch.float64) for kind in ("guarded", "raw")}
        self.guarded_rows = torch.zeros(shape, dtype=torch.float64)
        self.far_radius = torch.zeros(len(sweep.expansions), heads, dtype=torch.float64)
        self.row_errors: list[Tensor] = []

    def add_outputs(self, kind: str, expansion: int, outputs: Tensor, exact: Tensor) -> Tensor:
        """Add ``outputs`` of all orders, ``[P, H, R, d_v]``, against ``exact`` ``[H, R, d_v]``.

        Returns the squared error of each row, ``[P, H, R]``.
        """
        cosine = torch.cosine_similarity(outputs, exact, dim=-1, eps=1e-300)
        error = outputs.sub_(exact)
        largest = error.abs().amax((-2, -1))
        squared = error.square_().sum(-1)
        self.squared[kind][expansion] += squared.sum(-1)
        self.cosine[kind][expansion] += cosine.sum(-1)
        self.largest[kind][expansion] = torch.maximum(self.largest[kind][expansion], largest)
        return squared

    def merge(self, other: ErrorSums) -> None:
        """Add what was measured elsewhere under the same sweep."""
        for kind in ("guarded", "raw"):
            self.squared[kind] += other.squared[kind]
            self.cosine[kind] += other.cosine[kind]
            self.largest[kind] = torch.maximum(self.largest[kind], other.largest[kind])
        self.guarded_rows += other.guarded_rows
        self.far_radius = torch.maximum(self.far_radius, other.far_radius)
        self.row_errors += other.row_errors


class ScoreSums:
    """Running statistics of one layer's centred scores over all attended keys, per head ``[H]``, float64."""

    def __init__(self, heads: int) -> None:
        self.count = 0
        self.rows = 0
        self.keys = 0
        self.total = torch.zeros(heads, dtype=torch.float64)
        self.squared_deviation = torch.zeros(heads, dtype=torch.float64)
        self.largest = torch.zeros(heads, dtype=torch.float64)
        self.output_squared = torch.zeros(heads, dtype=torch.float64)

    def add(self, scores: Tensor, allowed: Tensor, exact: Tensor) -> None:
        """Add centred scores ``[H, R, T]`` where ``allowed`` ``[R, T]``, and the exact output ``[H, R, d_v]``."""
        keys = allowed.sum(-1)
        inside = scores * allowed
        mean = inside.sum(-1, keepdim=True) / keys.unsqueeze(-1)
        self.count += int(keys.sum())
        self.rows += len(allowed)
        self.keys = max(self.keys, int(keys.max()))
        self.total += inside.sum((-2, -1))
        self.squared_deviation += ((scores - mean) * allowed).square().sum((-2, -1))
        self.largest = torch.maximum(self.largest, inside.abs().amax((-2, -1)))
        self.output_squared += exact.square().sum((-2, -1))

    def merge(self, other: ScoreSums) -> None:
        """Add what was measured on other rows."""
        self.count += other.count
        self.rows += other.rows
        self.keys = max(self.keys, other.keys)
        self.total += other.total
        self.squared_deviation += other.squared_deviation
        self.largest = torch.maximum(self.largest, other.largest)
        self.output_squared += other.output_squared


def key_centres(layer: LayerTensors) -> Tensor:
    """Mean key of every KV head over all tokens that are not padding, of all processes: float64 ``[G, d]``."""
    valid = layer.valid[:, None, :, None]
    return total((layer.k.double() * valid).sum((0, 2))) / total(valid.sum())


def measure(
    layer: LayerTensors, centres: Tensor, query_rows: list[Tensor], sweeps: tuple[Sweep, ...]
) -> tuple[ScoreSums, list[ErrorSums]]:
    """Measure one layer under every sweep.

    Args:
        layer: the captured tensors.
        centres: key centres ``[G, d]``, float64 (:func:`key_centres`).
        query_rows: per sequence, the sorted query positions to measure (rows that are padding are left out).
        sweeps: what to measure.

    Returns:
        Score statistics, and one :class:`ErrorSums` per sweep, over the sequences of all processes.

    """
    heads = layer.q.shape[1]
    statistics = ScoreSums(heads)
    sums = [ErrorSums(sweep, heads) for sweep in sweeps]

    def measure_sequence(sequence: int) -> tuple[ScoreSums, list[ErrorSums]]:
        scores, errors = ScoreSums(heads), [ErrorSums(sweep, heads) for sweep in sweeps]
        with torch.inference_mode():
            for block in blocks(layer, centres, sequence, query_rows[sequence]):
                exact = block.exact()
                scores.add(block.scores, block.allowed, exact)
                for sweep_errors in errors:
                    _add_sweep(sweep_errors, block, exact)
        return scores, errors

    for scores, errors in gathered(list(each_on_one_thread(measure_sequence, range(len(query_rows))))):
        statistics.merge(scores)
        for of_sweep, more in zip(sums, errors, strict=True):
            of_sweep.merge(more)
    return statistics, sums


@dataclass(frozen=True, slots=True)
class ScoreBlock:
    """Some query rows of one sequence against all keys up to the last one they may attend.

    ``scores`` are centred, float64 ``[H, R, T]``; ``shift`` ``[H, R]`` is what centring took from every score of a row;
    ``values`` ``[G, T, d_v + 1]`` ends in a column of ones; ``allowed`` bool ``[R, T]``; ``rows`` ``[R]``; ``nth``
    ``[T]`` counts the tokens up to each that are not padding; ``terms`` are those of rows ``[H, R]``, shift included.
    """

    scores: Tensor
    shift: Tensor
    values: Tensor
    allowed: Tensor
    rows: Tensor
    nth: Tensor
    terms: ScoreTerms = PLAIN

    def weigh(self, weights: Tensor) -> Tensor:
        """``sum_j weights_ij [v_j, 1]`` for weights ``[H, R, T]``: ``[H, R, d_v + 1]``."""
        H, R, T = weights.shape
        G = len(self.values)
        return torch.bmm(weights.reshape(G, H // G * R, T), self.values).view(H, R, -1)

    def exact(self) -> Tensor:
        """Softmax attention ``[H, R, d_v]``."""
        return self.weigh(self.exact_weights())[..., :-1]

    def exact_weights(self) -> Tensor:
        """Softmax weights of the keys ``[H, R, T]``."""
        return self.terms.softmax(self.terms.capped(self.scores).masked_fill(~self.allowed, -math.inf))

    def near(self, near: Near) -> Tensor:
        """Keys that keep the true exponential: bool ``[R, T]``."""
        key = torch.arange(self.scores.shape[-1], device=self.rows.device)
        return self.allowed & near.mask(self.rows[:, None], key, self.nth)


def blocks(layer: LayerTensors, centres: Tensor, sequence: int, rows: Tensor) -> Iterator[ScoreBlock]:
    """Cut one sequence's query rows into blocks; causal blocks see only the keys up to their last row."""
    _, H, T, d = layer.q.shape
    G = layer.k.shape[1]
    valid = layer.valid[sequence]
    rows = rows[valid[rows]]
    keys = layer.k[sequence].double() - centres[:, None]
    values = torch.cat([layer.v[sequence].double(), torch.ones(G, T, 1, dtype=torch.float64, device=keys.device)], -1)
    nth = valid.cumsum(0)
    for part in torch.split(rows, max(1, min(BLOCK_ROWS, BLOCK_ELEMENTS // (H * T)))):
        limit = int(part[-1]) + 1 if layer.causal else T
        queries = layer.q[sequence, :, part].double() * layer.scaling
        grouped = queries.view(G, -1, d)
        key = torch.arange(limit, device=keys.device)
        if layer.mask is not None:
            allowed = layer.mask[sequence, 0, part, :limit]
        elif layer.causal:
            allowed = key <= part[:, None]
        else:
            allowed = torch.ones(len(part), limit, dtype=torch.bool, device=keys.device)
        if layer.picked is not None:
            allowed = allowed & layer.picked[sequence, 0, part, :limit]
        shift = torch.bmm(grouped, centres[:, :, None]).view(H, len(part))
        scores = torch.bmm(grouped, keys[:, :limit].transpose(1, 2)).view(H, len(part), limit)
        if layer.added is not None:
            scores += layer.added[sequence, :, part, :limit].double().masked_fill(~allowed, 0.0)
        yield ScoreBlock(
            scores=scores,
            shift=shift,
            values=values[:, :limit],
            allowed=allowed,
            rows=part,
            nth=nth[:limit],
            terms=layer.terms.map(Tensor.double).by_row(shift),
        )


def _add_sweep(sums: ErrorSums, block: ScoreBlock, exact: Tensor) -> None:
    """Add every order and expansion point of one sweep for one block of rows."""
    sweep = sums.sweep
    near = block.near(Near(sweep.window, sweep.sinks))
    far = block.allowed & ~near
    far_count = far.sum(-1).double()  # [R]
    has_far = far_count > 0
    plain = block.weigh(far.double().expand_as(block.scores))  # degree 0: sum of far [v, 1], [H, R, d_v + 1]
    reference = exact.square().sum(-1)
    row_errors = []
    for index, expansion in enumerate(sweep.expansions):
        scores, terms = block.scores, block.terms
        if expansion == "zero":
            scores, terms = scores + block.shift[..., None], terms.lowered(-block.shift)
        point = torch.zeros_like(block.shift)
        if expansion == "mean":
            point = (scores * far).sum(-1) / far_count.clamp(min=1)
        x = (scores - point[..., None]) * far
        sums.far_radius[index] = torch.maximum(sums.far_radius[index], x.abs().amax((-2, -1)))
        near_sum, far_scale = _common_scale(block, scores, near, torch.where(has_far, point, -math.inf), terms)
        degrees = [plain]
        power = x.clone()
        for degree in range(1, sweep.max_order):
            degrees.append(block.weigh(power) / math.factorial(degree))
            power *= x
        raw = torch.stack(degrees).cumsum(0)  # [P, H, R, d_v + 1]
        guarded = has_far & (raw[..., -1] <= GUARD * far_count)
        safe = torch.where(guarded[..., None], plain, raw)
        squared = sums.add_outputs("guarded", index, _divide(near_sum + far_scale * safe), exact)
        sums.add_outputs("raw", index, _divide(near_sum + far_scale * raw), exact)
        sums.guarded_rows[index] += guarded.sum(-1)
        row_errors.append(relative(squared, reference))
    sums.row_errors.append(torch.stack(row_errors))


def _common_scale(
    block: ScoreBlock, scores: Tensor, near: Tensor, point: Tensor, terms: ScoreTerms
) -> tuple[Tensor, Tensor]:
    """Bring near and far sums to one scale ``e^-M``, ``M = max(point, near scores)``, learned sinks among these.

    Returns ``e^-M sum_near e^s [v, 1]`` (``[H, R, d_v + 1]``) and the factor ``e^(point - M)`` (``[H, R, 1]``).
    """
    sinks = terms.sinks
    if sinks is None and not near.any():
        return torch.zeros((), dtype=torch.float64), torch.ones_like(point)[..., None]
    masked = terms.capped(scores).masked_fill(~near, -math.inf)
    top = torch.maximum(point, masked.amax(-1))[..., None]
    if sinks is not None:
        top = torch.maximum(top, sinks[..., None])
    sums = block.weigh((masked - top).exp())
    if sinks is not None:
        sums[..., -1:] += (sinks[..., None] - top).exp()
    return sums, (point[..., None] - top).exp()


def relative(squared: Tensor, reference: Tensor) -> Tensor:
    """``sqrt(squared / reference)`` of summed squares; output that is nothing and reproduced has no error."""
    return torch.where(squared == 0, 0.0, (squared / reference).sqrt())


def _divide(sums: Tensor) -> Tensor:
    """Numerator over denominator, ``[..., d_v + 1]`` to ``[..., d_v]``."""
    return sums[..., :-1] / sums[..., -1:]
