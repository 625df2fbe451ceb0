"""A block of query rows against everything they may attend to: the state, the tokens not in it yet, and the sinks.

``out = (e^-M sum_near e^s v + e^(mu-M) sum_far w v) / (the same with v = 1)``, the far sum partly read from the state
and partly evaluated in score space with the same polynomial.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Optional

import torch
from torch import Tensor

from .polynomial import Polynomials, partial_scores
from .score_terms import PLAIN, ScoreTerms
from .spec import GUARD
from .state_products import Chunk, read

_BLOCK_ROWS = 128
"""Rows treated together in score space: few, because a block computes scores above the diagonal in vain."""


@dataclass(frozen=True)
class Unfolded:
    """Tokens not folded into the state, of N KV heads.

    Attributes:
        keys: ``[N, L, d]``; those that must not count are zero.
        values: ``[N, L, d_v]``, the same.
        keep: bool ``[N, L]``, False for those; None if all count.

    """

    keys: Tensor
    values: Tensor
    keep: Optional[Tensor]

    @staticmethod
    def build(
        keys: Tensor, values: Tensor, keep: Optional[Tensor], dtype: torch.dtype, origin: Optional[Tensor] = None
    ) -> Unfolded:
        """From keys ``[b, G, L, d]``, values ``[b, G, L, d_v]``, keep ``[b, L]``; N = b G; origin as in ``Memory``.

        Keys and values that must not count are zero already.
        """
        G = keys.shape[1]
        keys, values = keys.flatten(0, 1).to(dtype), values.flatten(0, 1).to(dtype)
        keep = None if keep is None else keep.repeat_interleave(G, 0)
        if origin is not None:
            keys = keys - origin[:, None]
            keys = keys if keep is None else keys.masked_fill_(~keep[..., None], 0.0)
        return Unfolded(keys, values, keep)

    def counted(self) -> Tensor:
        """How many count: ``[N]``."""
        if self.keep is None:
            return self.keys.new_full((self.keys.shape[0],), float(self.keys.shape[1]))
        return self.keep.sum(-1).to(self.keys.dtype)


@dataclass(frozen=True)
class Memory:
    """Folded tokens of N KV heads.

    Attributes:
        features: ``[N, D, d_v]``.
        sums: ``[N, D]``.
        chunk: room to compute in.
        origin: ``[N, d]``, what is subtracted from every key, or None. Weights around the mean do not change when all
            scores of a row move together, but powers around zero cancel less when keys are near the origin.

    """

    features: Tensor
    sums: Tensor
    chunk: Chunk
    origin: Optional[Tensor] = None


@dataclass(frozen=True)
class Sinks:
    """Sinks of N KV heads: keys ``[N, s, d]``, values ``[N, s, d_v]``, ``visible`` bool ``[N, C, s]`` (None: all)."""

    keys: Tensor
    values: Tensor
    visible: Optional[Tensor]


@dataclass(frozen=True)
class Sums:
    """Numerator ``[N, g, C, d_v]``, denominator ``[N, g, C]`` and, where the guard took effect, True ``[N, g, C]``."""

    numerator: Tensor
    denominator: Tensor
    guarded: Tensor


class Sight(ABC):
    """Which of L tokens C rows see, and which of those are near and far."""

    rows: int

    @abstractmethod
    def blocks(self) -> Iterator[tuple[slice, Sight]]:
        """Rows a few at a time, each with what they see."""

    @property
    @abstractmethod
    def far(self) -> int:
        """How many of the first tokens are far for at least one row."""

    @property
    @abstractmethod
    def near(self) -> slice:
        """Tokens that are near for at least one row."""

    @abstractmethod
    def far_sums(self, per_token: Tensor) -> Tensor:
        """Sum ``[N, L, *]`` over each row's far tokens: ``[N, C, *]``."""

    @abstractmethod
    def far_counts(self, tokens: Unfolded) -> Tensor:
        """How many tokens are far from each row, ``[N, 1, C]``."""

    @abstractmethod
    def silence_near(self, weights: Tensor) -> None:
        """Set the weights ``[N, g, C, far]`` of tokens that are not far to zero."""

    @abstractmethod
    def hide_far(self, scores: Tensor) -> None:
        """Set the scores ``[N, g, C, near]`` of tokens that are not near to minus infinity."""


@dataclass(frozen=True)
class Extent(Sight):
    """By position: row r is token ``L - C + r``; it sees everything if attention is bidirectional.

    Its far field is tokens ``<= L - C + r - window``, its window those after that up to itself.
    """

    rows: int
    tokens: int
    window: int
    causal: bool

    def blocks(self) -> Iterator[tuple[slice, Sight]]:
        size = _BLOCK_ROWS if self.causal else self.rows
        for start in range(0, self.rows, size):
            stop = min(start + size, self.rows)
            tokens = self.tokens - self.rows + stop if self.causal else self.tokens
            yield slice(start, stop), Extent(stop - start, tokens, self.window, self.causal)

    @property
    def far(self) -> int:
        return max(0, self.tokens - self.window)

    @property
    def near(self) -> slice:
        first = max(0, self.tokens - self.rows - self.window + 1) if self.window else self.tokens
        return slice(first, self.tokens)

    @property
    def diagonal(self) -> int:
        """Far tokens of row 0, minus one; negative if it has none."""
        return self.tokens - self.rows - self.window

    def far_sums(self, per_token: Tensor) -> Tensor:
        if not self.causal:
            return per_token.sum(1, keepdim=True).expand(-1, self.rows, -1)
        before = max(0, min(self.diagonal, self.far))
        running = per_token[:, before : self.far].cumsum(1)
        if before:
            running = running + per_token[:, :before].sum(1, keepdim=True)
        missing = self.rows - running.shape[1]
        if missing > 0:  # rows so early that nothing is far
            running = torch.cat([running.new_zeros(running.shape[0], missing, running.shape[2]), running], 1)
        return running[:, -self.rows :]

    def far_counts(self, tokens: Unfolded) -> Tensor:
        if tokens.keep is not None:
            return self.far_sums(tokens.keep[..., None].to(tokens.keys.dtype)).transpose(1, 2)
        N, L, _ = tokens.keys.shape
        if not self.causal:
            return tokens.keys.new_full((N, 1, self.rows), float(L))
        first = self.diagonal + 1
        count = torch.arange(first, first + self.rows, device=tokens.keys.device).clamp_(min=0)
        return count.to(tokens.keys.dtype).expand(N, 1, -1)

    def silence_near(self, weights: Tensor) -> None:
        if self.causal and self.rows > 1:
            # Only the last columns have a diagonal in them.
            before = max(0, min(self.diagonal + 1, self.far))
            corner = weights[..., before:]
            # A product, because filling under a mask takes ten times as long; weights are finite where keys are.
            corner.mul_(_below(self.rows, corner.shape[-1], self.diagonal - before, corner.dtype, corner.device))

    def hide_far(self, scores: Tensor) -> None:
        if self.rows > 1 and self.window:
            column = self.tokens - self.rows - self.near.start  # column of row 0's own token
            scores.add_(_window_bias(self.rows, scores.shape[-1], column, self.window, scores.dtype, scores.device))


@dataclass(frozen=True)
class Chosen(Sight):
    """Token by token, for rows few enough to be treated together.

    Attributes:
        nears: bool ``[N, C, L]``, tokens that are near.
        fars: 1 for those that are far, of the dtype to compute in, 0 for others.

    """

    nears: Tensor
    fars: Tensor

    @property
    def rows(self) -> int:  # type: ignore[override]
        return self.nears.shape[1]

    def blocks(self) -> Iterator[tuple[slice, Sight]]:
        yield slice(0, self.rows), self

    @property
    def far(self) -> int:
        return self.fars.shape[-1]

    @property
    def near(self) -> slice:
        return slice(0, self.nears.shape[-1])

    def far_sums(self, per_token: Tensor) -> Tensor:
        return self.fars @ per_token

    def far_counts(self, tokens: Unfolded) -> Tensor:
        return self.fars.sum(-1)[:, None]

    def silence_near(self, weights: Tensor) -> None:
        weights.mul_(self.fars[:, None])

    def hide_far(self, scores: Tensor) -> None:
        scores.masked_fill_(~self.nears[:, None], -math.inf)


def attend(
    queries: Tensor,
    tokens: Unfolded,
    memory: Optional[Memory],
    sinks: Optional[Sinks],
    polynomials: Polynomials,
    sight: Sight,
    terms: ScoreTerms = PLAIN,
) -> Sums:
    """Attend; ``queries`` ``[N, g, C, d]`` are scaled and of the dtype to compute in.

    ``terms`` are those of rows ``[N, g, C]``.
    """
    count = sight.far_counts(tokens)
    if memory is not None:
        count = count + memory.sums[:, None, :1]
    means, point = _expansion(queries, tokens, memory, polynomials, sight, count)
    numerator, denominator = _from_memory(queries, tokens, memory, polynomials, means)
    for rows, block in sight.blocks():
        if block.far:
            part = None if means is None else [mean[:, :, rows] for mean in means]
            _add_far(
                queries[:, :, rows], tokens, polynomials, block, part, numerator[:, :, rows], denominator[:, :, rows]
            )
    guarded = (denominator <= GUARD * count) & (count > 0)
    if polynomials.drops_far is not None:
        guarded &= ~polynomials.drops_far
    if bool(guarded.any()):
        plain = sight.far_sums(tokens.values)
        if memory is not None:
            plain = plain + memory.features[:, :1]
        numerator = torch.where(guarded[..., None], plain[:, None], numerator)
        denominator = torch.where(guarded, count.expand_as(denominator), denominator)
    if sight.near.stop > sight.near.start or sinks is not None or not terms.plain:
        point = torch.where(count > 0, point, -math.inf)
        if polynomials.drops_far is not None:
            point = point.masked_fill(polynomials.drops_far, -math.inf)
        point = point.expand_as(denominator)
        for rows, block in sight.blocks():
            visible = None if sinks is None or sinks.visible is None else sinks.visible[:, rows]
            block_sinks = None if sinks is None else Sinks(sinks.keys, sinks.values, visible)
            _add_near(
                queries[:, :, rows],
                tokens,
                block_sinks,
                block,
                terms.at((..., rows)),
                point[:, :, rows],
                numerator[:, :, rows],
                denominator[:, :, rows],
            )
    return Sums(numerator, denominator, guarded)


def _expansion(
    queries: Tensor,
    tokens: Unfolded,
    memory: Optional[Memory],
    polynomials: Polynomials,
    sight: Sight,
    count: Tensor,
) -> tuple[Optional[list[Tensor]], Tensor]:
    """Means of each degree's scores, ``[N, g, C]`` each (None if zero is expanded around), and the expansion point."""
    if polynomials.around_mean is None:
        return None, queries.new_zeros(1)
    d = queries.shape[-1]
    centre = sight.far_sums(tokens.keys)
    if memory is not None:
        centre = centre + memory.sums[:, None, 1 : d + 1]
    centre = centre / count.transpose(1, 2).clamp(min=1.0)
    terms = queries * centre[:, None]
    by_rank: dict[int, Tensor] = {}
    for rank in {d, *polynomials.ranks[1:]}:
        by_rank[rank] = terms[..., :rank].sum(-1) * polynomials.around_mean
    return [by_rank[d], *(by_rank[rank] for rank in polynomials.ranks[1:])], by_rank[d]


def _from_memory(
    queries: Tensor,
    tokens: Unfolded,
    memory: Optional[Memory],
    polynomials: Polynomials,
    means: Optional[Sequence[Tensor]],
) -> tuple[Tensor, Tensor]:
    """What the folded tokens contribute: numerators ``[N, g, C, d_v]`` and denominators ``[N, g, C]``."""
    N, g, C, d = queries.shape
    d_v = tokens.values.shape[-1]
    if memory is None:
        return queries.new_zeros(N, g, C, d_v), queries.new_zeros(N, g, C)
    columns = queries.permute(0, 3, 1, 2).reshape(N, d, g * C)
    coefficients = [
        b.permute(0, 3, 1, 2).expand(-1, -1, -1, C).reshape(N, b.shape[-1], g * C)
        for b in polynomials.state_coefficients(means)
    ]
    numerator, denominator = read(memory.chunk, columns, coefficients, memory.features, memory.sums, polynomials.ranks)
    return numerator.view(N, g, C, d_v), denominator.view(N, g, C)


def _add_far(
    queries: Tensor,
    tokens: Unfolded,
    polynomials: Polynomials,
    sight: Sight,
    means: Optional[Sequence[Tensor]],
    numerator: Tensor,
    denominator: Tensor,
) -> None:
    """Add the far tokens that are not folded, in score space."""
    N, g, C, _ = queries.shape
    weights = polynomials.weights(queries, tokens.keys[:, : sight.far], means)
    sight.silence_near(weights)
    if tokens.keep is not None:
        weights.mul_(tokens.keep[:, None, None, : sight.far])
    values = tokens.values[:, : sight.far]
    if g == 1:
        numerator[:, 0].baddbmm_(weights[:, 0], values)
    else:
        numerator += torch.bmm(weights.view(N, g * C, -1), values).view(N, g, C, -1)
    denominator += weights.sum(-1)


def _add_near(
    queries: Tensor,
    tokens: Unfolded,
    sinks: Optional[Sinks],
    sight: Sight,
    terms: ScoreTerms,
    point: Tensor,
    numerator: Tensor,
    denominator: Tensor,
) -> None:
    """Bring the far sums to the common scale ``e^-M`` and add the true exponentials of window, sinks, learned sinks."""
    N, g, C, _ = queries.shape
    seen = sight.near
    scores = terms.capped(partial_scores(queries, tokens.keys[:, seen]))
    sight.hide_far(scores)
    if tokens.keep is not None:
        scores.masked_fill_(~tokens.keep[:, None, None, seen], -math.inf)
    values = tokens.values[:, seen]
    if sinks is not None:
        sink_scores = terms.capped(partial_scores(queries, sinks.keys))
        if sinks.visible is not None:
            sink_scores.masked_fill_(~sinks.visible[:, None], -math.inf)
        scores, values = torch.cat([sink_scores, scores], -1), torch.cat([sinks.values, values], 1)
    top = torch.maximum(scores.amax(-1), point) if scores.shape[-1] else point
    learned = terms.sinks
    if learned is not None:
        top = torch.maximum(top, learned)
    top = torch.where(top == -math.inf, 0.0, top)  # a row without any key: its sums are empty
    weights = scores.sub_(top[..., None]).exp_()
    scale = (point - top).exp_()
    near = torch.bmm(weights.view(N, g * C, -1), values).view(N, g, C, -1)
    numerator.mul_(scale[..., None]).add_(near)
    denominator.mul_(scale).add_(weights.sum(-1))
    if learned is not None:
        denominator += (learned - top).exp_()


@lru_cache(maxsize=32)
def _below(rows: int, columns: int, diagonal: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[rows, columns]``: 1 up to a diagonal, 0 above it."""
    return torch.ones(rows, columns, dtype=dtype, device=device).tril_(diagonal)


@lru_cache(maxsize=32)
def _window_bias(rows: int, columns: int, first: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[rows, columns]``: 0 on the ``window`` columns that end at column ``first + row``, minus infinity elsewhere."""
    inside = torch.ones(rows, columns, dtype=torch.bool, device=device).tril_(first).triu_(first - window + 1)
    return torch.zeros(rows, columns, dtype=dtype, device=device).masked_fill_(~inside, -math.inf)
