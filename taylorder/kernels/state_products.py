"""Folding keys into a state and reading queries from it, without ever holding ``tokens x features``.

The state of a KV head is ``sum_j m phi(k_j) [v_j, 1]``, m the multiplicity of each feature, so that
``phi(q) . state = sum_p B_p sum_j (q.k_j)^p [v_j, 1]`` with whatever coefficients ``B_p`` the query chooses. A chunk's
features are held feature-major ``[N, D_p, C]``, and for the low degrees only. The degree above those is made in tiles
that stay in cache or, where tables are long, not at all: features with largest coordinate i are ``x_i`` times a prefix
of the table below, so one product per i with that prefix, scaled, does. Still higher degrees nest the same step.

Values and ones are kept apart because products of width d_v are markedly faster than of width d_v + 1; the ones' column
of degree p is read as a quadratic form between degree p - 1 and the coordinates instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Optional

import torch
from torch import Tensor

from .tables import FeatureTable, count, monomials

_CHUNK_BYTES = 5 << 19
"""Most bytes of one degree's features of one chunk that are held at once."""

_TILE_BYTES = 1 << 20
"""Bytes of features made, used in one product and overwritten: they never leave the second-level cache."""

_PREFIX = 128
"""Features per largest coordinate from which a product per coordinate beats making the features first."""

_GATHER_BELOW = 64
"""Columns below which features are gathered by index; above, one multiplication per largest coordinate is faster."""

_Tile = tuple[slice, Tensor, list[tuple[Tensor, Tensor, Tensor]]]


class Chunk:
    """The features of one chunk of queries or keys. Kept and loaded again, so that memory and views are made once.

    Attributes:
        columns: ``[N, d, C]``, the coordinates.
        weighted: ``[N, d, C]``, coordinates times coefficients: where reading takes a feature's last factor from.

    """

    def __init__(self, table: FeatureTable) -> None:
        self.table = table
        self.columns = torch.empty(0)
        self.weighted = torch.empty(0)
        self._held: dict[int, Tensor] = {}
        self._tiles: dict[tuple[int, int, bool], list[_Tile]] = {}

    def load(self, columns: Tensor) -> None:
        """Take new coordinates ``[N, d, C]``."""
        if columns.shape[0] * columns.shape[2] < _GATHER_BELOW:
            self.columns = columns
        elif self.columns.shape == columns.shape:
            self.columns.copy_(columns)
        else:
            # Never the caller's memory: the next load overwrites it.
            self.columns = columns.clone(memory_format=torch.contiguous_format)
            self.weighted = torch.empty_like(self.columns)
            self._tiles.clear()
        self._held = {1: self.columns}

    def weigh(self, coefficients: Tensor, rank: int) -> Tensor:
        """Return ``weighted`` for the first ``rank`` coordinates; coefficients ``[N, 1 or rank, C or 1]``."""
        if self._gathers:
            self.weighted = self.columns[:, :rank] * coefficients
            return self.weighted
        return torch.mul(self.columns[:, :rank], coefficients, out=self.weighted[:, :rank])

    def held(self, order: int) -> int:
        """Highest degree whose features are held whole, because the next degree is made of them."""
        top = 1
        for degree in range(2, order - 1):
            if count(degree, self.table.ranks[degree]) * self._width > _CHUNK_BYTES:
                break
            top = degree
        return top

    def in_tiles(self, degree: int, rank: int) -> bool:
        """Whether the degree above the held ones is worth making, tile by tile."""
        features = count(degree, rank)
        return features < rank * _PREFIX or (self._gathers and features * self._width <= _CHUNK_BYTES)

    def plain(self, degree: int) -> Tensor:
        """All features ``[N, D_p, C]`` of a degree; the degree below must have been asked for."""
        if degree not in self._held:
            ((_, features),) = self.tiles(degree, self.table.ranks[degree], weighted=False, whole=True)
            self._held[degree] = features
        return self._held[degree]

    @property
    def _gathers(self) -> bool:
        return self.columns.shape[0] * self.columns.shape[2] < _GATHER_BELOW

    @property
    def _width(self) -> int:
        """Bytes of one feature of the chunk."""
        return self.columns.shape[0] * self.columns.shape[2] * self.columns.element_size()

    def tiles(self, degree: int, rank: int, *, weighted: bool, whole: bool = False) -> Iterator[tuple[slice, Tensor]]:
        """Features of a degree over the first ``rank`` coordinates, as consecutive pieces ``[N, *, C]`` to use at once.

        With ``weighted``, the largest coordinate is taken from ``weighted``; with ``whole``, there is one piece.
        """
        below = self._held[degree - 1]
        coordinates = self.weighted if weighted else self.columns
        if self._gathers:
            names = monomials(degree, rank, below.device)
            step = max(1, len(names.last) if whole else _CHUNK_BYTES // self._width)
            for start in range(0, len(names.last), step):
                part = slice(start, min(start + step, len(names.last)))
                factor = coordinates.index_select(1, names.last[part])
                yield part, below.index_select(1, names.parent[part]).mul_(factor)
            return
        key = (degree, rank, weighted)
        if key not in self._tiles:
            self._tiles[key] = self._plan(below, coordinates, degree, rank, None if whole else _TILE_BYTES)
        for part, features, products in self._tiles[key]:
            for prefix, coordinate, output in products:
                torch.mul(prefix, coordinate, out=output)
            yield part, features

    def _plan(self, below: Tensor, coordinates: Tensor, degree: int, rank: int, limit: Optional[int]) -> list[_Tile]:
        """Views for ``tiles``, which share one buffer."""
        N, _, C = below.shape
        starts = [count(degree, i) for i in range(rank + 1)]
        edges = [0]
        for i in range(1, rank + 1):
            full = limit is not None and (starts[i] - starts[edges[-1]]) * self._width > limit
            if full and i - 1 > edges[-1]:
                edges.append(i - 1)
        edges.append(rank)
        buffer = below.new_empty(N * C * max(starts[b] - starts[a] for a, b in zip(edges, edges[1:])))
        tiles = []
        for a, b in zip(edges, edges[1:]):
            part = slice(starts[a], starts[b])
            features = buffer[: N * C * (part.stop - part.start)].view(N, -1, C)
            products = []
            for i in range(a, b):
                output = features[:, starts[i] - part.start : starts[i + 1] - part.start]
                products.append((below[:, : output.shape[1]], coordinates[:, i : i + 1], output))
            tiles.append((part, features, products))
        return tiles


def fold(chunk: Chunk, keys: Tensor, values: Tensor, features: Tensor, sums: Tensor) -> None:
    """Add tokens to a state, in place.

    Args:
        chunk: room for the features of C tokens.
        keys: ``[N, C, d]``; a token that must not count has key and value zero and is left out of ``sums[:, 0]`` by the
            caller, who adds the number of tokens there.
        values: ``[N, C, d_v]``.
        features: ``[N, D, d_v]``, the state's numerators.
        sums: ``[N, D]``, the state's denominators; entry 0 is the caller's.

    """
    table = chunk.table
    features[:, 0] += values.sum(1)
    if table.order == 1:
        return
    chunk.load(keys.transpose(1, 2))
    degree_one = slice(table.offsets[1], table.offsets[2])
    features[:, degree_one].baddbmm_(chunk.columns, values)
    sums[:, degree_one] += chunk.columns.sum(-1)
    top = chunk.held(table.order)
    for degree in range(2, table.order):
        rank = table.ranks[degree]
        if rank == 0:
            return
        block = slice(table.offsets[degree], table.offsets[degree + 1])
        multiplicity = monomials(degree, rank, keys.device).multiplicity.to(keys.dtype)
        below = chunk.plain(min(degree - 1, top))
        if degree <= top + 1:
            _fold_sums(below, keys[:, :, :rank], sums[:, block], degree, multiplicity)
        target = features[:, block]
        if degree <= top:
            target.addcmul_(torch.bmm(chunk.plain(degree), values), multiplicity)
        elif degree == top + 1 and chunk.in_tiles(degree, rank):
            for part, made in chunk.tiles(degree, rank, weighted=False):
                target[:, part].addcmul_(torch.bmm(made, values), multiplicity[part])
        else:
            _fold_above(below, top, keys, values, None, degree, rank, target, sums[:, block], multiplicity)


def read(
    chunk: Chunk,
    queries: Tensor,
    coefficients: Sequence[Tensor],
    features: Tensor,
    sums: Tensor,
    ranks: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Evaluate a polynomial of the scores, summed over everything in a state.

    Args:
        chunk: room for the features of R rows.
        queries: coordinate-major ``[N, d, R]``, scaled.
        coefficients: per degree, ``[N, 1, R]`` or ``[N, ranks[p], R]``, one per row and largest coordinate; R may be 1.
        features: ``[N, D, d_v]``.
        sums: ``[N, D]``.
        ranks: coordinates each degree uses, at most the table's; the table's order may exceed the number of
            coefficients (then a prefix of the state is read).

    Returns:
        Numerators ``[N, R, d_v]`` and denominators ``[N, R]``.

    """
    table, order = chunk.table, len(coefficients)
    constant = coefficients[0].expand(-1, -1, queries.shape[2])
    numerator = constant.transpose(1, 2) * features[:, :1]
    denominator = constant[:, 0] * sums[:, :1]
    chunk.load(queries)
    top = chunk.held(order)
    for degree in range(1, order):
        rank = ranks[degree]
        if rank == 0:
            break
        block = slice(table.offsets[degree], table.offsets[degree] + count(degree, rank))
        weighted = chunk.weigh(coefficients[degree], rank)
        if degree == 1:
            numerator.baddbmm_(weighted.transpose(1, 2), features[:, block])
            denominator.unsqueeze(1).baddbmm_(sums[:, None, block], weighted)
            continue
        below = chunk.plain(min(degree - 1, top))
        if degree <= top + 1:
            denominator += _read_sums(below, weighted, sums[:, block], degree)
        source = features[:, block]
        if degree <= top and coefficients[degree].shape[1] == 1:
            product = torch.bmm(chunk.plain(degree)[:, : source.shape[1]].transpose(1, 2), source)
            numerator.addcmul_(product, coefficients[degree].transpose(1, 2))
        elif degree <= top or (degree == top + 1 and chunk.in_tiles(degree, rank)):
            for part, made in chunk.tiles(degree, rank, weighted=True):
                numerator.baddbmm_(made.transpose(1, 2), source[:, part])
        else:
            _read_above(below, top, weighted, queries, degree, rank, source, sums[:, block], numerator, denominator)
    return numerator, denominator


def _fold_sums(
    below: Tensor, keys: Tensor, sums: Tensor, degree: int, multiplicity: Tensor, scale: Optional[Tensor] = None
) -> None:
    """Add ``sum_j m phi(k_j)`` of one degree, as products of degree - 1 with the coordinates ``[N, C, r]``."""
    names = monomials(degree, keys.shape[-1], keys.device)
    prefix = below[:, : count(degree - 1, keys.shape[-1])]
    pairs = torch.bmm((keys if scale is None else keys * scale).transpose(1, 2), prefix.transpose(1, 2))
    sums.addcmul_(pairs.flatten(1).index_select(1, names.pair), multiplicity[:, 0])


def _read_sums(plain: Tensor, weighted: Tensor, sums: Tensor, degree: int) -> Tensor:
    """``[N, R]``: one degree's denominators, a quadratic form between degree - 1 and the coordinates."""
    rank = weighted.shape[1]
    names = monomials(degree, rank, sums.device)
    below = count(degree - 1, rank)
    padded = torch.nn.functional.pad(sums, (0, 1))
    pairs = padded.index_select(1, names.unpair).view(-1, rank, below)
    return torch.bmm(pairs, plain[:, :below]).mul_(weighted).sum(1)


def _fold_above(
    plain: Tensor,
    held: int,
    keys: Tensor,
    values: Tensor,
    scale: Optional[Tensor],
    degree: int,
    rank: int,
    features: Tensor,
    sums: Tensor,
    multiplicity: Tensor,
) -> None:
    """Fold a degree above the held one: one block per largest coordinate, recursively down to the held degree.

    ``scale`` ``[N, C, 1]`` is the product of the coordinates chosen so far, ``features`` and ``sums`` the block's rows.
    """
    if scale is not None and degree == held + 1:
        _fold_sums(plain, keys[:, :, :rank], sums, degree, multiplicity, scale)
    for i in range(rank):
        start = count(degree, i)
        block = slice(start, start + count(degree - 1, i + 1))
        factor = keys[:, :, i : i + 1] if scale is None else keys[:, :, i : i + 1] * scale
        if degree - 1 == held:
            product = torch.bmm(plain[:, : block.stop - block.start], values * factor)
            features[:, block].addcmul_(product, multiplicity[block])
        else:
            inner = features[:, block], sums[:, block], multiplicity[block]
            _fold_above(plain, held, keys, values, factor, degree - 1, i + 1, *inner)


def _read_above(
    plain: Tensor,
    held: int,
    weighted: Tensor,
    queries: Tensor,
    degree: int,
    rank: int,
    features: Tensor,
    sums: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    nested: bool = False,
) -> None:
    """Read a degree above the held one, block by block as in ``_fold_above``, onto numerator and denominator.

    ``weighted`` ``[N, rank, R]`` are the candidates for the next largest coordinate times what was chosen so far.
    """
    if nested and degree == held + 1:
        denominator += _read_sums(plain, weighted, sums, degree)
    for i in range(rank):
        start = count(degree, i)
        block = slice(start, start + count(degree - 1, i + 1))
        if degree - 1 == held:
            product = torch.bmm(plain[:, : block.stop - block.start].transpose(1, 2), features[:, block])
            numerator.addcmul_(product, weighted[:, i, :, None])
        else:
            inner = queries[:, : i + 1] * weighted[:, i : i + 1]
            rows = features[:, block], sums[:, block]
            _read_above(plain, held, inner, queries, degree - 1, i + 1, *rows, numerator, denominator, True)
