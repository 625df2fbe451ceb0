"""How well probes tell which keys will be used, on text that they were not fitted to, beside H2O and an oracle."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from taylorder.adapt.probe import priorities
from taylorder.analysis.capture import LayerTensors, run_layers
from taylorder.analysis.future_attention import Reach, attention_by_part
from taylorder.models.description import ModelDescription
from taylorder.selection.probes import Probes, digest
from taylorder.storage.frames import frame_of
from taylorder.storage.progress import Progress, silent
from taylorder.storage.records import Records

if TYPE_CHECKING:
    from pandas import DataFrame

STAGE = "probes held out"

PARTS = 8
"""A sequence is cut into so many parts, and keys are ranked at the end of each but the last."""

KEPT_SHARE = 1 / 8
"""Of the keys of a prefix, those that are kept."""


@dataclass(frozen=True, slots=True)
class ProbeRow:
    """How well the probe of one KV head ranks keys: a row of ``probes.csv``.

    Keys are ranked at seven prefixes of every held-out sequence, an eighth of it apart; candidates are the keys of the
    prefix but the sinks and the last 64 (:class:`~taylorder.analysis.future_attention.Reach`). What counts is the
    attention that they receive from all queries after the prefix, summed over the query heads of the group. Figures are
    means over prefixes and sequences.

    Attributes:
        module: qualified name.
        kv_head: number within the module.
        rank_correlation: Spearman's, of priority and attention received after the prefix, -1 to 1; None where all
            priorities are equal.
        kept_share: share of that attention that goes to the eighth of the keys of highest priority, 0 to 1.
        h2o_share: the same for the keys that received most attention before the end of the prefix (H2O,
            arXiv 2306.14048).
        oracle_share: the same for the keys that receive most after it: the most that any choice can keep.
        tokens: held-out tokens that this was measured on.

    """

    module: str
    kv_head: int
    rank_correlation: float | None
    kept_share: float
    h2o_share: float
    oracle_share: float
    tokens: int


@dataclass(frozen=True)
class ProbeReport:
    """The rows of all KV heads that have a probe, in the order of the model."""

    rows: tuple[ProbeRow, ...]

    @property
    def rank_correlation(self) -> float | None:
        """That of the median KV head; None where none has any."""
        ranks = [row.rank_correlation for row in self.rows if row.rank_correlation is not None]
        return float(np.median(ranks)) if ranks else None

    def mean(self, share: str) -> float:
        """The mean over KV heads of one of the shares of :class:`ProbeRow`, by its name."""
        return float(np.mean([getattr(row, share) for row in self.rows]))

    def __repr__(self) -> str:
        """One line; ``rows`` has the figures."""
        return f"<ProbeReport of {len(self.rows)} KV heads: {self.mean('kept_share'):.0%} of future attention kept>"

    def to_frame(self) -> DataFrame:
        """One row per KV head."""
        return frame_of(ProbeRow, self.rows)


@dataclass(frozen=True, slots=True)
class Prefix:
    """The candidates of one prefix of a sequence: attention received before its end and after it, ``[G, N]``."""

    keys: slice
    past: Tensor
    future: Tensor

    def kept(self, ranking: Tensor, share: float = KEPT_SHARE) -> Tensor:
        """Share of the future attention that goes to the highest of a ranking ``[G, N]``: float64 ``[G]``.

        Their number is that share of all candidates, rounded up. Where there is no such attention, nothing is lost: 1.
        """
        future = self.future.double()
        best = ranking.topk(math.ceil(share * ranking.shape[-1])).indices
        total = future.sum(-1)
        return torch.where(total > 0, future.gather(-1, best).sum(-1) / total, 1.0)


def prefixes(received: Tensor, reach: Reach) -> Iterator[Prefix]:
    """Cut what keys receive by part ``[parts, G, T]`` into prefixes: all parts but the last that leave candidates."""
    parts, _, T = received.shape
    for part in range(1, parts):
        stop = part * (T // parts) - reach.recent
        if stop - reach.first >= 2:
            keys = slice(reach.first, stop)
            yield Prefix(keys, received[:part, :, keys].sum(0), received[part:, :, keys].sum(0))


def report_probes(
    model: Any,
    description: ModelDescription,
    probes: Probes,
    sequences: Tensor,
    *,
    records: Records,
    progress: Progress = silent,
) -> ProbeReport:
    """Rank the keys of sequences ``[N, T]`` that the probes were not fitted to; those in ``records`` are not run again.

    Args:
        model: a causal transformers model.
        description: what ``describe`` says of it.
        probes: fitted to other sequences.
        sequences: :func:`~taylorder.selection.probes.probe_sequences` has some.
        records: keeps the figures of each sequence.
        progress: called with the stage, the sequences done, and how many there are.

    Raises:
        UsageError: the sequences are too short.
        NonFiniteError: the model breaks down.

    """
    names = [f"probes-held-out-{digest(sequence, *probes.weights.values())}" for sequence in sequences]
    records.finish(
        names,
        lambda place: [asdict(row) for row in _judge_sequence(model, description, probes, sequences[place])],
        records.put,
        partial(progress, STAGE),
    )
    judged = [[ProbeRow(**row) for row in records.get(name)] for name in names]
    return ProbeReport(tuple(_mean(rows) for rows in zip(*judged, strict=True)))


def _judge_sequence(model: Any, description: ModelDescription, probes: Probes, sequence: Tensor) -> list[ProbeRow]:
    """The rows of one sequence ``[T]``."""
    reach = Reach.of(len(sequence))
    rows: list[ProbeRow] = []

    def consume(name: str, layer: LayerTensors) -> None:
        if name in probes.weights:
            priority = priorities(probes.weights[name], layer.k, layer.v)[0]
            received = attention_by_part(layer.q[0], layer.k[0], layer.scaling, PARTS, layer.terms)
            rows.extend(judge_module(name, priority, received, reach))

    run_layers(model, sequence[None], consume)
    return rows


def judge_module(name: str, priority: Tensor, received: Tensor, reach: Reach) -> list[ProbeRow]:
    """The rows of one module on one sequence.

    Args:
        name: of the module.
        priority: ``[G, T]``.
        received: what :func:`~taylorder.analysis.future_attention.attention_by_part` gives, ``[parts, G, T]``.
        reach: which keys are candidates.

    """
    cut = list(prefixes(received, reach))
    ranks = np.mean([rank_correlations(priority[:, prefix.keys], prefix.future) for prefix in cut], 0)
    kept = np.mean([prefix.kept(priority[:, prefix.keys]) for prefix in cut], 0)
    h2o = np.mean([prefix.kept(prefix.past) for prefix in cut], 0)
    oracle = np.mean([prefix.kept(prefix.future) for prefix in cut], 0)
    return [
        ProbeRow(
            module=name,
            kv_head=kv_head,
            rank_correlation=None if np.isnan(ranks[kv_head]) else float(ranks[kv_head]),
            kept_share=float(kept[kv_head]),
            h2o_share=float(h2o[kv_head]),
            oracle_share=float(oracle[kv_head]),
            tokens=priority.shape[-1],
        )
        for kv_head in range(len(priority))
    ]


def rank_correlations(ranking: Tensor, other: Tensor) -> Tensor:
    """Spearman's rank correlation of ``[G, N]`` and ``[G, N]``: float64 ``[G]``, NaN where either is constant."""
    centred = []
    for values in (ranking, other):
        ranks = torch.from_numpy(stats.rankdata(values.numpy(), axis=-1))
        centred.append(ranks - ranks.mean(-1, keepdim=True))
    correlation: Tensor = (centred[0] * centred[1]).sum(-1) / (centred[0].norm(dim=-1) * centred[1].norm(dim=-1))
    return correlation


def _mean(rows: Sequence[ProbeRow]) -> ProbeRow:
    """One KV head over all sequences."""

    def mean(figure: str) -> float:
        return float(np.mean([getattr(row, figure) for row in rows]))

    ranks = [row.rank_correlation for row in rows if row.rank_correlation is not None]
    return replace(
        rows[0],
        rank_correlation=float(np.mean(ranks)) if ranks else None,
        kept_share=mean("kept_share"),
        h2o_share=mean("h2o_share"),
        oracle_share=mean("oracle_share"),
        tokens=sum(row.tokens for row in rows),
    )
