"""Errors of every candidate of every KV head of one attention module, from its captured tensors.

Candidates run through the kernels that would run them later, in float32, on all rows; exact attention is transformers'
own. Two errors are measured: the relative L2 error of the output, and the one weighted by the gradient of the loss by
that output, which is how much the loss of a token would change to first order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from taylorder.adapt.probe import priorities
from taylorder.analysis.capture import LayerTensors
from taylorder.analysis.truncation import key_centres, relative
from taylorder.kernels import HeadSpec, taylor_attention
from taylorder.kernels.kept_fields import attend_kept_fields
from taylorder.kernels.kept_keys import far_from
from taylorder.kernels.near_fields import NearField, attend_near_fields
from taylorder.kernels.score_terms import shift_of
from taylorder.kernels.spec import Exact, Near, keeps_keys
from taylorder.selection.candidates import Candidate
from taylorder.selection.fitted_coefficients import HeadRows, Moments, fit, moments
from taylorder.selection.gradients import Observed
from taylorder.selection.rotations import balanced_rotations
from taylorder.storage.processes import gather, gathered, rank, spread

FIT_ROWS = 128
"""Query rows of each sequence that coefficients are fitted to, drawn at random."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the kernels need of one module's calibration, float32: centres ``[G, d]``, rotations, probe ``[G, F]``."""

    centres: Tensor
    rotations: tuple[Tensor, Tensor] | None
    probe: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LeverRow:
    """One candidate of one KV head, over all rows of all calibration sequences.

    ``candidate`` is its index in the list of candidates. ``relative_l2`` is of the outputs of the whole group,
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


def group_specs(
    candidates: Sequence[Candidate], fitted: Fitted, index: int, kv_head: int, group: int
) -> tuple[HeadSpec, ...]:
    """One spec for every query head of a KV head that runs the candidate of that index."""
    heads = range(kv_head * group, (kv_head + 1) * group)
    return tuple(candidates[index].head_spec(fitted[index][head] if index in fitted else None) for head in heads)


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
        self.terms = observed.terms  # of rows [H, T]
        if not observed.terms.plain:
            shift = shift_of(self.plain[0][None], prepared.centres.to(k.device), observed.scaling)[0]
            self.terms = observed.terms.map(Tensor.float).by_row(shift)
        self.priority = None  # [G, T]
        if prepared.probe is not None:
            self.priority = priorities(prepared.probe.to(k.device), observed.k[None], observed.v[None])[0]
        self.rotated = None
        if prepared.rotations is not None:
            query, key = (rotation.to(k.device) for rotation in prepared.rotations)
            self.rotated = observed.q.float() @ query.repeat_interleave(group, 0).mT, k @ key.mT

    def tensors(self, *, rotated: bool) -> tuple[Tensor, Tensor]:
        """Queries ``[H, T, d]`` and centred keys ``[G, T, d]``; their scores are the same, rotated or not."""
        if not rotated:
            return self.plain
        if self.rotated is None:
            raise ValueError("ranks need rotations, and none were calibrated")
        return self.rotated

    def run(self, kv_head: int, runs: Sequence[Sequence[HeadSpec]]) -> Iterator[tuple[int, Tensor, Sequence[int]]]:
        """Run the query heads of a KV head several times, each time with one spec for each of them.

        Yields, in whatever order is quickest, the index in ``runs``, the output ``[h, T, d_v]``, and the guarded rows
        of each query head. Near fields share a pass over the scores; all else runs through the kernels.
        """
        heads = self._heads(kv_head)
        fields = {index: field for index, specs in enumerate(runs) if (field := NearField.of(specs)) is not None}
        rest = [index for index in range(len(runs)) if index not in fields]
        for index, output in self._near_fields(kv_head, fields):
            if torch.isfinite(output).all():
                yield index, output, fields[index].guarded(output.shape[1])
            else:
                rest.append(index)
        for index in rest:
            specs = list(runs[index])
            q, k = self.tensors(rotated=any(spec.ranks is not None for spec in specs))
            keys, values = k[None, kv_head, None], self.observed.v[None, kv_head, None].float()
            priority = self.priorities(kv_head)[None, None] if keeps_keys(specs) else None
            terms = self.terms.at(heads)
            output, state = taylor_attention(
                q[None, heads], keys, values, specs, scaling=self.observed.scaling, priority=priority,
                sink_logits=self.observed.terms.at(heads).sink_logits, softcap=terms.softcap,
                shift=None if terms.shift is None else terms.shift[None],
            )  # fmt: skip
            if state is None:
                raise RuntimeError("taylor_attention returned no state for causal attention")
            yield index, output[0], state.guarded.tolist()

    def _near_fields(self, kv_head: int, fields: Mapping[int, NearField]) -> Iterator[tuple[int, Tensor]]:
        """Outputs ``[h, T, d_v]`` of near fields by their keys; those without kept keys first."""
        q, k = self.tensors(rotated=False)
        heads = self._heads(kv_head)
        inputs = q[heads], k[kv_head], self.observed.v[kv_head].float()
        options: dict[str, Any] = {"scaling": self.observed.scaling, "terms": self.terms.at(heads)}
        plain = [index for index, field in fields.items() if not field.near.kept]
        keeping = [index for index, field in fields.items() if field.near.kept]
        if plain:
            chosen = [fields[index] for index in plain]
            yield from zip(plain, attend_near_fields(*inputs, chosen, **options), strict=True)
        if keeping:
            chosen, ranking = [fields[index] for index in keeping], self.priorities(kv_head)
            yield from zip(keeping, attend_kept_fields(*inputs, ranking, chosen, **options), strict=True)

    def priorities(self, kv_head: int) -> Tensor:
        """Priorities of the keys of a KV head ``[T]``."""
        if self.priority is None:
            raise ValueError("kept keys need a probe, and none was fitted")
        return self.priority[kv_head]

    def far_rows(self, kv_head: int, near: Near) -> Tensor | None:
        """Row from which on each key is far, ``[T]``; None where none are kept."""
        return far_from(self.priorities(kv_head)[None, None], None, near)[0, 0] if near.kept else None

    def change(self, kv_head: int, output: Tensor) -> tuple[Tensor, float]:
        """What another output ``[h, T, d_v]`` of a KV head would change.

        ``gradient . change``, summed over the group, for each token, float64 ``[T]``, and the squared change.
        """
        heads = self._heads(kv_head)
        change = output - self.observed.output[heads]
        first_order = (change * self.observed.gradient[heads]).sum(-1, dtype=torch.float64).sum(0)
        return first_order, float(change.square().sum(dtype=torch.float64))

    def squared_output(self, kv_head: int) -> float:
        """Squared norm of the output of a KV head as it was observed."""
        return float(self.observed.output[self._heads(kv_head)].double().square().sum())

    def _heads(self, kv_head: int) -> slice:
        """The query heads of a KV head."""
        return slice(kv_head * self.group, (kv_head + 1) * self.group)


def prepare(sequences: Sequence[Observed], *, rotate: bool, probe: Tensor | None = None) -> Prepared:
    """Calibrate key centres and, if asked for, rotations on all sequences of one module; its probe is there already.

    ``sequences`` are those of this process.
    """
    q, k, v = (torch.stack([getattr(observed, name) for observed in sequences]).cpu() for name in "qkv")
    layer = LayerTensors(q, k, v, None, sequences[0].scaling, True)
    centres = key_centres(layer)
    if not rotate:
        return Prepared(centres.float(), None, probe)
    query, key = balanced_rotations(layer, centres)
    return Prepared(centres.float(), (query.float(), key.float()), probe)


def measure_levers(
    module: str,
    sequences: Sequence[Observed],
    candidates: Sequence[Candidate],
    instead: Sequence[Candidate | None],
    *,
    probe: Tensor | None = None,
    seed: int,
) -> LayerLevers:
    """Measure every candidate of every KV head of one module.

    Args:
        module: its name.
        sequences: what was observed of it with the model as it is, one for each sequence of this process, all of one
            length.
        candidates: what to measure.
        instead: what is measured beside each, where there is something: a near field of the same bytes.
        probe: what gives its keys priorities, ``[G, F]``; needed where a candidate keeps keys.
        seed: of the rows that coefficients are fitted to.

    """
    rotate = any(candidate.spec.ranks is not None for candidate in candidates)
    prepared = prepare(sequences, rotate=rotate, probe=probe)
    fitted = fit_coefficients(sequences, prepared, candidates, seed)
    T, G = sequences[0].q.shape[1], len(sequences[0].k)
    inexact = [index for index, candidate in enumerate(candidates) if not isinstance(candidate.spec.far, Exact)]
    windows = [(index, window) for index in inexact if (window := instead[index]) is not None]
    belongs_to = [(index, 0) for index in inexact] + [(index, 1) for index, _ in windows]

    def of_sequence(observed: Observed) -> _Sums:
        sums = _Sums.empty(len(candidates), G)
        runner = Runner(observed, prepared)
        for kv_head in range(G):
            sums.reference[kv_head] = runner.squared_output(kv_head)
            runs = [group_specs(candidates, fitted, index, kv_head, runner.group) for index in inexact]
            runs += [(window.spec,) * runner.group for _, window in windows]
            for run, output, hits in runner.run(kv_head, runs):
                index, is_window = belongs_to[run]
                first_order, change = runner.change(kv_head, output)
                sums.squared[index, kv_head, is_window] = change
                sums.weighted[index, kv_head, is_window] = float((first_order * (T - 1)).square().sum())
                if not is_window:
                    sums.guarded[index, kv_head] = max(hits, default=0)
        return sums

    of_sequences = gathered([of_sequence(observed) for observed in sequences])
    tokens, sums = len(of_sequences) * T, reduce(add, of_sequences)
    errors = relative(sums.squared, sums.reference[:, None])
    rows = []
    for kv_head in range(G):
        for index in range(len(candidates)):
            error, window_error = errors[index, kv_head].tolist()
            gradient_error, window_gradient_error = (sums.weighted[index, kv_head] / tokens).tolist()
            of_window = (window_error, window_gradient_error) if instead[index] is not None else (None, None)
            share = float(sums.guarded[index, kv_head]) / tokens
            rows.append(LeverRow(module, kv_head, index, error, gradient_error, share, *of_window))
    return LayerLevers(module, tuple(rows), fitted, prepared)


@dataclass(frozen=True, slots=True)
class _Sums:
    """Sums over the rows of a sequence, float64: squared changes and weighted ones ``[candidate, KV head, 2]``.

    The last index tells the candidate itself from the window that takes the same bytes. ``guarded`` are rows
    ``[candidate, KV head]``, ``reference`` is the squared output ``[KV head]``.
    """

    squared: Tensor
    weighted: Tensor
    guarded: Tensor
    reference: Tensor

    @classmethod
    def empty(cls, candidates: int, kv_heads: int) -> _Sums:
        zeros = partial(torch.zeros, dtype=torch.float64)
        both = candidates, kv_heads, 2
        return cls(zeros(both), zeros(both), zeros(candidates, kv_heads), zeros(kv_heads))

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


def fit_coefficients(
    sequences: Sequence[Observed], prepared: Prepared, candidates: Sequence[Candidate], seed: int
) -> Fitted:
    """Fit the coefficients of every query head for the candidates that ask for it, by index in the list."""
    wanted = {index: candidate.spec for index, candidate in enumerate(candidates) if candidate.fitted}
    if not wanted:
        return {}
    H, T = sequences[0].q.shape[:2]
    group = H // len(sequences[0].k)
    generator = torch.Generator().manual_seed(seed)
    counts = gather(len(sequences))
    drawn = [torch.randperm(T, generator=generator)[: min(FIT_ROWS, T)].sort().values for _ in range(sum(counts))]
    drawn = drawn[sum(counts[: rank()]) :]  # those of other processes' sequences are drawn too, but not used
    of_sequences: list[dict[tuple[int, int], Moments]] = []  # by candidate and query head
    for observed, rows in zip(sequences, drawn, strict=False):
        runner, found = Runner(observed, prepared), {}
        far_rows = {
            (kv_head, near): runner.far_rows(kv_head, near)
            for kv_head in range(len(observed.k))
            for near in {spec.near for spec in wanted.values()}
        }
        for head in range(H):
            shared = {}
            for index, spec in wanted.items():
                ranked = spec.ranks is not None
                if ranked not in shared:
                    q, k = runner.tensors(rotated=ranked)
                    keys, values = k[head // group], observed.v[head // group]
                    scaled = q[head, rows].double() * observed.scaling
                    terms = runner.terms.at((head, rows)).map(Tensor.double)
                    shared[ranked] = HeadRows(scaled, keys.double(), values.double(), rows, terms)
                found[index, head] = moments(shared[ranked], spec, far_rows[head // group, spec.near])
        of_sequences.append(found)
    everywhere = gathered(of_sequences)
    heads = [(index, head) for index in wanted for head in range(H)]
    fitted = list(spread(lambda one: fit([found[one] for found in everywhere]), heads))
    return {index: tuple(fitted[place * H : (place + 1) * H]) for place, index in enumerate(wanted)}
