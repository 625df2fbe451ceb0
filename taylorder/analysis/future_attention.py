"""The attention that keys receive from later queries: what a probe is fitted to, and what it is judged by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from taylorder.errors import UsageError
from taylorder.kernels.score_terms import PLAIN, ScoreTerms
from taylorder.kernels.spec import SINKS

LEAST_TOKENS = 16
"""Of a sequence: in fewer, no key has both a past and a future."""

FAIR_SHARES = 8
"""A key is in full use by a query that pays it this many times ``1 / keys seen``; what it gets beyond does not count.

Without the cap, one query that looks at nothing else makes a key as valuable as a hundred that look at it too.
"""

_RECENT, _TAIL = 64, 256
_LEAST_USE = 1e-8
_BLOCK = 2**20
"""Weights computed at once; some 4 MB stay near the processor."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Which keys of a sequence are looked at, and from where: keys ``first`` to ``stop - 1``, by later queries.

    ``recent`` is how far back a query's keys are still in any window: queries count from ``recent + 1`` tokens later.
    """

    first: int
    stop: int
    recent: int

    @classmethod
    def of(cls, length: int) -> Reach:
        """All keys but the sinks and the last 256, from 65 tokens later on; less in sequences shorter than 2,048.

        There the last eighth is left out, and queries count once they are more than a 32nd later.

        Raises:
            UsageError: the sequence is too short for any key to have a past and a future.

        """
        if length < LEAST_TOKENS:
            raise UsageError(
                f"a probe's sequences are of {length} tokens, expected at least {LEAST_TOKENS}; use more text, or a "
                "model with a longer context"
            )
        return cls(SINKS, length - min(_TAIL, length // 8), min(_RECENT, length // 32))

    @property
    def keys(self) -> slice:
        """The keys looked at."""
        return slice(self.first, self.stop)


def attention_blocks(
    q: Tensor, k: Tensor, scaling: float, rows: range, terms: ScoreTerms
) -> Iterator[tuple[int, Tensor]]:
    """Yield the causal attention of one KV head's queries, a block of rows at a time.

    Args:
        q: ``[group, T, d]``, the queries that share the KV head.
        k: ``[T, d]``.
        scaling: factor of the scores.
        rows: consecutive query positions.
        terms: of the heads ``[group]``.

    Yields:
        The first row of the block, and float32 ``[group, rows, keys]``: keys up to the last row of the block, zero
        after a row's own. The consumer may change it.

    """
    group, T, _ = q.shape
    size = max(1, _BLOCK // (group * T))
    of_rows = terms.at((..., None))
    for start in range(rows.start, rows.stop, size):
        stop = min(start + size, rows.stop)
        scores = scaling * q[:, start:stop].float() @ k[:stop].float().T
        later = torch.ones(stop - start, stop, dtype=torch.bool, device=k.device).triu_(start + 1)
        yield start, of_rows.softmax(of_rows.capped(scores).masked_fill_(later, -torch.inf))


def log_use(q: Tensor, k: Tensor, scaling: float, reach: Reach, terms: ScoreTerms = PLAIN) -> Tensor:
    """How often later queries use each key: ``log mean min(1, attention * keys seen / 8)``, for probes.

    The mean is over the query heads of the group and the queries that count (:class:`Reach`); keys seen are those up to
    the query, so ``attention * keys seen`` is 1 for a key that gets its fair share. Memory is that of a block of rows.

    Args:
        q: ``[H, T, d]``, any float dtype.
        k: ``[G, T, d]``.
        scaling: factor of the scores.
        reach: which keys.
        terms: of the heads ``[H]``; learned sinks take their part of the attention.

    Returns:
        Float32 ``[G, reach.stop - reach.first]``, of keys that nobody uses the log of 1e-8.

    """
    T = q.shape[1]
    means = []
    group = len(q) // len(k)
    for kv_head, keys in enumerate(k):
        heads = slice(kv_head * group, (kv_head + 1) * group)
        total = torch.zeros(T, device=k.device)
        for start, weights in attention_blocks(q[heads], keys, scaling, range(T), terms.at(heads)):
            rows, seen = weights.shape[1:]
            fair = torch.arange(start + 1, start + rows + 1, device=k.device)[:, None] / FAIR_SHARES
            total[:seen] += weights.mul_(fair).clamp_(max=1).tril_(start - reach.recent - 1).sum((0, 1))
        means.append(total[reach.keys] / group)
    later = torch.arange(T - 1 - reach.recent, 0, -1, device=k.device)[reach.keys]
    return (torch.stack(means) / later).clamp_(min=_LEAST_USE).log_()


def attention_by_part(q: Tensor, k: Tensor, scaling: float, parts: int, terms: ScoreTerms = PLAIN) -> Tensor:
    """Attention that every key receives from each of so many equal parts of the sequence.

    Args:
        q: ``[H, T, d]``, any float dtype.
        k: ``[G, T, d]``.
        scaling: factor of the scores.
        parts: how many; the last also takes what T leaves over.
        terms: of the heads ``[H]``.

    Returns:
        Float32 ``[parts, G, T]``, summed over the queries of the part and the query heads of the group: all of it is
        ``H * T``, or less by what learned sinks take.

    """
    T, group = q.shape[1], len(q) // len(k)
    received = torch.zeros(parts, len(k), T, device=k.device)
    for part in range(parts):
        rows = range(part * (T // parts), T if part == parts - 1 else (part + 1) * (T // parts))
        for kv_head, keys in enumerate(k):
            heads = slice(kv_head * group, (kv_head + 1) * group)
            for _, weights in attention_blocks(q[heads], keys, scaling, rows, terms.at(heads)):
                received[part, kv_head, : weights.shape[-1]] += weights.sum((0, 1))
    return received
