"""What attention remembers of the tokens it has seen: sums of features, the tokens not in them yet, sinks, exact KV.

KV heads that compute alike (same largest order, ranks, window, sinks) form a part, so that decoding handles all of them
in one batch of products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Callable, Optional, Protocol, Union

import torch
from torch import Tensor

from .spec import Dropped, HeadSpec, Taylor, deepest, ignores_shifts
from .tables import FeatureTable
from .token_buffer import TokenBuffer

Change = Callable[[Tensor], Tensor]


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


class Part(Protocol):
    """What a backend keeps for some of the KV heads."""

    kv_heads: tuple[int, ...]

    def map(self, change: Change) -> Part:
        """Return a copy with ``change`` applied to every tensor; the first dimension of each is the batch."""
        ...

    def held(self) -> dict[str, Tensor]:
        """Return everything held, by name, to be written to a file."""
        ...

    def put(self, held: dict[str, Tensor]) -> None:
        """Fill an empty part with what ``held`` returned.

        Raises:
            ValueError: names, shapes or dtypes are not those of such a part.

        """
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held, spare capacity included."""
        ...

    @property
    def nominal_bytes(self) -> int:
        """Bytes with keys and values counted in 16 bits and sums in 32."""
        ...


class ExactPart:
    """KV heads that keep every token: ordinary softmax attention, and the score-space backend for any spec."""

    def __init__(self, kv_heads: Sequence[int], recent: TokenBuffer) -> None:
        self.kv_heads = tuple(kv_heads)
        self.recent = recent

    def held(self) -> dict[str, Tensor]:
        return _held_tokens(self.recent)

    def put(self, held: dict[str, Tensor]) -> None:
        held = dict(held)
        _put_tokens(self.recent, held)
        check_names(held, {})

    def map(self, change: Change) -> ExactPart:
        return ExactPart(self.kv_heads, self.recent.map(change))

    @property
    def nbytes(self) -> int:
        return self.recent.nbytes

    @property
    def nominal_bytes(self) -> int:
        return _nominal(self.recent.keys, self.recent.values, self.recent.length)


class TaylorPart:
    """KV heads with one feature table.

    Attributes:
        kv_heads: which KV heads, ascending.
        specs: the specs of each one's query heads.
        table: their features.
        near: their near field.
        drops_far: whether no query head has a far field: nothing is folded then, far tokens are forgotten.
        features: ``[B, len(kv_heads), D, d_v]``, sum of multiplicity x feature x value over the folded tokens; None
            until the first ones are folded.
        sums: ``[B, len(kv_heads), D]``, the same with value 1; the first entry counts the folded tokens.
        shifts: whether no query head notices a vector subtracted from all keys.
        origin: ``[B, len(kv_heads), d]``, that vector, the mean of the first tokens folded; None before, or if it does
            not shift.
        recent: tokens that are not folded; sinks are marked there as not to be used.
        sink_keys, sink_values: ``[B, len(kv_heads), sinks, *]``, the first valid tokens.
        seen: int64 ``[B]``, valid tokens so far.

    """

    def __init__(self, kv_heads: Sequence[int], specs: Sequence[Sequence[HeadSpec]], k: Tensor, v: Tensor) -> None:
        flat = [spec for group in specs for spec in group]
        longest = deepest(flat) or Taylor(1)
        # The sum of the keys, which means are read from, is of degree 1.
        order = max(longest.order, 2) if any(spec.around_mean for spec in flat) else longest.order
        self.kv_heads, self.specs = tuple(kv_heads), tuple(tuple(group) for group in specs)
        self.table = FeatureTable.build(k.shape[-1], order, longest.ranks)
        self.near = flat[0].near
        self.drops_far = all(isinstance(spec.far, Dropped) for spec in flat)
        self.shifts = ignores_shifts(flat)
        self.origin: Optional[Tensor] = None
        self.features: Optional[Tensor] = None
        self.sums: Optional[Tensor] = None
        self.recent = TokenBuffer(k, v, len(kv_heads))
        B, Gb = k.shape[0], len(kv_heads)
        self.sink_keys = k.new_zeros(B, Gb, self.near.sinks, k.shape[-1])
        self.sink_values = v.new_zeros(B, Gb, self.near.sinks, v.shape[-1])
        self.seen = torch.zeros(B, dtype=torch.int64, device=k.device)

    def start_features(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return features and sums, zero if nothing was folded yet."""
        if self.features is None or self.sums is None:
            B, Gb, _, d_v = self.recent.values.shape
            self.features = self.recent.values.new_zeros(B, Gb, self.table.features, d_v, dtype=dtype)
            self.sums = self.features.new_zeros(B, Gb, self.table.features)
            self.origin = self.features.new_zeros(B, Gb, self.recent.keys.shape[-1]) if self.shifts else None
        return self.features, self.sums

    def held(self) -> dict[str, Tensor]:
        return {**_held_tokens(self.recent), **self._own()}

    def put(self, held: dict[str, Tensor]) -> None:
        held = dict(held)
        _put_tokens(self.recent, held)
        if "features" in held:
            self.start_features(held["features"].dtype)
        check_names(held, self._own())
        for name, tensor in held.items():
            setattr(self, name, tensor)

    def _own(self) -> dict[str, Tensor]:
        """What is held besides recent tokens: sums, sinks, counts."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def map(self, change: Change) -> TaylorPart:
        copy = TaylorPart.__new__(TaylorPart)
        copy.__dict__.update(self.__dict__)
        copy.recent = self.recent.map(change)
        copy.features = None if self.features is None else change(self.features)
        copy.sums = None if self.sums is None else change(self.sums)
        copy.origin = None if self.origin is None else change(self.origin)
        copy.sink_keys, copy.sink_values = change(self.sink_keys), change(self.sink_values)
        copy.seen = change(self.seen)
        return copy

    @property
    def nbytes(self) -> int:
        held = [self.sink_keys, self.sink_values, self.seen]
        held += [tensor for tensor in (self.features, self.sums, self.origin) if tensor is not None]
        return self.recent.nbytes + sum(tensor.numel() * tensor.element_size() for tensor in held)

    @property
    def nominal_bytes(self) -> int:
        kv = _nominal(self.recent.keys, self.recent.values, self.recent.length + self.near.sinks)
        if self.features is None or self.sums is None:
            return kv
        return kv + 4 * (self.features.numel() + self.sums.numel())


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


def check_names(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Refuse tensors that differ from the expected ones in name, shape or dtype.

    Raises:
        ValueError: they do.

    """
    if expected.keys() != found.keys():
        raise ValueError(f"a part of a state has {sorted(found)}, expected {sorted(expected)}")
    for name, tensor in found.items():
        like = expected[name]
        if like.shape != tensor.shape or like.dtype != tensor.dtype:
            raise ValueError(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {like.dtype} {tuple(like.shape)}"
            )


def _held_tokens(recent: TokenBuffer) -> dict[str, Tensor]:
    named = zip(("keys", "values", "keep"), recent.view())
    return {f"recent.{name}": tensor for name, tensor in named if tensor is not None}


def _put_tokens(recent: TokenBuffer, held: dict[str, Tensor]) -> None:
    """Take the recent tokens out of ``held``."""
    names = ["recent.keys", "recent.values", "recent.keep"]
    tokens = {name: held.pop(name) for name in names if name in held}
    if "recent.keys" not in tokens or tokens["recent.keys"].ndim != 4:
        raise ValueError(f"a part of a state has {sorted(tokens)}, expected recent.keys [B, G, T, d]")
    B, G, d, T = *recent.keys.shape[:2], recent.keys.shape[3], tokens["recent.keys"].shape[2]
    expected = {
        "recent.keys": torch.empty(B, G, T, d, dtype=recent.keys.dtype, device="meta"),
        "recent.values": torch.empty(B, G, T, recent.values.shape[3], dtype=recent.values.dtype, device="meta"),
        "recent.keep": torch.empty(B, T, dtype=torch.bool, device="meta"),
    }
    check_names(tokens, {name: like for name, like in expected.items() if name in tokens or name != "recent.keep"})
    recent.append(tokens["recent.keys"], tokens["recent.values"], tokens.get("recent.keep"))


def _nominal(keys: Tensor, values: Tensor, tokens: int) -> int:
    B, G, _, d = keys.shape
    return 2 * B * G * tokens * (d + values.shape[-1])
