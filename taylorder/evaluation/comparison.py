"""Judge configs by what the model can still do: losses of every contender on the same sequences, against exact."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.handle import Handle, attach
from taylorder.adapt.prepared import PreparedConfig, prepare
from taylorder.analysis.losses import (
    EXACT,
    HiddenDistance,
    TokenLosses,
    has_language_model_head,
    hidden_distance,
    hidden_states,
    language_model_head,
    token_losses,
)
from taylorder.analysis.tokens import Tokens
from taylorder.errors import NonFiniteError
from taylorder.evaluation import rivals
from taylorder.evaluation.intervals import Interval, mean_interval, paired_difference
from taylorder.evaluation.rivals import Contender
from taylorder.kernels.spec import Exact, Taylor
from taylorder.models.description import ModelDescription
from taylorder.storage.progress import Progress, silent

BUCKET_EDGES = (0, 64, 256, 1024, 4096, 1 << 62)
"""Positions at which losses are reported separately: a state matters where the context is long."""

_INTERVALS = ("nll", "delta_exact", "delta_window", "config_less", "kl")


@dataclass(frozen=True, slots=True)
class Standing:
    """How one contender did at one length.

    ``nominal_bytes`` is per KV head that sees the whole context (None for encoders). ``nll`` and ``kl`` are means in
    nats per token with intervals over sequences, ``delta_exact`` and ``delta_window`` paired differences of ``nll``.
    Rivals of the config have ``config_less``, the paired difference of the config's figure (``nll``, or
    ``hidden_relative_l2``) to theirs: below zero it speaks for the config. ``buckets`` holds ``(first position, last
    position, nll)``. ``guarded_share`` is the share that needed the guard of the query rows with a truncated far part.
    Models without a language-model head have ``hidden_*`` instead. Where the contender could not be evaluated,
    ``failure`` says why and the figures are None.
    """

    name: str
    note: str
    nominal_bytes: int | None
    nll: Interval | None = None
    delta_exact: Interval | None = None
    delta_window: Interval | None = None
    config_less: Interval | None = None
    perplexity: float | None = None
    kl: Interval | None = None
    agreement: float | None = None
    buckets: tuple[tuple[int, int, float], ...] = ()
    guarded_share: float | None = None
    hidden_relative_l2: float | None = None
    hidden_cosine: float | None = None
    failure: str | None = None

    def record(self) -> dict[str, Any]:
        """Its fields as cells of a table: an interval is three, losses by position are left out."""
        cells: dict[str, Any] = {}
        for name in (field.name for field in fields(self) if field.name != "buckets"):
            value = getattr(self, name)
            cells[name] = value.estimate if isinstance(value, Interval) else value
            if name in _INTERVALS:
                low, high = (None, None) if value is None else (value.low, value.high)
                cells |= {f"{name}_low": low, f"{name}_high": high}
        return cells


@dataclass(frozen=True, slots=True)
class Comparison:
    """All contenders at one sequence length, exact first.

    ``bos`` is the token that every sequence begins with, None where the tokenizer puts none in front of a text;
    ``vocabulary`` the number of the model's tokens, None without a language-model head.
    """

    length: int
    sequences: int
    text_source: str
    text_sha256: str
    seed: int
    standings: tuple[Standing, ...]
    bos: int | None = None
    vocabulary: int | None = None

    def standing(self, name: str) -> Standing | None:
        """The standing of that name, if there is one."""
        return next((standing for standing in self.standings if standing.name == name), None)


def compare(
    model: Any,
    description: ModelDescription,
    sequences: Tensor,
    contenders: Sequence[Contender],
    *,
    tokens: Tokens,
    seed: int,
    progress: Progress = silent,
    seconds: float | None = None,
    judged: str = rivals.CONFIG,
) -> Comparison:
    """Run every contender over the same sequences ``[N, T]``: losses, or hidden states without a language-model head.

    The exact model comes first and need not be among the contenders. A contender that breaks down (overflow) is
    reported as failed, and the others go on. All contenders see the same sequences, fewer than N only if ``seconds``
    are over before the last; optional contenders are left out if they would cost a sequence. ``tokens`` are those that
    the sequences were cut from, and ``judged`` is the contender whose figures all others are compared with.

    Raises:
        ConfigError: a contender's config does not belong to the model.
        NonFiniteError: the exact model breaks down.
        UnsupportedModelError: the model's losses cannot be computed.

    """
    stage = stage_of(sequences.shape[1])
    head = language_model_head(model) if description.causal and has_language_model_head(model) else None
    results = {
        contender.name: _Result(contender) for contender in (Contender(EXACT, None, "the model as it is"), *contenders)
    }
    passes = len(sequences) * len(results)
    hidden: dict[str, Tensor] = {}
    began = time.monotonic()
    for done, sequence in enumerate(sequences):
        spent = time.monotonic() - began
        if seconds is not None and done and spent * (done + 1) > seconds * done:
            sequences = sequences[:done]
            progress(stage, passes, passes)
            break
        hidden = {}
        for turn, result in enumerate(results.values(), start=1):
            spent, before = time.monotonic() - began, spent
            if seconds is not None and not done and result.contender.config is not None:
                # An optional contender takes about as long as the one before it, for every sequence.
                needed = (2 * spent - before) * len(sequences) if result.contender.optional else spent
                if needed > seconds:
                    result.failure = result.failure or "left out, to save time"
            if result.failure is None:
                result.run(model, description, sequence, hidden)
            _refuse_broken(results[EXACT], description)
            progress(stage, done * len(results) + turn, passes)
        if head is None:
            for name, states in hidden.items():
                results[name].distances.append(hidden_distance(hidden[EXACT], states))
        else:
            for name, losses in token_losses(head, sequence, hidden).items():
                results[name].add_losses(losses)
        _refuse_broken(results[EXACT], description)
    standings = tuple(_standing(result, description, sequences, results, judged) for result in results.values())
    vocabulary = None if head is None else head(hidden[EXACT][:1]).shape[-1]
    text = tokens.text
    return Comparison(
        sequences.shape[1], len(sequences), text.source, text.sha256, seed, standings, tokens.bos, vocabulary
    )


def stage_of(length: int) -> str:
    """The stage, as progress is told."""
    return f"runs of {length:,} tokens"


def losses_of_states(
    model: Any, head: Callable[[Tensor], Tensor], sequence: Tensor, states: Mapping[str, OrderConfig | PreparedConfig]
) -> dict[str, TokenLosses]:
    """Losses of one sequence ``[T]`` for the exact model (``"exact"``) and for every config by its name.

    Configs under which the model overflows are missing. ``head`` is that of
    :func:`~taylorder.analysis.losses.language_model_head`.
    """
    hidden = {EXACT: hidden_states(model, sequence)}
    for name, config in states.items():
        try:
            with attach(model, config):
                final = hidden_states(model, sequence)
        except NonFiniteError:
            continue
        if torch.isfinite(final).all():
            hidden[name] = final
    losses = token_losses(head, sequence, hidden)
    return {name: tokens for name, tokens in losses.items() if _finite(tokens)}


class _Result:
    """What one contender gave so far."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.failure = contender.absent or None
        self.losses: list[TokenLosses] = []
        self.distances: list[HiddenDistance] = []
        self.guarded_rows = 0
        self.prepared: PreparedConfig | None = None

    def run(self, model: Any, description: ModelDescription, sequence: Tensor, hidden: dict[str, Tensor]) -> None:
        """Add the contender's final hidden states to ``hidden``, unless they overflow."""
        contender = self.contender
        if contender.config is None and EXACT in hidden:
            hidden[contender.name] = hidden[EXACT]
            return
        try:
            with self._running(model, description) as handle:
                states = hidden_states(model, sequence)
        except NonFiniteError as error:
            self.failure = str(error)
            return
        if not torch.isfinite(states).all():
            self.failure = "its final hidden states hold NaN or infinite values"
            return
        hidden[contender.name] = states
        if handle is not None:
            self.guarded_rows += sum(int(rows.sum()) for rows in handle.counts.guarded_rows.values())

    def _running(self, model: Any, description: ModelDescription) -> AbstractContextManager[Handle | None]:
        if self.contender.config is None:
            return nullcontext()
        self.prepared = self.prepared or prepare(model, self.contender.config, description)
        return attach(model, self.prepared, guard=self.contender.guard)

    def add_losses(self, losses: TokenLosses) -> None:
        """Keep one sequence's losses, unless logits overflowed."""
        if _finite(losses):
            self.losses.append(losses)
        else:
            self.failure = "its logits overflow"

    @property
    def per_sequence(self) -> np.ndarray:
        """Mean NLL of every sequence, or the relative L2 of its final hidden states, float64 ``[N]``."""
        if self.distances:
            return np.array([distance.relative_l2 for distance in self.distances])
        return _means([losses.nll for losses in self.losses])


def _finite(losses: TokenLosses) -> bool:
    return bool(np.isfinite(losses.nll).all() and np.isfinite(losses.kl).all())


def _refuse_broken(exact: _Result, model: ModelDescription) -> None:
    if exact.failure is not None:
        raise NonFiniteError(
            f"{model.name} breaks down without any config ({exact.failure}): check its weights, or run it in float32"
        )


def _standing(
    result: _Result, model: ModelDescription, sequences: Tensor, results: Mapping[str, _Result], judged: str
) -> Standing:
    contender, length, exact = result.contender, sequences.shape[1], results[EXACT]
    size = rivals.bytes_per_kv_head(contender.config, model, length) if model.causal else None
    if result.failure is not None:
        size = None if contender.absent else size
        return Standing(contender.name, contender.note, size, failure=result.failure)
    standing = Standing(
        name=contender.name,
        note=_note(contender, length),
        nominal_bytes=size,
        config_less=None if result is exact else _difference(results.get(judged), result),
        guarded_share=None if contender.config is None else _guarded_share(result, model, sequences),
    )
    if result.distances:
        return replace(
            standing,
            hidden_relative_l2=float(np.mean([distance.relative_l2 for distance in result.distances])),
            hidden_cosine=float(np.mean([distance.cosine for distance in result.distances])),
        )
    nll = result.per_sequence
    together = np.stack([losses.nll for losses in result.losses])
    buckets = []
    for low, high in pairwise(BUCKET_EDGES):
        stretch = together[:, low:high]
        if stretch.size:
            buckets.append((low, low + stretch.shape[1] - 1, float(stretch.mean(dtype=np.float64))))
    perplexity = math.exp(nll.mean()) if nll.mean() < 700 else math.inf
    standing = replace(standing, nll=mean_interval(nll), perplexity=perplexity, buckets=tuple(buckets))
    if result is exact:
        return standing
    return replace(
        standing,
        delta_exact=_difference(result, exact),
        delta_window=_difference(result, results.get(rivals.WINDOW)),
        kl=mean_interval(_means([losses.kl for losses in result.losses])),
        agreement=float(_means([losses.agrees for losses in result.losses]).mean()),
    )


def _difference(one: _Result | None, other: _Result | None) -> Interval | None:
    """Paired by sequence; None unless there are two and both ran."""
    if one is None or other is None or one is other or one.failure is not None or other.failure is not None:
        return None
    return paired_difference(one.per_sequence, other.per_sequence)


def _note(contender: Contender, length: int) -> str:
    """The contender's note, with a warning where its near fields leave nothing to truncate or to drop."""
    layers = () if contender.config is None else contender.config.layers
    near = [head.spec.near.tokens for layer in layers for head in layer.heads if not isinstance(head.spec.far, Exact)]
    if not near or min(near) < length:
        return contender.note
    all_near = f"its near fields hold all {length:,} tokens, so that it runs as exact at this length"
    return f"{contender.note}; {all_near}" if contender.note else all_near


def _guarded_share(result: _Result, model: ModelDescription, sequences: Tensor) -> float | None:
    """Of the query rows that have far keys, in heads that truncate them; None if there are none."""
    layers = () if result.contender.config is None else result.contender.config.layers
    count, length = sequences.shape
    specs = [head.spec for layer in layers for head in layer.heads if isinstance(head.spec.far, Taylor)]
    rows = sum(count * max(0, length - spec.near.tokens) for spec in specs)
    return result.guarded_rows / rows if rows else None


def _means(rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([row.mean(dtype=np.float64) for row in rows])
