"""What attention remembers of the tokens it has seen: sums of features, the tokens not in them yet, sinks, exact KV.

KV heads that compute alike (same largest order, ranks, window, sinks) form a part, so that decoding handles all of them
in one batch of products; those without a polynomial do that as one part (``near_slots``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Optional, Union

import torch
from torch import Tensor

from .held import Change, Holder
from .spec import HeadSpec, deepest, ignores_shifts
from .tables import FeatureTable
from .token_buffer import TokenBuffer


@dataclass(frozen=True)
class StateShape:
    """What the keys and values of every call that continues a state must agree with."""

    batch: int
    kv_heads: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(k: Tensor, v: Tensor) -> StateShape:
        """Read it off keys ``[B, G, T, d]`` and values ``[B, G, T, d_v]``."""
        return StateShape(k.shape[0], k.shape[1], k.shape[3], v.shape[3], k.dtype, k.device)


class Part(Holder, ABC):
    """What a backend keeps for some of the KV heads.

    Attributes:
        kv_heads: which ones, ascending.

    """

    kv_heads: tuple[int, ...]

    @property
    @abstractmethod
    def nominal_bytes(self) -> int:
        """Bytes with keys and values counted in 16 bits and sums in 32."""


class ExactPart(Part):
    """KV heads that keep every token: ordinary softmax attention, and the score-space backend for any spec.

    Attributes:
        recent: the tokens.
        priority: their priorities, float32 ``[B, G, S]``; None where no head asks for any.

    """

    def __init__(self, kv_heads: Sequence[int], k: Tensor, v: Tensor, *, ranked: bool = False) -> None:
        self.kv_heads = tuple(kv_heads)
        self.recent = TokenBuffer(k, v, len(self.kv_heads))
        self.priority = k.new_zeros(k.shape[0], len(self.kv_heads), 0, dtype=torch.float32) if ranked else None

    def add_priorities(self, priority: Optional[Tensor]) -> None:
        """Keep the priorities ``[B, G, T]`` of new tokens, if any head asks for them."""
        if self.priority is not None and priority is not None:
            self.priority = torch.cat([self.priority, priority], 2)

    def make_room(self, held: dict[str, Tensor]) -> None:
        super().make_room(held)
        if self.priority is not None and "priority" in held:
            self.priority = torch.empty_like(held["priority"])

    @property
    def nominal_bytes(self) -> int:
        return self.recent.nominal_bytes()


class TruncatedKvHeads(Part):
    """What both backends keep alike of KV heads that truncate: their first tokens.

    Attributes:
        specs: the specs of each KV head's query heads.
        sink_keys, sink_values: ``[B, G, slots, *]``, the first valid tokens.
        seen: int64 ``[B]``, valid tokens so far, counted until every sequence has all sinks.
        sinks_filled: whether every sequence has all sinks.

    """

    def __init__(self, kv_heads: Sequence[int], specs: Sequence[Sequence[HeadSpec]], k: Tensor, v: Tensor) -> None:
        self.kv_heads, self.specs = tuple(kv_heads), tuple(tuple(group) for group in specs)
        B, G, slots = k.shape[0], len(kv_heads), max(group[0].near.sinks for group in specs)
        self.sink_keys, self.sink_values = (x.new_zeros(B, G, slots, x.shape[-1]) for x in (k, v))
        self.seen = torch.zeros(B, dtype=torch.int64, device=k.device)
        self.sinks_filled = slots == 0

    def store_sinks(self, k: Tensor, v: Tensor, valid: Optional[Tensor]) -> Optional[Tensor]:
        """Store new sinks ``k`` ``[B, G, T, d]``, ``v``, unless every sink was there before: None then.

        Returns how many valid tokens there were up to each new one, itself included, int64 ``[B, T]``.
        """
        if self.sinks_filled:
            return None
        slots = self.sink_keys.shape[2]
        known = torch.ones(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device) if valid is None else valid
        rank = self.seen[:, None] + known.cumsum(1)
        for b in range(k.shape[0]):
            index = (known[b] & (rank[b] <= slots)).nonzero()[:, 0]
            slot = rank[b, index] - 1
            self.sink_keys[b, :, slot] = k[b][:, index]
            self.sink_values[b, :, slot] = v[b][:, index]
        self.seen = rank[:, -1].clone()  # a view would keep the whole prefill alive
        self.sinks_filled = bool((self.seen >= slots).all())
        return rank

    def take(self, held: dict[str, Tensor]) -> None:
        super().take(held)
        self.sinks_filled = bool((self.seen >= self.sink_keys.shape[2]).all())


class TaylorPart(TruncatedKvHeads):
    """KV heads with one feature table.

    Attributes:
        table: their features.
        near: their near field.
        features: ``[B, len(kv_heads), D, d_v]``, sum of multiplicity x feature x value over the folded tokens; None
            until the first ones are folded.
        sums: ``[B, len(kv_heads), D]``, the same with value 1; the first entry counts the folded tokens.
        shifts: whether no query head notices a vector subtracted from all keys.
        origin: ``[B, len(kv_heads), d]``, that vector, the mean of the first tokens folded; None before, or if it does
            not shift.
        recent: tokens that are not folded; sinks are marked there as not to be used.

    """

    def __init__(self, kv_heads: Sequence[int], specs: Sequence[Sequence[HeadSpec]], k: Tensor, v: Tensor) -> None:
        flat = [spec for group in specs for spec in group]
        longest = deepest(flat)
        if longest is None:
            raise ValueError(f"KV heads {list(kv_heads)} have no polynomial, and so no features")
        # The sum of the keys, which means are read from, is of degree 1.
        order = max(longest.order, 2) if any(spec.around_mean for spec in flat) else longest.order
        self.near = flat[0].near
        super().__init__(kv_heads, specs, k, v)
        self.table = FeatureTable.build(k.shape[-1], order, longest.ranks)
        self.shifts = ignores_shifts(flat)
        self.origin: Optional[Tensor] = None
        self.features: Optional[Tensor] = None
        self.sums: Optional[Tensor] = None
        self.recent = TokenBuffer(k, v, len(kv_heads))

    def start_features(self, dtype: torch.dtype) -> None:
        """Begin with features and sums of zero, unless something was folded already."""
        if self.features is None:
            B, Gb, _, d_v = self.recent.values.shape
            self.features = self.recent.values.new_zeros(B, Gb, self.table.features, d_v, dtype=dtype)
            self.sums = self.features.new_zeros(B, Gb, self.table.features)
            self.origin = self.features.new_zeros(B, Gb, self.recent.keys.shape[-1]) if self.shifts else None

    def make_room(self, held: dict[str, Tensor]) -> None:
        super().make_room(held)
        if "features" in held:
            self.start_features(held["features"].dtype)

    @property
    def nominal_bytes(self) -> int:
        kv = self.recent.nominal_bytes(self.near.sinks)
        if self.features is None or self.sums is None:
            return kv
        return kv + 4 * (self.features.numel() + self.sums.numel())


class KeptPart(TaylorPart):
    """KV heads that keep keys by priority; ``recent`` holds the tokens that are far and not folded.

    Attributes:
        near_keys, near_values: ``[B, G, M, *]``, the keys kept, then those in the window, each in the order they were
            made; sinks and padding among them are not to be used.
        priority: float32 ``[B, G, M]``, minus infinity for those.

    """

    def __init__(self, kv_heads: Sequence[int], specs: Sequence[Sequence[HeadSpec]], k: Tensor, v: Tensor) -> None:
        super().__init__(kv_heads, specs, k, v)
        B, G = k.shape[0], len(kv_heads)
        self.near_keys, self.near_values = k.new_empty(B, G, 0, k.shape[-1]), v.new_empty(B, G, 0, v.shape[-1])
        self.priority = k.new_empty(B, G, 0, dtype=torch.float32)

    @property
    def kept(self) -> int:
        """How many of the near keys have left the window."""
        tokens = self.priority.shape[2]
        return tokens - min(self.near.window, tokens)

    def make_room(self, held: dict[str, Tensor]) -> None:
        super().make_room(held)
        tokens = held["priority"].shape[2] if "priority" in held and held["priority"].ndim == 3 else 0
        for name in ("near_keys", "near_values", "priority"):
            tensor = getattr(self, name)
            setattr(self, name, tensor.new_empty(*tensor.shape[:2], tokens, *tensor.shape[3:]))

    @property
    def nominal_bytes(self) -> int:
        B, G, tokens, d = self.near_keys.shape
        of_token = 2 * (d + self.near_values.shape[-1])
        return super().nominal_bytes + B * G * (tokens * of_token + 4 * self.kept)


class State:
    """Everything a later call needs to go on, constant in size for KV heads that are not exact.

    ``taylor_attention`` updates the state it is given in place and returns the same object; ``clone`` before the call
    forks it. Row b of every tensor belongs to sequence b, and nothing mixes rows, so ``index_select`` and
    ``repeat_interleave`` are all that beam search and reordering need.

    Attributes:
        heads: the specs it was made for.
        backend: the backend that made it and alone can go on from it.
        tokens: tokens seen, padding included.
        guarded: int64 ``[H]``, rows so far that fell back to order 1 (padding left out).
        parts: what is held per kind of KV head.

    """

    def __init__(self, heads: Sequence[HeadSpec], backend: str, parts: Sequence[Part], shape: StateShape) -> None:
        self.heads, self.backend, self.parts, self.shape = tuple(heads), backend, tuple(parts), shape
        self.tokens = 0
        self.guarded = torch.zeros(len(heads), dtype=torch.int64, device=shape.device)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held, spare capacity included."""
        return sum(part.nbytes for part in self.parts)

    @property
    def nominal_bytes(self) -> int:
        """Bytes with keys and values counted in 16 bits and sums in 32, whatever this run uses."""
        return sum(part.nominal_bytes for part in self.parts)

    def clone(self) -> State:
        """Return an independent copy."""
        return self._map(torch.clone, self.shape)

    def index_select(self, indices: Tensor) -> State:
        """Return the state of sequences ``indices`` (int64 ``[B']``, repeats allowed)."""
        return self._map(
            lambda tensor: tensor.index_select(0, indices.to(tensor.device)), replace(self.shape, batch=len(indices))
        )

    def repeat_interleave(self, repeats: int) -> State:
        """Return the state with every sequence repeated."""
        shape = replace(self.shape, batch=self.shape.batch * repeats)
        return self._map(lambda tensor: tensor.repeat_interleave(repeats, 0), shape)

    def to(self, device: Union[str, torch.device]) -> State:
        """Return a copy on another device."""
        target = torch.device(device)
        copy = self._map(lambda tensor: tensor.to(target, copy=True), replace(self.shape, device=target))
        copy.guarded = copy.guarded.to(target)
        copy.shape = replace(copy.shape, device=copy.guarded.device)  # "cuda" has become "cuda:0"
        return copy

    def _map(self, change: Change, shape: StateShape) -> State:
        copy = State(self.heads, self.backend, [part.map(change) for part in self.parts], shape)
        copy.tokens, copy.guarded = self.tokens, self.guarded.clone()
        return copy
