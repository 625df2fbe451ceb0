"""Errors of every candidate of every KV head of one attention module, from its captured tensors.

Candidates run through the kernels that would run them later, in float32, on all rows; exact attention is transformers'
own. Two errors are measured: the relative L2 error of the output, and the one weighted by the gradient of the loss by
that output, which is how much the loss of a token would change to first order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taylorder.analysis.candidates import Candidate
from taylorder.analysis.fitting import HeadRows, Moments, fit, moments
from taylorder.analysis.gradients import Observed
from taylorder.analysis.rotations import Rotations, balanced_rotations
from taylorder.analysis.truncation import LayerTensors, key_centres, relative
from taylorder.kernels import HeadSpec, taylor_attention

FIT_ROWS = 128
"""Query rows of each sequence that coefficients are fitted to, drawn at random."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the kernels need of one module's calibration: centres ``[G, d]``, rotations or None, float32."""

    centres: Tensor
    rotations: tuple[Tensor, Tensor] | None


@dataclass(frozen=True, slots=True)
class LeverRow:
    """One candidate of one KV head, over all rows of all calibration sequences.

    ``candidate`` is its place in the list of candidates. ``relative_l2`` is of the outputs of the whole group,
    ``gradient_error`` the mean over tokens of the squared first-order change of the sequence's summed loss, in nats
    squared, and ``guarded_share`` the share of rows (of the query head that has most) that needed the guard. For
    candidates with a polynomial, ``window_*`` are the errors where its state's bytes are given to the window instead.
    """

    module: str
    kv_head: int
    candidate: int
    relative_l2: float
    gradient_error: float
    guarded_share: float
    window_relative_l2: float | None = None
    window_gradient_error: float | None = None


Fitted = dict[int, tuple[tuple[float, ...], ...]]
"""Coefficients ``fitted[candidate][head]``, for candidates that have fitted ones."""


def head_specs(candidates: Sequence[Candidate], fitted: Fitted, places: Sequence[int], group: int) -> list[HeadSpec]:
    """One spec for every query head, from the place of the candidate that each KV head runs."""
    specs = []
    for head in range(len(places) * group):
        place = places[head // group]
        specs.append(candidates[place].spec(fitted[place][head] if place in fitted else None))
    return specs


@dataclass(frozen=True)
class LayerLevers:
    """All that was measured of one module's levers."""

    module: str
    rows: tuple[LeverRow, ...]
    fitted: Fitted
    prepared: Prepared


class Runner:
    """Runs candidates on what was observed of one module on one sequence."""

    def __init__(self, observed: Observed, prepared: Prepared) -> None:
        """Centre the keys, and rotate queries and keys if there are rotations."""
        self.observed = observed
        group = len(observed.q) // len(observed.k)
        self.group = group
        k = observed.k.float() - prepared.centres[:, None].to(observed.k.device)
        self.plain = observed.q.float(), k
        self.rotated = None
        if prepared.rotations is not None:
            query, key = (each.to(k.device) for each in prepared.rotations)
            self.rotated = observed.q.float() @ query.repeat_interleave(group, 0).mT, k @ key.mT

    def tensors(self, *, rotated: bool) -> tuple[Tensor, Tensor]:
        """Queries ``[H, T, d]`` and centred keys ``[G, T, d]``; their scores are the same, rotated or not."""
        if not rotated:
            return self.plain
        if self.rotated is None:
            raise ValueError("ranks need rotations, and none were calibrated")
        return self.rotated

    def run(self, specs: Sequence[HeadSpec]) -> tuple[Tensor, Tensor]:
        """Output ``[H, T, d_v]`` of one spec per query head, and guarded rows, int64 ``[H]``."""
        q, k = self.tensors(rotated=any(spec.ranks is not None for spec in specs))
        output, state = taylor_attention(
            q[None], k[None], self.observed.v.float()[None], list(specs), scaling=self.observed.scaling
        )
        if state is None:
            raise RuntimeError("taylor_attention returned no state for causal attention")
        return output[0], state.guarded

    def first_order(self, change: Tensor) -> Tensor:
        """``sum over the group of gradient . change`` for each token: float64 ``[G, T]`` from ``[H, T, d_v]``."""
        return self.per_kv_head((change * self.observed.gradient).sum(-1, dtype=torch.float64))

    def per_kv_head(self, by_head: Tensor) -> Tensor:
        """Sum over the query heads of each group: ``[G, ...]`` from ``[H, ...]``."""
        return by_head.view(-1, self.group, *by_head.shape[1:]).sum(1)


def prepare(sequences: Sequence[Observed], *, rotate: bool) -> Prepared:
    """Calibrate key centres and, if asked for, rotations on all sequences of one module."""
    layer = LayerTensors(
        torch.stack([each.q for each in sequences]).cpu(),
        torch.stack([each.k for each in sequences]).cpu(),
        torch.stack([each.v for each in sequences]).cpu(),
        None,
        sequences[0].scaling,
        True,
    )
    centres = key_centres(layer)
    found: Rotations | None = balanced_rotations(layer, centres) if rotate else None
    rotations = None if found is None else (found.query.float(), found.key.float())
    return Prepared(centres.float(), rotations)


def measure_levers(
    module: str,
    sequences: Sequence[Observed],
    candidates: Sequence[Candidate],
    instead: Sequence[Candidate | None],
    *,
    seed: int,
) -> LayerLevers:
    """Measure every candidate of every KV head of one module.

    Args:
        module: its name.
        sequences: what was observed of it with the model as it is, one for each sequence, all of one length.
        candidates: what to measure.
        instead: what is measured beside each, where there is something: a window of the same bytes.
        seed: of the rows that coefficients are fitted to.

    """
    prepared = prepare(sequences, rotate=any(candidate.ranks is not None for candidate in candidates))
    fitted = fit_coefficients(sequences, prepared, candidates, seed)
    H, T = sequences[0].q.shape[:2]
    G = len(sequences[0].k)
    # Last dimension: the candidate, and the window of the same bytes.
    squared = torch.zeros(len(candidates), G, 2, dtype=torch.float64)
    weighted, guarded = torch.zeros_like(squared), torch.zeros(len(candidates), G, dtype=torch.float64)
    reference = torch.zeros(G, dtype=torch.float64)
    for observed in sequences:
        runner = Runner(observed, prepared)
        reference += runner.per_kv_head(observed.output.double().square().sum((1, 2))).cpu()
        for place in range(len(candidates)):
            if candidates[place].order is None:
                continue
            runs = [head_specs(candidates, fitted, [place] * G, H // G)]
            if (window := instead[place]) is not None:
                runs.append([window.spec()] * H)
            for turn, specs in enumerate(runs):
                output, hits = runner.run(specs)
                change = output - observed.output
                squared[place, :, turn] += runner.per_kv_head(change.double().square().sum((1, 2))).cpu()
                weighted[place, :, turn] += (runner.first_order(change) * (T - 1)).square().sum(1).cpu()
                if not turn:
                    guarded[place] += hits.view(G, -1).amax(1).double().cpu()
    tokens = len(sequences) * T
    errors = relative(squared, reference[:, None])
    rows = []
    for kv_head in range(G):
        for place in range(len(candidates)):
            own, other = errors[place, kv_head].tolist()
            own_weighted, other_weighted = (weighted[place, kv_head] / tokens).tolist()
            beside = (other, other_weighted) if instead[place] is not None else (None, None)
            share = float(guarded[place, kv_head]) / tokens
            rows.append(LeverRow(module, kv_head, place, own, own_weighted, share, *beside))
    return LayerLevers(module, tuple(rows), fitted, prepared)


def fit_coefficients(
    sequences: Sequence[Observed], prepared: Prepared, candidates: Sequence[Candidate], seed: int
) -> Fitted:
    """Fit the coefficients of every query head for the candidates that ask for it, by place in the list."""
    wanted = {place: each for place, each in enumerate(candidates) if each.coefficients == "fitted"}
    if not wanted:
        return {}
    H, T = sequences[0].q.shape[:2]
    group = H // len(sequences[0].k)
    generator = torch.Generator().manual_seed(seed)
    parts: dict[int, list[list[Moments]]] = {place: [[] for _ in range(H)] for place in wanted}
    for observed in sequences:
        runner = Runner(observed, prepared)
        rows = torch.randperm(T, generator=generator)[: min(FIT_ROWS, T)].sort().values
        for head in range(H):
            shared = {}
            for place, candidate in wanted.items():
                ranked = candidate.ranks is not None
                if ranked not in shared:
                    q, k = runner.tensors(rotated=ranked)
                    keys, values = k[head // group], observed.v[head // group]
                    scaled = q[head, rows].double() * observed.scaling
                    shared[ranked] = HeadRows(scaled, keys.double(), values.double(), rows)
                parts[place][head].append(moments(shared[ranked], candidate))
    return {
        place: tuple(fit(each, candidate.order or 1) for each in parts[place]) for place, candidate in wanted.items()
    }
