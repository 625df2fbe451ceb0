"""Near keys in slots: what is held of KV heads that drop their far keys, whatever the sizes of their near fields.

The slots of all KV heads lie in one row per sequence, those of a KV head side by side, so that one product serves all
of them. A key stays in its slot until it is far. Every KV head has one slot more than it has near keys, the spare one:
the next key goes there, and the slot of the key that thereby becomes far is the next spare one. Nothing is moved.
Padding takes a slot like any other token, ranks below every key and is hidden, so that all sequences of a batch, and
all KV heads, lose one token for one they gain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from .held import Change
from .spec import HeadSpec, Near
from .state import Part
from .token_buffer import selection

_POSITION = (1 << 32) - 1
"""The bits of a rank that hold the token's position; those above hold its priority."""

_SINK, _PADDING, _LATEST = ((1 << 31) - 1) << 32, -(1 << 63), (1 << 63) - 1
"""Ranks above and below those of all priorities, and that of an empty slot: later than any token."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the slots of G KV heads lie, S in all.

    Attributes:
        counts: slots of each.
        starts: the first slot of each.
        sizes, firsts: the same as tensors, int64 ``[G]``.
        windows, sinks: of their near fields, int64 ``[G, 1]``.
        numbers: slots of each KV head, int64 ``[G * M]``; S, where an empty slot is, for those of fewer than M.
        others: bool ``[G, 1, S]``, True at slots of other KV heads.

    """

    counts: tuple[int, ...]
    starts: tuple[int, ...]
    sizes: Tensor
    firsts: Tensor
    windows: Tensor
    sinks: Tensor
    numbers: Tensor
    others: Tensor

    @staticmethod
    def build(nears: Sequence[Near], room: int, device: torch.device) -> Layout:
        """Slots for at most ``room`` tokens of each KV head, and the spare ones."""
        counts = _counts(nears, room)
        starts = tuple(sum(counts[:g]) for g in range(len(counts)))
        total, most = sum(counts), max(counts)
        slots = [
            start + slot if slot < count else total for start, count in zip(starts, counts) for slot in range(most)
        ]
        others = torch.ones(len(nears), 1, total, dtype=torch.bool)
        for g, (start, count) in enumerate(zip(starts, counts)):
            others[g, 0, start : start + count] = False
        sizes, firsts, numbers = (torch.tensor(values, device=device) for values in (counts, starts, slots))
        windows, sinks = (
            torch.tensor(values, device=device)[:, None]
            for values in zip(*((near.window, near.sinks) for near in nears))
        )
        return Layout(counts, starts, sizes, firsts, windows, sinks, numbers, others.to(device))

    def slots(self, g: int) -> slice:
        """Those of one KV head."""
        return slice(self.starts[g], self.starts[g] + self.counts[g])


def _counts(nears: Sequence[Near], room: int) -> tuple[int, ...]:
    """Slots of each KV head that has them for at most ``room`` tokens: the spare one comes on top."""
    return tuple(min(near.tokens, room) + 1 for near in nears)


@dataclass(frozen=True)
class RankedTokens:
    """Keys ``[B, G, N, d]``, values ``[B, G, N, d_v]`` and ranks, int64 ``[B, G, N]``."""

    keys: Tensor
    values: Tensor
    ranks: Tensor

    def of(self, kv_heads: Sequence[int]) -> RankedTokens:
        """Those of some KV heads."""
        heads = selection(kv_heads)
        return RankedTokens(self.keys[:, heads], self.values[:, heads], self.ranks[:, heads])

    def followed_by(self, other: RankedTokens) -> RankedTokens:
        """These, then the others."""
        if not self.ranks.shape[2]:
            return other
        keys, values = torch.cat([self.keys, other.keys], 2), torch.cat([self.values, other.values], 2)
        return RankedTokens(keys, values, torch.cat([self.ranks, other.ranks], 2))

    def at(self, index: Tensor) -> RankedTokens:
        """Those of numbers ``[B, G, N']``."""
        keys, values = (
            tensor.gather(2, index[..., None].expand(-1, -1, -1, tensor.shape[-1]))
            for tensor in (self.keys, self.values)
        )
        return RankedTokens(keys, values, self.ranks.gather(2, index))


class NearPart(Part):
    """KV heads without a far field, G of them, of any mixture of near fields.

    Attributes:
        nears: their near fields.
        keys: ``[B, S, d]``, a key in every slot.
        values: ``[B, S, d_v]``.
        ranks: int64 ``[B, S + 1]``, the order in which keys make room for others, the lowest first: by priority, and of
            equal ones the later key stays. The last entry is that of an empty slot.
        hidden: ``[B, S]`` of the dtype to compute in, minus infinity at slots nobody attends to, 0 elsewhere.
        spare: int64 ``[B, G]``, the slot of the next key.
        valid_tokens: int64 ``[B]``, valid tokens so far, counted until every sequence has all sinks.
        sinks_filled: whether every sequence has all sinks.
        tokens: tokens so far, padding included.
        layout: where the slots lie.
        ranked: whether any KV head keeps keys.
        blind: KV heads whose near field holds nothing.
        dtype: to compute in.

    """

    def __init__(self, kv_heads: Sequence[int], specs: Sequence[Sequence[HeadSpec]], k: Tensor, v: Tensor) -> None:
        self.kv_heads, self.nears = tuple(kv_heads), tuple(group[0].near for group in specs)
        self.tokens, self.layout = 0, Layout.build(self.nears, 0, k.device)
        self.ranked = any(near.kept for near in self.nears)
        self.blind = [g for g, near in enumerate(self.nears) if not near.tokens]
        self.dtype = torch.float64 if k.dtype == torch.float64 else torch.float32
        B, G = k.shape[0], len(self.kv_heads)
        self.keys, self.values = k.new_zeros(B, G, k.shape[-1]), v.new_zeros(B, G, v.shape[-1])
        self.ranks = torch.full((B, G + 1), _LATEST, dtype=torch.int64, device=k.device)
        self.hidden = torch.full((B, G), -math.inf, dtype=self.dtype, device=k.device)
        self.spare = torch.arange(G, device=k.device).repeat(B, 1)
        self.valid_tokens = torch.zeros(B, dtype=torch.int64, device=k.device)
        self.sinks_filled = self._all_sinks()

    def map(self, change: Change) -> NearPart:
        copy = super().map(change)
        if copy.spare.device != self.spare.device:
            copy.layout = Layout.build(self.nears, max(self.layout.counts) - 1, copy.spare.device)
        return copy

    def reserve(self, tokens: int) -> None:
        """Have slots for so many tokens of each KV head, or for as many as are ever near."""
        before, most = self.layout, max(near.tokens for near in self.nears)
        if min(tokens, most) < max(before.counts):
            return
        room = min(tokens + (max(64, tokens // 8) if self.tokens else 0), most)
        held = self.keys, self.values, self.ranks, self.hidden
        self._make(Layout.build(self.nears, room, self.spare.device))
        for old, new in zip(held, (self.keys, self.values, self.ranks, self.hidden)):
            for g, start in enumerate(self.layout.starts):
                new[:, start : start + before.counts[g]] = old[:, before.slots(g)]
        self.spare = self.spare + (self.layout.firsts - before.firsts)

    def _make(self, layout: Layout) -> None:
        """Have empty slots."""
        B, slots = self.keys.shape[0], sum(layout.counts)
        self.layout = layout
        self.keys = self.keys.new_zeros(B, slots, self.keys.shape[-1])
        self.values = self.values.new_zeros(B, slots, self.values.shape[-1])
        self.ranks = self.ranks.new_full((B, slots + 1), _LATEST)
        self.hidden = self.hidden.new_full((B, slots), -math.inf)

    def rank(self, priority: Optional[Tensor], valid: Optional[Tensor], tokens: int) -> Tensor:
        """Ranks of the next tokens, int64 ``[B, G, T]``; they are counted as seen.

        Args:
            priority: float32 ``[B, G, T]``; not looked at if no KV head keeps keys.
            valid: bool ``[B, T]``, False for padding; None if there is none.
            tokens: T.

        """
        layout, device = self.layout, self.spare.device
        ranks = position = torch.arange(self.tokens, self.tokens + tokens, device=device)
        if priority is not None and self.ranked:
            # Floats are ordered as integers are once the bits of negative ones are turned round; -0 is as good as 0.
            bits = (priority + 0.0).view(torch.int32)
            # Where none are kept it does not matter: one key leaves a window at a time, and nothing competes with it.
            ranks = ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32) | position
        if not self.sinks_filled:
            known = torch.ones(len(self.spare), tokens, device=device) if valid is None else valid
            number = self.valid_tokens[:, None] + known.long().cumsum(1)
            self.valid_tokens = number[:, -1].clone()  # a view would keep the whole prefill alive
            self.sinks_filled = self._all_sinks()
            ranks = torch.where(number[:, None] <= layout.sinks, position | _SINK, ranks)
        if valid is not None:
            ranks = torch.where(valid[:, None], ranks, position | _PADDING)
        self.tokens += tokens
        return ranks.expand(*self.spare.shape, tokens)

    def add(self, new: RankedTokens, *, padded: bool) -> None:
        """Put one token ``[B, G, 1, *]`` into the spare slots, and take out what is far since."""
        self._put(self.spare, new, padded)
        layout = self.layout
        ranks = self.ranks.index_select(1, layout.numbers).view(*self.spare.shape, -1)
        competing = (ranks & _POSITION) < self.tokens - layout.windows
        spare = torch.where(competing, ranks, _LATEST).argmin(-1) + layout.firsts
        if self.tokens < max(layout.counts):  # some KV heads have slots that were never used
            spare = torch.where(layout.sizes > self.tokens, layout.firsts + self.tokens, spare)
        self._spare(spare)

    def ordered(self, kv_heads: Sequence[int], tokens: int) -> RankedTokens:
        """What is near for ``n`` KV heads of one near field after so many tokens, in the order it was made.

        KV heads are numbered within the part.
        """
        layout, near = self.layout, self.nears[kv_heads[0]]
        slot = torch.arange(layout.counts[kv_heads[0]], device=self.spare.device)
        slots = layout.firsts[list(kv_heads)][:, None] + slot
        ranks = self.ranks.scatter(1, self.spare, _LATEST)[:, slots]
        order = (ranks & _POSITION).argsort(-1)[..., : min(tokens, near.tokens)]
        index = slots.expand_as(ranks).gather(-1, order).flatten(1)
        keys, values = (
            tensor.gather(1, index[..., None].expand(-1, -1, tensor.shape[-1])).view(*order.shape, tensor.shape[-1])
            for tensor in (self.keys, self.values)
        )
        return RankedTokens(keys, values, ranks.gather(-1, order))

    def refill(self, kv_heads: Sequence[int], tokens: RankedTokens) -> None:
        """Put tokens ``[B, n, N, *]``, padding or not, into the first slots of n KV heads of one near field."""
        slot = torch.arange(tokens.ranks.shape[2], device=self.spare.device)
        slots = (self.layout.firsts[list(kv_heads)][:, None] + slot).flatten()
        self._put(slots.expand(len(self.spare), -1), tokens, padded=True)

    def start_over(self) -> None:
        """Find the spare slots after all KV heads were refilled: those behind the last one in use."""
        layout = self.layout
        self._spare((layout.firsts + (layout.sizes - 1).clamp(max=self.tokens)).repeat(len(self.spare), 1))

    def _put(self, slots: Tensor, tokens: RankedTokens, padded: bool) -> None:
        """Put tokens ``[B, n, N, *]``, of which some are padding if ``padded``, into slots ``[B, n * N]``."""
        for held, new in ((self.keys, tokens.keys), (self.values, tokens.values)):
            held.scatter_(1, slots[..., None].expand(-1, -1, new.shape[-1]), new.flatten(1, 2))
        ranks = tokens.ranks.flatten(1)
        self.ranks.scatter_(1, slots, ranks)
        self.hidden.scatter_(1, slots, 0.0)
        if padded:
            self.hidden.scatter_(1, slots, torch.where(is_padding(ranks), -math.inf, 0.0).to(self.dtype))

    def _spare(self, slots: Tensor) -> None:
        self.spare = slots
        self.hidden.scatter_(1, slots, -math.inf)

    def held(self) -> dict[str, Tensor]:
        return {**super().held(), "tokens": self.valid_tokens.new_full(self.valid_tokens.shape, self.tokens)}

    def make_room(self, held: dict[str, Tensor]) -> None:
        slots = held["keys"].shape[1] if "keys" in held and held["keys"].ndim == 3 else 0
        most, room = max(near.tokens for near in self.nears), 0
        while room < most and sum(_counts(self.nears, room)) < slots:
            room += 1
        self._make(Layout.build(self.nears, room, self.spare.device))

    def take(self, held: dict[str, Tensor]) -> None:
        super().take(held)
        self.tokens = int(held["tokens"][0])
        self.sinks_filled = self._all_sinks()

    def _all_sinks(self) -> bool:
        return bool((self.valid_tokens >= max(near.sinks for near in self.nears)).all())

    @property
    def nominal_bytes(self) -> int:
        B, of_token = len(self.keys), 2 * (self.keys.shape[-1] + self.values.shape[-1])
        tokens = sum(min(self.tokens, near.tokens) for near in self.nears)
        kept = sum(min(near.kept, max(0, self.tokens - near.window)) for near in self.nears)
        return B * (tokens * of_token + 4 * kept)


def is_padding(ranks: Tensor) -> Tensor:
    """Which ranks are those of padding."""
    return ranks <= (_PADDING | _POSITION)
